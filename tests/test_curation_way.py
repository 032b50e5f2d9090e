"""The whole way of curation as a user walks it: the recipes of recipes/curation by real command lines, on pictures
behind a real web server, with a tiny dual encoder and a stand-in judge. What comes out is checked by other means than
made it."""

import io
import json
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rebus.cli import main
from rebus.config import Config, load_recipe
from rebus.engine import Cluster, on_ray
from rebus.packs.config import PackRecipe
from rebus.scores.config import ScoreRecipe
from rebus.selection.config import SelectionRecipe
from rebus.selection.resharding.config import ReshardRecipe
from rebus.shards.config import ShardsRecipe
from scores.stand_in_endpoint import StandIn
from scores.stand_in_endpoint import serving as serving_judge
from tiny_duals import save_clip
from tiny_pictures import photo
from web_server import serving

REPOSITORY = Path(__file__).parent.parent
RECIPES = REPOSITORY / "recipes" / "curation"
NUM_ROWS = 40
TWIN, GONE, NO_PICTURE, IN_BENCHMARK = 7, 11, 12, (3, 20)
"""Rows: whose picture is that of the row before, whose URL is dead, or HTML, whose picture lies in a benchmark."""
KINDS: dict[str, type[Config]] = {
    "shards": ShardsRecipe,
    "download": ShardsRecipe,
    "score": ScoreRecipe,
    "select": SelectionRecipe,
    "reshard": ReshardRecipe,
    "pack": PackRecipe,
}


def uid_of(number: int) -> str:
    """In DataComp's form, in another order than the rows'."""
    return f"{(NUM_ROWS - number) * 2654435761:016x}{number:016x}"


def caption_of(number: int) -> str:
    return f"the {number} foxes in a photo of the wood"


def judged(caption: str) -> int:
    """What the judge says, 60 to 100."""
    return 60 + 11 * int(caption.split()[1]) % 41


@dataclass(frozen=True)
class Way:
    """folder: where commands run. overrides: of score.yaml, for what is tiny here. num_asked: requests to the judge."""

    folder: Path
    overrides: list[str]
    judge: StandIn


def rebus(*arguments: object) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 0, arguments


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path):
    """The commands of docs/curation.md, in its order."""
    folder = tmp_path_factory.mktemp("curation")
    answer = lambda caption: [*str(judged(caption)), "\n"]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch, serving() as web, serving_judge(StandIn(answer=answer)) as judge:
        patch.chdir(folder)
        _lay_out(web.base, tiny_tokenizer_folder)
        overrides = [f"scorers.mlm_filter.endpoint.url={judge.url}", "batch_size=16", "num_decoders=2", "num_threads=1"]
        overrides += ["scorers.mlm_filter.prompts.semantic_understanding=prompt.txt"]
        local = ["samples_per_shard=8", "num_workers=1", "download.allow_private=true", "download.backoff=0"]
        rebus("shards", RECIPES / "shards.yaml", *local)
        rebus("score", RECIPES / "score.yaml", *overrides)
        rebus("select", RECIPES / "select_filter.yaml")
        rebus("select", RECIPES / "select_su85.yaml")
        rebus("uids", "runs/web/select_filter | runs/web/select_su85", "--out", "runs/web/union.npy")
        rebus("select", RECIPES / "select.yaml")
        rebus("reshard", RECIPES / "reshard.yaml", "shard_size=4")
        packing = ["num_workers=1", "capacity=512"]
        rebus("pack", RECIPES / "pack.yaml", *packing)
        kept = ["shards=[runs/web/kept]", "selection=null", "out=runs/web/plan_kept"]
        rebus("pack", RECIPES / "pack.yaml", *packing, *kept)
        rebus("report", "runs/web")
        yield Way(folder, overrides, judge)


def _lay_out(base: str, tokenizer: Path) -> None:
    """What the recipes ask to fetch."""
    rows = [{"url": f"{base}/photo/{n}", "text": caption_of(n), "uid": uid_of(n), "n": n} for n in range(NUM_ROWS)]
    rows[TWIN]["url"] = rows[TWIN - 1]["url"]
    rows[GONE]["url"], rows[NO_PICTURE]["url"], rows[13]["url"] = f"{base}/404", f"{base}/html", f"{base}/busy"
    Path("data/web").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), "data/web/table.parquet")
    Path("data/benchmarks").mkdir()
    for number in IN_BENCHMARK:
        mirrored = photo(96, 72, seed=number).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.save(f"data/benchmarks/{number}.png")
    Path("prompt.txt").write_text("caption: {caption}")
    save_clip(Path("models/clip-vit-base-patch32"))
    shutil.copytree(tokenizer, "models/Qwen2.5-1.5B-Instruct")


def scores(out: str, scorer: str, column: str) -> dict[str, Any]:
    """uid -> value, over all shards."""
    tables = [pq.read_table(path, columns=["uid", column]) for path in sorted(Path(out, scorer).glob("?????.parquet"))]
    return {row["uid"]: row[column] for table in tables for row in table.to_pylist()}


