"""`rebus pack` as a whole: the plan's rows, what is left out and why, selection, resuming, bytes."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebus.errors import ConfigError, DataError, StrangerError
from rebus.fingerprint import Manifest, read_manifest, write_manifest
from rebus.packs import run as pack_run
from rebus.packs.config import PackRecipe, ShardsFolder
from rebus.packs.plan import open_plan
from rebus.shards.index import SCHEMA, write_tables
from rebus.shards.read import read_index
from rebus.tokens.config import FixedConfig, TokensConfig
from tiny_samples import TinySample, tiny_picture, write_shards


@pytest.fixture
def recipe(tmp_path: Path, tiny_tokenizer_folder: Path) -> Callable[..., PackRecipe]:
    def make(*shards: Path, **changes) -> PackRecipe:
        tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, image=FixedConfig(size=8, tokens_per_side=2))
        settings = {"capacity": 96, "num_workers": 1, "out": tmp_path / "plan", "tokens": tokens}
        return PackRecipe(**{"shards": shards, **settings, **changes})

    return make


def test_plan_names_every_document_once(recipe, tiny_shards):
    summary = pack_run.run(recipe(tiny_shards(40)))
    plan = open_plan(recipe(Path("unused")).out)
    documents = [document for pack in range(plan.num_packs) for document in plan.documents(pack)]
    assert len({document.uid for document in documents}) == len(documents) == summary.num_documents == 40
    assert {(document.shard.name, document.row) for document in documents} == {
        (f"{i // 16:05d}.tar", i % 16) for i in range(40)
    }
    for pack in range(plan.num_packs):
        assert sum(document.num_tokens for document in plan.documents(pack)) <= 96
    assert summary.num_image_tokens == 160
    assert summary.fill == pytest.approx(summary.num_tokens / (96 * plan.num_packs))
    assert sum(number for _, number in summary.histogram) == 40
    with pytest.raises(DataError, match="no pack 99"):
        plan.documents(99)


def test_unusable_samples_are_counted_and_listed(recipe, tmp_path: Path):
    question = TinySample(messages=({"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}))
    samples = [TinySample("a photo", tiny_picture())] * 8 + [TinySample("ä" * 60, tiny_picture()), question]
    samples += [TinySample("ä" * 90, tiny_picture())]
    made = recipe(write_shards(tmp_path / "shards", samples), max_bad_share=0.5)
    summary = pack_run.run(made.model_copy(update={"tokens": made.tokens.model_copy(update={"max_tokens": 150})}))
    assert summary.unusable == {"too long": 1, "longer than a pack": 1}
    lines = [json.loads(line) for line in (made.out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["reason"], line["shard"]) for line in lines] == [
        ("longer than a pack", "00000.tar"),
        ("too long", "00000.tar"),
    ]
    assert [line["key"] for line in lines] == ["000000008", "000000010"]
    assert lines[0]["offset"] > 0
    assert "125 tokens, 1 images, 0 patches; allowed are 96 tokens" in lines[0]["detail"]


def test_too_much_unusable_stops_the_stage(recipe, tiny_shards):
    with pytest.raises(DataError, match=r"4 of 12 samples \(33\.3%\) cannot be packed") as caught:
        pack_run.run(recipe(tiny_shards(captions=["a photo"] * 8 + ["ä" * 60] * 4)))
    assert "longer than a pack: 4" in str(caught.value)
    with pytest.raises(DataError, match="no sample is left to pack, of 12"):
        pack_run.run(recipe(tiny_shards(captions=["ä" * 60] * 12), max_bad_share=1))


def test_same_bytes_again_and_up_to_date(recipe, tiny_shards, tmp_path: Path, monkeypatch):
    shards = tiny_shards(40)
    first = pack_run.run(recipe(shards))
    pack_run.run(recipe(shards, out=tmp_path / "again"))
    for name in ("plan.arrow", "pack.json", "quarantine.jsonl"):
        assert (tmp_path / "plan" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    monkeypatch.setattr(pack_run, "map_shards", lambda *_, **__: pytest.fail("counted again"))
    assert pack_run.run(recipe(shards)) == first


def test_goes_on_from_the_shards_already_counted(recipe, tiny_shards, monkeypatch):
    """Killed while the third shard is counted, run again: only that one is counted, and the plan is the same."""
    shards, counted = tiny_shards(40), []
    whole = pack_run.run(recipe(shards, out=shards.parent / "whole"))

    def count_and_die(tar: Path, **arguments) -> Path:
        counted.append(tar.name)
        if tar.name == "00002.tar" and counted.count(tar.name) == 1:
            raise KeyboardInterrupt
        return count_shard(tar, **arguments)

    count_shard = pack_run.count_shard
    monkeypatch.setattr(pack_run, "count_shard", count_and_die)
    with pytest.raises(KeyboardInterrupt):
        pack_run.run(recipe(shards))
    done = {path: path.stat().st_mtime_ns for path in (shards.parent / "plan" / "lengths").glob("*.parquet")}
    assert len(done) == 2
    kept = []
    monkeypatch.setattr(pack_run.shutil, "rmtree", lambda path: kept.append(path))
    assert pack_run.run(recipe(shards)) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert (shards.parent / "plan" / "plan.arrow").read_bytes() == (shards.parent / "whole" / "plan.arrow").read_bytes()


def select(folder: Path, shards: Path, keep: set[str]) -> Path:
    rows = []
    for tar in sorted(shards.glob("*.tar")):
        index = pq.read_table(tar.with_suffix(".index.parquet")).to_pylist()
        for row, place in enumerate(index):
            kept = place["key"] in keep
            rows.append({"shard": tar.name, "row": row, "key": place["key"], "uid": place["uid"], "kept": kept})
    folder.mkdir()
    table = pa.Table.from_pylist(rows)
    table = table.append_column("dropped_by", pa.array(["" if row["kept"] else "rule" for row in rows]))
    pq.write_table(table.cast(table.schema.set(1, pa.field("row", pa.int32()))), folder / "selection.parquet")
    write_manifest(folder, Manifest("selection", {}, {"shards": read_manifest(shards, "shards").fingerprint}))
    return folder


def test_a_selection_keeps_what_it_keeps(recipe, tiny_shards, tmp_path: Path):
    shards = tiny_shards(40)
    selection = select(tmp_path / "selection", shards, {"000000003", "000000020", "000000039"})
    summary = pack_run.run(recipe(shards, selection=selection))
    assert summary.num_documents == 3
    plan = open_plan(tmp_path / "plan")
    documents = [document for pack in range(plan.num_packs) for document in plan.documents(pack)]
    assert {(one.shard.name, one.row) for one in documents} == {("00000.tar", 3), ("00001.tar", 4), ("00002.tar", 7)}
    assert plan.manifest.inputs["selection/0"] == read_manifest(selection, "selection").fingerprint


def test_each_folder_of_a_mixture_has_its_own_selection(recipe, tiny_shards, tmp_path: Path):
    other = write_shards(tmp_path / "other", [TinySample(f"a photo {i}", tiny_picture()) for i in range(8)])
    mixture = [
        ShardsFolder(folder=other, selection=select(tmp_path / "few", other, {"000000002", "000000005"}), repeat=2),
        ShardsFolder(folder=tiny_shards(6)),
    ]
    pack_run.run(recipe(*mixture))
    plan = open_plan(tmp_path / "plan")
    documents = [document for pack in range(plan.num_packs) for document in plan.documents(pack)]
    assert sorted(one.row for one in documents if one.shard.parent == other) == [2, 2, 5, 5]
    assert sorted(one.row for one in documents if one.shard.parent != other) == list(range(6))


def test_a_selection_of_other_shards_is_refused(recipe, tiny_shards, tmp_path: Path):
    other = write_shards(tmp_path / "other", [TinySample("a photo", tiny_picture())])
    selection = select(tmp_path / "selection", other, set())
    with pytest.raises(StrangerError, match="was made of other shards"):
        pack_run.run(recipe(tiny_shards(4), selection=selection))
    with pytest.raises(ConfigError, match="goes with one shards folder"):
        pack_run.run(recipe(other, tmp_path / "shards", selection=selection))
    with pytest.raises(ConfigError, match="stands twice"):
        pack_run.run(recipe(other, tmp_path / "other" / ".." / "other"))


def test_keys_with_what_some_take_for_a_line_break(recipe, tmp_path: Path):
    shards = write_shards(tmp_path / "odd", [TinySample("a photo", tiny_picture())] * 3)
    tar = shards / "00000.tar"
    rows = read_index(tar).to_pylist()
    rows[1]["key"] = "two\u2028lines"  # not in the tar by that name: unusable
    write_tables(tar, pa.Table.from_pylist(rows, SCHEMA), [])
    assert pack_run.run(recipe(shards, max_bad_share=0.5)).num_documents == 2
    (line,) = (tmp_path / "plan" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "two\u2028lines"


def test_image_limit(recipe, tiny_shards):
    pack_run.run(recipe(tiny_shards(20), max_images_per_pack=2))
    plan = open_plan(recipe(Path("unused")).out)
    assert max(len(plan.documents(pack)) for pack in range(plan.num_packs)) == 2
