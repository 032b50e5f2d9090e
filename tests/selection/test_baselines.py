"""Each baseline by name on a fixture, with the keys that it keeps worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_pools import kept_rows_of, make_view, numbered_uids

from rebus.config import check_recipe
from rebus.errors import ConfigError, DataError
from rebus.selection.pool import load_pool
from rebus.selection.rules import open_rule
from rebus.selection.rules.baseline import ALIASES, BASELINES
from rebus.selection.sift import sift
from rebus.selection.view import Kept, View
from rebus.shards.config import ShardsRecipe
from rebus.shards.run import run as run_shards
from rebus.shards.write import write_shard
from rebus.uids import uids_as_strings
from tiny_samples import tiny_picture


def apply(view: View, baseline: str, **options) -> Kept:
    rule = open_rule("r", "baseline", {"baseline": baseline, **options})
    return rule.module.apply(rule.options, view)


def kept(view: View, baseline: str, **options) -> str:
    """The keys that stay, in one word: samples are called a, b, c ..."""
    return "".join("abcdefghijkl"[row] for row in kept_rows_of(apply(view, baseline, **options)))


def unscored(view: View, baseline: str, **options) -> str:
    return "".join("abcdefghijkl"[row] for row in np.flatnonzero(apply(view, baseline, **options).unscored))


@pytest.fixture
def view() -> View:
    """Eight samples. Of the first, all is well; each other one has a fault or two."""
    return make_view(
        8,
        #                        a    b    c    d    e    f    g    h
        text_stats__language=["en", "de", "en", "en", "en", "en", None, "en"],
        text_stats__num_words=[3, 9, 2, 3, 9, 9, 9, 1],
        text_stats__num_chars=[6, 30, 30, 5, 30, 30, 30, 30],
        text_stats__hygiene=["", "", "", "url", "", "", "", ""],
        width=[600, 600, 600, 600, 601, 199, 600, 36],
        height=[200, 600, 600, 600, 200, 400, 600, 9],
        clip_b32__similarity=[0.28, 0.4, 0.1, 0.3, 0.3, None, 0.3, 0.2],
        clip_l14__similarity=[0.1, 0.2, 0.2, 0.2, 0.2, 0.3, None, 0.0],
        mlm_filter__image_text_matching_hard=[85, 84, 100, 0, 85, 85, None, 0],
        mlm_filter__object_detail_fulfillment_hard=[20, 19, 20, 20, 0, 0, 0, 0],
        mlm_filter__caption_text_quality_hard=[1, 2, 3, 4, 5, 6, 7, 8],
        mlm_filter__semantic_understanding_hard=[90, 90, 90, 10, 85, 84, None, None],
        imported__quality_score=[0.5, 0.4, 0.6, 0.9, 0.1, 0.2, 0.3, None],
        imported__dfn_clipscore=[0.1, 0.2, 0.3, 0.4, 0.15, 0.15, 0.15, 0.15],
    )


@pytest.mark.parametrize(
    ("baseline", "options", "wanted"),
    [
        ("no_filter", {}, "abcdefgh"),
        # b is German, c has two words, d five characters, e an aspect of 3.005, f a side of 199, h fails twice.
        ("basic_filter", {}, "a"),
        ("basic_filter_open_qwen2vl", {}, "abcdefg"),  # h: 36 x 9, an aspect of 4.0 but a side below 10
        ("clip_score", {"arch": "b32", "threshold": 0.3}, "bdeg"),
        ("clip_score", {"arch": "l14", "threshold": 0.2}, "bcdef"),
        ("clip_score", {"arch": "l14", "threshold": 0}, "abcdefh"),  # 0 is a threshold
        ("clip_score", {"arch": "l14", "fraction": 0.5}, "bcdf"),  # 3.5 of 7 is 4: f, then b c d of four ties by uid
        ("clip_score", {"columns": {"similarity": "clip_b32.similarity"}, "fraction": 0}, ""),
        ("laion2b", {}, "ade"),  # 0.28 itself stays; b is German, of g nobody knows
        ("image_text_matching", {"threshold": 85}, "acef"),
        ("image_text_matching", {"threshold": 0}, "abcdefh"),
        ("object_detail_fulfillment", {"threshold": 20}, "acd"),
        ("caption_text_quality", {"threshold": 7}, "gh"),
        ("caption_text_quality", {"fraction": 0.25}, "gh"),
        ("semantic_understanding", {"threshold": 85}, "abce"),
        ("semantic_understanding", {"fraction": 0.3}, "ab"),  # 1.8 of 6: two of the three at 90, the lower uids
        ("llava_semantic_understanding_score", {"threshold": 85}, "abce"),
        ("quality_score", {"threshold": 0.4}, "abc"),  # d breaks a caption rule
        ("quality_score", {"threshold": 0.4, "hygiene": False}, "abcd"),
        ("reward_quality_score", {"fraction": 0.3, "hygiene": False}, "cd"),  # 2.1 of 7
        ("dfn_clip_score", {"fraction": 0.375}, "bc"),  # b c d are highest, d breaks a rule
        ("dfn_clip_score", {"threshold": 0.15, "columns": {"score": "imported.quality_score"}}, "abcfg"),
    ],
)
def test_baselines_by_hand(view, baseline, options, wanted):
    assert kept(view, baseline, **options) == wanted


def test_no_score_is_told_from_a_low_one(view):
    assert unscored(view, "laion2b") == "fg"
    assert unscored(view, "basic_filter") == "g"
    assert unscored(view, "image_text_matching", threshold=100) == "g"
    assert unscored(view, "no_filter") == ""


def test_every_metric_and_alias_has_its_column():
    assert {BASELINES[own]["score"] for own in ALIASES.values()} == {
        "mlm_filter.image_text_matching_hard",
        "mlm_filter.object_detail_fulfillment_hard",
        "mlm_filter.caption_text_quality_hard",
        "mlm_filter.semantic_understanding_hard",
        "imported.quality_score",
    }
    rule = open_rule("r", "baseline", {"baseline": "clip_score", "arch": "l14", "fraction": 0.3})
    assert rule.module.columns(rule.options) == ["clip_l14.similarity"]
    assert rule.made_by["baseline"] == "clip_score"


def clustered(view: View, folder, vectors: np.ndarray, name: str = "clip_l14") -> View:
    """The view with embeddings in one table, in another order and without the last sample."""
    uids = uids_as_strings(view.uids).cast(pa.string()).to_pylist()
    order = list(range(len(uids) - 1))[::-1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[order].ravel(), pa.float16()), vectors.shape[1])
    (folder / name).mkdir(exist_ok=True)
    table = pa.table({"uid": [uids[row] for row in order], "image": column})
    pq.write_table(table, folder / name / "00000.vectors.parquet")
    return View(replace(view.pool, scores=folder, vectors={f"{name}.image": (name, "image")}), view.rows)


@pytest.fixture
def targets(tmp_path):
    """Three centroids, of different lengths: nearest is the largest inner product, as in the original."""
    np.save(tmp_path / "centroids.npy", np.array([[1, 0], [0, 1], [-3, 0]], dtype=np.float32))
    np.save(tmp_path / "embeddings.npy", np.array([[0.9, 0.1], [0.8, 0], [0.1, -0.2]], dtype=np.float32))
    np.save(tmp_path / "ids.npy", np.array([0], dtype=np.int64))
    (tmp_path / "ids.txt").write_text("2\n0\n")
    return tmp_path


VECTORS = np.array(
    # a: 0, b: 0, c: 1, d: 2 (-0.3 * -3 = 0.9 > 0.5), e: 0, f: 0, g: 0; h has none
    [[1, 0], [1, 0], [0, 1], [-0.3, 0.5], [1, 0.9], [0.2, 0.1], [1, 0], [0, 0]],
    dtype=np.float16,
)


@pytest.mark.parametrize(
    ("file", "wanted"),
    # Of those in English with two words and six characters (a c e f; g and h: no language, one word) the cluster.
    [("embeddings.npy", "aef"), ("ids.npy", "aef"), ("ids.txt", "aef")],
)
def test_image_based(view, targets, file, wanted):
    view = clustered(view, targets, VECTORS)
    options = {"centroids": str(targets / "centroids.npy"), "targets": str(targets / file)}
    assert kept(view, "image_based", **options) == wanted
    # l14 at least 0.2: b c d e f. The fraction is of all seven with a score: 0.4 of 7 is 3, f b c.
    both = {**options, "arch": "l14"}
    assert kept(view, "image_based_intersect_clip_score", threshold=0.2, **both) == "ef"
    assert kept(view, "image_based_intersect_clip_score", fraction=0.4, **both) == "f"


def test_image_based_knows_clusters_and_missing_vectors(view, targets):
    view = clustered(view, targets, VECTORS)
    everyone = make_view(8, **{name.replace(".", "__"): [9] * 8 for name in ("w", "c")}, l=["en"] * 8)
    view = View(replace(everyone.pool, scores=targets, vectors=view.pool.vectors), view.rows)
    columns = {"language": "l", "num_words": "w", "num_chars": "c"}
    for text, wanted in (("1", "c"), ("2", "d"), ("0 2", "abdefg"), ("", "")):
        (targets / "t.txt").write_text(text)
        options = {"centroids": str(targets / "centroids.npy"), "targets": str(targets / "t.txt"), "columns": columns}
        assert kept(view, "image_based", **options) == wanted
        assert unscored(view, "image_based", **options) == "h"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("targets.npy", np.array([3]), r"names clusters 3 to 3; there are 3, from 0"),
        ("targets.npy", np.zeros((1, 5), np.float32), "vectors of 5 numbers, the centroids have 2"),
        ("targets.npy", np.array([0.5]), "clusters are integers"),
        (
            "centroids.npy",
            np.zeros((3, 4), np.float32),
            "vectors of 4 numbers, the centroids have 2|the centroids have 4",
        ),
        ("centroids.npy", np.zeros(3, np.float32), r"vectors are floats \[N, D\]"),
    ],
)
def test_files_of_clusters_that_do_not_fit(view, targets, name, content, message):
    np.save(targets / "targets.npy", np.array([0]))
    np.save(targets / name, content)
    options = {"centroids": str(targets / "centroids.npy"), "targets": str(targets / "targets.npy")}
    with pytest.raises(DataError, match=message):
        apply(clustered(view, targets, VECTORS), "image_based", **options)


def test_text_based_looks_for_words_in_the_captions(tmp_path):
    captions = ["A Dog runs", "two dogs", "ein hund", "hot\ndog", "dogma", "the cat,", "cat", ""]
    for shard in range(2):
        samples = [
            (
                f"{number}",
                {
                    "png": tiny_picture(),
                    "txt": captions[number].encode(),
                    "json": json.dumps({"uid": f"{number:032x}"}).encode(),
                },
            )
            for number in range(4 * shard, 4 * shard + 4)
        ]
        write_shard(tmp_path / "shards" / f"{shard:05d}.tar", samples)
    source = str(tmp_path / "shards")
    tree = {"source": "tars", "input": source, "out": source, "num_workers": 1, "max_bad_share": 0.5}
    run_shards(check_recipe(ShardsRecipe, tree, "test"))
    words = tmp_path / "words.txt"
    words.write_text("Dog\ncat\n\n")
    pool = load_pool([tmp_path / "shards" / f"0000{shard}.tar" for shard in range(2)], None, [])
    (tmp_path / "scores" / "t").mkdir(parents=True)
    languages = dict.fromkeys(range(8), "en") | {3: "de"}
    for shard in range(2):
        uids = [f"{number:032x}" for number in range(4 * shard, 4 * shard + 4)]
        table = pa.table({"uid": uids, "language": [languages[int(uid, 16)] for uid in uids]})
        pq.write_table(table, tmp_path / "scores" / "t" / f"0000{shard}.parquet")
    pool = load_pool(pool.tars, tmp_path / "scores", ["t.language"])
    rule = open_rule(
        "text", "baseline", {"baseline": "text_based", "words": str(words), "columns": {"language": "t.language"}}
    )
    sifted = sift([rule], pool)
    # As in the original a word ends at white space alone: "cat," is none of the list. 3 is not English.
    keys = np.array(pool.keys.to_pylist())[sifted.dropped_by == 0]
    assert sorted(keys) == ["0", "6"]
    assert rule.module.inputs(rule.options).keys() == {"words"}
    words.write_text("\n")
    with pytest.raises(DataError, match="holds no word"):
        sift([rule], pool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "clip_score", "arch": "b32"}, "exactly one of threshold and fraction; none given"),
        ({"baseline": "clip_score", "arch": "b32", "threshold": 1, "fraction": 1}, "exactly one .*; 2 given"),
        ({"baseline": "clip_score", "threshold": 1}, "takes `arch: b32`"),
        ({"baseline": "clip_score", "threshold": 1, "arch": "b32", "columns": {"similarity": "x"}}, "or else `columns"),
        ({"baseline": "laion2b", "threshold": 0.28}, "neither threshold nor fraction; 1 given"),
        ({"baseline": "laion2b", "arch": "b32"}, "takes no `arch`"),
        ({"baseline": "basic_filter", "columns": {"wdith": "x"}}, "looks at no wdith; it looks at language"),
        ({"baseline": "no_filter", "words": "w.txt"}, "takes no `words`"),
        ({"baseline": "text_based"}, "needs `words`"),
        ({"baseline": "image_based", "centroids": "c.npy"}, "needs `targets`"),
        ({"baseline": "dfn"}, "no baseline of that name"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        open_rule("r", "baseline", options)


def test_a_column_of_the_wrong_kind(view):
    with pytest.raises(ConfigError, match="takes words as `language`"):
        apply(view, "laion2b", columns={"language": "width"})
    with pytest.raises(ConfigError, match="takes numbers as `width`"):
        apply(view, "basic_filter_open_qwen2vl", columns={"width": "text_stats.language"})


def test_ties_fall_by_uid_wherever_a_sample_lies():
    view = make_view(4, uids=[8, 1, 9, 2], s=[50, 50, 50, 50])
    options = {"fraction": 0.5, "columns": {"score": "s"}}
    assert kept(view, "semantic_understanding", **options) == "bd"
    assert numbered_uids([1, 2]).tolist() == view.uids[[1, 3]].tolist()
