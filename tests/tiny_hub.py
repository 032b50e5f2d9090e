"""Tiny models of the real architectures saved by transformers as hub folders, and inputs for both sides."""

import json
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import AnyresConfig, FixedConfig, ImageConfig, NativeConfig
from rebus.pictures.prepare import layout, normalise, prepare
from tiny_families import IMAGE_TOKEN, MAKERS, Family, picture

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@lru_cache(maxsize=8)
def family(name: str) -> Family:
    return MAKERS[name]()


def save_family(name: str, folder: Path, tokenizer: Path, *, chat_template: str | None = TEMPLATE) -> Path:
    """What a hub folder holds: transformers' own save, the tokenizer, the image processor's settings."""
    made = family(name)
    made.theirs.save_pretrained(folder)
    shutil.copy(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    write(folder / "tokenizer_config.json", settings)
    write(folder / "generation_config.json", {"eos_token_id": [2, 0]})
    write(folder / "preprocessor_config.json", processor_settings(made.image))
    return folder


def processor_settings(image: ImageConfig) -> dict[str, Any]:
    if isinstance(image, NativeConfig):
        return {"min_pixels": image.min_pixels, "max_pixels": image.max_pixels}
    settings = {"image_mean": [value / 255 for value in image.mean], "image_std": [value / 255 for value in image.std]}
    if isinstance(image, FixedConfig):
        return {**settings, "size": {"height": image.size, "width": image.size}}
    return {**settings, "size": {"shortest_edge": image.size}}


def write(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body))


@dataclass(frozen=True)
class Inputs:
    """One document with two pictures. ours: of `hidden`; theirs: of transformers' model, tensors alone."""

    ours: dict[str, Any]
    theirs: dict[str, torch.Tensor]


def inputs_of(image: ImageConfig, token: int = IMAGE_TOKEN) -> Inputs:
    """Text, a wide picture, text, a tall one, text. token: theirs at the pictures' places. Positions are odd on purpose
    where a model takes three rows."""
    pictures = [picture(150, 60, 1), picture(50, 130, 2)]
    prepared = [prepare(one, image) for one in pictures]
    rows = [torch.from_numpy(normalise(one.rows, image)) for one in prepared]
    grids = torch.tensor([one.grid for one in prepared])
    lengths = [layout(one, image).num_tokens for one in pictures]
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 280, (20 + sum(lengths),), generator=generator)
    slots = torch.tensor([[5, lengths[0]], [11 + lengths[0], lengths[1]]])
    marked, total = ids.clone(), len(ids)
    for start, length in slots.tolist():
        marked[start : start + length], ids[start : start + length] = -1, token
    positions = torch.arange(total)
    theirs: dict[str, torch.Tensor] = {"input_ids": ids[None]}
    if isinstance(image, NativeConfig):
        positions = torch.stack([positions, positions * 2 % 97, positions // 2])
        theirs |= {"position_ids": positions[:, None], "pixel_values": torch.cat(rows), "image_grid_thw": grids}
    elif isinstance(image, AnyresConfig):
        most = max(len(one) for one in rows)
        padded = [torch.cat([one, one.new_zeros(most - len(one), *one.shape[1:])]) for one in rows]
        theirs |= {"pixel_values": torch.stack(padded), "image_sizes": grids[:, 1:].clone()}
    else:
        theirs |= {"pixel_values": torch.cat(rows)}
    ours = {"ids": marked, "positions": positions, "bounds": torch.tensor([0, total], dtype=torch.int32)}
    return Inputs({**ours, "pixels": torch.cat(rows), "slots": slots, "grids": grids}, theirs)


def logits(model: VisionLanguageModel, inputs: Inputs) -> torch.Tensor:
    """[T, V]"""
    with torch.no_grad():
        return model.head(model.hidden(**inputs.ours))


def theirs_logits(model: Any, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs.theirs, use_cache=False).logits[0]


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert float(np.std(wanted.numpy())) > 0.1, "flat logits would hide a mistake"
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
