"""A real web server for tests, in threads of this process, with the misbehaviour of real ones. Paths say
what it does."""

import gzip
import io
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import PIL.Image

import tiny_pictures

BOMB_SIDE = 40_000


def encoded(kind: str = "JPEG", size: tuple[int, int] = (40, 30), shade: int = 120, **how) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.linear_gradient("L").resize(size).point(lambda value: (value + shade) % 256).convert("RGB").save(
        buffer, kind, **how
    )
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 1.6 billion pixels."""
    whole = bytearray(encoded("PNG"))
    whole[16:24] = struct.pack(">II", BOMB_SIDE, BOMB_SIDE)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


class WebServer:
    """base: its URL. counts, times: requests by path, finished or not. now, most: at a time. agents: who asked.

    held: `/held/...` and `/silent` answer only once it is set.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.agents: set[str] = set()
        self.most = self.now = self.num_connections = 0
        self.held = threading.Event()
        self.changed = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with server.changed:
                    server.counts[self.path] += 1
                    server.times.setdefault(self.path, []).append(time.monotonic())
                    server.agents.add(self.headers["User-Agent"])
                    server.now += 1
                    server.most = max(server.most, server.now)
                    server.changed.notify_all()
                try:
                    answer(server, self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with server.changed:
                        server.now -= 1

            def setup(self) -> None:
                super().setup()
                with server.changed:
                    server.num_connections += 1

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # clients that hang up, as they should

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Until a condition over the requests holds."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), self.counts


@contextmanager
def serving() -> Iterator[WebServer]:
    server = WebServer()
    try:
        yield server
    finally:
        server.close()


def send(handler: BaseHTTPRequestHandler, body: bytes = b"", status: int = 200, **headers: str) -> None:
    """headers: `content_type`; `content_length` may lie."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    handler.send_response(status)
    for name, value in ({"content-length": str(len(body))} | named).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def answer(server: WebServer, handler: BaseHTTPRequestHandler) -> None:
    """What a path asks for: its first part names a function below, or a status."""
    kind, _, rest = handler.path.lstrip("/").partition("/")
    if kind.isdecimal():
        return send(handler, b"no", int(kind))
    number = server.counts[handler.path]
    match kind:
        case "ok":
            send(handler, encoded("JPEG", (40 + int(rest or 0) % 7, 30)), content_type="text/plain")
        case "photo":  # another one for every number
            send(handler, tiny_pictures.encoded(tiny_pictures.photo(96, 72, seed=int(rest)), "JPEG", quality=92))
        case "png" | "webp" | "gif" | "bmp":
            send(handler, encoded(kind.upper()))
        case "svg":
            send(handler, b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', content_type="image/jpeg")
        case "html":
            send(handler, b"\n<!DOCTYPE html><html>gone</html>", content_type="image/jpeg")
        case "empty":
            send(handler)
        case "garbage":
            send(handler, bytes(range(1, 200)))
        case "half":
            send(handler, encoded(size=(400, 300))[:-3000])
        case "bomb":
            send(handler, bomb())
        case "huge":
            stream(handler, 64 * 2**20)
        case "huge_said":
            send(handler, content_length=str(2**40))
        case "zipped":
            send(handler, gzip.compress(encoded()), content_encoding="gzip")
        case "zip_bomb":
            send(handler, gzip.compress(bytes(2**25)), content_encoding="gzip")
        case "busy":  # once, then fine
            send(handler, b"", 429, retry_after=rest or "0") if number == 1 else send(handler, encoded())
        case "closed":
            send(handler, b"", 503, retry_after="86400")
        case "flaky":  # the same
            send(handler, b"", 500) if number == 1 else send(handler, encoded())
        case "drip":
            drip(handler)
        case "silent":
            server.held.wait(60)
        case "held":
            server.held.wait(60)
            send(handler, encoded())
        case "reset":
            reset(handler)
        case "short":
            send(handler, encoded()[:-20], content_length=str(len(encoded())))
            handler.close_connection = True
        case "loop":
            send(handler, b"", 302, location=handler.path)
        case "hops":
            left = int(rest)
            send(handler, b"", 301, location=f"/hops/{left - 1}") if left else send(handler, encoded())
        case "to":
            send(handler, b"", 302, location=rest)
        case "robots":
            send(handler, encoded(), x_robots_tag=rest.replace("%20", " "))
        case _:
            send(handler, b"", 404)


def stream(handler: BaseHTTPRequestHandler, num_bytes: int) -> None:
    """No length said; as much as the other side takes."""
    handler.send_response(200)
    handler.send_header("connection", "close")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(num_bytes // 65_536):
        handler.wfile.write(bytes(65_536))


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte every now and then: no socket timeout ever strikes."""
    handler.send_response(200)
    handler.send_header("content-length", "10000")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(10_000):
        handler.wfile.write(b"\xff")
        time.sleep(0.02)


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
