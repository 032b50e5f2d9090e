"""Bytes by range from disk and from a real S3 server: the same answers, few requests, errors that say what to do."""

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus import storage
from rebus.engine import map_shards
from rebus.errors import DataError, StrangerError, UnreachableError
from s3_server import S3Server

BYTES = bytes(range(256)) * 400

ranges = st.lists(st.tuples(st.integers(0, 150_000), st.integers(0, 30_000)), max_size=20)


@given(ranges=ranges)
def test_ranges_are_merged_without_a_byte_lost(tmp_path_factory, ranges):
    path = tmp_path_factory.getbasetemp() / "ranges"
    if not path.exists():
        path.write_bytes(BYTES)
    offsets, lengths = [offset for offset, _ in ranges], [length for _, length in ranges]
    wanted = [BYTES[offset : offset + length] for offset, length in ranges]
    assert storage.read_ranges(str(path), offsets, lengths) == wanted
    assert [storage.read_range(str(path), *one) for one in ranges] == wanted
    spans = storage.merge_ranges(offsets, lengths)
    assert sum(number for *_, number in spans) == len(ranges)
    assert all(end - start <= storage.MAX_SPAN for start, end, _ in spans)


def test_neighbours_are_one_request_and_distant_ones_are_not():
    near = storage.merge_ranges([0, 100, 300], [100, 100, 10])
    assert near == [(0, 310, 3)]
    assert len(storage.merge_ranges([0, 100_000], [10, 10])) == 2
    assert len(storage.merge_ranges([0, storage.MAX_SPAN], [storage.MAX_SPAN, 1])) == 2


def test_s3_answers_as_a_disk_does(s3: S3Server, tmp_path: Path):
    url, path = s3.put("folder/a.bin", BYTES), tmp_path / "a.bin"
    path.write_bytes(BYTES)
    asked = [0, 5, 50_000, 102_390, 102_400, 900_000], [3, 0, 40_000, 100, 10, 10]
    assert storage.read_ranges(url, *asked) == storage.read_ranges(str(path), *asked)
    assert storage.file_size(url) == storage.file_size(str(path)) == len(BYTES)
    with storage.open_file(url) as file:
        assert (file.read(3), file.seek(1000), file.read()) == (BYTES[:3], 1000, BYTES[1000:])
    storage.download(url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == BYTES
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.bin", "copy"]


def test_one_listing_tells_names_and_versions(s3: S3Server):
    urls = [s3.put(f"many/{number}.tar", bytes(number)) for number in range(5)]
    s3.put("many/inner/9.tar", b"")
    s3.put("many/notes.txt", b"")
    s3.requests()
    versions = storage.list_versions("s3://bucket/many", ".tar")
    assert {method for method, *_ in s3.requests()} == {"GET"}
    assert list(versions) == urls
    assert versions == {url: storage.file_version(url) for url in urls}
    s3.put("many/3.tar", b"xyz")
    assert storage.file_version(urls[3]) != versions[urls[3]]
    assert storage.list_versions("s3://bucket/many", ".tar")[urls[3]] == storage.file_version(urls[3])


def test_eight_threads_share_one_connection(s3: S3Server):
    urls = [s3.put(f"{number}.bin", bytes([number]) * 1000) for number in range(8)]
    start = threading.Barrier(8)

    def read(number: int) -> bool:
        start.wait()
        return all(
            storage.read_range(url, 10, 90) == bytes([place]) * 90 for place, url in enumerate(urls[number:], number)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert len(storage._OPENED) == 1


def test_spawned_workers_read_too(s3: S3Server):
    urls = [s3.put(f"{number}.bin", bytes(number)) for number in (3, 4)]
    storage.file_size(urls[0])  # a connection that a worker must not inherit
    assert map_shards(storage.file_size, urls, description="sizes", num_workers=2) == [3, 4]


@pytest.mark.parametrize("place", ["s3://bucket/missing.tar", "s3://no-such-bucket/a.tar"])
def test_what_is_missing_is_named_with_what_to_check(s3: S3Server, tmp_path: Path, place: str):
    actions = [
        lambda: storage.file_version(place),
        lambda: storage.read_range(place, 0, 5),
        lambda: storage.open_file(place).__enter__(),
        lambda: storage.download(place, tmp_path / "a"),
        lambda: storage.download(place, tmp_path / "a", (5, "x")),
    ]
    for action in actions:
        with pytest.raises(DataError, match=rf"{place} .*\n?.*credentials.*AWS_ENDPOINT_URL"):
            action()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(s3: S3Server, tmp_path: Path):
    for folder in ("s3://bucket/nothing", "s3://no-such-bucket/folder"):
        with pytest.raises(DataError, match=folder):
            storage.list_versions(folder, ".tar")
    with pytest.raises(DataError, match="no folder at"):
        storage.list_versions(str(tmp_path / "nothing"), ".tar")
    with pytest.raises(DataError, match=r"nothing cannot be read.*Check the path\."):
        storage.read_range(str(tmp_path / "nothing"), 0, 1)


def test_no_credentials_is_an_error_that_names_them(s3: S3Server, monkeypatch, tmp_path: Path):
    url = s3.put("a.bin", BYTES)
    for name in [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage.forget()
    with pytest.raises(DataError, match=r"a\.bin.*AWS_ACCESS_KEY_ID"):
        storage.read_range(url, 0, 5)


def test_a_protocol_that_nothing_reads_is_refused():
    with pytest.raises(DataError, match=r"nonsense://.*rebus\[s3\]"):
        storage.file_size("nonsense://bucket/file")


class _Shaky(http.server.BaseHTTPRequestHandler):
    """An S3 server that is overloaded at first."""

    failures = 0

    def do_GET(self) -> None:
        if type(self).failures > 0:
            type(self).failures -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"bytes")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def shaky_server(failures: int) -> Iterator[str]:
    _Shaky.failures = failures
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Shaky) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("failures", "succeeds"), [(1, True), (50, False)])
def test_an_overloaded_server_is_asked_again_and_not_for_ever(s3: S3Server, monkeypatch, failures: int, succeeds: bool):
    with shaky_server(failures) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage.forget()
        if succeeds:
            assert storage.read_range("s3://bucket/a", 0, 5) == b"bytes"
        else:
            with pytest.raises(DataError, match="s3://bucket/a cannot be read"):
                storage.read_range("s3://bucket/a", 0, 5)
            assert _Shaky.failures > 30
        storage.forget()


