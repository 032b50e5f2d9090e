"""Contract 12: cached equals uncached decoding, and neither the size nor the order of a batch changes an answer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.batches.collate import Document
from rebus.model.decode_sampling import Sampling
from rebus.model.families import VisionLanguageModel
from rebus.model.generate import Decoder, Prompt, generate, prompt_of
from rebus.pictures.prepare import normalise
from rebus.tokens.positions import prompt_positions
from tiny_families import MAKERS, Family, documents_of

NUM_NEW = 6
GREEDY = Sampling(NUM_NEW)
SAMPLED = Sampling(NUM_NEW, temperature=1.3, top_p=0.9, seed=5)
PENALISED = Sampling(NUM_NEW, temperature=0.8, top_k=40, repetition_penalty=1.3, seed=6)


@pytest.fixture(scope="module", params=list(MAKERS))
def family(request: pytest.FixtureRequest) -> Family:
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def prompts(family: Family, tiny_tokenizer_folder: Path) -> list[Prompt]:
    """Captions, pages of several pictures, text alone, and a video where the family has them whole."""
    return [prompt_from(document, family) for document in documents_of(family, tiny_tokenizer_folder)]


def prompt_from(document: Document, family: Family) -> Prompt:
    encoded = document.encoded
    pixels = None
    if document.arrays:
        pixels = torch.cat([torch.from_numpy(normalise(rows, family.image)) for rows in document.arrays])
    positions = prompt_positions(encoded, family.image)
    return prompt_of(encoded.ids, positions, encoded.slots, encoded.grids, pixels, key=document.key)


def together(
    model: VisionLanguageModel, prompts: Sequence[Prompt], samplings: Sequence[Sampling], num_rows: int
) -> list[list[int]]:
    """All answers; never more than `num_rows` at a time, each joining when another has ended."""
    decoder, made = Decoder(model), [[] for _ in prompts]
    numbers: dict[int, int] = {}
    waiting = list(range(len(prompts)))
    while waiting or numbers:
        while waiting and decoder.num_requests < num_rows:
            place = waiting.pop(0)
            numbers[decoder.add(prompts[place], samplings[place])] = place
        for number, token in decoder.step():
            place = numbers[number]
            made[place].append(token)
            if len(made[place]) == samplings[place].max_new_tokens:
                decoder.drop(number)
                del numbers[number]
    return made


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"])
def test_cached_equals_uncached(family: Family, prompts: list[Prompt], sampling: Sampling):
    for prompt in prompts:
        cached = list(generate(family.ours, prompt, sampling, ()))
        assert cached == list(generate(family.ours, prompt, sampling, (), cached=False)), prompt.key
        assert len(cached) == NUM_NEW


def test_company_and_its_order_change_nothing(family: Family, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rebus.model.generate.ROOM", 1)  # so that the cache grows while it is decoded from
    samplings = [
        replace((GREEDY, SAMPLED, PENALISED)[place % 3], seed=place, max_new_tokens=3 + 2 * place)
        for place in range(len(prompts))
    ]
    alone = [list(generate(family.ours, *one, ())) for one in zip(prompts, samplings, strict=True)]
    for num_rows in (2, len(prompts)):
        assert together(family.ours, prompts, samplings, num_rows) == alone
    assert together(family.ours, prompts[::-1], samplings[::-1], 3) == alone[::-1]


def test_the_logits_of_a_cached_batch_are_those_of_the_whole_sequence(family: Family, prompts: list[Prompt]):
    """Ids can agree by luck of the argmax; logits cannot."""
    decoder = Decoder(family.ours)
    for prompt in prompts:
        decoder.add(prompt, GREEDY)
    made = [decoder.step() for _ in range(4)]
    with torch.inference_mode():
        decoder._run_last_tokens(len(prompts))
    for place, (prompt, row) in enumerate(zip(prompts, decoder.rows, strict=True)):
        tokens = torch.tensor([step[place][1] for step in made])
        after = torch.arange(len(tokens)) + prompt.next_position
        with torch.no_grad():
            states = family.ours.hidden(
                torch.cat([prompt.ids, tokens]),
                torch.cat([prompt.positions, after.expand(*prompt.positions.shape[:-1], -1)], -1),
                torch.tensor([0, len(prompt.ids) + len(tokens)]),
                prompt.pixels,
                prompt.slots,
                prompt.grids,
            )
            torch.testing.assert_close(row.logits, family.ours.head(states[-1]), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    return MAKERS["llava_siglip"]().ours


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_requests_come_and_go_at_any_time(language: VisionLanguageModel, data: st.DataObject):
    """Added, stepped and dropped in any order, also before their first token: each goes on as it would alone."""
    torch.manual_seed(0)
    none = torch.zeros(0, 3, dtype=torch.int64)
    prompts = [
        prompt_of(ids, torch.arange(length).numpy(), none[:, :2].numpy(), none.numpy(), None)
        for length in (1, 70, 5, 33)
        for ids in [torch.randint(0, 300, (length,)).numpy()]
    ]
    alone = [list(generate(language, prompt, Sampling(12), ())) for prompt in prompts]
    decoder, made, kind = Decoder(language), {}, {}
    for action in data.draw(st.lists(st.integers(0, 7), max_size=14)):
        if action < 4:
            number = decoder.add(prompts[action], GREEDY)
            kind[number], made[number] = action, []
        elif action < 6 and decoder.num_requests and all(len(made[row.number]) < 12 for row in decoder.rows):
            for number, token in decoder.step():
                made[number].append(token)
        elif action >= 6 and decoder.num_requests:
            decoder.drop(decoder.rows[action % decoder.num_requests].number)
    assert all(tokens == alone[kind[number]][: len(tokens)] for number, tokens in made.items())
