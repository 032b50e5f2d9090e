"""Folders that are damaged, incomplete, or not what they say: one message each, which names the file."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebus.checkpoints.load import load_model
from rebus.errors import DataError
from tiny_hub import save_family

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def config(**values: object) -> Callable[[Path], None]:
    """A value of None takes the field away."""

    def change(folder: Path) -> None:
        body = {**json.loads((folder / CONFIG).read_text()), **values}
        (folder / CONFIG).write_text(json.dumps({name: value for name, value in body.items() if value is not None}))

    return change


def tensor(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        safetensors.torch.save_file({**tensors, name: value}, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def index(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"{WEIGHTS}.index.json").write_text(text) and None


class Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"a": Code()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, r"model\.safetensors \(.* bytes\) is damaged or cut short"),
        (index("{"), r"model\.safetensors\.index\.json is not JSON"),
        (index("{}"), "no weight_map"),
        (index('{"weight_map": {"a": "gone.safetensors"}}'), r"1 of them missing, such as gone\.safetensors"),
        (pickled, "it names code, posix.system"),
        (config(vision_config=None), "no vision_config"),
        (config(text_config=None), "no text_config"),
        (config(model_type="strange"), r"is a strange; .* Rebus reads llava, llava_next"),
        (config(quantization_config={"quant_method": "awq"}), "quantised by awq"),
        (config(image_grid_pinpoints=[[1, 2]]), "pinpoint 2 x 1 is no whole number of tiles"),
        (tensor("multi_modal_projector.linear_1.bias", torch.zeros(7)), r"is \(7,\), the model's is \(64,\)"),
        (tensor("strange.weight", torch.zeros(7)), r"'strange\.weight', which the model has no place for"),
    ],
)
def test_one_message_names_it(damage: Callable[[Path], None], words: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("llava_next", tmp_path / "hub", tiny_tokenizer_folder)
    damage(folder)
    with pytest.raises(DataError, match=words):
        load_model(folder)


def test_safetensors_go_before_torch_files(tmp_path: Path, tiny_tokenizer_folder: Path):
    """Hub folders often hold both; the torch shards here could not even be read."""
    folder = save_family("llava_next", tmp_path / "hub", tiny_tokenizer_folder)
    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    load_model(folder)
