"""OpenCLIP's folders, written here by hand from transformers' network, are the same network when read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import tiny_duals
from rebus.errors import ConfigError, DataError
from rebus.towers.dual import open_dual

WIDTH, HEADS, LAYERS, PATCH = 32, 2, 2, 8


def clip_network(activation: str) -> tuple[Any, Any]:
    tokenizer = tiny_duals.clip_tokenizer()
    shape = {**tiny_duals.SHAPE, "intermediate_size": 4 * WIDTH, "hidden_act": activation}
    words = {**shape, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    eyes = {**shape, "image_size": tiny_duals.SIDE, "patch_size": PATCH}
    model: Any = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=words, vision_config=eyes, projection_dim=20)
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.25)
    model.logit_scale.data.fill_(2.5)
    return model.eval(), tokenizer


def block(tensors: dict[str, torch.Tensor], prefix: str, layer: Any) -> None:
    attention = layer.self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    tensors[f"{prefix}.attn.in_proj_weight"] = torch.cat([one.weight for one in projections])
    tensors[f"{prefix}.attn.in_proj_bias"] = torch.cat([one.bias for one in projections])
    parts = {"attn.out_proj": attention.out_proj, "ln_1": layer.layer_norm1, "ln_2": layer.layer_norm2}
    for name, part in {**parts, "mlp.c_fc": layer.mlp.fc1, "mlp.c_proj": layer.mlp.fc2}.items():
        tensors[f"{prefix}.{name}.weight"], tensors[f"{prefix}.{name}.bias"] = part.weight, part.bias


def written_as_open_clip(folder: Path, model: Any, tokenizer: Any, *, quick_gelu: bool) -> Path:
    eyes, words = model.vision_model, model.text_model
    tensors: dict[str, torch.Tensor] = {
        "positional_embedding": words.embeddings.position_embedding.weight,
        "token_embedding.weight": words.embeddings.token_embedding.weight,
        "text_projection": model.text_projection.weight.T,
        "logit_scale": model.logit_scale,
        "visual.class_embedding": eyes.embeddings.class_embedding,
        "visual.positional_embedding": eyes.embeddings.position_embedding.weight,
        "visual.proj": model.visual_projection.weight.T,
        "visual.conv1.weight": eyes.embeddings.patch_embedding.weight,
    }
    norms = {
        "ln_final": words.final_layer_norm,
        "visual.ln_pre": eyes.pre_layrnorm,
        "visual.ln_post": eyes.post_layernorm,
    }
    for name, norm in norms.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = norm.weight, norm.bias
    for prefix, tower in (("transformer", words), ("visual.transformer", eyes)):
        for number, layer in enumerate(tower.encoder.layers):
            block(tensors, f"{prefix}.resblocks.{number}", layer)
    folder.mkdir()
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
    vision = {"image_size": tiny_duals.SIDE, "layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": PATCH}
    text = {"context_length": 24, "vocab_size": len(tokenizer), "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    cfg = {"embed_dim": 20, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}
    write_config(folder, {"model_cfg": cfg, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}})
    tokenizer.save_pretrained(folder)
    return folder


WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def write_config(folder: Path, body: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(body))


def changed(folder: Path, part: str, **settings: Any) -> None:
    body = json.loads((folder / CONFIG).read_text())
    (body["model_cfg"][part] if part else body["model_cfg"]).update(settings)
    write_config(folder, body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written_as_open_clip(tmp_path / "open", *clip_network("quick_gelu"), quick_gelu=True)


@pytest.mark.parametrize(("activation", "quick_gelu"), [("quick_gelu", True), ("gelu", False)])
def test_the_same_network_under_other_names(tmp_path: Path, activation: str, quick_gelu: bool):
    model, tokenizer = clip_network(activation)
    encoder = open_dual(written_as_open_clip(tmp_path / "open", model, tokenizer, quick_gelu=quick_gelu))
    pixels = torch.randn(3, 3, tiny_duals.SIDE, tiny_duals.SIDE, generator=torch.Generator().manual_seed(0))
    inputs = tokenizer(tiny_duals.TEXTS, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs, pixel_values=pixels)
        torch.testing.assert_close(encoder.image(pixels), theirs.image_embeds)
        torch.testing.assert_close(encoder.texts(tiny_duals.TEXTS), theirs.text_embeds)
        other = open_dual(written_as_open_clip(tmp_path / "other", model, tokenizer, quick_gelu=not quick_gelu))
        assert (other.image(pixels) - theirs.image_embeds).abs().max() > 1e-4
    assert encoder.logit_scale == pytest.approx(
        theirs.logits_per_image[0, 0].item() / (theirs.image_embeds[0] @ theirs.text_embeds[0]).item(), rel=1e-3
    )


def test_the_config_says_how_pictures_are_wanted(folder: Path):
    rule = open_dual(folder).image_rule
    assert (rule.side, rule.fixed.resize, rule.resample) == (tiny_duals.SIDE, "crop", 3)
    assert rule.fixed.mean == pytest.approx((127.5, 102, 76.5))
    body = json.loads((folder / CONFIG).read_text())
    body["preprocess_cfg"] = {"resize_mode": "squash", "interpolation": "bilinear"}
    write_config(folder, body)
    rule = open_dual(folder).image_rule
    assert (rule.fixed.resize, rule.resample) == ("squash", 2)
    body["preprocess_cfg"] = {"resize_mode": "longest"}
    write_config(folder, body)
    with pytest.raises(ConfigError, match="'longest'"):
        open_dual(folder)


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        ("vision_cfg", {"timm_model_name": "vit_so400m"}, "timm_model_name = 'vit_so400m'"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool = True"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name = 'roberta-base'"),
        ("text_cfg", {"pool_type": "last"}, "pool_type = 'last'"),
        ("text_cfg", {"never_heard_of": 3}, "never_heard_of = 3"),
        ("", {"custom_text": True}, "custom_text"),
    ],
)
def test_other_networks_are_refused(folder: Path, part: str, settings: dict[str, Any], words: str):
    changed(folder, part, **settings)
    with pytest.raises(ConfigError, match=words):
        open_dual(folder)


def test_neutral_settings_are_not(folder: Path):
    before = open_dual(folder).texts(["a fox"])
    changed(folder, "vision_cfg", timm_model_name=None, pool_type="tok", patch_dropout=0.5)
    changed(folder, "text_cfg", pool_type="argmax", no_causal_mask=False)
    assert torch.equal(open_dual(folder).texts(["a fox"]), before)


def test_weights_and_config_must_agree(folder: Path):
    changed(folder, "vision_cfg", layers=3)
    with pytest.raises(DataError, match="lacks 16 tensors"):
        open_dual(folder)
    changed(folder, "vision_cfg", layers=2)
    changed(folder, "", embed_dim=24)
    with pytest.raises(DataError, match=r"\(20, 32\).*\(24, 32\)"):
        open_dual(folder)


def test_what_is_missing_is_said(folder: Path):
    (folder / WEIGHTS).rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(DataError, match=r"rebus import .*open_clip_pytorch_model\.bin"):
        open_dual(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="openai/clip-vit-base-patch32"):
        open_dual(folder)
