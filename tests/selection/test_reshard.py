"""Resharded tars against an independent reader written from the published form: tars, stats, sample_ids.npy."""

import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from resharded import UIDS, keys, members, pool, read_tars, reshard, write_subset

from rebus import storage
from rebus.config import check_recipe
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import MANIFEST, read_manifest
from rebus.selection.config import SelectionRecipe
from rebus.selection.read import kept_rows
from rebus.selection.resharding import write
from rebus.selection.resharding.config import ReshardRecipe
from rebus.selection.run import run as select
from rebus.shards.index import write_index
from rebus.shards.read import iterate, read_index, read_quarantine
from rebus.shards.write import write_shard

__all__ = ["pool"]


def test_everything_of_the_published_form(pool: Path, tmp_path: Path):
    wanted = [*UIDS[2:12], UIDS[4], UIDS[4], UIDS[9]]
    subset = write_subset(tmp_path / "subset.npy", wanted)
    summary = reshard(pool, tmp_path / "out", subset=subset, write_shard_table=True)

    tars = read_tars(tmp_path / "out")
    assert list(tars) == ["00000000.tar", "00000001.tar", "00000002.tar", "00000003.tar"]
    expected = [f"{uid}-{copy}" for uid in UIDS[2:12] for copy in range(wanted.count(uid))]
    assert keys(tmp_path / "out") == expected
    for samples in tars.values():
        for key, content in samples:
            number = UIDS.index(key.partition("-")[0])
            assert content == members(number, {"uid": UIDS[number], "key": f"{number:09d}"})
    sizes = [4, 4, 4, 1]
    stats = [json.loads((tmp_path / "out" / f"{n:08d}_stats.json").read_text()) for n in range(4)]
    assert [one["successes"] for one in stats] == sizes
    assert json.loads((tmp_path / "out" / "sizes.json").read_text()) == dict(zip(tars, sizes, strict=True))
    assert (tmp_path / "out" / "sample_ids.npy").read_bytes() == subset.read_bytes()
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert (meta["num_samples"], meta["num_output_shards"], meta["shard_size"]) == (13, 4, 4)
    assert (summary.num_read, summary.num_kept, summary.num_copies, summary.num_missing) == (21, 10, 3, 0)
    assert summary.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))


def test_later_stages_read_it(pool: Path, tmp_path: Path):
    reshard(pool, tmp_path / "out", subset=write_subset(tmp_path / "subset.npy", [*UIDS[:5], UIDS[3]]))
    found = [sample for tar in sorted((tmp_path / "out").glob("*.tar")) for _, sample in iterate(tar)]
    assert [sample.uid for sample in found] == [*UIDS[:4], UIDS[3], UIDS[4]]
    select(SelectionRecipe(shards=tmp_path / "out", out=tmp_path / "selection"))
    assert sum(len(rows) for _, rows in kept_rows(tmp_path / "selection")) == 6
    assert read_manifest(tmp_path / "out", "shards").inputs["shards"] == read_manifest(pool, "shards").fingerprint


def test_a_file_without_a_header_is_the_same_subset(pool: Path, tmp_path: Path):
    raw = write_subset(tmp_path / "subset.npy", UIDS[5:9], header=False)
    reshard(pool, tmp_path / "out", subset=raw)
    assert keys(tmp_path / "out") == [f"{uid}-0" for uid in UIDS[5:9]]
    raw.write_bytes(raw.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"61 bytes are no whole number of uids"):
        reshard(pool, tmp_path / "other", subset=raw)


def test_no_subset_keeps_all_and_a_selection_keeps_its_rows(pool: Path, tmp_path: Path):
    reshard(pool, tmp_path / "all")
    assert keys(tmp_path / "all") == [f"{uid}-0" for uid in UIDS]
    rule = {"name": "long", "column": "text_chars", "max": 9}
    select(check_recipe(SelectionRecipe, {"shards": pool, "rules": [rule], "out": tmp_path / "few"}, "test"))
    reshard(pool, tmp_path / "kept", subset=tmp_path / "few")
    assert keys(tmp_path / "kept") == [f"{uid}-0" for uid in UIDS[:10]]
    reshard(tmp_path / "all", tmp_path / "again", subset=tmp_path / "few")  # of other shards: by uid
    assert keys(tmp_path / "again") == keys(tmp_path / "kept")


def test_uids_are_made_where_a_source_has_none(tmp_path: Path):
    """The original needs `uid` in the json; here a content uid is written into it, and stays what it was."""
    folder = tmp_path / "bare"
    several = [("a", None), ("b", {"caption": "é"}), ("c", {"uid": "not one"})]
    write_shard(folder / "00000.tar", [(key, members(n, told)) for n, (key, told) in enumerate(several)])
    reshard(folder, tmp_path / "out")
    index = read_index(tmp_path / "out.input" / "00000.link").to_pylist()
    assert keys(tmp_path / "out") == [f"{row['uid']}-0" for row in index]
    told = [json.loads(content["json"]) for _, content in read_tars(tmp_path / "out")["00000000.tar"]]
    assert told == [{**(metadata or {}), "uid": row["uid"]} for (_, metadata), row in zip(several, index, strict=True)]
    assert read_index(tmp_path / "out" / "00000000.tar")["uid"].to_pylist() == [row["uid"] for row in index]


