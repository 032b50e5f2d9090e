"""Small real tokenizers shaped like the families', and the chat templates that their releases describe."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    "a photo of a red square on the table, what is in the photo? USER: ASSISTANT: [INST] [/INST] <<SYS>>",
    "the assistant gives helpful, detailed, and polite answers to the user's questions. system user assistant",
] * 8
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """{{ bos_token }}{% for m in messages -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
LLAMA2 = """{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set told = messages[0].content %}
{%- else %}{% set rest = messages %}{% set told = none %}{% endif %}
{%- for m in rest %}{% set c = m.content %}
{%- if loop.first and told is not none %}{% set c = '<<SYS>>\\n' + told + '\\n<</SYS>>\\n\\n' + c %}{% endif %}
{%- if m.role == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
MISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}
{%- set told = messages[0].content + '\\n\\n' %}{% else %}{% set rest = messages %}{% set told = '' %}{% endif %}
{%- for m in rest %}{% if m.role == 'user' %}
{{- '[INST] ' + (told if loop.first else '') + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
PHI3 = """{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
VICUNA = """{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}
{%- elif m.role == 'user' %}{{ 'USER: ' + m.content }}
{%- else %}{{ ' ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"""
CHATS = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "phi3": PHI3,
    "vicuna_v1": VICUNA,
}
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
QWEN_SPECIAL += ["<|video_pad|>", "<s>", "<image>"]
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA3_SPECIAL += ["<image>"]
PHI3_SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def byte_level(special: list[str]) -> tokenizers.Tokenizer:
    """As Qwen's and LLaMA-3's: a pattern parts the text, then bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*WORDS, "\n\n", "  \n", "\n\n\n"], trainer)
    return tokenizer


def sentence_piece(scheme: str, extra: list[AddedToken] | None = None) -> tokenizers.Tokenizer:
    """As Llama 2's. scheme: Metaspace "first" or "always", or "legacy": a Prepend normalizer and no pre-tokenizer."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    alphabet = [chr(code) for code in range(33, 127)] + ["▁"]
    special = ["<unk>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tree = json.loads(tokenizer.to_str())
    vocabulary = tree["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tree))
    if scheme == "legacy":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(extra or [])
    return tokenizer


def phi3() -> tokenizers.Tokenizer:
    """Phi-3's special tokens swallow the white space that follows them."""
    return sentence_piece("legacy", [AddedToken(name, rstrip=True, normalized=False) for name in PHI3_SPECIAL])


def reference(tokenizer: tokenizers.Tokenizer, template: str, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=copy, bos_token=bos, eos_token=eos, chat_template=CHATS.get(template)
    )


def save(tokenizer: tokenizers.Tokenizer, folder: Path, chat_template: str | None = None, **config: str) -> Path:
    """A folder in the hub's layout; config: what tokenizer_config.json says besides."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tree = config if chat_template is None else {**config, "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(tree))
    return folder
