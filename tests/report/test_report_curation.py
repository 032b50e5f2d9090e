"""The page of a curation says what its artifacts say: columns, agreement, both sides of rules, near-duplicates,
networks, downloads."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_way import draw_picture, small_pool
from test_report_page import page_of, section

from rebus.engine import list_shards
from rebus.fingerprint import Manifest, write_manifest
from rebus.report import score_sample
from rebus.report.agreement import jaccard, ranks, spearman, what_is_kept
from rebus.report.gather import find_way
from rebus.report.page import MISSING
from rebus.report.rule_words import columns_of, words_of
from rebus.report.score_sample import Column, read_scored
from rebus.report.section_curation import NUM_TWINS, from_near_to_far
from rebus.report.section_scores import around, in_order
from rebus.selection.config import SelectionRecipe
from rebus.selection.run import run as select
from rebus.shards.read import read_index

WORDS = ["en"] * 30 + ["de"] * 6 + [None] * 4


def rank_by_hand(values: list[float]) -> list[float]:
    """From 1; equal values share the mean of their places."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def spearman_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rank_by_hand(a.tolist()), rank_by_hand(b.tolist()))[0, 1])


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


@pytest.fixture
def curation(way_folder: Path) -> Path:
    """The run of `way_folder` with words, truths and hashes in its scores, and two selections that `rebus select` made.

    Pairs 10 and 20 look alike (2 bits apart), and pair 8 looks as the evaluation picture does."""
    for name in ("z_kept", "plan_one", "plan_two", "y_first", "x_last", "c_judged"):
        shutil.rmtree(way_folder / name)
    evals = way_folder.parent / "bench"
    evals.mkdir()
    (evals / "seen.png").write_bytes(small_pool()[8].picture)
    _add_columns(way_folder, _phash_of(small_pool()[8].picture))
    rules = [
        {"name": "unseen", "rule": "unseen", "evals": [str(evals)], "distance": 0, "flips": False},
        {"name": "same look", "rule": "duplicates", "by": "perceptual", "distance": 2},
        {"name": "match", "column": "pair_similarity.z", "min": 0.35},
        {"name": "english", "column": "text_extra.language", "equals": "en"},
    ]
    _select(way_folder, "kept", rules)
    _select(way_folder, "other", [{"name": "top", "column": "image_stats.entropy", "keep_fraction": 0.5}])
    return way_folder


def _phash_of(data: bytes) -> int:
    from rebus.pictures.decode import decode_image
    from rebus.scores.perceptual import perceptual_hash

    return int(perceptual_hash(decode_image(data).convert("L")))


def _add_columns(folder: Path, seen: int) -> None:
    base = 0x0F0F_0000_1234_0000
    hashes = {n: (n * 0x9E3779B97F4A7C15) % 2**64 for n in range(40)} | {8: seen, 10: base, 20: base ^ 3}
    for tar in list_shards(folder / "b_pool"):
        path = folder / "a_tables" / "image_stats" / f"{tar.stem}.parquet"
        table = pq.read_table(path)
        numbers = [int(key) for key in table["key"].to_pylist()]
        pq.write_table(table.append_column("phash", pa.array([hashes[n] for n in numbers], pa.uint64())), path)
        extra = {"uid": table["uid"], "key": table["key"], "language": pa.array([WORDS[n] for n in numbers])}
        extra["in_table"] = pa.array([n % 4 == 0 for n in numbers])
        (folder / "a_tables" / "text_extra").mkdir(exist_ok=True)
        pq.write_table(pa.table(extra), folder / "a_tables" / "text_extra" / path.name)


def _select(folder: Path, name: str, rules: list[dict]) -> None:
    tree = {"shards": folder / "b_pool", "scores": folder / "a_tables", "out": folder / name, "rules": rules}
    select(SelectionRecipe.model_validate(tree))


def test_a_curation_makes_a_whole_page(curation: Path):
    html, reader = page_of(curation)
    assert {"twins", "agreement", "funnel", "scores"} < set(reader.ids)
    assert not {"sources", "networks"} & set(reader.ids), "sections without content are left out, and their links"
    assert 'href="#networks"' not in html
    assert "http" not in html
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert all(source.startswith("data:image/webp;base64,") for source in reader.images)
    assert not re.search(r"\bnan\b|\binf\b", html)
    assert len(html) < 1_500_000


