"""A model folder of the hub answers as transformers does, pictures in their own size and tiled."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import rebus
from rebus.server.engine import Engine
from tiny_hub import family, save_family

NOISE = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)


def opened(name: str, folder: Path, tokenizer_folder: Path, **limits: int) -> Engine:
    """A tiny model of the family saved by transformers, its tokenizer with Qwen2-VL's marks."""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return rebus.load(save_family(name, folder / "hub", folder), template="chatml", **limits)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_next"])
def test_a_hub_folder_answers_as_transformers_does(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    engine = opened(name, tmp_path / "model", tiny_tokenizer_folder)
    made = engine.generate("what is this?", [NOISE], max_new_tokens=10)
    prompt, encoded = engine.prompt(engine.request("what is this?", [NOISE]))
    theirs = family(name).theirs
    token = theirs.config.image_token_id
    ids = torch.where(prompt.ids < 0, token, prompt.ids)[None]
    if name == "qwen2_vl":
        grids = {"image_grid_thw": prompt.grids, "mm_token_type_ids": (prompt.ids < 0).long()[None]}
        shown = {"pixel_values": prompt.pixels, **grids}
    else:
        shown = {"pixel_values": prompt.pixels[None], "image_sizes": torch.tensor([NOISE.shape[:2]])}
    ends = list(engine.stop_ids)
    wanted = theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=ends,
        **shown,
    )[0, ids.shape[1] :].tolist()
    assert list(made.ids) == [number for number in wanted if number not in ends]
    assert len(encoded.images) == 1


def test_pixel_limits_hold_for_every_picture(tmp_path: Path, tiny_tokenizer_folder: Path):
    sizes = []
    for number, limits in enumerate(({}, {"max_pixels": 2 * 28 * 28}, {"min_pixels": 30 * 28 * 28})):
        engine = opened("qwen2_vl", tmp_path / str(number), tiny_tokenizer_folder, **limits)
        sizes.append(engine.prompt(engine.request("what?", [NOISE]))[1].num_tokens)
    assert sizes[1] < sizes[0] < sizes[2]
