"""Contract 10: a folder that transformers saved opens here with the same logits, and what Rebus exports loads in plain
transformers, in a process where Rebus cannot be imported, with the same logits and not one key missing or left over."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import safetensors.torch
import torch
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from rebus.checkpoints.export import export
from rebus.checkpoints.hub import layout_of
from rebus.checkpoints.layouts.tokenizer import token_id
from rebus.checkpoints.load import load_model
from rebus.pictures.prepare import layout, normalise, prepare
from tiny_families import picture
from tiny_hub import close, family, inputs_of, logits, save_family, theirs_logits

FAMILIES = {"llava_siglip": "llava", "llava_next": "llava_next", "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl"}

STRANGER = """
import sys
sys.modules["rebus"] = None
import json, pathlib, safetensors.torch, torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging
logging.disable_progress_bar()
for path in map(pathlib.Path, sys.argv[1:]):
    model, report = AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, local_files_only=True)
    inputs = safetensors.torch.load_file(path.with_name("inputs.safetensors"))
    with torch.no_grad():
        logits = model.eval()(**inputs, use_cache=False).logits[0]
    safetensors.torch.save_file({"logits": logits.contiguous()}, path.with_name("logits.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    said = {name: sorted(map(str, keys)) for name, keys in report.items()}
    said |= {"class": type(model).__name__, "image_token_id": model.config.image_token_id,
             "ids": tokenizer("a")["input_ids"],
             "chat": tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False),
             "image": tokenizer.convert_ids_to_tokens(model.config.image_token_id)}
    path.with_name("said.json").write_text(json.dumps(said))
"""


@dataclass(frozen=True)
class Trip:
    """source: transformers' folder. out: ours. wanted, found: logits of transformers before and after."""

    source: Path
    out: Path
    wanted: torch.Tensor
    found: torch.Tensor
    said: dict[str, Any]


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> dict[str, Trip]:
    """All families through one process of a stranger: starting it costs more than all models together."""
    home = tmp_path_factory.mktemp("servable")
    for name, wanted in FAMILIES.items():
        source = save_family(name, home / name / "theirs", tiny_tokenizer_folder)
        model, tokens = load_model(source)
        assert export(model, tokens, home / name / "ours", shard_bytes=200_000) == wanted
        token = token_id(home / name / "ours", "<|image_pad|>" if wanted == "qwen2_vl" else "<image>")
        inputs = {key: tensor.contiguous() for key, tensor in inputs_of(model.image, token).theirs.items()}
        safetensors.torch.save_file(inputs, home / name / "inputs.safetensors")
    folders = [str(home / name / "ours") for name in FAMILIES]
    done = subprocess.run([sys.executable, "-I", "-c", STRANGER, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: trip_of(name, home / name) for name in FAMILIES}


def trip_of(name: str, home: Path) -> Trip:
    wanted = theirs_logits(family(name).theirs, inputs_of(family(name).image))
    found = safetensors.torch.load_file(home / "logits.safetensors")["logits"]
    return Trip(home / "theirs", home / "ours", wanted, found, json.loads((home / "said.json").read_text()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_transformers_opens_with_its_logits(trips: dict[str, Trip], name: str):
    model, _ = load_model(trips[name].source)
    close(logits(model, inputs_of(model.image)), trips[name].wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_transformers_gives_the_same_logits(trips: dict[str, Trip], name: str):
    trip = trips[name]
    close(trip.found[:, : trip.wanted.shape[1]], trip.wanted)
    loading = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    assert {key: trip.said[key] for key in loading} == {key: [] for key in loading}


@pytest.mark.parametrize("name", FAMILIES)
def test_its_tokenizer_and_template_come_along(trips: dict[str, Trip], name: str):
    said = trips[name].said
    assert said["image"] == ("<|image_pad|>" if name.startswith("qwen") else "<image>")
    assert said["chat"] == "hello"
    assert said["ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_is_in_the_old_form(trips: dict[str, Trip], name: str):
    body = json.loads((trips[name].out / "config.json").read_text())
    assert body["architectures"] == [trips[name].said["class"]]
    text = body if name.startswith("qwen") else body["text_config"]
    assert "text_config" not in text
    assert {"vocab_size", "rope_theta", "num_hidden_layers"} <= set(text)
    assert "rope_parameters" not in text
    if name.startswith("qwen"):
        assert text["rope_scaling"] == {"type": "mrope", "mrope_section": [2, 3, 3]}
    stored = json.loads((trips[name].out / "model.safetensors.index.json").read_text())["weight_map"]
    heads = ("visual.", "model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    if not name.startswith("qwen"):
        heads = ("vision_tower.vision_model.", "multi_modal_projector.linear_", "image_newline", "language_model.")
    assert all(key.startswith(heads) for key in stored)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back_is_the_same_model(trips: dict[str, Trip], name: str):
    first, tokens = load_model(trips[name].source)
    second, again = load_model(trips[name].out)
    assert second.image == first.image
    assert {**again, "tokenizer": ""} == {**tokens, "tokenizer": ""}
    state = second.state_dict()
    for key, tensor in first.state_dict().items():
        assert torch.equal(state[key][: len(tensor)], tensor), key


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """By our names: transformers 5 stores some otherwise than 4 did."""
    layout = layout_of(folder)
    stored = [pair for file in folder.glob("*.safetensors") for pair in safetensors.torch.load_file(file).items()]
    return dict(pair for name, tensor in stored for pair in layout.to_ours(name, tensor))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stored_tensor_comes_back_to_the_bit(trips: dict[str, Trip], name: str):
    """Also the layers that no forward pass of ours reads."""
    before, after = tensors_in(trips[name].source), tensors_in(trips[name].out)
    assert set(after) == set(before)
    assert [key for key, tensor in before.items() if not torch.equal(after[key][: len(tensor)], tensor)] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_their_processor_prepares_what_ours_does(trips: dict[str, Trip], name: str):
    """Qwen's whole processor needs torchvision; its image processor does not."""
    out, image = trips[name].out, family(name).image
    settings = AutoImageProcessor.from_pretrained(out)
    for width, height in ((150, 60), (50, 130), (300, 451)):
        seen = picture(width, height, width)
        rows = torch.from_numpy(normalise(prepare(seen, image).rows, image))
        theirs = PIL.Image.open(io.BytesIO(seen.data)).convert("RGB")
        found = settings(images=theirs, return_tensors="pt")["pixel_values"].reshape(rows.shape)
        torch.testing.assert_close(found, rows, rtol=0, atol=1e-6)
        if not name.startswith("qwen"):
            processor = AutoProcessor.from_pretrained(out)
            ids = processor(text="a <image> b", images=theirs, return_tensors="pt")["input_ids"][0]
            assert int((ids == token_id(out, "<image>")).sum()) == layout(seen, image).num_tokens
