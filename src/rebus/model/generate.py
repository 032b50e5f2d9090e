"""Decoding behind a key-value cache, for one prompt or many, and the likelihood of given continuations. Every prompt
is run alone and nothing is padded on the left, so no answer depends on what else was asked.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rebus.model.decode_cache import RowCache
from rebus.model.decode_sampling import Chooser, Sampling, choose_all
from rebus.model.families import VisionLanguageModel

ROOM = 256
"""Tokens that the cache leaves free behind a new prompt, or as many as its answer may have."""

CANDIDATES_AT_ONCE = 32


@dataclass(frozen=True)
class Prompt:
    """One document before its answer; shapes as in VisionLanguageModel.hidden. key: names the prompt in errors."""

    ids: torch.Tensor
    positions: torch.Tensor
    pixels: torch.Tensor
    slots: torch.Tensor
    grids: torch.Tensor
    key: str = ""

    @property
    def next_position(self) -> int:
        """Where the answer starts, on every axis: M-RoPE's rope delta, kept with the request."""
        return int(self.positions.max()) + 1 if len(self.ids) else 0


def prompt_of(
    ids: np.ndarray,
    positions: np.ndarray,
    slots: np.ndarray,
    grids: np.ndarray,
    pixels: np.ndarray | torch.Tensor | None,
    *,
    device: torch.device | str = "cpu",
    key: str = "",
) -> Prompt:
    """A Prompt from the arrays of an encoded sample. pixels: normalised rows, or features; None: it has no picture."""
    pictures = torch.zeros(0, 3, 1, 1) if pixels is None else torch.as_tensor(pixels)
    host = (torch.from_numpy(array.astype(np.int64)) for array in (ids, positions, slots, grids))
    on_ids, on_positions, on_slots, on_grids = host
    return Prompt(on_ids.to(device), on_positions.to(device), pictures.to(device), on_slots, on_grids, key)


