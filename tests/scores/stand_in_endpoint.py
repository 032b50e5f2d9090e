"""A stand-in for an OpenAI-compatible server: a real HTTP server in a thread (or, run as a script, in a process of its
own) that answers chat completions as told, and writes down what it was asked."""

import base64
import http.server
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Play:
    """One reply. kind: ok, plain (no logprobs), hang (until let go), drop, or `raw`: this status and these bytes."""

    kind: str = "ok"
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request: the caption is what follows the prompt's `caption:`. key: authorization header."""

    caption: str
    picture: bytes
    body: dict[str, Any]
    key: str | None


@dataclass
class StandIn:
    """script: (caption, how often it was asked before) -> what to play. answer: caption -> tokens of the answer."""

    script: Callable[[str, int], Play] = lambda caption, before: Play()
    answer: Callable[[str], list[str]] = lambda caption: ["8", "5", "\n"]
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    hold: threading.Event = field(default_factory=threading.Event)
    wanted_at_once: int = 0  # replies wait until so many requests are there, so that the most at once is no chance
    together: threading.Condition = field(default_factory=threading.Condition)
    at_once: int = 0
    url: str = ""

    def captions(self) -> list[str]:
        return [one.caption for one in self.asked]

    def enter(self, asked: Asked) -> int:
        """Counts a request in. Returns how often the same was asked before."""
        with self.together:
            before = self.captions().count(asked.caption)
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.together.notify_all()
            self.together.wait_for(lambda: self.most_at_once >= self.wanted_at_once, timeout=20)
            return before

    def leave(self) -> None:
        with self.together:
            self.at_once -= 1


def completion(tokens: list[str], with_logprobs: bool) -> bytes:
    """What a server sends for an answer; each token has probability 0.9, and "0" or "x" has 0.05."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    choice["message"] = {"role": "assistant", "content": "".join(tokens)}
    if with_logprobs:
        choice["logprobs"] = {"content": [_step(token) for token in tokens]}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def _step(token: str) -> dict[str, Any]:
    other = "x" if token == "0" else "0"
    ranked = [{"token": token, "logprob": math.log(0.9)}, {"token": other, "logprob": math.log(0.05)}]
    return {**ranked[0], "top_logprobs": ranked}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.endswith("/v1/chat/completions"):
            self._send(404, b'{"error": "no such address"}', {})
            return
        image, text = body["messages"][0]["content"]
        picture = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        caption = text["text"].partition("caption:")[2].strip()
        before = self.stand_in.enter(Asked(caption, picture, body, self.headers.get("authorization")))
        play = self.stand_in.script(caption, before)
        if play.kind == "hang":
            self.stand_in.hold.wait(timeout=30)
        self.stand_in.leave()  # before the reply: whoever has it may come again at once
        try:
            self._play(play, caption, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _play(self, play: Play, caption: str, body: dict[str, Any]) -> None:
        if play.kind == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif play.kind == "raw":
            self._send(play.status, play.body, play.headers)
        else:
            told = play.kind != "plain" and bool(body.get("logprobs"))
            self._send(200, completion(self.stand_in.answer(caption), told), play.headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), "content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Silent."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of ours."""


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    handler = type("Handler", (_Handler,), {"stand_in": stand_in})
    with _Server(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        stand_in.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield stand_in
        finally:
            stand_in.hold.set()
            server.shutdown()
            thread.join()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for a condition, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.01)
