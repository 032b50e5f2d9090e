"""Killed, run again, asked again: nothing finished is fetched twice or touched, and the bytes are the same."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_download import members, metadata, recipe, write_table

from rebus.config import dump_recipe
from rebus.errors import DataError
from rebus.fingerprint import MANIFEST, read_manifest
from rebus.shards.config import ShardsRecipe
from rebus.shards.download import shard as shard_module
from rebus.shards.download.journal import Journal
from rebus.shards.download.outcome import Outcome
from rebus.shards.download.shard import is_done
from rebus.shards.read import iterate, read_quarantine
from rebus.shards.run import run
from web_server import WebServer, serving

NUM_ROWS, CONCURRENCY = 60, 4
RUN = """
import sys
from pathlib import Path
from rebus.config import load_recipe
from rebus.shards.config import ShardsRecipe
from rebus.shards.run import run
run(load_recipe(ShardsRecipe, Path(sys.argv[1])))
"""


@pytest.fixture
def web():
    with serving() as server:
        yield server


def plain(folder: Path, web: WebServer, out: str = "out", **download) -> ShardsRecipe:
    """A table of 60 rows of 6 shards, a few of which fail."""
    rows = [
        {"url": f"{web.base}/{404 if number % 7 == 3 else 'ok'}/{number}", "caption": f"number {number}"}
        for number in range(NUM_ROWS)
    ]
    table = write_table(folder / "table.parquet", rows)
    return recipe(folder, table, {"concurrency": CONCURRENCY} | download, samples_per_shard=10, out=str(folder / out))


def contents(out: Path) -> dict[str, bytes]:
    """What depends on the data alone: the rest tells times and folders."""
    kinds = (".tar", ".parquet", ".jsonl")
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in kinds}


def recorded(out: Path) -> set[str]:
    """The URLs whose outcome lies in a finished shard or in a journal."""
    done = {row["url"] for tar in out.glob("*.tar") if is_done(tar) for row in pq.read_table(rows(tar)).to_pylist()}
    for path in out.glob("*.journal"):
        journal = Journal(path)
        done |= {journal.read(number).metadata["url"] for number in journal.numbers}
        journal.close()
    return done


def rows(tar: Path) -> Path:
    return tar.with_suffix(".parquet")


@pytest.mark.parametrize("num_requests", [3, 40])
def test_killed_at_any_moment_and_run_again(tmp_path: Path, web: WebServer, num_requests: int):
    options = plain(tmp_path, web)
    dump_recipe(options, tmp_path / "recipe.yaml")
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "recipe.yaml")], stdout=subprocess.DEVNULL)
    web.wait_for(lambda: sum(web.counts.values()) >= num_requests)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / MANIFEST).exists()
    finished = {tar: tar.read_bytes() for tar in (tmp_path / "out").glob("*.tar") if is_done(tar)}
    known, asked = recorded(tmp_path / "out"), sum(web.counts.values())
    assert len(known) >= asked - CONCURRENCY, "more is lost than what was on its way"
    run(options)
    assert sum(web.counts.values()) == asked + NUM_ROWS - len(known)
    assert all(web.counts[url.removeprefix(web.base)] == 1 for url in known)
    assert all(tar.read_bytes() == before for tar, before in finished.items())
    assert not list((tmp_path / "out").glob("*.journal"))
    run(plain(tmp_path, web, out="undisturbed"))
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("step", ["write_shard", "write_atomically", "write_index"])
def test_stopped_while_a_shard_is_written(tmp_path: Path, web: WebServer, monkeypatch, step: str):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shard_module, step, full)
        with pytest.raises(OSError, match="No space"):
            run(plain(tmp_path, web))
    known, asked = recorded(tmp_path / "out"), sum(web.counts.values())
    assert len(known) >= 10
    run(plain(tmp_path, web))
    assert sum(web.counts.values()) == asked + NUM_ROWS - len(known)
    run(plain(tmp_path, web, out="undisturbed"))
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_finished_folder_asks_nobody(tmp_path: Path, web: WebServer, capsys):
    first = run(plain(tmp_path, web))
    assert run(plain(tmp_path, web)) == first
    assert "up to date" in capsys.readouterr().err
    (tmp_path / "out" / "00002.quarantine.jsonl").unlink()
    assert run(plain(tmp_path, web)) == first
    again = {path for path, count in web.counts.items() if count == 2}
    assert again == {f"/{404 if number % 7 == 3 else 'ok'}/{number}" for number in range(20, 30)}, "that shard alone"


def outcome(number: int) -> Outcome:
    return Outcome(f"{number:05d}", number, "success", {"caption": "ä", "n": number}, bytes([number]) * 100)


def test_a_journal_gives_back_what_is_whole(tmp_path: Path):
    path = tmp_path / "00000.journal"
    journal = Journal(path)
    for number in (2, 0, 1):
        journal.add(outcome(number))
    journal.close()
    whole = path.read_bytes()
    for length in range(len(whole) // 3 * 2 + 1, len(whole)):
        path.write_bytes(whole[:length])
        found = Journal(path)
        assert found.numbers == [0, 2]
        found.add(outcome(1))
        found.close()
        assert path.read_bytes() == whole
    damaged = bytearray(whole)
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    found = Journal(path)
    assert [found.read(number) for number in found.numbers] == [outcome(0), outcome(2)]
    found.close()


def failing(folder: Path, web: WebServer, **download) -> ShardsRecipe:
    paths = ["/ok/1", "/flaky/1", "/404", "/500", "/flaky/2", "/html", "/busy", "/ok/2"]
    table = folder / "table.parquet"
    found = [{"url": web.base + path, "caption": path, "md5": "a", "when": "x"} for path in paths]
    pq.write_table(pa.Table.from_pylist(found), table)
    return recipe(folder, table, {"retries": 0, "concurrency_per_host": 1} | download, samples_per_shard=3)


def test_what_failed_is_asked_again_into_new_shards(tmp_path: Path, web: WebServer, capsys):
    first = run(failing(tmp_path, web))
    assert (first.num_samples, first.num_shards) == (2, 3)
    before, asked = contents(tmp_path / "out"), web.counts.copy()
    second = run(failing(tmp_path, web, retry_failed=True))
    again = {path for path in web.counts if web.counts[path] > asked[path]}
    assert again == {"/flaky/1", "/flaky/2", "/500", "/busy"}
    assert contents(tmp_path / "out").items() >= before.items(), "the finished ones are not touched"
    assert (second.num_samples, second.num_shards, second.num_damaged) == (5, 5, 3)
    assert second.reasons == {"HTTP 404": 1, "HTTP 500": 1, "HTML instead of a picture": 1}
    tars = sorted((tmp_path / "out").glob("*.tar"))
    keys = [sample.key for tar in tars for _, sample in iterate(tar)]
    assert keys == ["000000", "000021", "000001", "000011", "000020"], "a row keeps its key"
    assert json.loads(members(tars[3])["000001.json"])["when"] == "x"
    assert read_manifest(tmp_path / "out", "shards").facts["num_shards"] == 5
    third = run(failing(tmp_path, web, retry_failed=True))
    assert (third.num_shards, third.reasons) == (6, second.reasons)
    assert web.counts["/500"] == 3
    assert sum(web.counts.values()) == 8 + 4 + 1
    assert run(failing(tmp_path, web)) == third
    assert "up to date" in capsys.readouterr().err
    assert [row["key"] for row in metadata(tmp_path / "out") if row["url"] == f"{web.base}/500"] == ["000010"] * 3


def test_nothing_to_ask_again(tmp_path: Path, web: WebServer, capsys):
    table = write_table(tmp_path / "t.parquet", [{"url": web.base + path, "caption": "x"} for path in ("/ok", "/404")])
    first = run(recipe(tmp_path, table, {"retry_failed": True}))
    assert run(recipe(tmp_path, table, {"retry_failed": True})) == first
    assert "up to date" in capsys.readouterr().err
    assert web.counts == {"/ok": 1, "/404": 1}


def test_a_round_of_retries_that_was_stopped_goes_on(tmp_path: Path, web: WebServer, monkeypatch):
    run(failing(tmp_path, web))
    with monkeypatch.context() as patch:
        patch.setattr("rebus.shards.download.run.download_share", stopped)
        with pytest.raises(DataError, match="stopped"):
            run(failing(tmp_path, web, retry_failed=True))
    asked = web.counts.copy()
    summary = run(failing(tmp_path, web))
    assert summary.num_samples == 5
    assert sum((web.counts - asked).values()) == 4
    assert {one.reason for one in read_quarantine(tmp_path / "out" / "00003.tar")} == {"HTTP 500"}


def stopped(share: int, *, recipe: ShardsRecipe) -> None:
    raise DataError("stopped")


def test_when_nothing_came_the_same_folder_can_ask_again(tmp_path: Path, web: WebServer):
    table = write_table(tmp_path / "t.parquet", [{"url": f"{web.base}/flaky", "caption": "x"}])
    for _ in range(2):
        with pytest.raises(DataError, match="none of 1 samples"):
            run(recipe(tmp_path, table, {"retries": 0}))
    assert run(recipe(tmp_path, table, {"retries": 0, "retry_failed": True})).num_samples == 1
    assert web.counts == {"/flaky": 2}
