"""What the files of a hub folder say, in our terms: image rule, tokens, three generations of names, and what is
refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rebus.checkpoints.hub import layout_of, open_hub
from rebus.checkpoints.load import load_model
from rebus.errors import ConfigError, DataError
from rebus.pictures.config import CLIP_MEAN, AnyresConfig, FixedConfig
from tiny_hub import close, family, inputs_of, logits, processor_settings, save_family, theirs_logits, write

NAMES = ("llava_siglip", "llava_next", "qwen2_vl", "qwen2_5_vl")


def change(path: Path, **values: Any) -> None:
    write(path, {**json.loads(path.read_text()), **values})


def rename(folder: Path, old: str, new: str) -> None:
    """The same tensors, every name that begins with `old` with `new` in its place; the longest rule goes first."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    assert any(name.startswith(old) for name in tensors), f"nothing is named {old}"
    named = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in tensors.items()}
    safetensors.torch.save_file(named, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", NAMES)
def test_names_as_in_memory(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    """Raw state dicts and what transformers 4.52 saved."""
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    theirs = family(name).theirs
    tensors = {key: value.clone() for key, value in theirs.state_dict().items() if key != "lm_head.weight"}
    if not theirs.config.tie_word_embeddings:
        tensors["lm_head.weight"] = theirs.lm_head.weight.detach().clone()
    assert any(key.startswith("model.language_model.") for key in tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = open_hub(folder)
    inputs = inputs_of(model.image)
    close(logits(model, inputs), theirs_logits(theirs, inputs))


def test_names_of_transformers_4(tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("llava_next", tmp_path / "hub", tiny_tokenizer_folder)
    before = open_hub(folder)[0].state_dict()
    stored = set(safetensors.torch.load_file(folder / "model.safetensors"))
    if not any(name.startswith("vision_tower.vision_model.") for name in stored):
        rename(folder, "vision_tower.", "vision_tower.vision_model.")
    after = open_hub(folder)[0].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_flat_config_reads_as_a_nested_one(tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("qwen2_vl", tmp_path / "hub", tiny_tokenizer_folder)
    before, _ = open_hub(folder)
    body = json.loads((folder / "config.json").read_text())
    text = body.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    write(folder / "config.json", {**text, **body, **flat, "model_type": "qwen2_vl"})
    after, _ = open_hub(folder)
    assert after.config == before.config
    inputs = inputs_of(after.image)
    assert torch.equal(logits(after, inputs), logits(before, inputs))


def test_a_stored_head_of_tied_embeddings_is_ignored(tmp_path: Path, tiny_tokenizer_folder: Path):
    """As transformers does."""
    folder = save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(320, 64)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = open_hub(folder)
    assert model.head.weight is model.language.get_input_embeddings().weight
    assert model.head.weight.any()


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_of_the_image_processor(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    plain = open_hub(folder)[0].image
    (folder / "preprocessor_config.json").unlink()
    write(folder / "processor_config.json", {"image_processor": processor_settings(family(name).image)})
    assert open_hub(folder)[0].image == plain
    if name.startswith("qwen"):
        size = {"shortest_edge": plain.min_pixels, "longest_edge": plain.max_pixels}  # type: ignore[union-attr]
        write(folder / "processor_config.json", {"image_processor": {"size": size}})
        assert open_hub(folder)[0].image == plain
    (folder / "processor_config.json").unlink()
    bare = open_hub(folder)[0].image
    if name.startswith("qwen"):
        assert (bare.min_pixels, bare.max_pixels) == (56 * 56, 1280 * 28 * 28)  # type: ignore[union-attr]
    elif name == "llava_siglip":
        assert (bare.mean, bare.resize) == ((127.5,) * 3, "squash")  # type: ignore[union-attr]
    else:
        assert bare.mean == CLIP_MEAN
    assert not bare.reduced_jpeg


def test_pinpoints_are_turned(tmp_path: Path, tiny_tokenizer_folder: Path):
    """Theirs are [height, width]."""
    folder = save_family("llava_next", tmp_path / "hub", tiny_tokenizer_folder)
    change(folder / "config.json", image_grid_pinpoints=[[56, 112], [168, 56]])
    image = open_hub(folder)[0].image
    assert isinstance(image, AnyresConfig)
    assert image.canvases == ((112, 56), (56, 168))


@pytest.mark.parametrize(
    ("settings", "resize"),
    [
        ({"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}, "crop"),
        ({"size": {"shortest_edge": 56}, "crop_size": 56, "do_pad": True}, "pad"),
        ({"size": {"height": 56, "width": 56}}, "squash"),
    ],
)
def test_how_llava_resizes(settings: dict, resize: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)
    write(folder / "preprocessor_config.json", settings)
    image = open_hub(folder)[0].image
    assert isinstance(image, FixedConfig)
    assert image.resize == resize


def test_what_the_folder_says_of_tokens(tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("qwen2_vl", tmp_path / "hub", tiny_tokenizer_folder)
    _, tokens = open_hub(folder)
    assert tokens["template"] == "own"
    assert tokens["end_of_text"] == "<|endoftext|>", "the tokenizer's own end, <|im_end|>, closes a turn"
    assert tokens["max_tokens"] == 2048
    assert (tokens["image_start"], tokens["image_end"]) == ("<|vision_start|>", "<|vision_end|>")
    assert tokens["tokenizer"] == str(folder)


def test_without_a_chat_template(tmp_path: Path, tiny_tokenizer_folder: Path):
    qwen = save_family("qwen2_vl", tmp_path / "qwen", tiny_tokenizer_folder, chat_template=None)
    assert load_model(qwen)[1]["template"] == "chatml"
    llava = save_family("llava_next", tmp_path / "llava", tiny_tokenizer_folder, chat_template=None)
    with pytest.raises(DataError, match="`template`"):
        load_model(llava)
    assert load_model(llava, template="vicuna_v1")[1]["template"] == "vicuna_v1"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vision_feature_select_strategy": "default"}, "drops a patch"),
        ({"vision_feature_layer": [-2, -3]}, "several layers"),
        ({"multimodal_projector_bias": False}, "without biases"),
        ({"projector_hidden_act": "relu"}, "with relu"),
    ],
)
def test_what_is_not_computed_is_refused(values: dict, words: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)
    change(folder / "config.json", **values)
    with pytest.raises((DataError, ConfigError), match=words):
        open_hub(folder)


def test_half_precision_runs(tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("llava_next", tmp_path / "hub", tiny_tokenizer_folder)
    model, _ = open_hub(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    inputs = inputs_of(model.image)
    inputs.ours["pixels"] = inputs.ours["pixels"].bfloat16()
    wanted = theirs_logits(family("llava_next").theirs, inputs_of(model.image))
    assert (logits(model, inputs).float() - wanted).std() < 0.1 * wanted.std()


def test_a_missing_tensor_and_a_missing_shard(tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("qwen2_vl", tmp_path / "hub", tiny_tokenizer_folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 tensors, such as 'language.model.norm.weight'"):
        open_hub(folder)
    write(folder / "model.safetensors.index.json", {"weight_map": {"model.norm.weight": "model-2.safetensors"}})
    with pytest.raises(DataError, match=r"model-2\.safetensors"):
        open_hub(folder)


def test_a_language_model_alone_is_no_hub_model(language_folder: Path):
    assert layout_of(language_folder) is None
    with pytest.raises(DataError, match=r"is a llama; .* Rebus reads llava, llava_next"):
        load_model(language_folder)
