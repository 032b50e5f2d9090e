"""Small random models in the layouts of others: Prismatic's run with timm's vision transformers, LLaVA's own folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from rebus.checkpoints import names
from rebus.model.families import VisionLanguageModel
from tiny_models import document_positions, save_tiny_llama

SIZE, PATCH, WIDTH, HIDDEN = 45, 14, 16, 32  # as 384 and 14: three pixels at the edge belong to no patch
HALF = names.Vision(
    "nobody/siglip",
    *("siglip_vision_model", SIZE, PATCH, WIDTH, 24, 3, 2, "gelu_pytorch_tanh", 1e-6),
    *(names.HALF, names.HALF, "squash"),
)
CLIP = replace(HALF, hub="nobody/clip", model_type="clip_vision_model", activation="quick_gelu", eps=1e-5)
DINO = replace(HALF, hub="nobody/dino", model_type="dinov2_with_registers", mlp=32, activation="gelu")
DINO = replace(DINO, mean=names.IMAGENET_MEAN, std=names.IMAGENET_STD)
TINY = {"tiny-siglip": (HALF,), "tiny-clip": (CLIP,), "tiny-dino": (DINO,), "tiny-fused": (DINO, HALF)}


@pytest.fixture
def tiny_names(monkeypatch: pytest.MonkeyPatch):
    for name, parts in TINY.items():
        monkeypatch.setitem(names.VISION, name, parts)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)


class Block(nn.Module):
    def __init__(self, tower: names.Vision) -> None:
        super().__init__()
        width, self.kind = tower.width, tower.model_type
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=tower.eps) for _ in range(2))
        self.attn = Attention(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, tower.mlp), "fc2": nn.Linear(tower.mlp, width)})
        if self.kind == "dinov2_with_registers":
            self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scales = (self.ls1.gamma, self.ls2.gamma) if self.kind == "dinov2_with_registers" else (1.0, 1.0)
        x = x + scales[0] * self.attn(self.norm1(x))
        inner = self.mlp["fc1"](self.norm2(x))
        inner = inner * torch.sigmoid(1.702 * inner) if self.kind == "clip_vision_model" else functional.gelu(inner)
        return x + scales[1] * self.mlp["fc2"](inner)


class TimmViT(nn.Module):
    """timm's names and order of things, written from their description: the reference of this file."""

    def __init__(self, tower: names.Vision) -> None:
        super().__init__()
        self.kind, width = tower.model_type, tower.width
        is_clip, is_dino = self.kind == "clip_vision_model", self.kind == "dinov2_with_registers"
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH, bias=not is_clip)})
        self.pos_embed = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + is_clip, width))
        if is_clip or is_dino:
            self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        if is_dino:
            self.reg_token = nn.Parameter(torch.randn(1, 4, width))
        self.norm_pre = nn.LayerNorm(width) if is_clip else nn.Identity()
        self.blocks = nn.ModuleList(Block(tower) for _ in range(tower.num_layers))
        self.norm = nn.LayerNorm(width)
        self.attn_pool = nn.Linear(2, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        if self.kind == "clip_vision_model":
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        else:
            x = x + self.pos_embed
        if self.kind == "dinov2_with_registers":
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x], 1)
        x = self.norm_pre(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, -((SIZE // PATCH) ** 2) :]


def projector(arch: str, features: int) -> tuple[nn.Sequential, str]:
    """Prismatic's, and what stands before its names."""
    if arch == "linear":
        return nn.Sequential(nn.Linear(features, HIDDEN)), "projector."
    if arch.endswith("fused-gelu-mlp"):
        layers = [nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, HIDDEN)]
        return nn.Sequential(*layers, nn.GELU(), nn.Linear(HIDDEN, HIDDEN)), "projector."
    layers = [nn.Linear(features, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)]
    return nn.Sequential(*layers), "mlp_projector." if arch.endswith("avgpool") else "projector."


class Run:
    """A run's folder, and its parts as modules."""

    def __init__(self, folder: Path, vision: str, arch: str, *, has_tower: bool = True, config: str = "json") -> None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(7)
        self.folder, self.vision = folder, names.vision(vision)
        self.home = save_tiny_llama(folder / "language")
        self.language = AutoModelForCausalLM.from_pretrained(self.home, dtype=torch.float32).eval()
        self.towers = [TimmViT(tower) for tower in self.vision]
        self.projector, prefix = projector(arch, WIDTH * len(self.towers))
        self.language.get_input_embeddings().weight.data.mul_(1.1)
        model: dict[str, Any] = {
            "projector": {self._name(arch, prefix, n): t for n, t in self.projector.state_dict().items()},
            "llm_backbone": {f"llm.{name}": tensor for name, tensor in self.language.state_dict().items()},
        }
        if has_tower:
            starts = ["dino_featurizer.", "siglip_featurizer."] if len(self.towers) > 1 else ["featurizer."]
            pairs = zip(starts, self.towers, strict=True)
            model["vision_backbone"] = {f"{s}{n}": t for s, tower in pairs for n, t in tower.state_dict().items()}
        (folder / "checkpoints").mkdir()
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "name": "x"}]}
        torch.save({"model": model, "optimizer": optimizer}, folder / "checkpoints" / "latest-checkpoint.pt")
        section = {"vision_backbone_id": vision, "llm_backbone_id": "qwen2.5-1.5b-instruct", "arch_specifier": arch}
        section |= {"image_resize_strategy": "resize-naive", "llm_max_length": 256}
        body = json.dumps({"model": section, "seed": 7})
        (folder / f"config.{config}").write_text(body)  # JSON is YAML too

    @staticmethod
    def _name(arch: str, prefix: str, name: str) -> str:
        return f"projector.{name.removeprefix('0.')}" if arch == "linear" else prefix + name

    def logits(self, ids: torch.Tensor, pixels: torch.Tensor, tokens_per_side: int) -> torch.Tensor:
        """pixels in the scale of the first tower; an image at 2."""
        first, seen = self.vision[0], []
        for tower, config in zip(self.towers, self.vision, strict=True):
            colours = pixels * torch.tensor(first.std)[:, None, None] + torch.tensor(first.mean)[:, None, None]
            seen.append(
                tower((colours - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None])
            )
        grid = torch.cat(seen, 2).transpose(1, 2).unflatten(2, (3, 3))
        pooled = functional.adaptive_avg_pool2d(grid, tokens_per_side).flatten(2).transpose(1, 2)
        embeddings = self.language.get_input_embeddings()(ids.clamp_min(0))
        embeddings[2 : 2 + tokens_per_side**2] = self.projector(pooled)[0]
        return self.language(inputs_embeds=embeddings[None], use_cache=False).logits[0]