def test_words_and_truths_have_bars_with_shares(curation: Path):
    words = plain(section(page_of(curation)[0], "scores"))
    good = [n for n in range(40) if n not in (5, 25)]  # two are damaged
    num_en, num_de = (sum(WORDS[n] == word for n in good) for word in ("en", "de"))
    assert f"en {num_en} {100 * num_en / (num_en + num_de):.1f}% de {num_de}" in words
    truths = sum(n % 4 == 0 for n in good)
    assert f"no {38 - truths} {100 - 100 * truths / 38:.1f}% yes {truths} {100 * truths / 38:.1f}%" in words
    assert "rule english : text_extra.language is empty" not in words
    assert "rule english : text_extra.language is en" in words


def test_numbers_of_a_column_are_those_of_its_table(curation: Path):
    html = section(page_of(curation)[0], "scores")
    figure = plain(html.split("pair_similarity.z</figcaption>")[1].split("</figure>")[0])
    values = np.array([pair.z for pair in small_pool() if pair.fault in ("", "swapped")], np.float32)
    assert f"50% {float(np.median(values)):.3g}" in figure
    assert "0% -1" in figure
    assert "100% 5" in figure
    assert "threshold 0.35" in figure


def test_funnel_shows_both_sides_of_each_rule(curation: Path):
    html = section(page_of(curation)[0], "funnel")
    examples = {one["rule"]: one for one in json.loads((curation / "kept" / "examples.json").read_text())}
    match = plain(html.split("<figcaption>match</figcaption>")[1].split("</figure>")[0])
    assert match.startswith("kept, nearest to where the rule turns 0.4")
    assert match.count("shape") == min(6, len(examples["match"]["dropped"])) + min(6, len(examples["match"]["kept"]))
    assert "(1 pictures of evaluation sets)" in plain(html)
    assert "keeps the 50% that are highest in image_stats.entropy" in html


def test_near_duplicates_stand_side_by_side(curation: Path):
    html = section(page_of(curation)[0], "twins")
    twins = plain(html.split("<figcaption>same look</figcaption>")[1])
    assert "1 pairs were dropped for another that stays" in twins
    assert re.search(r"dropped shape &lt;20&gt; stays shape &lt;10&gt; 2 bits of 64 apart", twins)
    seen = html.split("<figcaption>unseen</figcaption>")[1].split("</figure>")[0]
    assert "bench/seen.png" in seen
    assert seen.count('<img src="data:image/webp') == 2, "the pair's picture and the benchmark's"


def test_twins_are_shown_from_near_to_far():
    distances = np.random.default_rng(0).permutation(50).astype(np.float32)
    pairs = pa.table({"dropped": [f"{n:032x}" for n in range(50)], "distance": distances})
    shown = from_near_to_far(pairs)["distance"].to_pylist()
    assert shown == sorted(shown)
    assert (len(shown), shown[0], shown[-1]) == (NUM_TWINS, 0, 49)
    tied = from_near_to_far(pairs.slice(0, 5).set_column(1, "distance", pa.array([1.0] * 5)))
    assert tied["dropped"].to_pylist() == [f"{n:032x}" for n in range(5)]


def test_rules_are_compared_over_the_whole_pool(curation: Path):
    way = find_way(curation)
    scores, shards = way.of_kind("scores")[0], way.of_kind("shards")[0]
    kept = {one.name: one.kept for one in what_is_kept(shards, scores, way.of_kind("selection"))}
    assert list(kept) == ["match", "english", "top", "all of kept", "all of other"]
    good = [int(k) for tar in list_shards(shards.folder) for k in read_index(tar)["key"].to_pylist() if int(k) != 25]
    pool = small_pool()
    by_hand = np.array([pool[n].z >= 0.35 for n in good]), np.array([WORDS[n] == "en" for n in good])
    np.testing.assert_array_equal(kept["match"], by_hand[0])
    np.testing.assert_array_equal(kept["english"], by_hand[1])
    words = plain(section(page_of(curation)[0], "agreement"))
    assert f"match {by_hand[0].sum()} {100 * by_hand[0].mean():.1f}%" in words
    share = (by_hand[0] & by_hand[1]).sum() / (by_hand[0] | by_hand[1]).sum()
    assert f"1 match {share:.2f}".replace("0.", ".") in words
    assert jaccard(np.zeros(3, bool), np.zeros(3, bool)) != 0, "nothing of nothing is no overlap of 0"


