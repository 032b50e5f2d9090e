"""Contract 12: cached equals uncached; likelihoods equal brute force; sampling is seeded."""

import pytest
import torch

from rebus.model.families import VisionLanguageModel
from rebus.model.generate import Prompt, Sampling, generate, score_continuations, stream_text
from tiny_models import pack, random_document


@pytest.fixture
def prompt() -> Prompt:
    torch.manual_seed(3)
    batch = pack([random_document(13, [2, 7])])
    return Prompt(batch["ids"], batch["pixels"], batch["slots"])


@pytest.mark.parametrize("sampling", [Sampling(12), Sampling(12, temperature=1.3, top_p=0.9, seed=5)])
def test_cached_equals_uncached(model: VisionLanguageModel, prompt: Prompt, sampling: Sampling):
    cached = list(generate(model, prompt, sampling, ()))
    assert len(cached) == 12
    assert cached == list(generate(model, prompt, sampling, (), cached=False))


def test_stops_before_a_stop_token(model: VisionLanguageModel, prompt: Prompt):
    ids = list(generate(model, prompt, Sampling(12), ()))
    stop = ids[5]
    assert list(generate(model, prompt, Sampling(12), {stop})) == ids[: ids.index(stop)]


def test_seeds_and_top_p(model: VisionLanguageModel, prompt: Prompt):
    def draw(seed: int, top_p: float = 1.0) -> list[int]:
        return list(generate(model, prompt, Sampling(12, temperature=2.0, top_p=top_p, seed=seed), ()))

    assert draw(1) == draw(1) != draw(2)
    assert draw(1, top_p=0.0) == list(generate(model, prompt, Sampling(12), ()))


@torch.no_grad()
def brute_force(model: VisionLanguageModel, prompt: Prompt, candidate: list[int]) -> float:
    ids = torch.cat([prompt.ids, torch.tensor(candidate, dtype=torch.int64)])
    bounds = torch.tensor([0, len(ids)])
    states = model.hidden(ids, torch.arange(len(ids)), bounds, prompt.pixels, prompt.slots)
    table = model.head(states).log_softmax(-1)
    start = len(prompt.ids) - 1
    return sum(float(table[start + index, token]) for index, token in enumerate(candidate))


def test_likelihoods_equal_brute_force(model: VisionLanguageModel, prompt: Prompt, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rebus.model.generate.CANDIDATES_AT_ONCE", 3)
    candidates = [[5, 6, 7], [5], [9, 9, 1, 2, 3, 4], [], [80, 2], [5, 6, 8], [1]]
    scores = score_continuations(model, prompt, candidates)
    assert scores == pytest.approx([brute_force(model, prompt, candidate) for candidate in candidates], abs=1e-4)
    assert score_continuations(model, prompt, candidates[:1]) == pytest.approx(scores[:1], abs=1e-4)


def test_text_streams_in_whole_characters():
    encoded = "naïve 👍 yes".encode()
    pieces = list(stream_text(iter(encoded), lambda ids: bytes(ids).decode(errors="replace")))
    assert "".join(pieces) == "naïve 👍 yes"
    assert "👍" in pieces
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_not_lost():
    pieces = list(stream_text(iter(b"ab\xf0"), lambda ids: bytes(ids).decode(errors="replace")))
    assert "".join(pieces) == "ab\N{REPLACEMENT CHARACTER}"
