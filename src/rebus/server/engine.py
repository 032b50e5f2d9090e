"""A loaded model that answers: one request or many, whole or in pieces. Chat and the command line stand on it."""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rebus.errors import ConfigError, DataError, RebusError
from rebus.model.config import ModelConfig
from rebus.model.decode_sampling import Sampling
from rebus.model.decode_text import TextWriter
from rebus.model.families import VisionLanguageModel
from rebus.model.generate import Decoder, Prompt, prompt_of, score_continuations
from rebus.pictures.config import NativeConfig
from rebus.pictures.prepare import normalise, prepare
from rebus.records import Image, Part, Text, Video
from rebus.server.answer import Answer
from rebus.server.inputs import Message, Source, image_of, parts_of, video_of
from rebus.tokens.encode import Encoded, encode_prompt
from rebus.tokens.positions import prompt_positions
from rebus.tokens.spans import TextSpan
from rebus.tokens.template import render_answer, user_turn
from rebus.tokens.tokenizer import Tokens, stop_ids

NUM_ROWS = 8
"""Requests that are decoded together where nothing else is said."""

MAX_NEW_TOKENS = 512

Question = str | Sequence[Message]
Sources = Sequence[Source | Image]


class PromptTooLongError(DataError):
    """A prompt that leaves no room for an answer in what the model was made for."""


@dataclass(frozen=True)
class Request:
    """parts: everything before the answer, see records. sampling: its max_new_tokens is cut to the model's room."""

    parts: tuple[Part, ...]
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=MAX_NEW_TOKENS))


