"""Likelihoods equal brute force; sampling is seeded and keeps its rules; text streams in pieces never taken back.
That cached equals uncached, alone and in company, is contract 12's (tests/contracts)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.errors import ConfigError
from rebus.model.decode_sampling import Chooser, Sampling
from rebus.model.decode_text import TextWriter
from rebus.model.families import VisionLanguageModel
from rebus.model.generate import Prompt, generate, score_continuations
from tiny_models import pack, random_document


@pytest.fixture
def prompt() -> Prompt:
    torch.manual_seed(3)
    batch = pack([random_document(13, [2, 7])])
    return Prompt(batch["ids"], batch["positions"], batch["pixels"], batch["slots"], batch["grids"])


def test_stops_before_a_stop_token(model: VisionLanguageModel, prompt: Prompt):
    ids = list(generate(model, prompt, Sampling(12), ()))
    stop = ids[5]
    assert list(generate(model, prompt, Sampling(12), {stop})) == ids[: ids.index(stop)]


def test_seeds_and_top_p(model: VisionLanguageModel, prompt: Prompt):
    def draw(seed: int, **rules: float) -> list[int]:
        return list(generate(model, prompt, Sampling(12, temperature=2.0, seed=seed, **rules), ()))

    greedy = list(generate(model, prompt, Sampling(12), ()))
    assert draw(1) == draw(1) != draw(2)
    assert draw(1, top_p=0.0) == draw(2, top_k=1) == greedy


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])


def drawn(sampling: Sampling, num_draws: int = 4000) -> list[float]:
    """How often each token is drawn."""
    chooser = Chooser(sampling, torch.tensor([], dtype=torch.int64))
    counts = torch.bincount(torch.tensor([chooser.choose(LOGITS) for _ in range(num_draws)]), minlength=5)
    return (counts / num_draws).tolist()


def test_draws_follow_the_probabilities():
    wanted = (LOGITS / 1.5).softmax(0).tolist()
    assert drawn(Sampling(temperature=1.5)) == pytest.approx(wanted, abs=0.03)


def test_top_k_and_top_p_cut_the_tail():
    two = LOGITS[:2].softmax(0).tolist()
    assert drawn(Sampling(temperature=1.0, top_k=2)) == pytest.approx([*two, 0, 0, 0], abs=0.03)
    assert drawn(Sampling(temperature=1.0, top_p=0.8)) == pytest.approx([*two, 0, 0, 0], abs=0.03)  # 0.64 + 0.24


def test_repetition_is_penalised_as_by_ctrl():
    chooser = Chooser(Sampling(repetition_penalty=4.0), torch.tensor([-1, 0]))  # -1: an image's place is no token
    assert [chooser.choose(LOGITS) for _ in range(3)] == [1, 0, 0]  # 2 / 4 < 1; then 1 / 4 < 2 / 4 and nothing is more
    assert chooser.choose(torch.tensor([-1.0, -1.0, -2.0])) == 2  # negative logits are multiplied


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 1.5}, {"top_k": 0}, {"max_new_tokens": 0}, {"stop": ("",)}]
)
def test_impossible_sampling_is_refused(wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


@torch.no_grad()
def brute_force(model: VisionLanguageModel, prompt: Prompt, candidate: list[int]) -> float:
    ids = torch.cat([prompt.ids, torch.tensor(candidate, dtype=torch.int64)])
    bounds = torch.tensor([0, len(ids)])
    states = model.hidden(ids, torch.arange(len(ids)), bounds, prompt.pixels, prompt.slots, prompt.grids)
    table = model.head(states).log_softmax(-1)
    start = len(prompt.ids) - 1
    return sum(float(table[start + index, token]) for index, token in enumerate(candidate))


def test_likelihoods_equal_brute_force(model: VisionLanguageModel, prompt: Prompt, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rebus.model.generate.CANDIDATES_AT_ONCE", 3)
    candidates = [[5, 6, 7], [5], [9, 9, 1, 2, 3, 4], [], [80, 2], [5, 6, 8], [1]]
    scores = score_continuations(model, prompt, candidates)
    assert scores == pytest.approx([brute_force(model, prompt, candidate) for candidate in candidates], abs=1e-4)
    assert score_continuations(model, prompt, candidates[:1]) == pytest.approx(scores[:1], abs=1e-4)


def stream(content: bytes, *stop: str) -> tuple[list[str], TextWriter]:
    """The pieces of text whose tokens are its bytes."""
    writer = TextWriter(lambda ids: bytes(ids).decode(errors="replace"), stop)
    pieces = []
    for token in content:
        pieces.append(writer.add(token))
        if writer.is_stopped:
            break
    pieces.append(writer.close())
    return [piece for piece in pieces if piece], writer


def test_text_streams_in_whole_characters():
    pieces, writer = stream("naïve 👍 yes".encode())
    assert "".join(pieces) == writer.text == "naïve 👍 yes"
    assert "👍" in pieces
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_not_lost():
    assert "".join(stream(b"ab\xf0")[0]) == "ab\N{REPLACEMENT CHARACTER}"


def test_a_stop_string_ends_the_text_and_none_of_it_is_sent():
    pieces, writer = stream(b"a dog.\n### User: more", "\n### User", "cat")
    assert ("".join(pieces), writer.is_stopped) == ("a dog.", True)
    assert "".join(stream(b"a dog.\n## no", "\n### User")[0]) == "a dog.\n## no"  # held back, then certain


@given(st.text(alphabet="ab \né", max_size=30), st.lists(st.text(alphabet="ab\né", min_size=1, max_size=4), max_size=3))
def test_pieces_are_the_text_before_the_first_stop(text: str, stop: list[str]):
    pieces, writer = stream(text.encode(), *stop)
    ends = [text.encode().find(one.encode()) + len(one.encode()) for one in stop if one in text]
    seen = text.encode()[: min(ends)].decode() if ends else text  # up to the first moment at which one is complete
    starts = [seen.find(one) for one in stop if one in seen]
    assert "".join(pieces) == writer.text == (seen[: min(starts)] if starts else seen).lstrip()
