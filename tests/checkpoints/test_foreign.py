"""`rebus import` of whole models: a folder that plain transformers reads where it has the architecture, else ours."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebus.checkpoints import names
from rebus.checkpoints.export import export
from rebus.checkpoints.foreign import open_foreign
from rebus.checkpoints.hub import layout_of, open_hub
from rebus.checkpoints.importing import run
from rebus.checkpoints.layouts import original_llava
from rebus.checkpoints.load import load_model
from rebus.errors import ConfigError, DataError
from tiny_foreign import HIDDEN, SIZE, Run, original_folder, ours, parts, tiny_names
from tiny_models import document_positions

__all__ = ["tiny_names"]
pytestmark = pytest.mark.usefixtures("tiny_names")


def save_tokenizer(folder: Path) -> None:
    import tokenizers

    words = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.add_special_tokens(["</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_llavas_own_folder_becomes_one_of_the_hub(tmp_path: Path):
    from transformers import LlavaNextForConditionalGeneration

    source = original_folder(tmp_path / "source")
    save_tokenizer(source)
    with pytest.raises(DataError, match="--template"):
        run(str(source), tmp_path / "out")
    run(str(source), tmp_path / "out", template="vicuna_v1")
    model, loading = LlavaNextForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    model_ours, _ = open_foreign(source, template="vicuna_v1", dtype=torch.float32)
    ids, bounds = torch.arange(9), torch.tensor([0, 9], dtype=torch.int32)
    nothing = torch.zeros(0, 3, 42, 42), torch.zeros(0, 2).long(), torch.zeros(0, 3).long()
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids[None], use_cache=False).logits[0]
        found = model_ours.head(model_ours.hidden(ids, document_positions(bounds), bounds, *nothing))
    torch.testing.assert_close(found, wanted[:, : found.shape[1]], rtol=1e-5, atol=1e-5)
    before = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
    run(str(source), tmp_path / "out", template="vicuna_v1")
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == before, "it was up to date"
    with pytest.raises(DataError, match="not empty"):
        run(str(source), tmp_path / "out", template="plain")
    with pytest.raises(ConfigError, match="needs no import"):
        run(str(tmp_path / "out"), tmp_path / "again")


@pytest.mark.parametrize(
    ("vision", "arch", "side", "kind"),
    [
        ("tiny-siglip", "9-avgpool", 3, "hub"),
        ("tiny-siglip", "4-avgpool", 2, "ours"),
        ("tiny-fused", "gelu-mlp", 3, "ours"),
    ],
)
@torch.no_grad()
def test_a_prismatic_run_is_imported_whole(tmp_path: Path, vision: str, arch: str, side: int, kind: str):
    (tmp_path / "run").mkdir()
    source = Run(tmp_path / "run", vision, arch)
    save_tokenizer(source.home)
    out = tmp_path / "out"
    run(str(tmp_path / "run"), out, language=str(source.home))
    assert (out / "model.json").is_file() == (kind == "ours")
    for name in ("run", "out"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")  # nothing may hang on where it came from, or lay before
    model, tokens = load_model(tmp_path / "moved-out")
    assert tokens["template"] == ("own" if kind == "hub" else "prismatic_qwen2")
    home = tmp_path / "moved-out" / ("." if kind == "hub" else "language")
    assert "<|endofchunk|>" in (home / "tokenizer.json").read_text()
    assert "assistant\\n" in (home / "chat_template.jinja").read_text()
    ids, pixels = torch.arange(17), torch.randn(1, 3, SIZE, SIZE)
    ids[2 : 2 + side**2] = -1
    wanted = source.logits(ids, pixels, side)
    found = ours(model, ids, pixels, side**2)
    torch.testing.assert_close(found[:, : wanted.shape[1]], wanted, rtol=1e-5, atol=1e-5)


def test_adapters_are_merged_onto_a_plain_language_model(tmp_path: Path):
    """LLaVA's LoRA run on Vicuna: base, tower, projector and adapters lie in four places."""
    import peft

    tower, language, projector = parts()
    tower.save_pretrained(tmp_path / "tower")
    language.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    lora = original_folder(tmp_path / "lora")
    for path in lora.glob("*model*"):
        path.unlink()
    settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(language, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(lora)
    rest = {f"base_model.model.model.mm_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    torch.save(rest | {"base_model.model.model.image_newline": torch.ones(HIDDEN)}, lora / "non_lora_trainables.bin")
    options = {"language": tmp_path / "base", "tower": [tmp_path / "tower"], "template": "vicuna_v1"}
    assert layout_of(lora) is None  # or the adapters would be left out without a word
    model, _ = open_foreign(lora, **options)
    assert model.config.lora is None
    ids, bounds = torch.arange(9), torch.tensor([0, 9], dtype=torch.int32)
    nothing = torch.zeros(0, 3, 42, 42), torch.zeros(0, 2).long(), torch.zeros(0, 3).long()
    with torch.no_grad():
        wanted = adapted.eval()(input_ids=ids[None], use_cache=False).logits[0]
        found = model.head(model.hidden(ids, document_positions(bounds), bounds, *nothing))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.connector.mlp[2].bias, projector[2].bias)
    (lora / "adapter_model.safetensors").unlink()
    safetensors.torch.save_file({"x": torch.ones(1)}, lora / "adapter_model.safetensors")
    with pytest.raises(DataError, match="adapter tensors"):
        open_foreign(lora, **options)


@pytest.mark.parametrize("connector", ["mlp2x_gelu", "linear"])
@torch.no_grad()
def test_any_model_leaves_in_llavas_own_layout(tmp_path: Path, connector: str):
    """One that was never there: `rebus export --layout original_llava`, and read again."""
    (tmp_path / "run").mkdir()
    source = Run(tmp_path / "run", "tiny-clip", "linear" if connector == "linear" else "gelu-mlp")
    save_tokenizer(source.home)
    model, tokens = open_foreign(tmp_path / "run", language=source.home, template="plain")
    model.config = model.config.model_copy(
        update={"tower": model.config.tower.model_copy(update={"weights": tmp_path / "tower"})}
    )
    (tmp_path / "tower").mkdir()
    settings = {**names.vision("tiny-clip")[0].hub_config(), "num_hidden_layers": 3}
    (tmp_path / "tower" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="not 'squash'"):  # its `square` crops under CLIP
        export(model, tokens, tmp_path / "out", "original_llava")
    model.image = model.image.model_copy(update={"resize": "crop"})
    export(model, tokens, tmp_path / "out", "original_llava")
    assert original_llava.recognises(tmp_path / "out")
    again, _ = open_hub(tmp_path / "out", template="plain")
    assert again.image.resize == "crop"
    ids, pixels = torch.arange(17), torch.randn(1, 3, SIZE, SIZE)
    ids[2:11] = -1
    torch.testing.assert_close(ours(again, ids, pixels, 9), ours(model, ids, pixels, 9), rtol=1e-6, atol=1e-6)


def test_the_verb_passes_its_options_on(tmp_path: Path):
    from rebus.cli import main

    (tmp_path / "run").mkdir()
    source = Run(tmp_path / "run", "tiny-siglip", "4-avgpool")
    save_tokenizer(source.home)
    options = ["--language", str(source.home), "--template", "plain"]
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "run"), str(tmp_path / "out"), *options])
    assert ended.value.code == 0
    assert load_model(tmp_path / "out")[1]["template"] == "plain"