def test_missing_uids_are_counted_and_listed(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    strangers = [f"{2**63 + number:016x}{5:016x}" for number in range(3)]
    subset = write_subset(tmp_path / "subset.npy", [*UIDS[:3], *strangers, strangers[0]])
    assert reshard(pool, tmp_path / "out", subset=subset).num_missing == 3
    assert "3 uids" in capsys.readouterr().err
    listed = np.load(tmp_path / "out" / "missing_uids.npy", allow_pickle=False)
    assert [f"{high:016x}{low:016x}" for high, low in listed.tolist()] == strangers
    with pytest.raises(DataError, match="3 uids of"):
        reshard(pool, tmp_path / "other", subset=subset, strict=True)
    with pytest.raises(DataError, match="names none of the 21 samples"):
        reshard(pool, tmp_path / "other", subset=write_subset(tmp_path / "none.npy", strangers))


@pytest.mark.parametrize("size", [0, 5, "all"])
def test_layout_does_not_depend_on_workers(pool: Path, tmp_path: Path, size: int | str):
    found = []
    for workers in (1, 2):
        out = tmp_path / f"by_{workers}"
        reshard(pool, out, num_workers=workers, shuffle_bufsize=size, seed=3)
        found.append({path.name: path.read_bytes() for path in out.glob("0*") if path.suffix in (".tar", ".json")})
    assert found[0] == found[1]
    assert sorted(keys(tmp_path / "by_1")) == sorted(f"{uid}-0" for uid in UIDS)
    assert (keys(tmp_path / "by_1") == [f"{uid}-0" for uid in UIDS]) == (size == 0)


def test_damaged_samples_go_to_the_quarantine(pool: Path, tmp_path: Path):
    tar = pool / "00001.tar"
    row = read_index(tar).to_pylist()[2]
    content = bytearray(tar.read_bytes())
    content[row["offset"] : row["offset"] + 600] = bytes(600)  # its first header is gone since it was indexed
    tar.write_bytes(content)
    assert reshard(pool, tmp_path / "out", max_bad_share=0.1).num_damaged == 1
    (damage,) = [one for path in sorted((tmp_path / "out").glob("*.tar")) for one in read_quarantine(path)]
    assert damage.shard == "00000002.tar"
    assert damage.key == f"{UIDS[9]}-0"
    assert json.loads((tmp_path / "out" / "00000002_stats.json").read_text())["successes"] == 3
    assert len(keys(tmp_path / "out")) == 20
    with pytest.raises(DataError, match=r"1 of 21 samples could not be written, more than max_bad_share = 0.01"):
        reshard(pool, tmp_path / "strict", max_bad_share=0.01)


def _die_at(pool: Path, out: Path, number: int) -> None:
    write_tables, done = write.write_tables, []

    def write_or_die(*arguments: object) -> None:
        if len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(write_tables(*arguments))

    write.write_tables = write_or_die
    reshard(pool, out, shuffle_bufsize="all")


@pytest.mark.parametrize("number", [0, 3, 5])
def test_killed_and_run_again_the_bytes_are_the_same(pool: Path, tmp_path: Path, number: int):
    reshard(pool, tmp_path / "whole", shuffle_bufsize="all")
    process = multiprocessing.get_context("fork").Process(target=_die_at, args=(pool, tmp_path / "killed", number))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / MANIFEST).exists()
    done = sorted((tmp_path / "killed").glob("*.quarantine.jsonl"))
    times = [path.stat().st_mtime_ns for path in done]
    assert len(done) == number
    reshard(pool, tmp_path / "killed", shuffle_bufsize="all")
    assert [path.stat().st_mtime_ns for path in done] == times  # no shard twice
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
    for name in names - {MANIFEST, "recipe.yaml", "meta.json"}:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_out_is_kept_unless_it_may_go(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    reshard(pool, tmp_path / "out", shard_size=5)
    reshard(pool, tmp_path / "out", shard_size=5)
    assert "is up to date" in capsys.readouterr().err
    with pytest.raises(DataError, match="holds other shards"):
        reshard(pool, tmp_path / "out")
    assert len(read_tars(tmp_path / "out")) == 5
    reshard(pool, tmp_path / "out", overwrite=True)
    assert len(read_tars(tmp_path / "out")) == 6
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="Rebus did not make"):
        reshard(pool, tmp_path / "mine", overwrite=True)
    with pytest.raises(DataError, match="lie inside each other"):
        reshard(pool, pool / "out")


