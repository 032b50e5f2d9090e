"""Long documents are cut between parts alone: pieces are in order, complete, within the limits, and trainable."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebus.packs.cutting import Limits, cut_sample
from rebus.packs.plan import Reference
from rebus.pictures.config import FixedConfig
from rebus.records import Image, Sample, Text
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import UnusableSample, encode
from rebus.tokens.tokenizer import Tokens, load_tokens

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.text("ab c.", min_size=1, max_size=12)


@pytest.fixture(scope="session")
def tokens(tiny_tokenizer_folder: Path) -> Tokens:
    image = FixedConfig(size=64, patch_size=32, tokens_per_side=2)
    return load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder, template="chatml", image=image))


def sample_of(*parts) -> Sample:
    return Sample("key", "0" * 32, "00000.tar", parts)


def documents(sample: Sample, cut) -> list[Sample]:
    sizes = [(p.counted.num_tokens, p.counted.num_images, p.counted.num_patches) for p in cut.pieces]
    places = [(p.first_part, p.end_part) for p in cut.pieces]
    return [Reference(Path("s"), 0, "", *size, *place).cut(sample) for size, place in zip(sizes, places, strict=True)]


@given(parts=st.lists(st.builds(Text, words) | st.builds(Image, st.just(9), st.just(9)), min_size=1, max_size=14))
@quick
def test_pieces_of_a_page_are_disjoint_in_order_and_complete(tokens: Tokens, parts):
    sample, limits = sample_of(*parts), Limits(20, 3, 8)
    cut = cut_sample(sample, tokens, limits)
    pieces = documents(sample, cut)
    assert [part for piece in pieces for part in piece.parts] == parts
    for piece, planned in zip(pieces, cut.pieces, strict=True):
        encoded = encode(piece, tokens)
        assert encoded.num_tokens == planned.counted.num_tokens <= 20
        assert len(encoded.images) == planned.counted.num_images <= 2  # four patches an image
        assert encoded.num_supervised > 0
    for earlier, later in pairwise(pieces):  # greedy: nothing more would have fitted
        grown = encode(replace(sample, parts=(*earlier.parts, later.parts[0])), tokens)
        assert grown.num_tokens > 20 or len(grown.images) > 2


def test_a_part_that_is_too_long_alone_refuses_the_page(tokens: Tokens):
    with pytest.raises(UnusableSample, match=r"part 1 alone: \d+ tokens.*allowed are 20 tokens, 3 images") as caught:
        cut_sample(sample_of(Text("a"), Text("b" * 60), Text("c")), tokens, Limits(20, 3))
    assert caught.value.reason == "too long"


@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=6))
@quick
def test_a_conversation_keeps_its_longest_beginning(tokens: Tokens, turns):
    parts = [Image(9, 9, role="user")]
    for question, answer in turns:
        parts += [Text(question, "user"), Text(answer, "assistant")]
    sample, limits = sample_of(*parts), Limits(60)
    whole = encode(sample, tokens).num_tokens
    fitting = [n for n in range(1, len(turns) + 1) if encode(sample_of(*parts[: 1 + 2 * n]), tokens).num_tokens <= 60]
    cut = cut_sample(sample, tokens, limits)
    (kept,) = documents(sample, cut)
    assert kept.parts == tuple(parts[: 1 + 2 * max(fitting)])
    assert cut.pieces[0].counted.num_tokens + cut.num_dropped == whole
    assert encode(kept, tokens).num_supervised > 0


def test_a_first_exchange_that_is_too_long_refuses_the_conversation(tokens: Tokens):
    sample = sample_of(Text("a" * 90, "user"), Text("b", "assistant"), Text("a", "user"), Text("b", "assistant"))
    with pytest.raises(UnusableSample, match="its first exchange does not fit"):
        cut_sample(sample, tokens, Limits(40))
