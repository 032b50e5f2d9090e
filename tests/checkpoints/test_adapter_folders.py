"""What a checkpoint's adapters are worth by themselves: plain peft over plain transformers computes the same; merged
and unmerged folders answer alike; what cannot be, is refused."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from typer.testing import CliRunner

from rebus.checkpoints.export_adapters import export_adapters
from rebus.checkpoints.layouts.original_files import read_lora
from rebus.checkpoints.load import load_model
from rebus.checkpoints.save import save_model
from rebus.checkpoints.skeleton import open_skeleton
from rebus.cli import app
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.model.adapters import add_lora
from rebus.model.assemble import fill
from rebus.model.config import LoraConfig, ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import AnyresConfig, FixedConfig
from rebus.towers.config import TowerConfig
from tiny_families import TOWER
from tiny_hub import close, inputs_of, logits, save_family, theirs_logits
from tiny_models import save_tiny_llama

NAMES = ("llava_siglip", "llava_next", "qwen2_vl", "qwen2_5_vl")
VISION: dict[str, Any] = {
    "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel),
    "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
}


def trained(model: VisionLanguageModel, *, connector: bool = True) -> VisionLanguageModel:
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or (connector and name.startswith("connector.")))
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def composed(home: Path, tokenizer: Path, kind: str = "clip", **lora: Any) -> tuple[VisionLanguageModel, dict]:
    """A tower and a language model from folders of their own, with trained adapters and connector."""
    torch.manual_seed(3)
    settings, vision = VISION[kind]
    vision(settings(**TOWER, image_size=56, initializer_range=0.1)).save_pretrained(home / "tower")
    save_tiny_llama(home / "language", vocabulary=300)
    tower = TowerConfig(kind="transformers", weights=home / "tower", image_size=56, select_layer=-2)
    image = FixedConfig(size=56, tokens_per_side=4, patch_size=14, resize="crop" if kind == "clip" else "squash")
    start = open_skeleton(
        None,
        ModelConfig(tower=tower, language=home / "language"),
        image=image,
        lora=LoraConfig(rank=2, alpha=4, **lora),
    )
    fill(start.model, start.tensors(), origin=start.origin)
    tokens = {"tokenizer": str(tokenizer), "template": "plain", "image": image.model_dump(mode="json")}
    return trained(start.model).eval(), tokens


@pytest.mark.parametrize("kind", VISION)
@pytest.mark.parametrize("on", ["tower", "both"])
def test_plain_peft_over_a_plain_tower(kind: str, on: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    """The tower there has the layers above the chosen one, which get no adapters."""
    model, tokens = composed(tmp_path, tiny_tokenizer_folder, kind, on=on)
    save_model(model, tokens, tmp_path / "out")
    assert not (tmp_path / "out/tower").exists()
    assert (tmp_path / "out/adapter").is_dir() == (on == "both")
    home = tmp_path / "out/tower_adapter"
    settings = json.loads((home / "adapter_config.json").read_text())
    base = VISION[kind][1].from_pretrained(settings["base_model_name_or_path"], dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, home).eval()
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        wanted = adapted(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        plain = base.eval()
        found = model.tower(pixels)
        with adapted.disable_adapter():
            assert not torch.allclose(plain(pixel_values=pixels, output_hidden_states=True).hidden_states[-2], wanted)
    torch.testing.assert_close(found, wanted[:, -16:], rtol=1e-5, atol=1e-5)


def test_plain_peft_over_a_plain_language_model(tmp_path: Path, tiny_tokenizer_folder: Path):
    model, tokens = composed(tmp_path, tiny_tokenizer_folder, on="both", rslora=True, targets="attention")
    save_model(model, tokens, tmp_path / "out")
    settings = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert settings["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    base = transformers.AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"], dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out/adapter").eval()
    ids, none = torch.arange(10), torch.zeros(0, 2, dtype=torch.long)
    with torch.no_grad():
        wanted = adapted(input_ids=ids[None], use_cache=False).logits[0]
        ours = model.hidden(ids, ids, torch.tensor([0, 10]), torch.zeros(0, 3, 56, 56), none, torch.zeros(0, 3).long())
        torch.testing.assert_close(model.head(ours), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_folder_over_a_whole_hub_model(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    """Saved and loaded, and by peft over transformers' own class: the same logits."""
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    add_lora(model, LoraConfig(rank=2, alpha=4, on="both"))
    inputs = inputs_of(model.image)
    before = logits(model, inputs)
    save_model(trained(model, connector=False).eval(), tokens, tmp_path / "out")
    assert not (tmp_path / "out/tower_adapter").exists()
    wanted = logits(model, inputs)
    assert torch.equal(logits(load_model(tmp_path / "out")[0], inputs), wanted)
    assert not torch.allclose(wanted, before, atol=1e-2)
    home = tmp_path / "out/adapter"
    base = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    close(theirs_logits(peft.PeftModel.from_pretrained(base, home).eval(), inputs), wanted, 2e-5)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_unmerged_for_peft(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    """With the connector and its newline, which plain peft has no place for, in a file that one line loads."""
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    add_lora(model, LoraConfig(rank=2, alpha=4, on="both"))
    save_model(trained(model).eval(), tokens, tmp_path / "run")
    inputs = inputs_of(model.image)
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--no-merge"])
    assert result.exit_code == 0, result.output
    base = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    beside = safetensors.torch.load_file(tmp_path / "out/connector.safetensors")
    assert not base.load_state_dict(beside, strict=False).unexpected_keys
    if isinstance(model.image, AnyresConfig):
        assert "model.image_newline" in beside
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    close(theirs_logits(adapted, inputs), logits(model, inputs), 2e-5)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
@pytest.mark.parametrize("quantise", [None, "nf4"])
def test_merged_answers_as_unmerged(name: str, quantise: Any, tmp_path: Path, tiny_tokenizer_folder: Path):
    model, tokens = load_model(save_family(name, tmp_path / "hub", tiny_tokenizer_folder))
    add_lora(model, LoraConfig(rank=2, alpha=4, on="both", quantise=quantise))
    save_model(trained(model).eval(), tokens, tmp_path / "run")
    inputs = inputs_of(model.image)
    loaded, _ = load_model(tmp_path / "run")
    wanted = logits(loaded, inputs)
    assert torch.equal(wanted, logits(model, inputs)), "what is quantised on loading is what was trained on"
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--merge"])
    assert result.exit_code == 0, result.output
    close(logits(load_model(tmp_path / "out")[0], inputs), wanted)
    other = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    found = theirs_logits(other, inputs_of(model.image, other.config.image_token_id))
    close(found[:, : wanted.shape[1]], wanted, 2e-5)


def test_unmerged_for_llavas_own_code(tmp_path: Path, tiny_tokenizer_folder: Path):
    model, tokens = composed(tmp_path, tiny_tokenizer_folder)
    save_model(model, tokens, tmp_path / "run")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--no-merge"])
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "language")
    rest = torch.load(tmp_path / "out/non_lora_trainables.bin", weights_only=True)
    assert set(rest) == {
        f"base_model.model.model.mm_projector.{n}.{leaf}" for n in (0, 2) for leaf in ("weight", "bias")
    }
    plain = open_skeleton(None, model.config.model_copy(update={"lora": None}), image=model.image)
    fill(plain.model, plain.tensors(), origin=plain.origin)
    read_lora(plain.model, tmp_path / "out")
    inputs = inputs_of(model.image)
    assert torch.equal(logits(plain.model.eval(), inputs), logits(model, inputs))