class Engine:
    """model: in eval mode on its device. tokens: its tokenizer and rules. config: what the model is made of."""

    def __init__(self, model: VisionLanguageModel, tokens: Tokens, config: ModelConfig | None = None) -> None:
        self.model, self.tokens = model.eval(), tokens
        self.config = config or model.config
        self.stop_ids = frozenset(stop_ids(tokens))

    def generate(
        self,
        prompt: Question | Sequence[Question],
        images: Sources | Sequence[Sources] = (),
        videos: Sequence[Any] = (),
        *,
        system: str | None = None,
        num_rows: int = NUM_ROWS,
        string_probabilities: Sequence[str] = (),
        **sampling: Any,
    ) -> Any:
        """An Answer to a text or to chat messages; to a list of them a list of Answers, decoded `num_rows` at a time.

        images, videos: shown before a text, one or a list of what inputs.image_of and video_of take; for a list of
        texts one such a text. system: what the system says first. sampling: fields of Sampling. string_probabilities:
        strings whose probabilities as the answer, among themselves, each Answer brings.
        Raises: DataError where an input cannot be used, ConfigError for sampling that makes no sense.
        """
        rules = sampling_of(sampling)
        if _is_one(prompt):
            requests = [self.request(prompt, images, videos, system=system, sampling=rules)]  # type: ignore[arg-type]
        else:
            shown = zip(prompt, _one_each(images, prompt), _one_each(videos, prompt), strict=True)
            requests = [self.request(*one, system=system, sampling=rules) for one in shown]  # type: ignore[arg-type]
        answers: dict[int, Answer] = {}
        for number, answer in self.answer(requests, num_rows):
            if isinstance(answer, RebusError):
                raise answer
            answers[number] = answer
        ordered = [answers[number] for number in range(len(requests))]
        if string_probabilities:
            ordered = [
                replace(answer, string_probabilities=self._shares(request, string_probabilities))
                for answer, request in zip(ordered, requests, strict=True)
            ]
        return ordered[0] if _is_one(prompt) else ordered

    def generate_batch(self, prompts: Sequence[Question], images: Any = (), videos: Any = (), **more: Any) -> Any:
        """`generate` of a list, by name."""
        return self.generate(list(prompts), images, videos, **more)

    def stream(
        self,
        prompt: Question,
        images: Sources = (),
        videos: Sequence[Any] = (),
        *,
        system: str | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """The text of the answer to one prompt, in pieces as they become certain. Raises: as `generate` does."""
        request = self.request(prompt, images, videos, system=system, sampling=sampling_of(sampling))
        return self.pieces(request)

    def score(
        self,
        prompt: Question,
        candidates: Sequence[str],
        images: Sources = (),
        videos: Sequence[Any] = (),
        *,
        system: str | None = None,
        close: bool = False,
    ) -> list[float]:
        """Log-likelihood of each candidate as the answer, summed over its tokens, in nats. close: the token that ends
        an answer counts too. Raises: DataError where an input cannot be used."""
        request = self.request(prompt, images, videos, system=system)
        return self._scores(request, candidates, close=close)

    def request(
        self,
        prompt: Question,
        images: Sources = (),
        videos: Sequence[Any] = (),
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
    ) -> Request:
        """What `answer` and `pieces` take. videos: sources, or (source, options). Raises: DataError."""
        rule = self.tokens.config.image
        if not isinstance(prompt, str):
            if _listed(images) or _listed(videos) or system is not None:
                raise DataError("messages bring their own pictures and system's words; give either them or a text.")
            parts = parts_of(prompt, rule)
        else:
            shown: list[Image | Video] = [image_of(one) for one in _listed(images)]
            for one in _listed(videos):
                source, options = one if _has_options(one) else (one, None)
                shown.append(video_of(source, options, rule))
            parts = [*([Text(system, "system")] if system is not None else []), *self.turn(prompt, shown)]
        return Request(tuple(parts), sampling or Sampling(max_new_tokens=MAX_NEW_TOKENS))

    def turn(self, text: str, shown: Sequence[Image | Video]) -> list[Part]:
        """A person's turn as the model was trained to see it: LLaVA's line break after each picture, unless the
        model's own chat template lays pictures out, or it is of Qwen2-VL's kind, which has none."""
        rule = self.tokens.config
        if rule.template == "own" or isinstance(rule.image, NativeConfig):
            return [*(replace(one, role="user") for one in shown), Text(text, "user")]
        return user_turn(text, shown) if text else list(shown)  # type: ignore[arg-type]

    def pieces(self, request: Request) -> Iterator[str]:
        """The answer's text in pieces. Raises: DataError."""
        work = self._begin(Decoder(self.model), 0, request)
        while not work.is_done:
            if piece := work.take(work.decoder.step()[0][1], self.stop_ids):
                yield piece
        if rest := work.writer.close():
            yield rest

    def answer(
        self, requests: Iterable[Request | RebusError], num_rows: int = NUM_ROWS
    ) -> Iterator[tuple[int, Answer | RebusError]]:
        """(number, answer) of many requests, each when it is done, `num_rows` decoded together; the next is taken when
        there is room. What is wrong with one comes as its answer; an error in place of a request comes back."""
        decoder, waiting = Decoder(self.model), enumerate(requests)
        works: dict[int, _Work] = {}
        while True:
            while decoder.num_requests < num_rows and (coming := next(waiting, None)) is not None:
                number, request = coming
                try:
                    if isinstance(request, RebusError):
                        raise request
                    work = self._begin(decoder, number, request)
                    works[work.row] = work
                except RebusError as error:
                    yield number, error
            if not works:
                return
            for row, token in decoder.step():
                works[row].take(token, self.stop_ids)
            for work in [work for work in works.values() if work.is_done]:
                decoder.drop(work.row)
                del works[work.row]
                yield work.number, work.answer()

    def prompt(self, request: Request) -> tuple[Prompt, Encoded]:
        """Ids, positions and pixels of a request. Raises: DataError, PromptTooLongError."""
        encoded = encode_prompt(request.parts, self.tokens)
        if not encoded.num_tokens:
            raise DataError("the prompt is empty; ask something or show a picture.")
        limit = self.tokens.config.max_tokens
        if encoded.num_tokens >= limit:
            raise PromptTooLongError(
                f"the prompt has {encoded.num_tokens} tokens, {int(encoded.image_lengths.sum())} of them pictures; "
                f"the model was made for {limit} in all, the answer included."
            )
        return self._prompt(encoded), encoded

    def _prompt(self, encoded: Encoded) -> Prompt:
        rule = self.tokens.config.image
        try:
            rows = [normalise(prepare(image, rule).rows, rule) for image in encoded.images]
        except ValueError as error:
            raise DataError(f"a picture of the prompt cannot be used: {error}.") from error
        pixels = np.concatenate(rows) if rows else None
        positions = prompt_positions(encoded, rule)
        place, key = self.model.device, "the prompt"
        made = prompt_of(encoded.ids, positions, encoded.slots, encoded.grids, pixels, device=place, key=key)
        return replace(made, pixels=made.pixels.to(self._tower_dtype())) if rows else made

    def _tower_dtype(self) -> Any:
        return next((one.dtype for one in self.model.tower.parameters()), self.model.head.weight.dtype)

    def _begin(self, decoder: Decoder, number: int, request: Request) -> "_Work":
        start = time.perf_counter()
        prompt, encoded = self.prompt(request)
        room = min(request.sampling.max_new_tokens, self.tokens.config.max_tokens - encoded.num_tokens)
        writer = TextWriter(self.tokens.tokenizer.decode, request.sampling.stop)
        row = decoder.add(prompt, replace(request.sampling, max_new_tokens=room))
        return _Work(number, row, decoder, writer, room, encoded.num_tokens, start)

    def _scores(self, request: Request, candidates: Sequence[str], *, close: bool) -> list[float]:
        prompt, _ = self.prompt(request)
        in_turns = any(part.role for part in request.parts)
        return score_continuations(self.model, prompt, [self._answer_ids(one, in_turns, close) for one in candidates])

    def _answer_ids(self, text: str, in_turns: bool, close: bool) -> list[int]:
        from rebus.tokens.encode import encode_spans

        spans = render_answer(text, self.tokens, in_turns=in_turns)
        kept = spans if close else [span for span in spans if isinstance(span, TextSpan)]
        return encode_spans(kept, self.tokens).ids.tolist()

    def _shares(self, request: Request, strings: Sequence[str]) -> tuple[float, ...]:
        scores = self._scores(request, strings, close=False)
        weights = [math.exp(score - max(scores)) for score in scores]
        return tuple(weight / sum(weights) for weight in weights)


@dataclass
class _Work:
    """A request that is being decoded. room: tokens that it may have. row: its number in the decoder."""

    number: int
    row: int
    decoder: Decoder
    writer: TextWriter
    room: int
    num_prompt_tokens: int
    start: float
    is_done: bool = False
    has_stopped: bool = False

    def take(self, token: int, stops: Collection[int]) -> str:
        """One more token; returns the text that is now certain."""
        if token in stops:
            self.is_done = self.has_stopped = True
            return ""
        piece = self.writer.add(token)
        self.has_stopped = self.writer.is_stopped
        self.is_done = self.has_stopped or len(self.writer.ids) == self.room
        return piece

    def answer(self) -> Answer:
        self.writer.close()
        return Answer(
            text=self.writer.text,
            ids=tuple(self.writer.ids),
            finish_reason="stop" if self.has_stopped else "length",
            num_prompt_tokens=self.num_prompt_tokens,
            num_new_tokens=len(self.writer.ids),
            seconds=time.perf_counter() - self.start,
        )


def sampling_of(given: Mapping[str, Any]) -> Sampling:
    """Sampling from keywords, 512 new tokens at most unless they say. Raises: ConfigError for one that is unknown."""
    known = Sampling.__dataclass_fields__
    for name in given:
        if name not in known:
            raise ConfigError(f"'{name}' is nothing that sampling knows; it knows {', '.join(known)}.")
    stop = given.get("stop", ())
    return Sampling(
        **{"max_new_tokens": MAX_NEW_TOKENS, **given, "stop": (stop,) if isinstance(stop, str) else tuple(stop or ())}
    )


def _is_one(prompt: Any) -> bool:
    """A text or one conversation, which is a list of messages; else it is a list of either."""
    return isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping))


def _one_each(sources: Any, prompts: Any) -> list[Any]:
    """What is shown with each prompt. Raises: DataError where they are not as many."""
    if sources is None or (isinstance(sources, list | tuple) and not sources):
        return [()] * len(prompts)
    if not isinstance(sources, list | tuple):
        raise DataError(f"{len(prompts)} prompts came with one source for all; give one list a prompt.")
    if len(sources) != len(prompts):
        raise DataError(f"{len(prompts)} prompts came with pictures for {len(sources)}; give one list a prompt.")
    return [_listed(one) for one in sources]


def _listed(sources: Any) -> Sequence[Any]:
    """What is shown with one prompt: a list of sources, one source, or nothing."""
    if sources is None:
        return ()
    return sources if isinstance(sources, list | tuple) and not _has_options(sources) else (sources,)


def _has_options(video: Any) -> bool:
    return isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], Mapping)
