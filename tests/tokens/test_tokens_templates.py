"""Every built-in template gives the ids that transformers' fast tokenizers give for the family's published template."""

from pathlib import Path

import pytest
from family_tokenizers import LLAMA3_SPECIAL, QWEN_SPECIAL, byte_level, phi3, reference, save, sentence_piece

from rebus.config import check_recipe
from rebus.errors import ConfigError, DataError
from rebus.pictures.config import FixedConfig
from rebus.records import Image, Part, Sample, Text
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import Count, UnusableSample, count_batch, encode, encode_prompt, encode_spans
from rebus.tokens.template import render_answer
from rebus.tokens.tokenizer import Tokens, load_tokens, stop_ids, tokens_fingerprint

ONE = FixedConfig(tokens_per_side=1)
FAMILIES = {
    "chatml": ("chatml", lambda: byte_level(QWEN_SPECIAL), None, "<|im_end|>"),
    "llama3": ("llama3", lambda: byte_level(LLAMA3_SPECIAL), "<|begin_of_text|>", "<|eot_id|>"),
    "phi3": ("phi3", phi3, None, "<|end|>"),
    **{
        f"{template} {scheme}": (template, lambda scheme=scheme: sentence_piece(scheme), "<s>", "</s>")
        for template in ("llama2", "mistral", "vicuna_v1")
        for scheme in ("first", "always", "legacy")
    },
}
TALKS = {
    "one exchange": [("user", "what is on the table?"), ("assistant", "a red square")],
    "three exchanges": [
        *[("user", "<image>\nwhat is it?"), ("assistant", "red"), ("user", "and?"), ("assistant", "a table")],
        *[("user", "the\n\n\nother"), ("assistant", "blue\n\n")],
    ],
    "system": [("system", "be brief"), ("user", "hi"), ("assistant", "hello")],
    "two pictures": [
        ("user", "the <image>\n and <image>"),
        ("assistant", "a photo"),
        ("user", "?"),
        ("assistant", "x"),
    ],
    "unicode": [("user", "käse 紅 🎈?"), ("assistant", "naïve 紅\u00a0é")],
    "white space": [("user", "  what \t\n"), ("assistant", "  a  photo \n "), ("user", "\nso "), ("assistant", " no")],
}


def parts_of(talk: list[tuple[str, str]]) -> list[Part]:
    parts: list[Part] = []
    for role, content in talk:
        for number, text in enumerate(content.split("<image>")):
            parts += [Image(9, 9, role=role)] if number else []
            parts += [Text(text, role)] if text else []
    return parts


def sample_of(parts) -> Sample:
    return Sample("key", "0" * 32, "00000.tar", tuple(parts))


def family_tokens(folder: Path, family: str) -> Tokens:
    template, build, _, _ = FAMILIES[family]
    return load_tokens(TokensConfig(tokenizer=save(build(), folder), template=template, system="", image=ONE))


def expected_ids(family: str, talk: list[tuple[str, str]], is_open: bool) -> list[int]:
    template, build, bos, eos = FAMILIES[family]
    fast = reference(build(), template, bos, eos)
    messages = [{"role": role, "content": content} for role, content in talk]
    text = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open)
    return fast(text, add_special_tokens=template == "vicuna_v1")["input_ids"]  # whose <s> the tokenizer adds