class Decoder:
    """Requests that are answered together: each is run up to its answer alone, then all go on token by token."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model, self.cache = model, RowCache()
        self.rows: list[_Request] = []
        self._num_added = 0

    @property
    def num_requests(self) -> int:
        return len(self.rows)

    @torch.inference_mode()
    def add(self, prompt: Prompt, sampling: Sampling) -> int:
        """Runs a prompt; returns the number that its tokens will come under. Raises: SlotMismatchError."""
        embeddings = _embed_prompt(self.model, prompt)
        self.cache.begin_row(len(prompt.ids), min(sampling.max_new_tokens, ROOM))
        try:
            states = _run(self.model, embeddings.unsqueeze(0), prompt.positions, self.cache)
            logits = self.model.head(states[0, -1])
        except BaseException:  # out of memory, say: the others go on
            self.cache.pop()
            raise
        number, self._num_added = self._num_added, self._num_added + 1
        axes = len(prompt.positions) if prompt.positions.ndim == 2 else 0
        self.rows.append(_Request(number, Chooser(sampling, prompt.ids), prompt.next_position, axes, logits))
        return number

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """One new token of every request, as (request, token). They go on until they are dropped."""
        if self._num_begun:
            self._run_last_tokens(self._num_begun)
        logits = torch.stack([row.logits for row in self.rows if row.logits is not None])
        tokens = choose_all(logits, [row.chooser for row in self.rows])
        for row, token in zip(self.rows, tokens, strict=True):
            row.token, row.logits = token, None
        return [(row.number, row.token) for row in self.rows]

    @torch.inference_mode()
    def drop(self, number: int) -> None:
        """Ends a request."""
        place = next(place for place, row in enumerate(self.rows) if row.number == number)
        for last in (self._num_begun - 1, len(self.rows) - 1):  # those that have begun stay in front
            if place < last:
                self.cache.move(last, place)
                self.rows[place] = self.rows[last]
                place = last
        self.cache.pop()
        self.rows.pop()

    @property
    def _num_begun(self) -> int:
        """Requests that have a token which was not run yet; the others, just added, stand behind them."""
        return sum(row.logits is None for row in self.rows)

    def _run_last_tokens(self, num_begun: int) -> None:
        rows, device = self.rows[:num_begun], self.model.device
        tokens = torch.tensor([[row.token] for row in rows], device=device)
        positions = torch.tensor([[row.position] for row in rows], device=device)  # [rows, 1], on every axis the same
        if rows[0].axes:
            positions = positions.expand(rows[0].axes, -1, -1)
        embeddings = self.model.language.get_input_embeddings()(tokens)
        mask = self.cache.begin_step(num_begun, device)
        states = _decode(self.model, embeddings, positions, self.cache, mask)
        for row, logits in zip(rows, self.model.head(states[:, -1]), strict=True):
            row.logits, row.position = logits, row.position + 1


@dataclass
class _Request:
    """position: of the next token, on every axis. axes: of its positions, 0 for one row. logits: [V] of the token to
    choose next, None where the last one, `token`, has yet to be run."""

    number: int
    chooser: Chooser
    position: int
    axes: int
    logits: torch.Tensor | None
    token: int = -1


def generate(
    model: VisionLanguageModel, prompt: Prompt, sampling: Sampling, stop_ids: Collection[int], *, cached: bool = True
) -> Iterator[int]:
    """Yields new token ids until one of `stop_ids` (not yielded) or max_new_tokens.

    cached: False runs the whole sequence again for every token; same answers, for tests.
    """
    tokens = _tokens(model, prompt, sampling) if cached else _tokens_uncached(model, prompt, sampling)
    for token in tokens:
        if token in stop_ids:
            return
        yield token


def _tokens(model: VisionLanguageModel, prompt: Prompt, sampling: Sampling) -> Iterator[int]:
    decoder = Decoder(model)
    decoder.add(prompt, sampling)
    for _ in range(sampling.max_new_tokens):
        yield decoder.step()[0][1]


def _tokens_uncached(model: VisionLanguageModel, prompt: Prompt, sampling: Sampling) -> Iterator[int]:
    chooser = Chooser(sampling, prompt.ids)
    with torch.inference_mode():
        embeddings, positions = _embed_prompt(model, prompt), prompt.positions
    for number in range(sampling.max_new_tokens):
        with torch.inference_mode():
            states = _run(model, embeddings.unsqueeze(0), positions, None)
            token = chooser.choose(model.head(states[0, -1]))
            new = model.language.get_input_embeddings()(torch.tensor([token], device=embeddings.device))
            after = torch.full_like(prompt.positions[..., :1], prompt.next_position + number)
            embeddings, positions = torch.cat([embeddings, new]), torch.cat([positions, after], dim=-1)
        yield token


@torch.inference_mode()
def score_continuations(model: VisionLanguageModel, prompt: Prompt, candidates: Sequence[Sequence[int]]) -> list[float]:
    """Log-likelihood of each candidate's ids after the prompt, summed over its tokens, in nats.

    The prompt is run once. Candidates go behind its cache in right-padded batches of 32 by length: under causality
    padding comes after all that counts, so it needs no mask. An empty candidate scores 0.
    """
    cache = _new_cache(model)
    states = _run(model, _embed_prompt(model, prompt).unsqueeze(0), prompt.positions, cache)
    first = model.head(states[0, -1]).float().log_softmax(-1)  # [V]
    order = sorted(range(len(candidates)), key=lambda index: len(candidates[index]))
    scores = [0.0] * len(candidates)
    for start in range(0, len(order), CANDIDATES_AT_ONCE):
        chunk = order[start : start + CANDIDATES_AT_ONCE]
        values = _score_chunk(model, [list(candidates[index]) for index in chunk], first, cache, prompt)
        for index, value in zip(chunk, values, strict=True):
            scores[index] = value
    return scores


def _score_chunk(
    model: VisionLanguageModel, candidates: list[list[int]], first: torch.Tensor, prompt_cache: Any, prompt: Prompt
) -> list[float]:
    """candidates: up to 32. first: log-probabilities [V] of the first token."""
    totals = [float(first[ids[0]]) if ids else 0.0 for ids in candidates]
    longest = max(len(ids) for ids in candidates)
    if longest < 2:
        return totals
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in candidates], device=first.device)  # [K, longest]
    embeddings = model.language.get_input_embeddings()(padded[:, :-1])
    after = torch.arange(longest - 1, device=first.device) + prompt.next_position
    positions = after.expand(*prompt.positions.shape[:-1], -1)
    states = _run(model, embeddings, positions, _repeated(prompt_cache, len(candidates)))  # [K, longest - 1, H]
    lengths = torch.tensor([len(ids) for ids in candidates], device=first.device)
    counts = torch.arange(1, longest, device=first.device)[None, :] < lengths[:, None]  # [K, longest - 1]
    logits = model.head(states[counts]).float()  # [supervised, V]
    targets = padded[:, 1:][counts]
    gains = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)
    sums = torch.zeros(len(candidates), dtype=torch.float64, device=first.device)
    sums.index_add_(0, counts.nonzero()[:, 0], gains.double())
    return [total + gain for total, gain in zip(totals, sums.tolist(), strict=True)]


def _embed_prompt(model: VisionLanguageModel, prompt: Prompt) -> torch.Tensor:
    """Embeddings [T, H]. Without pictures nothing visual runs: no gradient needs it."""
    if len(prompt.slots) == 0 and len(prompt.pixels) == 0:
        return model.language.get_input_embeddings()(prompt.ids)
    bounds = torch.tensor([0, len(prompt.ids)])
    keys = (prompt.key,) if prompt.key else ()
    return model.embed(prompt.ids, prompt.pixels, prompt.slots, prompt.grids, bounds, keys)


def _run(model: VisionLanguageModel, embeddings: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
    """embeddings [B, t, H] at positions [t] or [3, t], behind `cache` -> last hidden states [B, t, H]."""
    return _decode(model, embeddings, positions.unsqueeze(-2).expand(*positions.shape[:-1], len(embeddings), -1), cache)


def _decode(
    model: VisionLanguageModel,
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    cache: Any,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """embeddings [B, t, H] at positions [B, t] or [3, B, t]. mask: bool [B, 1, t, k], of the keys that count."""
    output = model.language.get_decoder()(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
        behind_cache=True,
    )
    return output.last_hidden_state


def _new_cache(model: VisionLanguageModel) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.language.config)


def _repeated(cache: Any, times: int) -> Any:
    """A new cache with `times` rows of a cache of one; the rows share memory until something is appended."""
    from transformers import DynamicCache

    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys.expand(times, -1, -1, -1), layer.values.expand(times, -1, -1, -1), index)
    return copy
