"""Decoding behind a key-value cache, and the likelihood of given continuations. One prompt at a time: nothing is
padded on the left, so no answer depends on what else was asked.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rebus.model.families import VisionLanguageModel

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


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token (greedy). top_p: draw among the likeliest tokens that hold this share
    of probability (Holtzman et al., 2020, "The curious case of neural text degeneration", section 3.1). seed: of the
    draws; the same seed gives the same text."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


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


@torch.inference_mode()
def generate(
    model: VisionLanguageModel, prompt: Prompt, sampling: Sampling, stop_ids: Collection[int], *, cached: bool = True
) -> Iterator[int]:
    """Yields new token ids until one of `stop_ids` (not yielded) or max_new_tokens.

    cached: False runs the whole sequence again for every token; same answers, for tests.
    """
    generator = torch.Generator(device="cpu").manual_seed(sampling.seed)
    cache = _new_cache(model) if cached else None
    embeddings = _embed_prompt(model, prompt)
    inputs, positions = embeddings, prompt.positions
    for number in range(sampling.max_new_tokens):
        states = _run(model, inputs.unsqueeze(0), positions, cache)
        token = _pick(model.head(states[0, -1]), sampling, generator)
        if token in stop_ids:
            return
        yield token
        new = model.language.get_input_embeddings()(torch.tensor([token], device=embeddings.device))
        embeddings = torch.cat([embeddings, new])
        after = torch.full_like(prompt.positions[..., :1], prompt.next_position + number)
        inputs = new if cached else embeddings
        positions = after if cached else torch.cat([positions, after], dim=-1)


def stream_text(tokens: Iterator[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Token ids -> pieces of text, held back while they end in half a character or may still change.

    decode: a tokenizer's decode of a list of ids. The pieces joined are decode(all ids).
    """
    ids: list[int] = []
    sent = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and text.startswith(sent) and len(text) > len(sent):
            yield text[len(sent) :]
            sent = text
    rest = decode(ids)[len(sent) :]
    if rest:
        yield rest


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
    bounds = torch.tensor([0, len(prompt.ids)])
    keys = (prompt.key,) if prompt.key else ()
    return model.embed(prompt.ids, prompt.pixels, prompt.slots, prompt.grids, bounds, keys)


def _run(model: VisionLanguageModel, embeddings: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
    """embeddings [B, t, H] at positions [t] or [3, t], behind `cache` -> last hidden states [B, t, H]."""
    output = model.language.get_decoder()(
        inputs_embeds=embeddings,
        position_ids=positions.unsqueeze(-2).expand(*positions.shape[:-1], len(embeddings), -1),
        past_key_values=cache,
        use_cache=cache is not None,
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


def _pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from logits [V]."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    probabilities = (logits.float() / sampling.temperature).softmax(-1).cpu()
    ranked, ids = probabilities.sort(descending=True, stable=True)
    likelier = ranked.cumsum(0) - ranked  # the share of all likelier tokens
    ranked[1:].masked_fill_(likelier[1:] >= sampling.top_p, 0.0)  # the likeliest always stays
    return int(ids[torch.multinomial(ranked, 1, generator=generator)])