def ours(model: VisionLanguageModel, ids: torch.Tensor, pixels: torch.Tensor, length: int) -> torch.Tensor:
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    slots, grids = torch.tensor([[2, length]]), torch.tensor([[1, SIZE, SIZE]])
    return model.head(model.hidden(ids, document_positions(bounds), bounds, pixels, slots, grids))


NEWLINE = "model.image_newline"
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 42, "patch_size": 14, "initializer_range": 0.2}
FIELDS: dict[str, Any] = {
    "model_type": "llava_llama",
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 16,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[42, 84], [84, 42], [84, 84], [126, 42], [42, 126]],
    "use_mm_proj": True,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "tokenizer_model_max_length": 300,
    "unfreeze_mm_vision_tower": True,
    "mm_vision_tower_lr": 2e-6,
}


def parts() -> tuple[Any, Any, torch.nn.Sequential]:
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    text = LlamaConfig(
        vocab_size=97,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        rope_theta=5000.0,
    )
    projector = torch.nn.Sequential(torch.nn.Linear(16, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, HIDDEN))
    return CLIPVisionModel(CLIPVisionConfig(**VISION)).eval(), LlamaForCausalLM(text).eval(), projector


def rounded(module: Any) -> Any:
    """With parameters as float16 keeps them; buffers (rotary tables) are not stored."""
    for parameter in module.parameters():
        parameter.data = parameter.data.half().float()
    return module


def original_state() -> dict[str, torch.Tensor]:
    tower, language, projector = parts()
    state = {f"model.vision_tower.vision_tower.vision_model.{name}": t for name, t in tower.state_dict().items()}
    state |= {f"model.mm_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    state |= dict(language.state_dict()) | {NEWLINE: torch.randn(HIDDEN)}
    return {name: tensor.half() for name, tensor in state.items()}


def original_folder(folder: Path, *, form: str = "safetensors", **fields: Any) -> Path:
    tower, language, _ = parts()
    tower.config.save_pretrained(folder / "tower")
    old = language.config.to_dict()
    old["rope_theta"] = old.pop("rope_parameters")["rope_theta"]  # as transformers 4 wrote it
    place = {"torch_dtype": "float16", "mm_vision_tower": str(folder / "tower")}
    config = {**old, **FIELDS, **place, **fields}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')
    state = original_state()
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = sorted(state)
        shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, held in shards.items():
            safetensors.torch.save_file({name: state[name].contiguous() for name in held}, folder / file)
        where = {name: file for file, held in shards.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
