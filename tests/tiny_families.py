"""Tiny random models of the real architectures, as transformers makes them and as Rebus composes them, and documents
with pictures of many shapes. conftest files and tests import the fixtures."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from rebus.batches.batch import Batch
from rebus.batches.collate import Document, collate
from rebus.model.assemble import assemble, fill
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import AnyresConfig, FixedConfig, ImageConfig, NativeConfig
from rebus.pictures.prepare import prepare
from rebus.records import Image, Part, Sample, Text, Video
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import encode
from rebus.tokens.tokenizer import load_tokens
from rebus.towers.config import TowerConfig

VOCABULARY, IMAGE_TOKEN, VIDEO_TOKEN = 320, 310, 311
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,  # far from zero: attention must matter, or no test of it could fail
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}


@dataclass(frozen=True)
class Family:
    """theirs: the transformers model. ours: the same weights composed by Rebus. image: the rule of its pictures."""

    name: str
    theirs: Any
    ours: VisionLanguageModel
    image: ImageConfig


def llava_next() -> Family:
    import transformers

    vision = transformers.CLIPVisionConfig(**TOWER, image_size=56, initializer_range=0.1)
    text = transformers.LlamaConfig(**TEXT, **SPECIAL)
    image = AnyresConfig(kind="anyres", size=56, tokens_per_side=4)
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[height, width] for width, height in image.canvases],
        vision_feature_layer=-2,
    )
    theirs = _made(transformers.LlavaNextForConditionalGeneration, config)
    tower = TowerConfig(kind="transformers", weights=Path("theirs"), image_size=56, select_layer=-2)
    return _family("llava_next", theirs, ModelConfig(tower=tower, language=Path("theirs")), image, _llava_name)


def llava_siglip() -> Family:
    """Open-Qwen2VL's shape: SigLIP, second to last layer, all patches, Qwen2."""
    import transformers

    vision = transformers.SiglipVisionConfig(**TOWER, image_size=56)
    text = transformers.Qwen2Config(**TEXT, **SPECIAL, tie_word_embeddings=True)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    theirs = _made(transformers.LlavaForConditionalGeneration, config)
    half = (127.5, 127.5, 127.5)
    image = FixedConfig(size=56, resize="squash", mean=half, std=half, tokens_per_side=4, patch_size=14)
    tower = TowerConfig(kind="transformers", weights=Path("theirs"), image_size=56, select_layer=-2)
    return _family("llava_siglip", theirs, ModelConfig(tower=tower, language=Path("theirs")), image, _llava_name)


def qwen2_vl() -> Family:
    import transformers

    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64}
    config = transformers.Qwen2VLConfig(
        vision_config=vision,
        text_config={**TEXT, **SPECIAL, "rope_parameters": MROPE},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
    )
    theirs = _made(transformers.Qwen2VLForConditionalGeneration, config)
    return _qwen("qwen2_vl", theirs, NativeConfig(kind="native", **LIMITS))


def qwen2_5_vl() -> Family:
    import transformers

    vision = {
        "depth": 4,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1, 3],
        "window_size": 56,
        "tokens_per_second": 2,
    }
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, **SPECIAL, "rope_parameters": MROPE},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
    )
    theirs = _made(transformers.Qwen2_5_VLForConditionalGeneration, config)
    return _qwen("qwen2_5_vl", theirs, NativeConfig(kind="native", tokens_per_second=2.0, **LIMITS))


LIMITS = {"min_pixels": 28 * 28, "max_pixels": 60 * 28 * 28, "video_min_pixels": 28 * 28, "video_max_pixels": 16 * 784}
MAKERS: dict[str, Callable[[], Family]] = {
    "llava_next": llava_next,
    "llava_siglip": llava_siglip,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
}


def _qwen(name: str, theirs: Any, image: NativeConfig) -> Family:
    tower = TowerConfig(kind=name, weights=Path("theirs"))  # type: ignore[arg-type]
    connector = "qwen2_merger" if name == "qwen2_vl" else "qwen2_5_merger"
    section = tuple(MROPE["mrope_section"])  # type: ignore[arg-type]
    config = ModelConfig(tower=tower, connector=connector, language=Path("theirs"), mrope_section=section)
    return _family(name, theirs, config, image, _qwen_name)