def test_scorers_that_disagree_show_whom_they_disagree_on(curation: Path):
    html = section(page_of(curation)[0], "agreement")
    high = html.split("high by image_stats.entropy, low by pair_similarity.z")[1].split("</ol>")[0]
    pool = [n for n in range(40) if n not in (5, 25)]
    pairs = small_pool()
    of_z, of_entropy = (np.array(rank_by_hand([getattr(pairs[n], name) for n in pool])) for name in ("z", "entropy"))
    worst = pool[int(np.argmax(of_entropy - of_z))]
    assert f"shape &lt;{worst}&gt;" in high.split("</li>")[0]


def test_spearman_with_ties_and_gaps():
    dice = np.random.default_rng(0)
    a, b = dice.integers(0, 9, 60).astype(float), dice.normal(size=60)
    c = np.where(dice.random(60) < 0.3, np.nan, a + b)
    constant = np.full(60, 2.0)
    columns = [Column("s", "x", np.flatnonzero(~np.isnan(v)), v[~np.isnan(v)]) for v in (a, b, c, constant)]
    found, has = spearman(columns, 60), ~np.isnan(c)
    assert found[0, 1] == pytest.approx(spearman_by_hand(a, b))
    assert found[2, 0] == pytest.approx(spearman_by_hand(a[has], c[has]))
    assert np.isnan(found[3, 0])
    np.testing.assert_array_equal(ranks(a), np.array(rank_by_hand(a.tolist())) - 1)


def test_pairs_around_a_quantile():
    column = Column("s", "x", np.arange(9), np.array([5.0, 1, 9, 3, 7, 2, 8, 4, 6]))
    order = in_order(column)
    assert column.values[around(order, 0, 3)].tolist() == [1, 2, 3]
    assert column.values[around(order, 0.5, 3)].tolist() == [4, 5, 6]
    assert column.values[around(order, 1, 3)].tolist() == [7, 8, 9]
    assert len(around(order, 0.5, 20)) == 9


def test_a_large_pool_is_sampled_alike_for_every_scorer(curation: Path, monkeypatch: pytest.MonkeyPatch):
    scores = find_way(curation).of_kind("scores")[0]
    whole = read_scored(scores)
    monkeypatch.setattr(score_sample, "MAX_ROWS", 20)
    part = read_scored(scores)
    assert whole is not None
    assert part is not None
    assert not whole.is_sampled
    assert "seed 0" in part.note
    assert 5 < len(part.rows) < 33, "of 38, about 20"
    known = {row["uid"]: row for row in whole.rows.to_pylist()}
    assert all(known[row["uid"]] == row for row in part.rows.to_pylist()), "joined by uid, not by place"
    z = next(column for column in part.numbers if column.name == "z")
    assert sorted(part.all_values(z)) == sorted(whole.values("pair_similarity.z")), "histograms count all"
    assert "drawn by uid" in plain(section(page_of(curation)[0], "scores"))


def test_a_scorer_that_saw_less_leaves_gaps(curation: Path):
    path = curation / "a_tables" / "text_extra" / "00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(3), path)
    scored = read_scored(find_way(curation).of_kind("scores")[0])
    assert scored is not None
    gone = table["uid"].slice(0, 3).to_pylist()
    rows = {row["uid"]: row for row in scored.rows.to_pylist()}
    assert all(rows[uid]["text_extra.in_table"] is None for uid in gone)
    assert all(rows[uid]["text_extra.in_table"] is not None for uid in rows.keys() - set(gone))