def kept(selection: str) -> set[str]:
    table = pq.read_table(Path(selection, "selection.parquet"))
    return {row["uid"] for row in table.to_pylist() if row["kept"]}


def chosen() -> set[str]:
    """The union before duplicates and benchmarks, by plain Python: 15% of 38 are 5.7, and half samples round up."""
    similarity = scores("runs/web/scores", "clip_b32", "similarity")
    best = sorted(similarity, key=lambda uid: (-similarity[uid], uid))[:6]
    usable = set(range(NUM_ROWS)) - {GONE, NO_PICTURE}
    return {*best, *(uid_of(n) for n in usable if judged(caption_of(n)) >= 85)}


def test_the_table_became_shards(way: Way):
    found = {}
    for tar in sorted(Path("runs/web/pool").glob("*.tar")):
        with tarfile.open(tar) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for name in members:
            if name.endswith(".json"):
                about = json.loads(members[name])
                found[about["n"]] = (about["uid"], members[name.replace("json", "txt")].decode())
                with PIL.Image.open(io.BytesIO(members[name.replace("json", "jpg")])) as picture:
                    assert picture.size == (about["width"], about["height"])
    usable = set(range(NUM_ROWS)) - {GONE, NO_PICTURE}
    assert found == {n: (uid_of(n), caption_of(n)) for n in usable}
    quarantines = [path.read_text().splitlines() for path in Path("runs/web/pool").glob("*.jsonl")]
    lines = [json.loads(line) for found_lines in quarantines for line in found_lines]
    assert {line["reason"] for line in lines} == {"HTTP 404", "HTML instead of a picture"}


