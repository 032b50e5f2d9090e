"""Pictures of evaluation sets, in a pool as they are, saved again, mirrored; and what is told of them."""

import json
from pathlib import Path

import numpy as np
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebus.config import check_recipe
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.fingerprint import Manifest, read_manifest, write_manifest
from rebus.scores.config import ScoreRecipe
from rebus.scores.run import run as run_scores
from rebus.selection import evals
from rebus.selection.clusters import unit_rows
from rebus.selection.config import SelectionRecipe
from rebus.selection.evals import hash_evals
from rebus.selection.run import run
from rebus.shards.read import read_index
from tiny_pictures import encoded, photo
from tiny_samples import TinySample, write_shards

NAMES = ("same file", "small jpeg", "mirrored", "other", "text", "other evaluation set")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """pool and scores: the samples of NAMES; files/: pictures 1 and 2, and a broken one; sharded/: picture 3."""
    root = tmp_path_factory.mktemp("unseen")
    one, two, three, four = (photo(240, 160, seed) for seed in (1, 2, 3, 4))
    pictures = [
        encoded(one),
        encoded(one.resize((120, 80)), "JPEG", quality=60),
        encoded(PIL.ImageOps.mirror(two)),
        encoded(four),
        None,
        encoded(three, "JPEG", quality=80),
    ]
    turns = ({"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."})
    samples = [TinySample(name, data, () if data else turns) for name, data in zip(NAMES, pictures, strict=True)]
    write_shards(root / "pool", samples, samples_per_shard=4)
    run_scores(ScoreRecipe(shards=root / "pool", out=root / "scores", scorers={"image_stats": {}}))
    (root / "files" / "deep").mkdir(parents=True)
    (root / "files" / "one.png").write_bytes(encoded(one))
    (root / "files" / "deep" / "two.JPG").write_bytes(encoded(two, "JPEG", quality=95))
    (root / "files" / "broken.png").write_bytes(b"no picture")
    (root / "files" / "notes.txt").write_text("no picture either")
    write_shards(root / "sharded", [TinySample("3", encoded(three))])
    return root


def select(made: Path, out: Path, **options) -> dict[str, str]:
    """Name of each sample -> what dropped it."""
    tree = {"shards": str(made / "pool"), "scores": str(made / "scores"), "out": str(out)}
    run(check_recipe(SelectionRecipe, {**tree, "rules": [{"name": "seen", "rule": "unseen", **options}]}, "test"))
    dropped = pq.read_table(out / "selection.parquet")["dropped_by"].to_pylist()
    return dict(zip(NAMES, dropped, strict=True))


def seen(answer: dict[str, str]) -> set[str]:
    assert set(answer.values()) <= {"", "seen"}
    return {name for name, reason in answer.items() if reason}


def test_pictures_saved_again_or_mirrored_are_seen(made, tmp_path):
    sets = [str(made / "files"), str(made / "sharded")]
    assert seen(select(made, tmp_path / "all", evals=sets)) == set(NAMES) - {"other", "text"}
    assert seen(select(made, tmp_path / "one", evals=sets[:1])) == {"same file", "small jpeg", "mirrored"}
    assert seen(select(made, tmp_path / "straight", evals=sets[:1], flips=False)) == {"same file", "small jpeg"}
    assert seen(select(made, tmp_path / "exact", evals=sets, by="exact")) == {"same file"}
    facts = read_manifest(tmp_path / "all", "selection").facts
    assert facts["counts"] == {"seen": {"pictures of evaluation sets": 3}}