def _made(kind: Any, config: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(3)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():  # biases and norms too: zeros and ones would hide a mistake
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        elif "visual" in name:  # Qwen's towers start at 0.02: too near zero for their attention to matter
            parameter.data.mul_(3.0)
    return model


def _family(name: str, theirs: Any, config: ModelConfig, image: ImageConfig, rename: Callable[[str], str]) -> Family:
    vision = theirs.config.vision_config.to_dict()
    text = theirs.config.text_config.to_dict()
    if text["model_type"].endswith("_vl_text"):
        text = {**text, "model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    ours = assemble(config, image, vision=vision, text=text)
    tensors = {rename(key): tensor.clone() for key, tensor in theirs.state_dict().items()}
    patches = "tower.patch_embed.proj.weight"
    if patches in tensors:
        tensors[patches] = tensors[patches].flatten(1)
    fill(ours, tensors.items(), origin=name)
    return Family(name, theirs, ours.eval(), image)


def _llava_name(name: str) -> str:
    name = name.removeprefix("model.")
    for theirs, ours in (
        ("vision_tower.", "tower.model."),
        ("multi_modal_projector.linear_1.", "connector.mlp.0."),
        ("multi_modal_projector.linear_2.", "connector.mlp.2."),
        ("image_newline", "connector.image_newline"),
        ("language_model.", "language.model."),
        ("lm_head.", "language.lm_head."),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise KeyError(name)


def _qwen_name(name: str) -> str:
    name = name.removeprefix("model.")
    for theirs, ours in (
        ("visual.merger.", "connector."),
        ("visual.", "tower."),
        ("language_model.", "language.model."),
        ("lm_head.", "language.lm_head."),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise KeyError(name)


def picture(width: int, height: int, seed: int) -> Image:
    """A PNG of smooth noise: no two places alike, so that tokens in a wrong order show."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC).save(buffer, "PNG")
    return Image(width, height, buffer.getvalue())


def video(num_frames: int, width: int, height: int, seconds: float, seed: int) -> Video:
    """Frames `seconds` apart."""
    frames = tuple(picture(width, height, seed + number) for number in range(num_frames))
    return Video(frames, tuple(number * seconds for number in range(num_frames)))


def samples_of(image: ImageConfig) -> list[Sample]:
    """Captions, a page of several pictures, text alone, one token; a video where the rule keeps one whole."""
    wide, tall, small = picture(150, 60, 1), picture(50, 130, 2), picture(30, 33, 3)
    pages: list[Sequence[Part]] = [
        (wide, Text("a photo of a table")),
        (Text("what is"), tall, Text("on the square?"), small, Text("the red photo, a red red square")),
        (Text("no picture at all, only the text on the table"),),
        (small, tall, Text("two")),
        (picture(64, 64, 4), Text("a square")),
    ]
    if isinstance(image, NativeConfig):
        pages.append((Text("a"), video(5, 70, 50, 0.7, 10), Text("what is in it?"), small, Text("and in this")))
    return [Sample(f"page{number}", f"{number:032x}", "tiny", tuple(parts)) for number, parts in enumerate(pages)]


def documents_of(family: Family, tokenizer_folder: Path) -> list[Document]:
    """The samples encoded and their pictures prepared, as the loader does."""
    tokens = load_tokens(TokensConfig(tokenizer=tokenizer_folder, image=family.image))
    documents = []
    for sample in samples_of(family.image):
        encoded = encode(sample, tokens)
        rows = tuple(prepare(image, family.image).rows for image in encoded.images)
        documents.append(Document(encoded, rows, sample.uid, sample.key))
    return documents


def batch_of(documents: Sequence[Document], image: ImageConfig) -> Batch:
    return collate(documents, image.row_shape, image).to("cpu")


def arguments(batch: Batch) -> dict[str, Any]:
    """Of the model's forward."""
    names = ("ids", "labels", "positions", "bounds", "pixels", "slots", "grids")
    return {**{name: getattr(batch, name) for name in names}, "keys": batch.names}
