"""Tiny random dual encoders saved by transformers as hub folders, with tokenizers of the real kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import tokenizers
import torch
import transformers

from tiny_pictures import photo

SIDE = 32
TEXTS = [
    "a red fox",
    "two foxes run over the wide snow of a long winter, and a dog watches them from far away, it barks",
    "x",
    "A dog! On the sofa... its nose is cold",
    "the sun sets; the sun rises",
    "a photo of a cat and a cat and a cat and a cat and a cat",
]
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
EYES = {**SHAPE, "image_size": SIDE, "patch_size": 8}
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def pictures() -> list[PIL.Image.Image]:
    """One a text, none square, some smaller than the model's side."""
    sizes = [(70, 41), (33, 90), (20, 31), (64, 64), (200, 37), (48, 31)]
    return [photo(*size, seed=number) for number, size in enumerate(sizes)]


def clip_tokenizer() -> Any:
    """CLIP's: byte pairs with a word end, lower-cased."""
    merges = [("t", "h"), ("th", "e</w>"), ("a", "n"), ("o", "x</w>"), ("an", "d</w>")]
    units = [*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET), *("".join(pair) for pair in merges)]
    vocabulary = {unit: number for number, unit in enumerate([*units, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=24)


def save_clip(folder: Path) -> Path:
    tokenizer = clip_tokenizer()
    words = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config=words, vision_config=EYES, projection_dim=20)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=_square(SIDE))
    return _save(folder, transformers.CLIPModel(config), processor, tokenizer)


def save_siglip(folder: Path) -> Path:
    """Unigram pieces, an end token, always 16 long, a bilinear resize (as SigLIP 2 has it)."""
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.,;!"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([*pieces, ("▁the", -2.0), ("▁a", -2.5)], unk_id=2))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
        model_input_names=["input_ids"],
    )
    words = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=words, vision_config=EYES)
    processor = transformers.SiglipImageProcessorPil(size=_square(SIDE), resample=2)
    return _save(folder, transformers.SiglipModel(config), processor, tokenizer)


def bert_tokenizer() -> Any:
    letters = [chr(number) for number in range(33, 127)]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##ox", "fox"]
    names = [*marks, *letters, *(f"##{letter}" for letter in letters)]
    return transformers.BertTokenizer(vocab={name: number for number, name in enumerate(names)}, model_max_length=40)


def save_bert_and_vit(folder: Path) -> Path:
    tokenizer = bert_tokenizer()
    words = transformers.BertConfig(**SHAPE, vocab_size=len(tokenizer), max_position_embeddings=40)
    eyes = transformers.ViTConfig(**EYES)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(eyes, words, projection_dim=20)
    processor = transformers.ViTImageProcessorPil(size=_square(SIDE))
    return _save(folder, transformers.VisionTextDualEncoderModel(config), processor, tokenizer)


def save_chinese_clip(folder: Path) -> Path:
    tokenizer = bert_tokenizer()
    words = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    config = transformers.ChineseCLIPConfig(text_config=words, vision_config=EYES, projection_dim=20)
    processor = transformers.ChineseCLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=_square(SIDE))
    return _save(folder, transformers.ChineseCLIPModel(config), processor, tokenizer)


def save_alt_clip(folder: Path) -> Path:
    """RoBERTa counts positions from behind the padding id: a table of 41 holds 40 tokens."""
    tokenizer = bert_tokenizer()
    words = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 41, "project_dim": 20}
    words |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    config = transformers.AltCLIPConfig(text_config=words, vision_config=EYES, projection_dim=20)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=_square(SIDE))
    return _save(folder, transformers.AltCLIPModel(config), processor, tokenizer)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": save_clip,
    "siglip": save_siglip,
    "bert_vit": save_bert_and_vit,
    "chinese_clip": save_chinese_clip,
    "altclip": save_alt_clip,
}
PROCESSORS: dict[str, Any] = {
    "clip": transformers.CLIPImageProcessorPil,
    "siglip": transformers.SiglipImageProcessorPil,
    "chinese_clip": transformers.ChineseCLIPImageProcessorPil,
    "altclip": transformers.CLIPImageProcessorPil,
    "vision-text-dual-encoder": transformers.ViTImageProcessorPil,
}


def their_similarity(folder: Path) -> torch.Tensor:
    """Cosines [pictures, texts] as transformers' own processor and model say: logits, scale and bias taken off."""
    model: Any = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = PROCESSORS[model.config.model_type].from_pretrained(folder)
    padding = "max_length" if model.config.model_type == "siglip" else True
    inputs = tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt")
    pixels = processor(images=pictures(), return_tensors="pt").pixel_values
    with torch.inference_mode():
        logits = model(**inputs, pixel_values=pixels).logits_per_image
        return (logits - getattr(model, "logit_bias", 0.0)) / model.logit_scale.exp()


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _save(folder: Path, model: Any, processor: Any, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data.normal_(0, 0.2)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
