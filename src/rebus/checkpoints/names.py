"""What people call towers, language models and whole checkpoints, and where each is found. Light: no torch.

Vision and language ids are Prismatic's (Karamcheti et al. 2024; Open-Qwen2VL's fork of it adds some), so that a run of
it can be read and repeated by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rebus.errors import ConfigError, nearest
from rebus.pictures.config import CLIP_MEAN, CLIP_STD, Colour, FixedConfig, ResizeName
from rebus.towers.config import TowerConfig

HALF: Colour = (127.5, 127.5, 127.5)
IMAGENET_MEAN: Colour = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD: Colour = (0.229 * 255, 0.224 * 255, 0.225 * 255)

ModelType = Literal["clip_vision_model", "siglip_vision_model", "dinov2_with_registers", "vit"]


@dataclass(frozen=True)
class Vision:
    """hub: where the weights lie. size: side of the square that Prismatic feeds it, in pixels; of a patch: patch_size.
    width: channels of its features. mlp: width inside its MLPs. activation: what the weights were trained with.
    mean, std: of RGB in 0..255. resize: what its own processor does to a picture that is no square. trained_size: of
    the pictures that the hub's position embeddings were made for, where that is another."""

    hub: str
    model_type: ModelType
    size: int
    patch_size: int
    width: int
    mlp: int
    num_layers: int
    num_heads: int
    activation: str
    eps: float
    mean: Colour
    std: Colour
    resize: ResizeName
    trained_size: int | None = None

    @property
    def tokens_per_side(self) -> int:
        return self.size // self.patch_size

    def hub_config(self) -> dict[str, Any]:
        """The tower's config as transformers takes it, at `size`."""
        shape = {
            "model_type": self.model_type,
            "image_size": self.size,
            "patch_size": self.patch_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "hidden_act": self.activation,
            "layer_norm_eps": self.eps,
        }
        if self.model_type == "dinov2_with_registers":
            return {**shape, "mlp_ratio": self.mlp // self.width, "num_register_tokens": 4}
        return {**shape, "intermediate_size": self.mlp}


def _clip(hub: str, size: int, patch: int, width: int, layers: int, heads: int) -> Vision:
    shape = (size, patch, width, 4 * width, layers, heads)
    return Vision(hub, "clip_vision_model", *shape, "quick_gelu", 1e-5, CLIP_MEAN, CLIP_STD, "crop")


def _siglip(hub: str, size: int, patch: int, width: int, mlp: int, layers: int, heads: int) -> Vision:
    """The hub's towers run tanh-approximated GELU; timm's, which Prismatic trains on, the exact one (see prismatic)."""
    shape = (size, patch, width, mlp, layers, heads)
    return Vision(hub, "siglip_vision_model", *shape, "gelu_pytorch_tanh", 1e-6, HALF, HALF, "squash")


_CLIP_L = _clip("openai/clip-vit-large-patch14", 224, 14, 1024, 24, 16)
_CLIP_L_336 = replace(_CLIP_L, hub="openai/clip-vit-large-patch14-336", size=336)
_SO400M = _siglip("google/siglip-so400m-patch14-224", 224, 14, 1152, 4304, 27, 16)
_SO400M_384 = replace(_SO400M, hub="google/siglip-so400m-patch14-384", size=384)
_B16 = _siglip("google/siglip-base-patch16-224", 224, 16, 768, 3072, 12, 12)
_DINO = Vision(
    "facebook/dinov2-with-registers-large",
    *("dinov2_with_registers", 224, 14, 1024, 4096, 24, 16, "gelu", 1e-6, IMAGENET_MEAN, IMAGENET_STD, "crop"),
    trained_size=518,
)
_IN1K = Vision(
    "timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
    *("vit", 224, 16, 1024, 4096, 24, 16, "gelu", 1e-6, HALF, HALF, "crop"),
)

VISION: dict[str, tuple[Vision, ...]] = {
    "clip-vit-b": (_clip("openai/clip-vit-base-patch16", 224, 16, 768, 12, 12),),
    "clip-vit-l": (_CLIP_L,),
    "clip-vit-l-336px": (_CLIP_L_336,),
    "siglip-vit-b16-224px": (_B16,),
    "siglip-vit-b16-256px": (replace(_B16, hub="google/siglip-base-patch16-256", size=256),),
    "siglip-vit-b16-384px": (replace(_B16, hub="google/siglip-base-patch16-384", size=384),),
    "siglip-vit-so400m": (_SO400M,),
    "siglip-vit-so400m-384px": (_SO400M_384,),
    "dinov2-vit-l": (_DINO,),
    "in1k-vit-l": (_IN1K,),
    "dinoclip-vit-l-336px": (replace(_DINO, size=336), _CLIP_L_336),
    "dinosiglip-vit-so-224px": (_DINO, _SO400M),
    "dinosiglip-vit-so-384px": (replace(_DINO, size=384), _SO400M_384),
}
"""One tower, or two that are fused: their features side by side, in this order."""


@dataclass(frozen=True)
class Language:
    """template: the Rebus template to train it with. prismatic: the one that Prismatic's own runs were trained with,
    None where Rebus has none that writes the same text (its "In: ... Out: ..." of models without a chat form)."""

    hub: str
    template: str
    end_of_text: str
    start_of_text: str | None = None
    prismatic: str | None = None


def _llama2(hub: str, template: str, prismatic: str | None) -> Language:
    return Language(hub, template, "</s>", "<s>", prismatic)


def _llama3(hub: str, template: str, end: str, prismatic: str | None) -> Language:
    return Language(hub, template, end, "<|begin_of_text|>", prismatic)


def _qwen(hub: str) -> Language:
    return Language(hub, "chatml", "<|endoftext|>", None, "prismatic_qwen2")


_PHI3 = Language("microsoft/Phi-3-mini-4k-instruct", "phi3", "<|endoftext|>", None, "phi3")

LANGUAGE: dict[str, Language] = {
    "llama2-7b-pure": _llama2("meta-llama/Llama-2-7b-hf", "plain", None),
    "llama2-13b-pure": _llama2("meta-llama/Llama-2-13b-hf", "plain", None),
    "llama2-7b-chat": _llama2("meta-llama/Llama-2-7b-chat-hf", "llama2", "llama2"),
    "llama2-13b-chat": _llama2("meta-llama/Llama-2-13b-chat-hf", "llama2", "llama2"),
    "vicuna-v15-7b": _llama2("lmsys/vicuna-7b-v1.5", "vicuna_v1", "vicuna_v1"),
    "vicuna-v15-13b": _llama2("lmsys/vicuna-13b-v1.5", "vicuna_v1", "vicuna_v1"),
    "llama3-8b-pure": _llama3("meta-llama/Meta-Llama-3-8B", "plain", "<|end_of_text|>", None),
    "llama3.1-8b-pure": _llama3("meta-llama/Llama-3.1-8B", "plain", "<|end_of_text|>", "llama3"),
    "llama3.1-8b-instruct": _llama3("meta-llama/Llama-3.1-8B-Instruct", "llama3", "<|eot_id|>", "llama3"),
    "llama3.2-3b-pure": _llama3("meta-llama/Llama-3.2-3B", "plain", "<|end_of_text|>", "llama3"),
    "llama3.2-3b-instruct": _llama3("meta-llama/Llama-3.2-3B-Instruct", "llama3", "<|eot_id|>", "llama3"),
    "mistral-7b": _llama2("mistralai/Mistral-7B-v0.1", "mistral", None),
    "phi3-3b": _PHI3,
    "phi3.5-3b": replace(_PHI3, hub="microsoft/Phi-3.5-mini-instruct"),
    "qwen2.5-1.5b": _qwen("Qwen/Qwen2.5-1.5B"),
    "qwen2.5-1.5b-instruct": _qwen("Qwen/Qwen2.5-1.5B-Instruct"),
    "qwen2.5-3b": _qwen("Qwen/Qwen2.5-3B"),
    "qwen2.5-7b-instruct": _qwen("Qwen/Qwen2.5-7B-Instruct"),
}

UNUSABLE = {"llama3-70b-pure": "Prismatic lists it without a model behind it; no run of it can exist"}

CHECKPOINTS: dict[str, str] = {
    "qwen2-vl-2b": "Qwen/Qwen2-VL-2B",
    "qwen2-vl-2b-instruct": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2-vl-7b": "Qwen/Qwen2-VL-7B",
    "qwen2-vl-7b-instruct": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2-vl-72b": "Qwen/Qwen2-VL-72B",
    "qwen2-vl-72b-instruct": "Qwen/Qwen2-VL-72B-Instruct",
    "qwen2.5-vl-3b-instruct": "Qwen/Qwen2.5-VL-3B-Instruct",  # 2.5 was never published as base
    "qwen2.5-vl-7b-instruct": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen2.5-vl-32b-instruct": "Qwen/Qwen2.5-VL-32B-Instruct",
    "qwen2.5-vl-72b-instruct": "Qwen/Qwen2.5-VL-72B-Instruct",
    "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
    "llama3-llava-next-8b": "llava-hf/llama3-llava-next-8b-hf",
    "open-qwen2vl": "weizhiwang/Open-Qwen2VL",
    "open-qwen2vl-base": "weizhiwang/Open-Qwen2VL-Base",
}
"""Short name -> hub id of a whole vision-language model."""


def vision(name: str) -> tuple[Vision, ...]:
    """The tower, or the towers fused, of a Prismatic vision id. Raises: ConfigError that names the nearest id."""
    return _known(name, VISION, "vision id")


def language(name: str) -> Language:
    """The language model of a Prismatic language id. Raises: ConfigError that names the nearest id."""
    if name in UNUSABLE:
        raise ConfigError(f"language id '{name}' cannot be used: {UNUSABLE[name]}.")
    return _known(name, LANGUAGE, "language id")


def vision_of_hub(hub: str) -> Vision | None:
    """The tower of this hub id, where the table knows it."""
    return {part.hub: part for parts in VISION.values() for part in parts if len(parts) == 1}.get(hub)


def _known(name: str, table: dict[str, Any], what: str) -> Any:
    if name not in table:
        raise ConfigError(f"unknown {what} '{name}'{nearest(name, table)}. Known: {', '.join(table)}.")
    return table[name]


def image_rule(name: str, *, resize: ResizeName | None = None, tokens_per_side: int | None = None) -> FixedConfig:
    """How pictures reach the tower of a vision id: pixels of the first tower's scale, `resize` its processor's unless
    given, as many tokens as the tower has patches unless given fewer. Pixels are the hub processors' to the bit."""
    first = vision(name)[0]
    return FixedConfig(
        size=first.size,
        resize=resize or vision(name)[-1].resize,
        mean=first.mean,
        std=first.std,
        reduced_jpeg=False,
        tokens_per_side=tokens_per_side or first.tokens_per_side,
        patch_size=first.patch_size,
    )


def hub_id(name: str) -> str | None:
    """The hub id behind a short name of a checkpoint, a language or a single tower (in any case of letters), or None.

    Raises: ConfigError for two fused towers, which are two ids.
    """
    short = name.lower()
    if short in VISION and len(VISION[short]) > 1:
        raise ConfigError(f"'{name}' is two towers: name {' and '.join(part.hub for part in VISION[short])}.")
    if short in VISION:
        return VISION[short][0].hub
    return CHECKPOINTS.get(short) or (LANGUAGE[short].hub if short in LANGUAGE else None)


def known_names() -> tuple[str, ...]:
    return (*CHECKPOINTS, *LANGUAGE, *VISION)


def resolve(name: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model: `name` itself where that exists, else a short name's or an org/name id's on the hub.

    weights: False asks for configs and tokenizer alone. Raises: ConfigError that names the nearest name; DataError or
    UnreachableError that say what to fetch, and where to put it.
    """
    from rebus.checkpoints.fetch import fetch

    path = Path(name).expanduser()
    if path.exists():
        return path
    text = str(name)
    hub = text if text.count("/") == 1 and not text.startswith((".", "~", "/")) else hub_id(text)
    if hub is None:
        raise ConfigError(
            f"'{text}' is no folder here, no name that Rebus knows{nearest(text.lower(), known_names())}, "
            "and no hub id of the form org/name."
        )
    return fetch(hub, weights=weights)


def tower_config(name: str, weights: Sequence[Path] = ()) -> TowerConfig:
    """The tower, or the fused towers, of a vision id. weights: a hub folder for each part."""
    parts = vision(name)
    homes: list[Path | None] = [*weights] or [None] * len(parts)
    if len(homes) != len(parts):
        raise ConfigError(f"'{name}' is {len(parts)} towers, {len(homes)} folders of weights are named.")
    made = [
        TowerConfig(kind="transformers", weights=home, image_size=part.size)
        for part, home in zip(parts, homes, strict=True)
    ]
    if len(made) == 1:
        return made[0]
    scaled = [one.model_copy(update={"mean": p.mean, "std": p.std}) for one, p in zip(made, parts, strict=True)]
    first = parts[0]
    return TowerConfig(kind="fused", image_size=first.size, parts=tuple(scaled), mean=first.mean, std=first.std)