def test_networks_downloads_and_copies(curation: Path):
    network = curation / "network"
    network.mkdir()
    found = [{"seed": 3, "auc": 0.9, "low": 0.85, "high": 0.94}, {"seed": 4, "auc": 0.8, "low": 0.7, "high": 0.88}]
    (network / "mismatches.json").write_text(json.dumps(found))
    losses = [{"step": n, "loss": 5 - n / 10, "logit_scale": 5} for n in range(20)]
    (network / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    facts = {"num_pairs": 70, "num_heldout": 40, "num_steps": 20, "loss": 3.1, "auc": 0.85}
    write_manifest(network, Manifest("weights", {"kind": "dual_encoder"}, {}, facts))
    web, copy = curation / "web", curation / "copy"
    for folder, made in ((web, {"source": "urls"}), (copy, {"source": "reshard"})):
        folder.mkdir()
        write_manifest(folder, Manifest("shards", made, {}, {"num_read": 38, "num_kept": 12, "num_shards": 2}))
    for number, counts in enumerate(({"success": 6, "HTTP 404": 2}, {"success": 1, "timeout": 1})):
        (web / f"{number:05d}_stats.json").write_text(json.dumps({"status_dict": counts}))
    html, _ = page_of(curation)
    networks, sources = plain(section(html, "networks")), plain(section(html, "sources"))
    assert "seed 3 0.900 0.850 to 0.940 seed 4 0.800 0.700 to 0.880" in networks
    assert "on 40 held-out pairs" in networks
    assert "mean 0.850" in networks
    assert "10 rows asked for, 7 pictures came" in sources
    assert "success 7 70.0% HTTP 404 2 20.0% timeout 1 10.0%" in sources
    assert "of them named by the subset 12" in sources


def test_shards_that_are_gone_leave_the_page_whole(curation: Path):
    shutil.rmtree(curation / "b_pool")
    shutil.rmtree(curation.parent / "bench")
    html, _ = page_of(curation)
    assert "gone from its shard" in section(html, "twins")
    assert "Which scores agree" in section(html, "agreement")


def test_without_scores_there_is_nothing_to_compare(curation: Path):
    shutil.rmtree(curation / "a_tables")
    assert MISSING["agreement"] in section(page_of(curation)[0], "agreement")


def test_rules_in_words():
    inner = {"any": [{"test": {"column": "a.x", "min": 2}}, {"not": {"test": {"column": "b.y", "equals": ""}}}]}
    rule = {"name": "r", "rule": "where", "where": {"all": [inner, {"test": {"column": "z", "max_quantile": 0.9}}]}}
    assert words_of(rule) == "(a.x at least 2 or not b.y is empty) and z at most its 90% quantile"
    assert columns_of(rule) == {"a.x", "b.y", "z"}
    known = {"name": "k", "rule": "baseline", "baseline": "semantic_understanding", "threshold": 85.0, "hygiene": True}
    assert words_of(known) == "baseline semantic_understanding, threshold 85.0"
    assert words_of(known | {"threshold": 1.0}).endswith("threshold 1.0")
    assert columns_of(known) == {"mlm_filter.semantic_understanding_hard"}
    assert columns_of({"name": "n", "rule": "column", "column": "x", "between": 3}) == set(), "of another version"
    twins = {"name": "t", "rule": "duplicates", "by": "perceptual", "distance": 4, "prefer": "width"}
    assert "perceptual, at most 4 bits apart" in words_of(twins)
    assert columns_of(twins) == set()


def test_pictures_of_a_benchmark_in_shards(curation: Path):
    from rebus.report.pictures import eval_picture
    from rebus.shards.index import write_index
    from rebus.shards.write import write_shard

    bench = curation.parent / "bench"
    members = {"png": draw_picture(3), "txt": b"a shape"}
    write_shard(bench / "00000.tar", [("000000007", members)])
    write_index(bench / "00000.tar")
    assert eval_picture("bench/00000.tar/000000007#0", [bench]).startswith("data:image/webp")
    assert eval_picture("bench/00000.tar/000000007#1", [bench]) == ""
    assert eval_picture("bench/00000.tar/none#0", [bench]) == ""
    assert eval_picture("elsewhere/a.png", [bench]) == ""