def test_what_cannot_leave_unmerged(tmp_path: Path, tiny_tokenizer_folder: Path):
    model, tokens = composed(tmp_path, tiny_tokenizer_folder, on="both")
    with pytest.raises(DataError, match="adapters on the language model alone"):
        export_adapters(model, tokens, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="in the form 'original_llava', not 'qwen2_vl'"):
        export_adapters(model, tokens, tmp_path / "out", "qwen2_vl")
    model.config = model.config.model_copy(update={"lora": None})
    with pytest.raises(ConfigError, match="no adapters to leave unmerged"):
        export_adapters(model, tokens, tmp_path / "out")


def test_a_damaged_adapter_folder(tmp_path: Path, tiny_tokenizer_folder: Path):
    model, tokens = composed(tmp_path, tiny_tokenizer_folder, on="both")
    save_model(model, tokens, tmp_path / "out")
    path = tmp_path / "out/tower_adapter/adapter_model.safetensors"
    held = safetensors.torch.load_file(path)
    held.pop(max(held))
    safetensors.torch.save_file(held, path)
    with pytest.raises(StrangerError, match=r"35 in the file, 36 in the model; for instance tower.model.*lora_B"):
        load_model(tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match="is missing: the model's adapters are in it"):
        load_model(tmp_path / "out")
    model.config = model.config.model_copy(update={"tower": TowerConfig(kind="tiny", image_size=32)})
    with pytest.raises(ConfigError, match="kind 'tiny' has no folder of its own"):
        save_model(model, tokens, tmp_path / "again")


def test_what_an_earlier_save_left_goes(tmp_path: Path, tiny_tokenizer_folder: Path):
    model, tokens = composed(tmp_path, tiny_tokenizer_folder, on="both")
    save_model(model, tokens, tmp_path / "out")
    again, _ = composed(tmp_path / "second", tiny_tokenizer_folder)
    save_model(again, tokens, tmp_path / "out")
    assert (tmp_path / "out/adapter").is_dir()
    assert not (tmp_path / "out/tower_adapter").exists()
