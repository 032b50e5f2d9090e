"""A real S3 server for tests, in a process of its own, that tells which requests it got."""

import http.client
import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlparse

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_REQUEST = re.compile(r'"([A-Z]+) (\S+) HTTP/1.1" (\d+)')


@dataclass
class S3Server:
    """endpoint: its URL. Its bucket is `bucket`; every test gets a folder of its own there."""

    endpoint: str
    bucket: str = "bucket"
    _lines: list[str] = field(default_factory=list)
    _came: threading.Condition = field(default_factory=threading.Condition)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _seen: int = 0

    def send(self, method: str, path: str, body: bytes = b"") -> int:
        """A plain request; this server wants to see a name and checks no signature. Returns the status."""
        connection = http.client.HTTPConnection(urlparse(self.endpoint).netloc)
        connection.request(method, path, body, {"Authorization": AUTHORIZATION})
        status = connection.getresponse().status
        connection.close()
        return status

    def put(self, name: str, content: bytes) -> str:
        """Stores an object. Returns its URL."""
        assert self.send("PUT", f"/{self.bucket}/{name}", content) == 200
        return f"s3://{self.bucket}/{name}"

    def requests(self) -> list[tuple[str, str, int]]:
        """(method, path, status) of the requests since this was last asked."""
        marker = f"/{self.bucket}/marker-{next(self._numbers)}"
        self.send("HEAD", marker)
        with self._came:
            assert self._came.wait_for(lambda: any(marker in line for line in self._lines[self._seen :]), timeout=60)
            found = [_REQUEST.search(line) for line in self._lines[self._seen :]]
            self._seen = len(self._lines)
        return [(one[1], one[2], int(one[3])) for one in found if one and "/marker-" not in one[2]]

    def drain(self, lines: Iterator[str]) -> None:
        for line in lines:
            with self._came:
                self._lines.append(_COLOUR.sub("", line))
                self._came.notify_all()

    def wait_for(self, pattern: str) -> str:
        with self._came:
            assert self._came.wait_for(lambda: any(re.search(pattern, line) for line in self._lines), timeout=120)
            return next(found[1] for line in self._lines if (found := re.search(pattern, line)))


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    """`moto`'s server on a free port."""
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        server = S3Server("")
        reader = threading.Thread(target=server.drain, args=(process.stderr,), daemon=True)
        reader.start()
        server.endpoint = server.wait_for(r"Running on (http://\S+)")
        assert server.send("PUT", f"/{server.bucket}") == 200
        yield server
        process.terminate()
        process.wait()
        reader.join()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server with an empty bucket; the environment points every S3 client to it."""
    from rebus import storage

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_process.endpoint, "AWS_MAX_ATTEMPTS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.forget()
    assert s3_process.send("POST", "/moto-api/reset") == 200
    assert s3_process.send("PUT", f"/{s3_process.bucket}") == 200
    s3_process.requests()
    return s3_process
