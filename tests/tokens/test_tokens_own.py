"""The tokenizer's own chat template: transformers' ids, pictures where it writes them, data always as text."""

from pathlib import Path

import pytest
from family_tokenizers import (
    CHATML,
    LLAMA2,
    LLAMA3,
    LLAMA3_SPECIAL,
    MISTRAL,
    PHI3,
    QWEN_SPECIAL,
    VICUNA,
    byte_level,
    phi3,
    save,
    sentence_piece,
)
from transformers import PreTrainedTokenizerFast

from rebus.errors import DataError
from rebus.pictures.config import FixedConfig, NativeConfig
from rebus.records import Image, Sample, Text, Video
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import count_batch, encode, encode_prompt
from rebus.tokens.tokenizer import Tokens, load_tokens, stop_ids, tokens_fingerprint

ONE = FixedConfig(tokens_per_side=1)
QWEN2_VL = """{% for m in messages %}{% if loop.first and m.role != 'system' -%}
<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}<|im_end|>
{% else %}{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>
{%- else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAVA = """{% for m in messages %}{% if m.role == 'user' %}USER: {% else %}ASSISTANT: {% endif %}
{%- for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}
{%- for c in m.content if c.type == 'text' %}{% generation %}{{ c.text }}{% endgeneration %}{% endfor %}
{%- if m.role == 'assistant' %}{{ eos_token }}{% else %} {% endif %}
{%- endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
FAMILIES = {
    "chatml": (CHATML, lambda: byte_level(QWEN_SPECIAL), None, "<|im_end|>", "<|endoftext|>"),
    "llama3": (LLAMA3, lambda: byte_level(LLAMA3_SPECIAL), "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"),
    "phi3": (PHI3, phi3, None, "<|end|>", "<|endoftext|>"),
    **{
        f"{name} {scheme}": (chat, lambda scheme=scheme: sentence_piece(scheme), "<s>", "</s>", "</s>")
        for name, chat in (("llama2", LLAMA2), ("mistral", MISTRAL))
        for scheme in ("first", "legacy")
    },
}
TALK = [("user", "  what is it? "), ("assistant", "a red photo\n"), ("user", "käse 紅"), ("assistant", "no")]


def own_tokens(folder: Path, tokenizer, chat: str, *, bos: str | None = None, eos: str, end: str, **rules) -> Tokens:
    named = {"eos_token": eos} | ({"bos_token": bos} if bos else {})
    rules = {"image": ONE, "end_of_text": end, **rules}
    return load_tokens(TokensConfig(tokenizer=save(tokenizer, folder, chat, **named), template="own", **rules))


def qwen2_vl(folder: Path, **rules) -> Tokens:
    tokenizer = byte_level(QWEN_SPECIAL)
    return own_tokens(folder, tokenizer, QWEN2_VL, eos="<|im_end|>", end="<|endoftext|>", **rules)


def sample_of(*parts) -> Sample:
    return Sample("key", "0" * 32, "00000.tar", parts)


def said(talk) -> list[Text]:
    return [Text(content, role) for role, content in talk]


def text_of(encoded, tokens: Tokens, trained: bool = False) -> str:
    ids = encoded.ids[encoded.trainable] if trained else encoded.ids
    pieces = "".join("\0" if number < 0 else chr(0xF0000 + number) for number in ids)
    decode = tokens.tokenizer.decode
    runs = pieces.replace("\0", "|\0|").split("|")
    return "".join(
        "@" if run == "\0" else decode([ord(one) - 0xF0000 for one in run], skip_special_tokens=False) for run in runs
    )


@pytest.mark.parametrize("system", [[], [("system", "be brief")]])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(tmp_path: Path, family: str, system):
    chat, build, bos, eos, end = FAMILIES[family]
    tokens = own_tokens(tmp_path, build(), chat, bos=bos, eos=eos, end=end)
    fast = PreTrainedTokenizerFast(tokenizer_object=build(), bos_token=bos, eos_token=eos, chat_template=chat)
    for length, is_open in ((4, False), (3, True), (2, False), (1, True)):
        talk = [*system, *TALK[:length]]
        messages = [{"role": role, "content": content} for role, content in talk]
        expected = fast.apply_chat_template(messages, add_generation_prompt=is_open, return_dict=False)
        found = encode_prompt(said(talk), tokens) if is_open else encode(sample_of(*said(talk)), tokens)
        assert found.ids.tolist() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_the_built_in_template_trains(tmp_path: Path, family: str):
    chat, build, bos, eos, end = FAMILIES[family]
    own = own_tokens(tmp_path, build(), chat, bos=bos, eos=eos, end=end)
    built_in = load_tokens(TokensConfig(tokenizer=tmp_path, template=family.split()[0], image=ONE))
    sample = sample_of(*said(TALK))
    expected, found = encode(sample, built_in), encode(sample, own)
    assert found.trainable.tolist() == expected.trainable.tolist()
    assert stop_ids(own) == stop_ids(built_in)
    assert count_batch([sample], own) == count_batch([sample], built_in)


def test_pictures_stand_where_the_template_writes_them(tmp_path: Path):
    tokens = qwen2_vl(tmp_path, image_start="<|vision_start|>", image_end="<|vision_end|>")
    parts = [
        Text("see ", "user"),
        Image(9, 7),
        Text(" and ", "user"),
        Image(5, 5, role="user"),
        Text("red", "assistant"),
    ]
    encoded = encode(sample_of(*parts), tokens)
    assert text_of(encoded, tokens) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nsee <|vision_start|>@<|vision_end|>"
        " and <|vision_start|>@<|vision_end|><|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
    )
    assert [image.width for image in encoded.images] == [9, 5]
    assert text_of(encoded, tokens, trained=True) == "red<|im_end|>"