def test_the_pairs_name_the_picture_that_was_seen(made, tmp_path):
    select(made, tmp_path / "sel", evals=[str(made / "files"), str(made / "sharded")])
    pairs = pq.read_table(tmp_path / "sel" / "pairs.parquet").to_pylist()
    uids = [uid for tar in sorted((made / "pool").glob("*.tar")) for uid in read_index(tar)["uid"].to_pylist()]
    told = {NAMES[uids.index(pair["dropped"])]: (pair["kept_shard"], pair["kept"], pair["kept_row"]) for pair in pairs}
    one, two, three = "files/one.png", "files/deep/two.JPG", "sharded/00000.tar/000000000#0"
    wanted = {"same file": one, "small jpeg": one, "mirrored": two, "other evaluation set": three}
    assert told == {name: (place, "", -1) for name, place in wanted.items()}
    assert {pair["distance"] for pair in pairs if pair["kept_shard"] == one} <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_a_changed_evaluation_set_makes_another_selection(made, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "one.png").write_bytes((made / "files" / "one.png").read_bytes())
    options = {"evals": [str(folder)], "cache": str(tmp_path / "cache")}
    assert seen(select(made, tmp_path / "sel", **options)) == {"same file", "small jpeg"}
    (folder / "four.png").write_bytes(encoded(photo(240, 160, 4)))
    assert seen(select(made, tmp_path / "sel", **options)) == {"same file", "small jpeg", "other"}
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_hashes_are_computed_once(made, tmp_path, monkeypatch):
    first = hash_evals([made / "files"], exact=False, flips=True, cache=tmp_path)
    assert first.names.to_pylist() == ["files/deep/two.JPG"] * 2 + ["files/one.png"] * 2

    def never(*_):
        raise AssertionError("looked again")

    monkeypatch.setattr(evals, "_hash_folder", never)
    again = hash_evals([made / "files"], exact=False, flips=True, cache=tmp_path)
    assert again.hashes.tolist() == first.hashes.tolist()
    with pytest.raises(AssertionError, match="looked again"):
        hash_evals([made / "files"], exact=False, flips=False, cache=tmp_path)


def test_a_set_without_pictures_is_refused(made, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        select(made, tmp_path / "sel", evals=[str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="no readable picture"):
        select(made, tmp_path / "sel", evals=[str(tmp_path / "empty")])


def write_vectors(scores: Path, tars: list[Path], vectors: list[list[float] | None], made_by: str) -> None:
    """A scorer's embeddings, as its tables hold them."""
    start = 0
    (scores / "clip").mkdir(parents=True)
    for tar in tars:
        uids = read_index(tar)["uid"].to_pylist()
        rows = vectors[start : start + len(uids)]
        column = pa.array(rows, pa.list_(pa.float32(), 3))
        pq.write_table(pa.table({"uid": uids, "image": column}), scores / "clip" / f"{tar.stem}.vectors.parquet")
        start += len(uids)
    (scores / "clip" / "scorer.json").write_text(json.dumps({"fingerprint": made_by, "made_by": {}}))


def test_embeddings_are_compared_with_those_of_the_same_scorer(made, tmp_path):
    vectors = [[1, 0, 0], [3, 1, 0], [0, 1, 0], [0, 0, 2], None, None]
    scores, others = tmp_path / "scores", tmp_path / "eval_scores"
    write_vectors(scores, sorted((made / "pool").glob("*.tar")), vectors, "a")
    write_manifest(scores, Manifest("scores", {}, {"shards": read_manifest(made / "pool", "shards").fingerprint}))
    write_vectors(others, [made / "sharded" / "00000.tar"], [[2, 0, 0]], "a")
    rule = {"name": "seen", "rule": "unseen", "by": "embedding", "column": "clip.image", "evals": [str(others)]}
    tree = {"shards": str(made / "pool"), "scores": str(scores), "out": str(tmp_path / "sel"), "rules": [rule]}
    run(check_recipe(SelectionRecipe, tree, "test"))
    rule["similarity"] = 0.94  # (3, 1, 0) stands at 0.949
    run(check_recipe(SelectionRecipe, {**tree, "out": str(tmp_path / "more")}, "test"))
    found = [pq.read_table(tmp_path / out / "selection.parquet")["dropped_by"].to_pylist() for out in ("sel", "more")]
    assert found[0] == ["seen", "", "", "", "", "no score"]  # the text needs no vector
    assert found[1] == ["seen", "seen", "", "", "", "no score"]
    pairs = pq.read_table(tmp_path / "more" / "pairs.parquet")
    assert pairs["distance"].to_pylist() == pytest.approx([0, 1 - unit_rows(np.array([[3, 1, 0]]))[0, 0]], abs=1e-6)
    (others / "clip" / "scorer.json").write_text(json.dumps({"fingerprint": "b", "made_by": {}}))
    with pytest.raises(StrangerError, match="scorer clip"):
        run(check_recipe(SelectionRecipe, {**tree, "out": str(tmp_path / "third")}, "test"))


@pytest.mark.parametrize(
    "options",
    [{}, {"evals": []}, {"evals": ["x"], "by": "embedding"}, {"evals": ["x"], "by": "exact", "distance": 2}],
)
def test_options_that_do_not_go_together_are_refused(options):
    rule = {"name": "seen", "rule": "unseen", **options}
    with pytest.raises(ConfigError):
        check_recipe(SelectionRecipe, {"shards": "s", "out": "o", "rules": [rule]}, "test")
