"""What leaves: adapters merged, statistics folded, a vocabulary that grew, files whole or not at all; and what cannot
leave is told why."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from typer.testing import CliRunner

from rebus.checkpoints.export import export
from rebus.checkpoints.load import load_model
from rebus.checkpoints.save import save_model
from rebus.cli import app
from rebus.errors import ConfigError, DataError
from rebus.model.adapters import add_lora
from rebus.model.assemble import assemble
from rebus.model.config import LoraConfig, ModelConfig
from rebus.model.families import VisionLanguageModel, build
from rebus.pictures.config import AnyresConfig, FixedConfig, ImageConfig
from rebus.towers.config import TowerConfig
from tiny_families import TEXT, TOWER
from tiny_hub import close, family, inputs_of, logits, save_family, theirs_logits
from tiny_models import IMAGE


@pytest.fixture
def hub(tmp_path: Path, tiny_tokenizer_folder: Path) -> Path:
    return save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)


def theirs(folder: Path) -> transformers.PreTrainedModel:
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"] | report["mismatched_keys"]
    return model.eval()


def same_in_transformers(model: VisionLanguageModel, folder: Path) -> None:
    other = theirs(folder)
    wanted = logits(model, inputs_of(model.image))
    found = theirs_logits(other, inputs_of(model.image, other.config.image_token_id))
    close(found[:, : wanted.shape[1]], wanted, 2e-5)


@pytest.mark.parametrize("name", ["llava_siglip", "qwen2_vl"])
def test_adapters_are_merged_on_a_copy(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    model, tokens = load_model(save_family(name, tmp_path / "hub", tiny_tokenizer_folder))
    before = logits(model, inputs_of(model.image))
    add_lora(model, LoraConfig(rank=2))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = 0.03 * torch.randn_like(parameter)
    adapted = logits(model.eval(), inputs_of(model.image))
    assert (adapted - before).abs().max() > 0.01
    export(model, tokens, tmp_path / "out")
    assert torch.equal(logits(model, inputs_of(model.image)), adapted), "the model stays as it is"
    assert any("lora_" in key for key in model.state_dict())
    same_in_transformers(model, tmp_path / "out")


def test_statistics_are_folded(hub: Path, tmp_path: Path):
    model, tokens = load_model(hub)
    model.connector.set_statistics(torch.randn(32), torch.rand(32) + 0.5)
    export(model, tokens, tmp_path / "out")
    same_in_transformers(model, tmp_path / "out")


def test_the_vocabulary_grows_for_the_image_token(tmp_path: Path, tiny_tokenizer_folder: Path, capsys):
    """A model whose rows are all taken: 290 tokens, 290 rows."""
    folder = save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    model.language.resize_token_embeddings(290)
    wanted = logits(model, inputs_of(model.image))
    export(model, tokens, tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    assert "'<image>': added as token 290" in said
    assert "from 290 to 320 rows" in said
    other = theirs(tmp_path / "out")
    rows = other.get_input_embeddings().weight
    assert rows.shape[0] == other.config.text_config.vocab_size == 320
    torch.testing.assert_close(rows[290], rows[:290].mean(0))
    close(theirs_logits(other, inputs_of(model.image, 290))[:, :290], wanted)
    again, _ = load_model(tmp_path / "out")
    assert export(again, {**tokens, "tokenizer": str(tmp_path / "out")}, tmp_path / "twice") == "llava"
    assert theirs(tmp_path / "twice").config.image_token_id == 290, "added once"


@pytest.mark.parametrize(("name", "shown"), [("llava_next", "<image>\n"), ("qwen2_vl", "<|image_pad|>")])
def test_a_built_in_template_leaves_as_jinja(name: str, shown: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder, chat_template=None)
    model, tokens = load_model(folder, template=None if name == "qwen2_vl" else "chatml")
    export(model, tokens, tmp_path / "out")
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if name == "qwen2_vl" else ""
    picture = f"<|vision_start|>{shown}<|vision_end|>" if name == "qwen2_vl" else shown
    assert said == f"{system}<|im_start|>user\n{picture}what?<|im_end|>\n<|im_start|>assistant\n"
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())["chat_template"]
    assert written == (tmp_path / "out/chat_template.jinja").read_text()


def test_shards_say_their_format_and_dtype(hub: Path, tmp_path: Path):
    model, tokens = load_model(hub)
    export(model, tokens, tmp_path / "out", dtype=torch.bfloat16, shard_bytes=100_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert files == sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    size = 0
    for file in files:
        with safetensors.safe_open(tmp_path / "out" / file, "pt") as tensors:
            assert tensors.metadata() == {"format": "pt"}
        held = safetensors.torch.load_file(tmp_path / "out" / file)
        assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
        size += sum(2 * tensor.numel() for tensor in held.values())
    assert index["metadata"]["total_size"] == size
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_an_export_is_whole_or_not_there(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, tokens = load_model(hub)

    def full(path: Path, tensors: dict) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rebus.checkpoints.export.write_tensors", full)
        with pytest.raises(OSError, match="No space"):
            export(model, tokens, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]
    export(model, tokens, tmp_path / "out")
    with pytest.raises(DataError, match="not empty"):
        export(model, tokens, tmp_path / "out")


def changed(model: VisionLanguageModel, image: ImageConfig | None = None, **config: object) -> VisionLanguageModel:
    whole = ModelConfig(**{**model.config.model_dump(), **config})
    tower = family("llava_siglip").theirs.config.vision_config.to_dict()
    return assemble(whole, image or model.image, vision=tower, text=model.language.config.to_dict())


def test_open_qwen2vl_with_pooled_tokens_is_refused(hub: Path, tmp_path: Path):
    model, tokens = load_model(hub)
    assert isinstance(model.image, FixedConfig)
    pooled, _ = load_model(hub, image=model.image.model_copy(update={"tokens_per_side": 2}))
    with pytest.raises(ConfigError, match=r"pools the tower's 16 features to 4 tokens .* tokens_per_side 4"):
        export(pooled, tokens, tmp_path / "out", "llava")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"connector": "linear"}, "'linear'"),
        ({"connector": "mlp1x_gelu"}, "'mlp1x_gelu'"),
        ({"connector": "mlp3x_gelu"}, "'mlp3x_gelu'"),
        ({"connector": "fused_mlp"}, "'fused_mlp'"),
        ({"connector_norm": True}, "LayerNorm"),
    ],
)
def test_a_connector_that_transformers_has_not(config: dict, words: str, hub: Path, tmp_path: Path):
    model, tokens = load_model(hub)
    with pytest.raises(ConfigError, match=words):
        export(changed(model, **config), tokens, tmp_path / "out", "llava")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"merge": "flat"}, "by 'flat'"), ({"merge": "spatial"}, "by 'spatial'"), ({"max_tiles": 4}, "above 4 tiles")],
)
def test_a_merge_that_transformers_has_not(settings: dict, words: str, hub: Path, tmp_path: Path):
    model, tokens = load_model(hub)
    image = AnyresConfig(kind="anyres", size=56, tokens_per_side=4, **settings)
    with pytest.raises(ConfigError, match=words):
        export(changed(model, image), tokens, tmp_path / "out", "llava_next")


def test_a_tower_that_transformers_has_no_llava_for(model_config: ModelConfig, tmp_path: Path):
    model = build(model_config, IMAGE.model_copy(update={"resize": "squash", "tokens_per_side": 4}))
    with pytest.raises(ConfigError, match="its tower is a tiny"):
        export(model, {"tokenizer": "nowhere"}, tmp_path / "out")


def test_a_layout_by_a_wrong_name(hub: Path, tmp_path: Path):
    model, tokens = load_model(hub)
    with pytest.raises(ConfigError, match=r"no layout 'lava'.*llava"):
        export(model, tokens, tmp_path / "out", "lava")


def test_a_model_composed_here_leaves(tmp_path: Path, tiny_tokenizer_folder: Path):
    """Open-Qwen2VL's way: pretrained parts from two folders, a fresh connector; a checkpoint; the verb."""
    vision = transformers.SiglipVisionConfig(**TOWER, image_size=56, initializer_range=0.1)
    transformers.SiglipVisionModel(vision).save_pretrained(tmp_path / "siglip")
    text = transformers.Qwen2Config(**TEXT, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
    transformers.Qwen2ForCausalLM(text).save_pretrained(tmp_path / "qwen")
    tower = TowerConfig(kind="transformers", weights=tmp_path / "siglip", image_size=56, select_layer=-2)
    half = (127.5, 127.5, 127.5)
    image = FixedConfig(size=56, resize="squash", mean=half, std=half, tokens_per_side=4, patch_size=14)
    model = build(ModelConfig(tower=tower, language=tmp_path / "qwen"), image).eval()
    tokens = {
        "tokenizer": str(tiny_tokenizer_folder),
        "template": "plain",
        "image": image.model_dump(mode="json"),
        "end_of_text": "<|endoftext|>",
    }
    save_model(model.requires_grad_(False), tokens, tmp_path / "checkpoint")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "checkpoint"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    same_in_transformers(model, tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|endoftext|>"


def test_a_stretched_rope_leaves_with_its_factor(tmp_path: Path, tiny_tokenizer_folder: Path):
    """Llama 3.1's; a reader that takes it for the plain one is wrong from the first position on."""
    folder = save_family("llava_next", tmp_path / "hub", tiny_tokenizer_folder)
    body = json.loads((folder / "config.json").read_text())
    lengths = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, **lengths}
    body["text_config"]["rope_parameters"] = rope
    (folder / "config.json").write_text(json.dumps(body))
    model, tokens = load_model(folder)
    export(model, tokens, tmp_path / "out")
    text = json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    assert (text["rope_theta"], text["rope_scaling"]["type"], text["rope_scaling"]["factor"]) == (1e4, "llama3", 8.0)
    same_in_transformers(model, tmp_path / "out")


def test_without_the_origin_a_layer_of_zeros_stands_above(tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("llava_next", tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    folder.rename(tmp_path / "gone")
    export(model, {**tokens, "tokenizer": str(tiny_tokenizer_folder)}, tmp_path / "out")
    last = [t for name, t in theirs(tmp_path / "out").state_dict().items() if "encoder.layers.3." in name]
    assert last
    assert not any(tensor.any() for tensor in last)
    same_in_transformers(model, tmp_path / "out")


def test_the_tokenizer_leaves_in_the_form_of_transformers_4(hub: Path, tmp_path: Path):
    settings = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": ["<|im_end|>"]}
    (hub / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "of the tokenizer"}))
    (hub / "chat_template.json").write_text('{"chat_template": "of the processor"}')
    model, tokens = load_model(hub)
    export(model, tokens, tmp_path / "out")
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|im_end|>"]
    assert not {"backend", "extra_special_tokens"} & set(written)
    assert written["chat_template"] == "of the processor", "it knows pictures"
    assert (tmp_path / "out/chat_template.jinja").read_text() == "of the processor"
    assert json.loads((tmp_path / "out/chat_template.json").read_text()) == {"chat_template": "of the processor"}
