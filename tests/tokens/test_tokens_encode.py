"""Ids and mask: exact by construction, special-looking text stays text, lengths agree with the image rule."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebus.errors import DataError
from rebus.records import Image, Sample, Text
from rebus.tokens.config import FixedConfig, TokensConfig
from rebus.tokens.encode import IMAGE_ID, Count, UnusableSample, count, count_batch, encode, encode_prompt
from rebus.tokens.tokenizer import Tokens, load_tokens, stop_ids, tokens_fingerprint

END, START, STOP = 0, 1, 2
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(min_size=1, max_size=30) | st.sampled_from(["<|im_end|>", "<image>", " <|endoftext|>\n", "\n\n", " a"])
images = st.builds(Image, st.integers(1, 500), st.integers(1, 500), role=st.just("user"))


@pytest.fixture(scope="session")
def chatml(tiny_tokenizer_folder: Path) -> Tokens:
    return load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder, template="chatml"))


@pytest.fixture(scope="session")
def plain(tiny_tokenizer_folder: Path) -> Tokens:
    return load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder, image=FixedConfig(tokens_per_side=2)))


def sample_of(*parts) -> Sample:
    return Sample("key", "0" * 32, "00000.tar", parts)


def trained_text(encoded, tokens: Tokens) -> str:
    return tokens.tokenizer.decode(encoded.ids[encoded.trainable].tolist(), skip_special_tokens=False)


@given(text=texts, image=images)
@quick
def test_document_trains_on_all_its_text_and_the_end(plain: Tokens, text: str, image: Image):
    encoded = encode(sample_of(Image(image.width, image.height), Text(text)), plain)
    assert encoded.ids[:4].tolist() == [IMAGE_ID] * 4
    assert not encoded.trainable[:4].any()
    assert encoded.trainable[4:].all()
    assert encoded.ids[-1] == END
    assert trained_text(encoded, plain) == text + "<|endoftext|>"
    assert (encoded.ids[:-1] != END).all()


@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), image=images)
@quick
def test_conversation_trains_on_answers_and_their_ends_alone(chatml: Tokens, turns, image: Image):
    parts = [image]
    for question, answer in turns:
        parts += [Text(question, "user"), Text(answer, "assistant")]
    encoded = encode(sample_of(*parts), chatml)
    assert trained_text(encoded, chatml) == "".join(answer + "<|im_end|>" for _, answer in turns)
    # Whatever the text looks like, only the template makes special tokens.
    assert (encoded.ids == START).sum() == (encoded.ids == STOP).sum() == 2 * len(turns)
    assert (encoded.ids == END).sum() == 0
    whole = chatml.tokenizer.decode(encoded.ids[encoded.ids >= 0].tolist(), skip_special_tokens=False)
    assert whole == "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for question, answer in turns
    )


@given(question=texts, answer=texts)
@quick
def test_prompt_is_the_head_of_the_training_sample(chatml: Tokens, question: str, answer: str):
    """One preprocessing: what the model is asked with is what it was trained on, token by token."""
    parts = (Image(9, 9, role="user"), Text(question, "user"))
    prompt = encode_prompt(parts, chatml)
    whole = encode(sample_of(*parts, Text(answer, "assistant")), chatml)
    assert (whole.ids[: prompt.num_tokens] == prompt.ids).all()
    assert whole.trainable.argmax() == prompt.num_tokens


def test_document_under_chatml_is_plain(chatml: Tokens, tiny_tokenizer_folder: Path):
    plain = load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder))
    document = sample_of(Image(9, 9), Text("a red square"))
    assert (encode(document, chatml).ids == encode(document, plain).ids).all()


def test_image_without_a_role_joins_the_turn_that_follows(chatml: Tokens):
    with_role = sample_of(Image(9, 9, role="user"), Text("what?", "user"), Text("red", "assistant"))
    without = sample_of(Image(9, 9), Text("what?", "user"), Text("red", "assistant"))
    assert (encode(with_role, chatml).ids == encode(without, chatml).ids).all()


def test_text_without_a_role_in_a_conversation_is_an_error(chatml: Tokens):
    with pytest.raises(DataError, match=r"part 0 \(text\) of a conversation has no role"):
        encode(sample_of(Text("what?"), Text("red", "assistant")), chatml)


def test_image_slots_point_at_image_ids(plain: Tokens):
    encoded = encode(sample_of(Text("a"), Image(9, 9), Text("b"), Image(3, 5), Text("c")), plain)
    slots = np.zeros(encoded.num_tokens, dtype=bool)
    for start, length in zip(encoded.image_starts, encoded.image_lengths, strict=True):
        slots[start : start + length] = True
    assert (slots == (encoded.ids == IMAGE_ID)).all()
    assert slots.sum() == 8
    assert encoded.ids.dtype == np.int32


def test_count_is_what_encode_gives(plain: Tokens):
    sample = sample_of(Image(9, 9), Text("a photo"))
    counted, encoded = count(sample, plain), encode(sample, plain)
    assert (counted.num_tokens, counted.num_images, counted.num_image_tokens) == (encoded.num_tokens, 1, 4)


roles = st.sampled_from(["", "user", "assistant", "system"])
parts = st.lists(
    st.builds(Text, st.text("a<|im_end|>ä b", max_size=12), roles)
    | st.builds(Image, st.just(9), st.just(7), role=roles),
    max_size=6,
)


@given(batch=st.lists(parts, max_size=5), template=st.sampled_from(["plain", "chatml"]), opened=st.booleans())
@quick
def test_counts_of_a_batch_are_what_encode_gives_one_by_one(tiny_tokenizer_folder: Path, batch, template, opened: bool):
    start = "<|im_start|>" if opened else None
    image = FixedConfig(size=64, patch_size=32, tokens_per_side=2)
    config = TokensConfig(
        tokenizer=tiny_tokenizer_folder, template=template, image=image, max_tokens=20, start_of_text=start
    )
    tokens = load_tokens(config)
    samples = [sample_of(*parts) for parts in batch]
    for sample, counted in zip(samples, count_batch(samples, tokens), strict=True):
        if isinstance(counted, UnusableSample):
            with pytest.raises(DataError) as caught:
                encode(sample, tokens)
            told = caught.value
            if isinstance(told, UnusableSample):
                assert (counted.reason, counted.detail) == (told.reason, told.detail)
            else:
                assert (counted.reason, counted.detail) == ("unreadable", str(told))
        else:
            encoded = encode(sample, tokens)
            num_images = len(encoded.images)
            assert counted == Count(len(encoded.ids), num_images, int((encoded.ids == IMAGE_ID).sum()), 4 * num_images)


def test_unusable_samples_say_why(plain: Tokens, chatml: Tokens):
    with pytest.raises(UnusableSample) as caught:
        encode(sample_of(Text("what is it?", "user")), chatml)
    assert caught.value.reason == "no supervised token"
    with pytest.raises(UnusableSample, match="max_tokens is 2048") as caught:
        encode(sample_of(Text("ä" * 3000)), plain)
    assert caught.value.reason == "too long"


def test_missing_files_and_tokens_are_named(tmp_path: Path, tiny_tokenizer_folder: Path):
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        load_tokens(TokensConfig(tokenizer=tmp_path))
    with pytest.raises(DataError, match=r"no token '<\|endoftex\|>' \(did you mean '<\|endoftext\|>'\?\)"):
        load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder, end_of_text="<|endoftex|>"))


def test_ordinary_added_token_cannot_serve_as_a_special_one(tmp_path: Path, tiny_tokenizer_folder: Path):
    source = (tiny_tokenizer_folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(source.replace('"special": true', '"special": false'))
    with pytest.raises(DataError, match="is not marked as special"):
        load_tokens(TokensConfig(tokenizer=tmp_path))


def test_fingerprint_follows_bytes_and_rules_not_the_place(tmp_path: Path, tiny_tokenizer_folder: Path):
    config = TokensConfig(tokenizer=tiny_tokenizer_folder)
    content = (tiny_tokenizer_folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert tokens_fingerprint(config) == tokens_fingerprint(config.model_copy(update={"tokenizer": tmp_path}))
    assert tokens_fingerprint(config) != tokens_fingerprint(config.model_copy(update={"max_tokens": 99}))
    (tmp_path / "tokenizer.json").write_bytes(content + b"\n")
    assert tokens_fingerprint(config) != tokens_fingerprint(config.model_copy(update={"tokenizer": tmp_path}))


def test_stop_ids(plain: Tokens, chatml: Tokens):
    assert stop_ids(plain) == (END,)
    assert stop_ids(chatml) == (END, STOP)


def test_a_document_opens_with_the_token_that_the_model_was_trained_with(tiny_tokenizer_folder):
    config = TokensConfig(tokenizer=tiny_tokenizer_folder, start_of_text="<|im_start|>")
    encoded = encode(sample_of(Image(9, 9), Text("red")), load_tokens(config))
    plain = encode(sample_of(Image(9, 9), Text("red")), load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder)))
    assert encoded.ids.tolist() == [1, *plain.ids.tolist()]
    assert encoded.trainable.tolist() == [True, *plain.trainable.tolist()], "where a document precedes it"
    assert encoded.num_supervised == plain.num_supervised, "where none does"