def with_images(encoded, tokens: Tokens) -> list[int]:
    image = tokens.tokenizer.token_to_id("<image>")
    return [image if number < 0 else number for number in encoded.ids.tolist()]


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_published_template(tmp_path: Path, family: str, talk: str):
    tokens = family_tokens(tmp_path, family)
    encoded = encode(sample_of(parts_of(TALKS[talk])), tokens)
    assert with_images(encoded, tokens) == expected_ids(family, TALKS[talk], is_open=False)
    prompt = encode_prompt(parts_of(TALKS[talk][:-1]), tokens)
    assert with_images(prompt, tokens) == expected_ids(family, TALKS[talk][:-1], is_open=True)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_are_the_answers_and_their_ends(tmp_path: Path, family: str, talk: str):
    tokens = family_tokens(tmp_path, family)
    parts = parts_of(TALKS[talk])
    encoded = encode(sample_of(parts), tokens)
    trained = tokens.tokenizer.decode(encoded.ids[encoded.trainable].tolist(), skip_special_tokens=False)
    end = FAMILIES[family][3]
    answers = [content for role, content in TALKS[talk] if role == "assistant"]
    assert [text.split() for text in trained.split(end)] == [*(answer.split() for answer in answers), []]
    prompt = encode_prompt(parts[:-1], tokens)
    assert (encoded.ids[: prompt.num_tokens] == prompt.ids).all()
    assert encoded.trainable[prompt.num_tokens]
    assert encoded.ids[encoded.trainable][-1] in stop_ids(tokens)
    answer = encode_spans(render_answer(answers[-1], tokens, in_turns=True), tokens)
    rest = encoded.ids[prompt.num_tokens :]
    assert rest[: answer.num_tokens].tolist() == answer.ids.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_data_stay_text(tmp_path: Path, family: str):
    """Transformers reads them as special, so here the two must differ."""
    tokens = family_tokens(tmp_path, family)
    end = FAMILIES[family][3]
    talk = [("user", f"say {end} now"), ("assistant", f"it is {end} so")]
    encoded = encode(sample_of(parts_of(talk)), tokens)
    number = tokens.tokenizer.token_to_id(end)
    assert (encoded.ids == number).sum() == (1 if end == "</s>" else 2)
    assert encoded.ids.tolist() != expected_ids(family, talk, is_open=False)
    assert end in tokens.tokenizer.decode(encoded.ids[encoded.trainable][:-1].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_what_encode_gives(tmp_path: Path, family: str):
    tokens = family_tokens(tmp_path, family)
    samples = [sample_of(parts_of(talk)) for talk in TALKS.values()]
    samples += [sample_of([Image(9, 9), Text(" a caption <image>")]), sample_of(parts_of([("assistant", "I begin")]))]
    for sample, counted in zip(samples, count_batch(samples, tokens), strict=True):
        if isinstance(counted, UnusableSample):
            with pytest.raises(DataError, match="has no place for the turns"):
                encode(sample, tokens)
        else:
            encoded = encode(sample, tokens)
            assert counted == Count(encoded.num_tokens, len(encoded.images), len(encoded.images), counted.num_patches)


def test_an_answer_that_begins_with_a_line_break_parts_where_the_prompt_ends(tmp_path: Path):
    """Transformers would join it with the header's line break into one token, which no generation could begin with."""
    tokens = family_tokens(tmp_path, "chatml")
    talk = [("user", "hi"), ("assistant", "\n\nred")]
    encoded, whole = encode(sample_of(parts_of(talk)), tokens), expected_ids("chatml", talk, is_open=False)
    prompt = encode_prompt(parts_of(talk[:1]), tokens)
    assert encoded.ids[: prompt.num_tokens].tolist() == prompt.ids.tolist()
    assert encoded.ids.tolist() != whole
    assert tokens.tokenizer.decode(encoded.ids.tolist()) == tokens.tokenizer.decode(whole)


def text_of(parts, tokens: Tokens) -> str:
    return tokens.tokenizer.decode(with_images(encode_prompt(parts, tokens), tokens), skip_special_tokens=False)


def test_default_system_prompts(tmp_path: Path):
    qwen, llama3 = save(byte_level(QWEN_SPECIAL), tmp_path / "q"), save(byte_level(LLAMA3_SPECIAL), tmp_path / "l")
    hi = parts_of([("user", "hi")])
    config = TokensConfig(tokenizer=qwen, template="chatml", image=ONE)
    assert "system" not in text_of(hi, load_tokens(config))
    config = config.model_copy(update={"system": "You are a helpful assistant."})
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert text_of(hi, load_tokens(config)) == start + "<|im_start|>assistant\n"
    other = parts_of([("system", "no"), ("user", "hi")])
    assert "helpful" not in text_of(other, load_tokens(config)), "the conversation's own goes first"
    llava = load_tokens(TokensConfig(tokenizer=llama3, template="llava_llama_3", image=ONE))
    text = text_of(hi, llava)
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language")
    assert text.count("<|begin_of_text|>") == 1
    vicuna = load_tokens(TokensConfig(tokenizer=save(sentence_piece("first"), tmp_path / "v"), template="vicuna_v1"))
    assert text_of(hi, vicuna).startswith("<s> A chat between a curious user")
    assert text_of(hi, vicuna).endswith("user's questions. USER: hi ASSISTANT:")


def test_prismatic_quirks(tmp_path: Path):
    folder = save(byte_level(QWEN_SPECIAL), tmp_path)
    tokens = load_tokens(TokensConfig(tokenizer=folder, template="prismatic_qwen2", image=ONE))
    talk = [("user", "<image>\nwhat?\n"), ("assistant", ""), ("user", "<image>\nso?")]
    parts = parts_of(talk)
    parts.insert(2, Text("", "assistant"))
    assert text_of(parts, tokens) == (
        "<s><|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>what?<|im_end|>assistant\n"
        " <|im_end|>\n<|im_start|>user\n<image>\nso?<|im_end|>assistant\n"
    )
    document = encode(sample_of([Image(9, 9), Text("\na caption")]), tokens)
    first, last = (tokens.tokenizer.token_to_id(name) for name in ("<s>", "<|im_end|>"))
    assert (document.ids[0], document.ids[-1]) == (first, last)
    assert stop_ids(tokens) == (last,)


def test_stop_ids_follow_the_template(tmp_path: Path):
    names = {"chatml": ["<|endoftext|>", "<|im_end|>"], "llama3": ["<|end_of_text|>", "<|eot_id|>"]}
    names |= {"phi3": ["<|endoftext|>", "<|end|>"], "mistral first": ["</s>"], "llama2 legacy": ["</s>"]}
    for family, expected in names.items():
        tokens = family_tokens(tmp_path / family, family)
        assert [tokens.tokenizer.id_to_token(number) for number in stop_ids(tokens)] == expected


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no template 'chatlm' \(did you mean 'chatml'\?\); there are plain, chatml"):
        check_recipe(TokensConfig, {"tokenizer": "x", "template": "chatlm"}, "the recipe")


def test_what_the_config_names_goes_before_the_templates_frame():
    config = TokensConfig(tokenizer=Path("x"), template="llama3", end_of_text="<|eot_id|>", start_of_text=None)
    assert (config.start_of_text, config.end_of_text) == (None, "<|eot_id|>")
    assert TokensConfig.model_validate(config.model_dump()) == config
    assert TokensConfig(tokenizer=Path("x"), template="llama2").start_of_text == "<s>"


def test_plain_documents_keep_the_dummy_space_of_every_text(tmp_path: Path):
    """As earlier versions had it, whose plans name these lengths: each text by itself."""
    tokens = load_tokens(TokensConfig(tokenizer=save(sentence_piece("first"), tmp_path), end_of_text="</s>", image=ONE))
    encoded = encode(sample_of([Text("a photo"), Image(9, 9), Text("the table")]), tokens)
    pieces = [tokens.tokenizer.encode(text, add_special_tokens=False).ids for text in ("a photo", "the table")]
    assert encoded.ids.tolist() == [*pieces[0], -1, *pieces[1], tokens.tokenizer.token_to_id("</s>")]


def test_fingerprint_is_the_same_from_tokens_and_config(tmp_path: Path):
    for family in ("chatml", "phi3", "mistral legacy"):
        tokens = family_tokens(tmp_path / family, family)
        assert tokens_fingerprint(tokens.config) == tokens.fingerprint
        spoken = tokens.config.model_copy(update={"system": "other"})
        assert tokens_fingerprint(spoken) != tokens.fingerprint