def test_a_video_takes_the_templates_form(tmp_path: Path):
    tokens = qwen2_vl(tmp_path, image=NativeConfig(kind="native"))
    video = Video((Image(56, 56), Image(56, 56)), (0.0, 0.5), "user")
    encoded = encode_prompt([video, Image(56, 56, role="user"), Text("?", "user")], tokens)
    assert [type(one) for one in encoded.images] == [Video, Image]
    frames = encode_prompt([video, Text("?", "user")], qwen2_vl(tmp_path))
    assert text_of(frames, tokens).count("<|vision_start|>@<|vision_end|>") == 2, "squares see single frames"


def test_special_looking_data_stays_text(tmp_path: Path):
    tokens = qwen2_vl(tmp_path)
    data = "<|im_end|> <|image_pad|> {{ messages }} \ue0000\ue001 <|vision_start|>"
    encoded = encode(sample_of(Text(data, "user"), Image(9, 9, role="user"), Text(data, "assistant")), tokens)
    number = {name: (encoded.ids == tokens.tokenizer.token_to_id(name)).sum() for name in QWEN_SPECIAL}
    assert (number["<|im_end|>"], number["<|vision_start|>"], number["<|image_pad|>"]) == (3, 1, 0)
    assert text_of(encoded, tokens, trained=True) == data + "<|im_end|>"


def test_llavas_template_takes_parts_alone_and_puts_pictures_first(tmp_path: Path):
    rules = {"bos": "<s>", "eos": "</s>", "end": "</s>", "start_of_text": "<s>"}
    tokens = own_tokens(tmp_path, sentence_piece("first"), LLAVA, **rules)
    parts = [Text("see ", "user"), Image(9, 7, role="user"), Text("red", "assistant")]
    encoded = encode(sample_of(*parts), tokens)
    assert text_of(encoded, tokens) == "<s> USER: @\nsee  ASSISTANT: red</s>"
    assert text_of(encoded, tokens, trained=True) == " red</s>"
    silent = encode(sample_of(*said([("user", "hi"), ("assistant", "no")])), tokens)
    fast = PreTrainedTokenizerFast(tokenizer_object=sentence_piece("first"), bos_token="<s>", eos_token="</s>")
    assert silent.ids.tolist() == fast("USER: hi ASSISTANT: no</s>")["input_ids"]


def test_a_template_without_pictures_leaves_them_where_they_stand(tmp_path: Path):
    marks = {"image_start": "<|vision_start|>", "image_end": "<|vision_end|>"}
    tokens = own_tokens(tmp_path, byte_level(QWEN_SPECIAL), CHATML, eos="<|im_end|>", end="<|endoftext|>", **marks)
    prompt = encode_prompt([Text("a", "user"), Image(9, 7, role="user"), Text("b", "user")], tokens)
    assert text_of(prompt, tokens) == (
        "<|im_start|>user\na<|vision_start|>@<|vision_end|>b<|im_end|>\n<|im_start|>assistant\n"
    )


def test_where_the_template_is_found(tmp_path: Path):
    tokenizer, rules = byte_level(QWEN_SPECIAL), {"template": "own", "image": ONE}
    folder = save(tokenizer, tmp_path)
    with pytest.raises(DataError, match="has no chat template"):
        load_tokens(TokensConfig(tokenizer=folder, **rules))
    prints = []
    for name, content in (
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": %s}]}'),
        ("chat_template.json", '{"chat_template": %s}'),
    ):
        (folder / name).write_text(content % f'"{CHATML.encode("unicode_escape").decode()}"'.replace("\\'", "'"))
        tokens = load_tokens(TokensConfig(tokenizer=folder, **rules))
        prints.append(tokens.fingerprint)
        assert tokens_fingerprint(tokens.config) == tokens.fingerprint
    (folder / "chat_template.jinja").write_text(QWEN2_VL)
    prints.append(load_tokens(tokens.config).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("chat", "eos", "message"),
    [
        (VICUNA.replace("+ eos_token", ""), "</s>", "closes an answer with '', in which there is no special token"),
        ("{{ messages[0].content }}{{ eos_token }}", "</s>", "loses or reorders what is said"),
        ("{{ raise_exception('no roles here') }}", "</s>", "no roles here"),
        ("{% for m in messages %}{{ m.content", "</s>", "refuses a conversation"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_words(tmp_path: Path, chat: str, eos: str, message: str):
    with pytest.raises(DataError, match=message):
        own_tokens(tmp_path, sentence_piece("first"), chat, bos="<s>", eos=eos, end="</s>")


def test_a_generation_prompt_that_no_answer_follows_is_refused(tmp_path: Path):
    chat = CHATML.replace("<|im_start|>assistant\\n", "<|im_start|>bot\\n")
    tokens = own_tokens(tmp_path, byte_level(QWEN_SPECIAL), chat, eos="<|im_end|>", end="<|endoftext|>")
    with pytest.raises(DataError, match="turn 1 does not go on where its generation prompt ends"):
        encode(sample_of(*said(TALK)), tokens)


def test_the_template_cannot_leave_its_sandbox(tmp_path: Path):
    chat = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + CHATML
    with pytest.raises(DataError, match="refuses a conversation"):
        own_tokens(tmp_path, byte_level(QWEN_SPECIAL), chat, eos="<|im_end|>", end="<|endoftext|>")
