"""Tars behind a URL: indexed where they lie, read by range or through a cache on disk, or downloaded."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from rebus import storage
from rebus.config import check_recipe
from rebus.errors import DataError, StrangerError
from rebus.records import Damage, Text
from rebus.shards.cache import ShardCache
from rebus.shards.config import ShardsRecipe
from rebus.shards.link import read_link
from rebus.shards.read import iterate, iterate_texts, open_index, read_index, read_quarantine, read_sample
from rebus.shards.run import run as run_shards
from rebus.shards.sources.tars import adopt, list_tars, tars_fingerprint
from rebus.shards.write import write_shard
from s3_server import S3Server
from tiny_samples import tiny_picture

NUM_SAMPLES = 12
PADDING = os.urandom(40_000)  # what follows the end of a PNG is nobody's; it makes tars of half a megabyte


def write_tar(path: Path, first: int = 0) -> Path:
    numbers = range(first, first + NUM_SAMPLES)
    members = [{"png": tiny_picture() + PADDING, "txt": f"caption {n}".encode(), "json": b'{"a": 1}'} for n in numbers]
    write_shard(path, ((f"{n:05d}", one) for n, one in zip(numbers, members, strict=True)))
    return path


@pytest.fixture
def urls(s3: S3Server, tmp_path: Path) -> list[str]:
    """Two tars in the bucket."""
    tars = [write_tar(tmp_path / "made" / f"{number:05d}.tar", number * NUM_SAMPLES) for number in range(2)]
    found = [s3.put(f"pool/{tar.name}", tar.read_bytes()) for tar in tars]
    s3.requests()
    return found


@pytest.fixture
def linked(urls: list[str], s3: S3Server, tmp_path: Path) -> list[Path]:
    (tmp_path / "out").mkdir()
    shards = [adopt(url, out=tmp_path / "out", link=True) for url in urls]
    s3.requests()
    return shards


def gets(s3: S3Server) -> list[int]:
    """The status of each GET since this was last asked: 206 for a range, 200 for all of an object."""
    return [status for method, _, status in s3.requests() if method == "GET"]


def test_a_remote_tar_is_indexed_where_it_lies(linked, s3, tmp_path: Path):
    local = adopt(str(tmp_path / "made" / "00000.tar"), out=tmp_path / "made", link=True)
    assert local == tmp_path / "made" / "00000.tar"
    assert read_index(linked[0]) == read_index(local)
    assert [shard.name for shard in linked] == ["00000.link", "00001.link"]
    assert read_quarantine(linked[1]) == []
    assert not list((tmp_path / "out").glob("*.tar"))
    assert read_link(linked[1]).data == "s3://bucket/pool/00001.tar"
    for _, sample in iterate_texts(linked[1]):
        assert (sample.parts[1], sample.source) == (Text(f"caption {int(sample.key)}"), "00001.link")


def test_the_verb_reads_a_bucket(urls, s3, tmp_path: Path):
    tree = {"source": "tars", "input": "s3://bucket/pool", "out": tmp_path / "out", "link": True, "num_workers": 2}
    recipe = check_recipe(ShardsRecipe, tree, "test")
    summary = run_shards(recipe)
    assert (summary.num_shards, summary.num_samples, summary.num_damaged) == (2, 2 * NUM_SAMPLES, 0)
    s3.requests()
    run_shards(recipe)
    assert not any(path.endswith(".tar") for _, path, _ in s3.requests()), "up to date: one listing tells"


def test_all_samples_are_read_in_a_few_requests(linked, s3):
    texts = [sample.parts[1].text for _, sample in iterate(linked[1])]
    assert texts == [f"caption {number}" for number in range(NUM_SAMPLES, 2 * NUM_SAMPLES)]
    assert gets(s3) == [206]


def test_a_finished_shard_is_left_as_it_is(linked, urls, s3, tmp_path: Path):
    assert adopt(urls[0], out=tmp_path / "out", link=True) == linked[0]
    assert s3.requests() == []


def test_one_sample_is_one_request_for_its_bytes_alone(linked, s3, monkeypatch):
    received = []
    monkeypatch.setattr(storage, "_received", lambda blob: received.append(len(blob)) or blob)
    index = open_index(linked[0])
    assert [method for method, *_ in s3.requests()] == ["HEAD"]
    sample = read_sample(linked[0], index.place(7), index.link)
    assert (sample.parts[1], sample.images[0].data) == (Text("caption 7"), tiny_picture() + PADDING)
    assert s3.requests() == [("GET", "/bucket/pool/00000.tar", 206)]
    assert received == [index.lengths[7]]


def test_texts_are_read_without_the_pictures(linked, s3, monkeypatch):
    received = []
    monkeypatch.setattr(storage, "_received", lambda blob: received.append(len(blob)) or blob)
    texts = [sample.parts[1].text for _, sample in iterate_texts(linked[0], [2, 3, 9])]
    assert texts == ["caption 2", "caption 3", "caption 9"]
    assert gets(s3) == [206] * 3
    assert sum(received) < 10_000 < len(PADDING)


def test_a_local_tar_may_be_linked_too(tmp_path: Path, monkeypatch):
    write_tar(tmp_path / "made" / "a.b.tar")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    shard = adopt("made/a.b.tar", out=Path("out"), link=True)
    assert shard == Path("out/a.b.link")
    assert read_link(shard).data == str(tmp_path / "made" / "a.b.tar")
    monkeypatch.chdir("/")
    index = open_index(tmp_path / shard)
    assert read_sample(tmp_path / shard, index.place(3), index.link).parts[1] == Text("caption 3")


def test_a_download_is_the_same_tar(urls, s3, tmp_path: Path):
    (tmp_path / "copies").mkdir()
    shard = adopt(urls[0], out=tmp_path / "copies", link=False)
    assert gets(s3) == [200]
    assert shard.read_bytes() == (tmp_path / "made" / "00000.tar").read_bytes()
    assert read_index(shard).num_rows == NUM_SAMPLES
    assert sorted(one.name for one in shard.parent.iterdir()) == [
        "00000.index.parquet", "00000.quarantine.jsonl", "00000.tar",
    ]  # fmt: skip


def test_a_damaged_remote_tar_costs_what_is_damaged(s3, tmp_path: Path):
    data = write_tar(tmp_path / "a.tar").read_bytes()
    url = s3.put("cut/a.tar", data[: len(data) // 2])
    shard = adopt(url, out=tmp_path, link=True)
    assert 4 <= read_index(shard).num_rows <= 6
    assert [damage.reason for damage in read_quarantine(shard)] == ["truncated tar"]


def test_the_fingerprint_follows_the_objects(urls, s3, tmp_path: Path):
    first = tars_fingerprint("s3://bucket/pool")
    assert list_tars("s3://bucket/pool") == urls
    assert {method for method, *_ in s3.requests()} == {"GET"}, "one listing, not a request a tar"
    data = bytearray((tmp_path / "made" / "00001.tar").read_bytes())
    data[600] ^= 1
    s3.put("pool/00001.tar", bytes(data))
    second = tars_fingerprint("s3://bucket/pool")
    assert second != first
    s3.send("DELETE", "/bucket/pool/00001.tar")
    assert tars_fingerprint("s3://bucket/pool") not in (first, second)
    s3.send("DELETE", "/bucket/pool/00000.tar")
    s3.put("pool/notes.txt", b"x")
    with pytest.raises(DataError, match=r"s3://bucket/pool holds no \.tar"):
        tars_fingerprint("s3://bucket/pool")


def test_a_changed_object_is_a_stranger(linked, s3, tmp_path: Path):
    data = bytearray((tmp_path / "made" / "00000.tar").read_bytes())
    data[600] ^= 1  # as long as before: the ETag tells
    s3.put("pool/00000.tar", bytes(data))
    for action in (open_index, lambda shard: list(iterate_texts(shard))):
        with pytest.raises(StrangerError, match=r"pool/00000\.tar is not what .*00000\.link was made of"):
            action(linked[0])
    assert open_index(linked[1]).num_samples == NUM_SAMPLES


def test_a_vanished_object_is_named(linked, s3):
    index = open_index(linked[0])
    s3.send("DELETE", "/bucket/pool/00000.tar")
    with pytest.raises(DataError, match=r"s3://bucket/pool/00000\.tar cannot be read.*credentials"):
        open_index(linked[0])
    with pytest.raises(DataError, match=r"s3://bucket/pool/00000\.tar cannot be read"):
        read_sample(linked[0], index.place(0), index.link)


def test_the_cache_fetches_a_shard_once_for_all_its_samples(linked, s3, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", 10**9)
    indexes = [open_index(shard) for shard in linked]
    s3.requests()
    start = threading.Barrier(8)

    def read(worker: int) -> list[str]:
        start.wait()
        places = [(index, row) for index in indexes for row in range(worker % 3, NUM_SAMPLES)]
        return [read_sample(i.shard, i.place(row), i.link, cache).parts[1].text for i, row in places]

    with ThreadPoolExecutor(8) as pool:
        for worker, texts in enumerate(pool.map(read, range(8))):
            first = worker % 3
            wanted = [*range(first, NUM_SAMPLES), *range(NUM_SAMPLES + first, 2 * NUM_SAMPLES)]
            assert texts == [f"caption {number}" for number in wanted]
    assert gets(s3) == [200, 200]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_least_recently_used_shard_goes_and_the_limit_holds(s3, tmp_path: Path):
    urls = [s3.put(f"{number}.bin", bytes([number]) * 1000) for number in range(4)]
    cache = ShardCache(tmp_path / "cache", 3000)

    def total() -> int:
        return sum(one.stat().st_size for one in (tmp_path / "cache").iterdir())

    paths = [cache.local(url) for url in urls[:3]]
    for age, path in enumerate(paths):
        os.utime(path, (age, age))
    with open(paths[1], "rb", buffering=0) as reading:
        cache.local(urls[0])  # used again: 1 is the oldest now
        cache.local(urls[3])
        assert [path.exists() for path in paths] == [True, False, True]
        assert total() == 3000
        assert os.pread(reading.fileno(), 1000, 0) == bytes([1]) * 1000
    s3.requests()
    assert cache.read_ranges(urls[1], [998, 0], [10, 2]) == [b"\1\1", b"\1\1"]
    assert gets(s3) == [200]
    assert total() == 3000


def test_many_threads_in_a_small_cache_read_right_and_stay_within_it(s3, tmp_path: Path):
    urls = [s3.put(f"{number}.bin", bytes([number]) * 1000) for number in range(6)]
    cache = ShardCache(tmp_path / "cache", 2500)

    def read(step: int) -> bool:
        number = step * 7 % 6
        found = cache.read_ranges(urls[number], [step], [10])[0]
        with cache._state:  # nobody evicts now
            sizes = [one.stat().st_size for one in (tmp_path / "cache").glob("*.data")]
        return found == bytes([number]) * 10 and sum(sizes) <= 2500

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(60)))


def test_a_shard_larger_than_the_cache_is_an_error_with_both_numbers(s3, tmp_path: Path):
    url = s3.put("a.bin", bytes(1000))
    with pytest.raises(DataError, match=r"a\.bin has 1000 bytes, more than .* may hold: 999"):
        ShardCache(tmp_path / "cache", 999).local(url)


def test_a_failed_fetch_fails_everybody_and_blocks_nobody(s3, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", 10_000)
    missing = "s3://bucket/missing.tar"

    def fetch(_: int) -> str:
        with pytest.raises(DataError, match="missing"):
            cache.local(missing, (5, "etag"))
        return "failed"

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, range(4))) == {"failed"}
    assert list((tmp_path / "cache").iterdir()) == []
    assert cache.local(s3.put("a.bin", b"abc")).read_bytes() == b"abc"


def test_a_changed_object_is_never_served_from_the_cache(linked, s3, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", 10**9)
    index = open_index(linked[0])
    s3.put("pool/00000.tar", write_tar(tmp_path / "other.tar", 50).read_bytes())
    with pytest.raises(StrangerError, match=r"00000\.tar changed"):
        read_sample(linked[0], index.place(0), index.link, cache)
    assert cache.local(index.link.data).read_bytes() == (tmp_path / "other.tar").read_bytes()


def test_what_a_killed_process_left_is_swept_and_others_are_not(tmp_path: Path):
    gone = multiprocessing.get_context("spawn").Process(target=len, args=("",))
    gone.start()
    gone.join()
    folder = tmp_path / "cache"
    folder.mkdir()
    left, alive, old, whole = (
        folder / name for name in (f".a.data.{gone.pid}.tmp", f".b.data.{os.getpid()}.tmp", ".c.data.1.tmp", "d.data")
    )
    for path in (left, alive, old, whole):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    ShardCache(folder, 100)
    assert sorted(folder.iterdir()) == sorted([alive, whole])


def _texts_of(task: tuple[ShardCache, Path]) -> list[str]:
    cache, shard = task
    index = open_index(shard)
    return [read_sample(shard, index.place(row), index.link, cache).parts[1].text for row in range(NUM_SAMPLES)]


def test_worker_processes_share_the_folder(linked, s3, tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", 10**9)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_texts_of, [(cache, shard) for shard in [*linked, linked[0]]]))
    assert found[0] == found[2] == [f"caption {number}" for number in range(NUM_SAMPLES)]
    assert 2 <= len(gets(s3)) <= 3


def test_local_data_needs_no_cache(tmp_path: Path):
    tar = write_tar(tmp_path / "00000.tar")
    adopt(str(tar), out=tmp_path, link=False)
    index = open_index(tar)
    cache = ShardCache(tmp_path / "cache", 1)
    assert not isinstance(read_sample(tar, index.place(0), index.link, cache), Damage)
    assert list((tmp_path / "cache").iterdir()) == []