def test_a_lost_shard_is_written_again(pool: Path, tmp_path: Path):
    reshard(pool, tmp_path / "out")
    content = (tmp_path / "out" / "00000001.tar").read_bytes()
    (tmp_path / "out" / "00000001.tar").unlink()
    reshard(pool, tmp_path / "out")
    assert (tmp_path / "out" / "00000001.tar").read_bytes() == content


def test_a_dry_run_writes_nothing(pool: Path, tmp_path: Path):
    summary = reshard(pool, tmp_path / "out", dry_run=True)
    assert (summary.num_kept, summary.num_shards) == (21, 6)
    assert not (tmp_path / "out").exists()


def test_formats_and_ranges_of_shards(pool: Path, tmp_path: Path):
    formats = {"output_shard_format": "part-{:03d}.tar", "output_shard_stats_format": "part-{:03d}.json"}
    reshard(pool, tmp_path / "one", first_shard=1, num_shards=1, **formats)
    assert keys(tmp_path / "one") == [f"{uid}-0" for uid in UIDS[7:14]]
    assert json.loads((tmp_path / "one" / "part-001.json").read_text())["successes"] == 3
    reshard(pool, tmp_path / "named", first_shard=2, shard_format="{:05d}.tar")
    assert keys(tmp_path / "named") == [f"{uid}-0" for uid in UIDS[14:]]
    with pytest.raises(DataError, match="has 1 of the shards"):
        reshard(pool, tmp_path / "none", first_shard=2, num_shards=2)
    with pytest.raises(ConfigError, match="makes no file names of numbers"):
        reshard(pool, tmp_path / "none", output_shard_format="shard.tar")


@pytest.mark.parametrize("name", ["sizes.json", "00000001_stats.json"])
def test_sizes_that_are_told_are_held_against_the_index(
    pool: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    if name == "sizes.json":
        (pool / name).write_text(json.dumps({"00000.tar": 7, "00001.tar": 9}))
    else:
        (pool / "00000000_stats.json").write_text(json.dumps({"successes": 7}))
        (pool / name).write_text(json.dumps({"successes": 9}))
    reshard(pool, tmp_path / "out")
    err = capsys.readouterr().err
    assert "00001: 9 samples are told, 7 of them are whole" in err
    assert "00000:" not in err


def test_from_and_to_storage_behind_a_url(pool: Path, tmp_path: Path, s3):
    for tar in sorted(pool.glob("*.tar")):
        s3.put(f"pool/{tar.name}", tar.read_bytes())
    subset = s3.put("subset.npy", write_subset(tmp_path / "subset.npy", UIDS[3:17]).read_bytes())
    upload = {"upload": "s3://bucket/out", "subset": subset}
    reshard("s3://bucket/pool", tmp_path / "out", **upload)
    assert not list((tmp_path / "out").glob("*.tar"))
    (tmp_path / "fetched").mkdir()
    names = ["00000000.tar", "00000003.tar", "00000003_stats.json", "sample_ids.npy", "meta.json"]
    for name in names:
        storage.download(f"s3://bucket/out/{name}", tmp_path / "fetched" / name)
    reshard(pool, tmp_path / "local", subset=tmp_path / "subset.npy")
    for name in names[:-1]:
        assert (tmp_path / "fetched" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    links = sorted((tmp_path / "out").glob("*.link"))
    assert [sample.uid for link in links for _, sample in iterate(link)] == UIDS[3:17]
    (tmp_path / "out" / "00000001.quarantine.jsonl").unlink()  # as a kill would leave it
    reshard("s3://bucket/pool", tmp_path / "out", **upload)
    with pytest.raises(ConfigError, match="`upload` is where the tars go"):
        reshard(pool, "s3://bucket/out")
    with pytest.raises(DataError, match="holds 4 tars already"):
        reshard("s3://bucket/pool", tmp_path / "other", **upload)


def test_samples_that_share_a_uid_keep_names_of_their_own(tmp_path: Path):
    folder = tmp_path / "pool"
    write_shard(folder / "00000.tar", [(f"k{n}", members(n, {"uid": UIDS[0]})) for n in range(3)])
    write_index(folder / "00000.tar")
    reshard(folder, tmp_path / "out", subset=write_subset(tmp_path / "two.npy", [UIDS[0], UIDS[0]]))
    assert keys(tmp_path / "out") == [f"{UIDS[0]}-{copy}" for copy in range(6)]


def test_the_recipe_in_the_docs_is_accepted():
    page = (Path(__file__).parents[2] / "docs" / "reshard.md").read_text()
    [text] = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    recipe = check_recipe(ReshardRecipe, yaml.safe_load(text), "docs/reshard.md")
    assert all(f"`{name}`" in page for name in type(recipe).model_fields if name not in ("out", "upload", "seed"))