def test_a_server_that_is_not_there_is_an_error(s3: S3Server, monkeypatch):
    with shaky_server(0) as endpoint:
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    storage.forget()
    with pytest.raises(UnreachableError, match=r"s3://bucket/a cannot be read.*AWS_ENDPOINT_URL"):
        storage.read_range("s3://bucket/a", 0, 5)


def test_a_file_that_is_gone_is_not_storage_that_is_gone(s3: S3Server, tmp_path: Path):
    for place in (str(tmp_path / "a"), s3.put("a", b"bytes").replace("/a", "/b")):
        with pytest.raises(DataError) as caught:
            storage.read_range(place, 0, 5)
        assert not isinstance(caught.value, UnreachableError), place


def test_two_threads_that_fetch_one_file_do_not_write_into_each_other(tmp_path: Path, monkeypatch):
    (tmp_path / "data").write_bytes(b"bytes")
    meeting, copied, real = threading.Barrier(2), [], shutil.copyfile

    def copy(place: str, temporary: Path) -> None:
        copied.append(temporary)
        real(place, temporary)
        meeting.wait(10)

    monkeypatch.setattr(shutil, "copyfile", copy)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: storage.download(str(tmp_path / "data"), tmp_path / "copy"), range(2)))
    assert len(set(copied)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "data"]


def test_a_file_that_is_another_by_now_is_not_downloaded(s3: S3Server, tmp_path: Path):
    url = s3.put("a.bin", b"first")
    version = storage.file_version(url)
    s3.put("a.bin", b"other")
    with pytest.raises(StrangerError, match=r"a\.bin changed"):
        storage.download(url, tmp_path / "a", version)
    assert list(tmp_path.iterdir()) == []