def test_each_pair_was_judged_once_by_every_scorer(way: Way):
    usable = {uid_of(n): n for n in set(range(NUM_ROWS)) - {GONE, NO_PICTURE}}
    hard = scores("runs/web/scores", "mlm_filter", "semantic_understanding_hard")
    assert hard == {uid: judged(caption_of(n)) for uid, n in usable.items()}
    assert len(way.judge.asked) == len(usable)
    assert scores("runs/web/scores", "text_stats", "num_chars") == {u: len(caption_of(n)) for u, n in usable.items()}
    assert set(scores("runs/web/scores", "text_stats", "language").values()) == {"en"}
    hashes = scores("runs/web/scores", "image_stats", "phash")
    assert hashes[uid_of(TWIN)] == hashes[uid_of(TWIN - 1)]
    similarity = scores("runs/web/scores", "clip_b32", "similarity")
    for path in sorted(Path("runs/web/scores/clip_b32").glob("*.vectors.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert np.dot(row["image"], row["text"]) == pytest.approx(similarity[row["uid"]], abs=2e-3)


def test_the_selection_is_the_union_less_twins_and_benchmarks(way: Way):
    union = chosen()
    similarity = scores("runs/web/scores", "clip_b32", "similarity")
    assert kept("runs/web/select_filter") | kept("runs/web/select_su85") == union
    twins = {uid_of(TWIN), uid_of(TWIN - 1)}
    assert twins <= union  # else this shows nothing, as below
    lost = {max(twins, key=lambda uid: (-similarity[uid], uid))}
    in_benchmark = {uid_of(n) for n in IN_BENCHMARK} & union
    assert in_benchmark
    lost |= in_benchmark
    assert kept("runs/web/selection") == union - lost
    halves = np.load("runs/web/selection/uids.npy")
    assert halves.dtype == np.dtype("<u8,<u8")
    assert [f"{high:016x}{low:016x}" for high, low in halves.tolist()] == sorted(union - lost)
    funnel = {row["rule"]: row["left"] for row in json.loads(Path("runs/web/selection/funnel.json").read_text())}
    assert funnel["damaged"] == NUM_ROWS - 2
    assert funnel["chosen by one of the two"] == len(union)
    assert funnel["in a benchmark"] == len(union - lost)


def test_the_tars_hold_the_selection(way: Way):
    uids = []
    for tar in sorted(Path("runs/web/kept").glob("*.tar")):
        with tarfile.open(tar) as archive:
            names = [member.name for member in archive if member.name.endswith(".json")]
        assert len(names) <= 4
        uids += [name.partition("-")[0] for name in names]
    assert sorted(uids) == sorted(kept("runs/web/selection"))


def test_packs_of_the_view_and_of_the_tars_hold_the_same_documents(way: Way):
    def documents(plan: str) -> list[tuple]:
        columns = ["uid", "num_tokens", "num_images"]
        with pa.memory_map(f"{plan}/plan.arrow") as source:
            table = pa.ipc.open_file(source).read_all().select(columns)
        return sorted((row["uid"].hex(), row["num_tokens"], row["num_images"]) for row in table.to_pylist())

    direct = documents("runs/web/plan")
    assert direct == documents("runs/web/plan_kept")
    assert {uid for uid, _, _ in direct} == kept("runs/web/selection")
    assert {images for _, _, images in direct} == {1}


def test_a_trace_names_all_of_it(way: Way, capsys: pytest.CaptureFixture[str]):
    uid = min(kept("runs/web/selection"))
    rebus("trace", uid, "runs/web", "--json")
    found = json.loads(capsys.readouterr().out)
    assert {Path(place["shards"]).name for place in found["places"]} == {"pool", "kept"}
    [told] = found["scores"]
    assert set(told["values"]) == {"image_stats", "text_stats", "clip_b32", "mlm_filter"}
    verdicts = {Path(one["selection"]).name: one["kept"] for one in found["selections"]}
    assert verdicts == {
        "selection": True,
        "select_filter": uid in kept("runs/web/select_filter"),
        "select_su85": uid in kept("runs/web/select_su85"),
    }
    assert {Path(one["plan"]).name for one in found["plans"] if one["documents"]} == {"plan", "plan_kept"}
    number = next(n for n in IN_BENCHMARK if uid_of(n) in chosen())
    rebus("trace", uid_of(number), "runs/web")
    text = capsys.readouterr().out
    assert "dropped by 'in a benchmark'" in text
    assert f"benchmarks/{number}.png" in text
    rebus("trace", uid_of(GONE), "runs/web")
    text = capsys.readouterr().out
    assert "HTTP 404" in text
    assert text.count("dropped by 'damaged'") == 3


def test_the_report_shows_the_way(way: Way):
    page = Path("runs/web/report.html").read_text()
    for words in ("in a benchmark", "seen before", "semantic_understanding", "clip_b32", "HTTP 404"):
        assert words in page, words
    assert json.loads(Path("runs/web/results.json").read_text())["num_kept"] == len(kept("runs/web/selection"))


def test_the_same_command_does_nothing_again(way: Way, capsys: pytest.CaptureFixture[str]):
    asked = len(way.judge.asked)
    rebus("score", RECIPES / "score.yaml", *way.overrides)
    rebus("select", RECIPES / "select.yaml")
    rebus("reshard", RECIPES / "reshard.yaml", "shard_size=4")
    assert capsys.readouterr().err.count("is up to date") == 3
    assert len(way.judge.asked) == asked


def test_a_ray_cluster_makes_the_same(way: Way):
    """Tables, selection, tars and plan, bit for bit. With a fresh cache: its workers ask the judge themselves."""
    elsewhere = ["out=runs/ray/scores", "scorers.mlm_filter.cache=runs/ray/answers.sqlite"]
    ray, asked = ["--ray", "local", "--ray-workers", "2"], len(way.judge.asked)
    with on_ray(Cluster("local", num_workers=2)):  # started once, for all the commands
        rebus("score", RECIPES / "score.yaml", *way.overrides, *elsewhere, *ray)
        rebus("select", RECIPES / "select.yaml", "scores=runs/ray/scores", "out=runs/ray/selection")
        rebus(
            "reshard", RECIPES / "reshard.yaml", "shard_size=4", "subset=runs/ray/selection", "out=runs/ray/kept", *ray
        )
        kept = ["capacity=512", "shards=[runs/ray/kept]", "selection=null", "out=runs/ray/plan_kept"]
        rebus("pack", RECIPES / "pack.yaml", *kept, *ray)
    assert len(way.judge.asked) == 2 * asked
    for folder, pattern, number in (
        ("scores", "*/*.parquet", 25),  # five shards, four scorers, vectors of one
        ("selection", "*.parquet", 2),
        ("selection", "uids.npy", 1),
        ("kept", "*.tar", 4),
        ("plan_kept", "plan.arrow", 1),
    ):
        local = sorted(Path("runs/web", folder).glob(pattern))
        assert len(local) == number
        for path in local:
            assert path.read_bytes() == Path("runs/ray", *path.parts[2:]).read_bytes(), path


OF_STAGES = [path for path in sorted((REPOSITORY / "recipes").rglob("*.yaml")) if path.stem.split("_")[0] in KINDS]


@pytest.mark.parametrize("path", OF_STAGES, ids=lambda path: str(path.relative_to(REPOSITORY / "recipes")))
def test_recipes_of_data_stages_are_accepted(path: Path):
    """And say in their header which command runs them."""
    load_recipe(KINDS[path.stem.split("_")[0]], path)
    name = str(path.relative_to(REPOSITORY))
    verb = {"download": "shards"}.get(path.stem.split("_")[0], path.stem.split("_")[0])
    assert f"rebus {verb} {name}" in path.read_text()


def test_the_page_shows_the_recipes_as_they_are():
    page = (REPOSITORY / "docs" / "curation.md").read_text()
    shown = {
        name: yaml.safe_load(text)
        for name, text in re.findall(r"^```yaml\n# rebus \w+ (recipes/\S+)\n(.*?)^```", page, re.M | re.S)
    }
    assert len(shown) == len(list(RECIPES.glob("*.yaml")))
    for name, tree in shown.items():
        assert tree == yaml.safe_load((REPOSITORY / name).read_text()), name
