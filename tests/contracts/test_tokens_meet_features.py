"""Contract 1: the slots that `tokens` writes equal, in number, the features that `model` makes."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from rebus.errors import SlotMismatchError
from rebus.model.config import IMAGE_ID, ModelConfig
from rebus.model.families import VisionLanguageModel, build
from rebus.model.generate import prompt_of
from rebus.pictures.config import FixedConfig
from rebus.pictures.prepare import prepare_image
from rebus.records import Image, Text
from rebus.tokens import encode
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import encode_prompt
from rebus.tokens.positions import prompt_positions
from rebus.tokens.tokenizer import load_tokens
from tiny_models import language_folder, model, model_config

__all__ = ["language_folder", "model", "model_config"]


def picture(width: int, height: int) -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return Image(width, height, buffer.getvalue())


def test_one_mark_for_an_image_place():
    assert encode.IMAGE_ID == IMAGE_ID


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (32, 32), (500, 333), (64, 2000)])
def test_slots_equal_features(model_config: ModelConfig, tiny_tokenizer_folder: Path, side: int, size: tuple[int, int]):
    image = FixedConfig(size=32, tokens_per_side=side)
    tokens = load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder, image=image))
    parts = (picture(*size), Text("a photo"), picture(*reversed(size)))
    encoded = encode_prompt(parts, tokens)
    pixels = np.stack([prepare_image(part.data or b"", image) for part in encoded.images])

    model = build(model_config, image)
    made, lengths = model.image_tokens(torch.from_numpy(pixels), torch.from_numpy(encoded.grids))
    assert lengths == encoded.image_lengths.tolist() == [side**2] * 2

    positions = prompt_positions(encoded, image)
    prompt = prompt_of(encoded.ids, positions, encoded.slots, encoded.grids, pixels)
    bounds = torch.tensor([0, len(prompt.ids)])
    merged = model.embed(prompt.ids.clamp_max(96), prompt.pixels, prompt.slots, prompt.grids, bounds)
    torch.testing.assert_close(merged[prompt.ids == IMAGE_ID], made)


def test_disagreement_names_both_numbers_and_the_sample(model: VisionLanguageModel):
    ids = torch.tensor([5, *[IMAGE_ID] * 9, 6, 7])
    batch = {"positions": torch.arange(12), "pixels": torch.zeros(1, 3, 32, 32), "slots": torch.tensor([[1, 9]])}
    batch["grids"] = torch.tensor([[1, 32, 32]])
    with pytest.raises(SlotMismatchError, match=r"sample 'horse'.* 9 .*4"):
        model.hidden(ids, bounds=torch.tensor([0, 11, 12]), keys=("horse", "cow"), **batch)


def test_the_mark_is_json_and_no_token(tiny_tokenizer_folder: Path):
    vocabulary = json.loads((tiny_tokenizer_folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert IMAGE_ID not in vocabulary.values()
