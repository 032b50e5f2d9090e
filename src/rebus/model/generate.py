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
    """ids: int64 [T], -1 at image slots. pixels: float32 [N, 3, H, W], or features [N, num_tokens, C]. slots: int64
    [N, 2], start and length. key: names the prompt in errors."""

    ids: torch.Tensor
    pixels: torch.Tensor
    slots: torch.Tensor
    key: str = ""


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
    image_starts: np.ndarray,
    image_lengths: np.ndarray,
    pixels: np.ndarray | torch.Tensor | None,
    *,
    device: torch.device | str = "cpu",
    key: str = "",
) -> Prompt:
    """A Prompt from the arrays of an encoded sample. pixels: [N, 3, H, W] or features; None where it has no image."""
    slots = torch.from_numpy(np.stack([image_starts, image_lengths], 1).astype(np.int64))
    pictures = torch.zeros(0, 3, 1, 1) if pixels is None else torch.as_tensor(pixels)
    return Prompt(torch.from_numpy(ids.astype(np.int64)).to(device), pictures.to(device), slots.to(device), key)


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
    inputs = embeddings
    for _ in range(sampling.max_new_tokens):
        start = len(embeddings) - len(inputs)
        states = _run(model, inputs.unsqueeze(0), start, cache)
        token = _pick(model.head(states[0, -1]), sampling, generator)
        if token in stop_ids:
            return
        yield token
        new = model.language.get_input_embeddings()(torch.tensor([token], device=embeddings.device))
        embeddings = torch.cat([embeddings, new])
        inputs = new if cached else embeddings


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
    states = _run(model, _embed_prompt(model, prompt).unsqueeze(0), 0, cache)
    first = model.head(states[0, -1]).float().log_softmax(-1)  # [V]
    order = sorted(range(len(candidates)), key=lambda index: len(candidates[index]))
    scores = [0.0] * len(candidates)
    for start in range(0, len(order), CANDIDATES_AT_ONCE):
        chunk = order[start : start + CANDIDATES_AT_ONCE]
        values = _score_chunk(model, [list(candidates[index]) for index in chunk], first, cache, len(prompt.ids))
        for index, value in zip(chunk, values, strict=True):
            scores[index] = value
    return scores


def _score_chunk(
    model: VisionLanguageModel, candidates: list[list[int]], first: torch.Tensor, prompt_cache: Any, start: int
) -> list[float]:
    """candidates: up to 32. first: log-probabilities [V] of the first token. start: tokens in the prompt."""
    totals = [float(first[ids[0]]) if ids else 0.0 for ids in candidates]
    longest = max(len(ids) for ids in candidates)
    if longest < 2:
        return totals
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in candidates], device=first.device)  # [K, longest]
    embeddings = model.language.get_input_embeddings()(padded[:, :-1])
    states = _run(model, embeddings, start, _repeated(prompt_cache, len(candidates)))  # [K, longest - 1, H]
    lengths = torch.tensor([len(ids) for ids in candidates], device=first.device)
    counts = torch.arange(1, longest, device=first.device)[None, :] < lengths[:, None]  # [K, longest - 1]
    logits = model.head(states[counts]).float()  # [supervised, V]
    targets = padded[:, 1:][counts]
    gains = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)
    sums = torch.zeros(len(candidates), dtype=torch.float64, device=first.device)
    sums.index_add_(0, counts.nonzero()[:, 0], gains.double())
    return [total + gain for total, gain in zip(totals, sums.tolist(), strict=True)]


def _embed_prompt(model: VisionLanguageModel, prompt: Prompt) -> torch.Tensor:
    bounds = torch.tensor([0, len(prompt.ids)], device=prompt.ids.device)
    return model.embed(prompt.ids, prompt.pixels, prompt.slots, bounds, (prompt.key,) if prompt.key else ())


def _run(model: VisionLanguageModel, embeddings: torch.Tensor, start: int, cache: Any) -> torch.Tensor:
    """embeddings [B, t, H] at positions start .. start + t, behind `cache` -> last hidden states [B, t, H]."""
    positions = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
    output = model.language.get_decoder()(
        inputs_embeds=embeddings,
        position_ids=positions.expand(len(embeddings), -1),
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
