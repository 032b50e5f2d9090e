"""A checkpoint folder gives back the model to the bit, and refuses base weights that changed."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebus.checkpoints.load import load_model
from rebus.checkpoints.save import save_model
from rebus.errors import DataError, StrangerError
from rebus.fingerprint import read_manifest
from rebus.model.adapters import merge_lora
from rebus.model.config import LoraConfig, ModelConfig
from rebus.model.families import VisionLanguageModel, build
from tiny_models import IMAGE, pack, random_document, save_tiny_llama

TOKENS = {"template": "plain"}


def hidden(model: VisionLanguageModel) -> torch.Tensor:
    torch.manual_seed(5)
    batch = pack([random_document(20, [3]), random_document(7)])
    del batch["labels"]
    with torch.no_grad():
        return model.hidden(**batch)


def disturbed(config: ModelConfig, part: str) -> VisionLanguageModel:
    """A model whose parameters with `part` in their name are as if trained, everything else frozen."""
    model = build(config, IMAGE).eval()
    model.connector.set_statistics(torch.rand(16), torch.rand(16) + 0.5)
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
        if part in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("part", "lora"), [("connector", None), ("lora_", LoraConfig(rank=4)), ("language", None)])
def test_round_trip_to_the_bit(model_config: ModelConfig, tmp_path: Path, part: str, lora: LoraConfig | None):
    model = disturbed(model_config.model_copy(update={"lora": lora}), part)
    assert not torch.equal(hidden(model), hidden(build(model_config, IMAGE).eval()))
    save_model(model, TOKENS, tmp_path / "out", {"plan": "abc"})
    loaded, tokens = load_model(tmp_path / "out")
    assert tokens == TOKENS
    assert not loaded.training
    assert torch.equal(hidden(loaded), hidden(model))
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())

    save_model(disturbed(model.config, "nothing"), TOKENS, tmp_path / "again")
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    save_model(loaded, TOKENS, tmp_path / "again")
    assert torch.equal(hidden(load_model(tmp_path / "again")[0]), hidden(model))


def test_other_weights_have_another_fingerprint(model_config: ModelConfig, tmp_path: Path):
    for part in ("connector", "nothing"):
        save_model(disturbed(model_config, part), TOKENS, tmp_path / part)
    first, second = (read_manifest(tmp_path / part, "checkpoint") for part in ("connector", "nothing"))
    assert first.fingerprint != second.fingerprint


def test_what_else_lies_in_the_folder_stays(model_config: ModelConfig, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    save_model(disturbed(model_config.model_copy(update={"lora": LoraConfig(rank=2)}), "lora_"), TOKENS, tmp_path)
    assert (tmp_path / "adapter").is_dir()
    save_model(disturbed(model_config, "connector"), TOKENS, tmp_path)
    assert (tmp_path / "metrics.jsonl").is_file()
    assert not (tmp_path / "adapter").exists()


def test_changed_base_weights_are_refused(model_config: ModelConfig, tmp_path: Path):
    base = save_tiny_llama(tmp_path / "base")
    save_model(disturbed(model_config.model_copy(update={"language": base}), "connector"), TOKENS, tmp_path / "out")
    weights = safetensors.torch.load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    safetensors.torch.save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StrangerError, match="language: expected"):
        load_model(tmp_path / "out")


def test_base_weights_may_move(model_config: ModelConfig, tmp_path: Path):
    base = save_tiny_llama(tmp_path / "base")
    model = disturbed(model_config.model_copy(update={"language": base}), "connector")
    save_model(model, TOKENS, tmp_path / "out")
    base.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="which is not there"):
        load_model(tmp_path / "out")
    loaded, _ = load_model(tmp_path / "out", language=tmp_path / "moved")
    assert torch.equal(hidden(loaded), hidden(model))


def test_an_unfinished_checkpoint_is_none(model_config: ModelConfig, tmp_path: Path):
    save_model(disturbed(model_config, "connector"), TOKENS, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        load_model(tmp_path / "out")


def test_peft_reads_the_adapter_without_rebus(model_config: ModelConfig, language_folder: Path, tmp_path: Path):
    import peft
    import transformers

    model = disturbed(model_config.model_copy(update={"lora": LoraConfig(rank=4)}), "lora_")
    save_model(model, TOKENS, tmp_path / "out")
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["peft_type"] == "LORA"
    plain = transformers.AutoModelForCausalLM.from_pretrained(language_folder, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter").eval()
    ids = torch.arange(10)
    wanted = adapted(input_ids=ids[None], use_cache=False).logits[0]
    none = torch.zeros(0, 2, dtype=torch.long)
    ours = model.hidden(ids, ids, torch.tensor([0, 10]), torch.zeros(0, 3, 32, 32), none, torch.zeros(0, 3).long())
    torch.testing.assert_close(model.head(ours), wanted, rtol=1e-5, atol=1e-5)


def test_merged_adapters_answer_alike(model_config: ModelConfig):
    model = disturbed(model_config.model_copy(update={"lora": LoraConfig(rank=4)}), "lora_")
    before = hidden(model)
    merge_lora(model)
    torch.testing.assert_close(hidden(model), before, rtol=1e-5, atol=1e-5)
    assert not any("lora" in name for name, _ in model.named_modules())
    assert model.config.lora is None
