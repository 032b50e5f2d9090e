"""Asks a server that speaks OpenAI's chat completions, many questions at once, with patience and no repetition."""

import asyncio
import base64
import hashlib
import io
import os
import random
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError
from rebus.fingerprint import fingerprint
from rebus.log import printable
from rebus.pictures.decode import orientation
from rebus.scores.decode import Decoded
from rebus.scores.mlm.answers import Answer
from rebus.scores.mlm.cache import AnswerCache, OpenCache
from rebus.scores.mlm.config import EndpointConfig, MlmConfig
from rebus.scores.mlm.prompts import fill
from rebus.scores.mlm.replies import NoAnswerError, read_reply
from rebus.scores.mlm.retry import FATAL, TRANSIENT, refuse, wait_before
from rebus.scores.mlm.tally import Tally

if TYPE_CHECKING:
    import httpx

NO_PICTURE = "no picture"
NOBODY = "connection: ConnectError"


@dataclass(frozen=True)
class Question:
    """One prompt about one picture. key: of its answer in the cache."""

    key: str
    text: str
    picture: str


class Endpoint:
    """A server, the answers it gave, and counts of what it did."""

    def __init__(self, config: MlmConfig, prompts: Mapping[Any, str]) -> None:
        """Raises: ConfigError where the environment lacks the key that the recipe names."""
        assert config.endpoint is not None
        self.config: EndpointConfig = config.endpoint
        self.prompts = prompts
        self.url = f"{self.config.url.rstrip('/')}/chat/completions"
        self.headers = _headers(self.config)
        self.cache = AnswerCache(config.cache)
        self.tally = Tally(f"mlm_filter at {self.config.url}", self.config.stop_after)
        self.wants_logprobs = self.config.top_logprobs > 0
        weakref.finalize(self, self.tally.close)

    def look(self, item: Decoded) -> list[Question] | None:
        """The questions of a sample, one a metric; None without a picture."""
        if item.picture is None or item.image_bytes is None:
            return None
        picture = _data_url(item)
        seen = hashlib.sha256(item.image_bytes).hexdigest()
        asked = {name: getattr(self.config, name) for name in ("url", "model", "max_tokens", "top_logprobs", "extra")}
        texts = [fill(prompt, item.text) for prompt in self.prompts.values()]
        return [Question(fingerprint({**asked, "text": text, "picture": seen}), text, picture) for text in texts]

    def ask(self, looked: Sequence[list[Question] | None]) -> list[list[Answer]]:
        """The answers of each sample, one a metric: from the cache, or from the server, all at once."""
        questions = {question.key: question for sample in looked for question in sample or []}
        with self.cache.opened() as cache:
            answers = cache.find(list(questions))
            self.tally.num_cached += len(answers)
            left = [question for key, question in questions.items() if key not in answers]
            if left:
                answers |= asyncio.run(self._ask_all(left, cache))
        nothing = [Answer(None, failure=NO_PICTURE)] * len(self.prompts)
        return [nothing if sample is None else [answers[one.key] for one in sample] for sample in looked]

    async def _ask_all(self, questions: list[Question], cache: OpenCache) -> dict[str, Answer]:
        """What one of them raises stops the others; what was answered by then is in the cache."""
        import httpx

        limits = httpx.Limits(max_connections=self.config.concurrency)
        gate = asyncio.Semaphore(self.config.concurrency)
        try:
            async with (
                httpx.AsyncClient(headers=self.headers, timeout=self.config.timeout_s, limits=limits) as client,
                asyncio.TaskGroup() as group,
            ):
                tasks = [group.create_task(self._ask(client, gate, question, cache)) for question in questions]
        except ExceptionGroup as raised:
            raise raised.exceptions[0] from None
        return {question.key: task.result() for question, task in zip(questions, tasks, strict=True)}

    async def _ask(
        self, client: "httpx.AsyncClient", gate: asyncio.Semaphore, question: Question, cache: OpenCache
    ) -> Answer:
        reason = ""
        for number in range(self.config.tries):
            self.tally.num_retries += number > 0
            try:
                async with gate:
                    answer = await self._ask_once(client, question, self.wants_logprobs)
            except _Again as again:
                reason = str(again)
                if number + 1 < self.config.tries:
                    await asyncio.sleep(wait_before(number, self.config.backoff_s, again.retry_after, random.random()))
            except NoAnswerError as error:
                reason = str(error)
                break
            else:
                cache.keep(question.key, answer)
                self.tally.answer()
                if answer.tree is None:
                    self.tally.tell_once(
                        "it tells no probabilities of tokens: the expectation stays empty, the hard score stands alone"
                    )
                return answer
        if reason == NOBODY and not self.tally.num_answered:
            raise ConfigError(
                f"nobody listens at {self.url}, asked {self.config.tries} times. Start the server, or correct "
                "`endpoint.url`, and run again; answers that came are kept."
            )
        self.tally.fail(reason)
        return Answer(None, failure=reason)

    async def _ask_once(self, client: "httpx.AsyncClient", question: Question, asks_logprobs: bool) -> Answer:
        """Raises: _Again where another try may help, NoAnswerError where none will, ConfigError where nothing will."""
        import httpx

        self.tally.num_requests += 1
        try:
            reply = await client.post(self.url, json=self._body(question, asks_logprobs))
        except httpx.TimeoutException as error:
            raise _Again("timeout") from error
        except httpx.TransportError as error:
            raise _Again(f"connection: {type(error).__name__}") from error
        if reply.status_code in FATAL or 300 <= reply.status_code < 400:
            refuse(self.url, self.config, reply.status_code, printable(reply.text[:200]))
        if reply.status_code in (400, 422) and asks_logprobs:
            answer = await self._ask_once(client, question, asks_logprobs=False)
            self.wants_logprobs = False  # the same request is taken without them: the server cannot tell them
            return answer
        if reply.status_code in TRANSIENT:
            raise _Again(f"HTTP {reply.status_code}", reply.headers.get("retry-after"))
        if reply.status_code != 200:
            raise NoAnswerError(f"HTTP {reply.status_code}")
        try:
            return read_reply(reply.content)
        except NoAnswerError as error:
            raise _Again(str(error)) from error

    def _body(self, question: Question, asks_logprobs: bool) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": question.picture}},
            {"type": "text", "text": question.text},
        ]
        body: dict[str, Any] = {"model": self.config.model, "messages": [{"role": "user", "content": content}]}
        body |= {"temperature": 0, "max_tokens": self.config.max_tokens}
        if asks_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.config.top_logprobs}
        return {name: value for name, value in {**body, **self.config.extra}.items() if value is not None}


class _Again(Exception):
    """A failure that may pass. retry_after: what the server said of it."""

    def __init__(self, reason: str, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def _headers(config: EndpointConfig) -> dict[str, str]:
    if config.api_key_env is None:
        return {}
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(f"the environment has no {config.api_key_env}, which is to hold the key for {config.url}.")
    return {"Authorization": f"Bearer {key}"}


def _data_url(item: Decoded) -> str:
    """JPEG and PNG as they lie in the shard; others, and those that EXIF turns, as PNG of the upright picture."""
    import PIL.Image

    assert item.image_bytes is not None
    assert item.picture is not None
    data = item.image_bytes
    with PIL.Image.open(io.BytesIO(data)) as opened:
        kind = {"JPEG": "jpeg", "PNG": "png"}.get(opened.format or "", "")
        is_plain = bool(kind) and orientation(opened) == 1
    if not is_plain:
        kind, sink = "png", io.BytesIO()
        item.picture.save(sink, format="PNG")
        data = sink.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
