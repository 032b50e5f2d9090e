"""LLaVA's own layout (LLaVA-1.5, LLaVA-NeXT, Open-LLaVA-NeXT): a language model's config.json with `mm_*` fields, the
whole model in one state dict. The weights do not say how turns are written: `template` must come from elsewhere.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints import names
from rebus.checkpoints.layouts import llava_family
from rebus.checkpoints.layouts.folder import read_json, token_settings, write_json
from rebus.checkpoints.layouts.settings import Composition, old_form, vision_of
from rebus.checkpoints.layouts.stored import Named, stored_names, stored_tensors, tensors_of, tower_tensors
from rebus.errors import ConfigError, DataError
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import AnyresConfig, FixedConfig, ImageConfig, ResizeName
from rebus.towers.config import TowerConfig

FAMILIES = {"llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2", "llava": "llama"}
"""model_type -> the language model's own."""

TOWER, PROJECTOR, NEWLINE = "model.vision_tower.vision_tower.", "model.mm_projector.", "model.image_newline"

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
REST = "non_lora_trainables.bin"
"""What was trained beside the adapters: projector, newline, tower."""

SPECIAL_TOKENS = ()
"""Pictures go between the ids of the text; no token stands for them."""


def recognises(folder: Path) -> bool:
    """A whole model; adapters alone are none, and `rebus import` puts them on their base."""
    return _is_llavas(folder) and not is_lora(folder)


def _is_llavas(folder: Path) -> bool:
    config = read_json(folder / "config.json")
    return "mm_vision_tower" in config and "vision_config" not in config


def read(
    folder: Path, *, template: str | None = None, tower: Sequence[Path] = (), language: Path | None = None
) -> Composition:
    """template: how turns were written in training; None: the tokenizer's own chat template, if it has one, else the
    tokens come without. tower: a folder of the vision tower, in place of the one that `mm_vision_tower` names.

    Raises: ConfigError that names the field for which Rebus has nothing equal; DataError where a tower is needed.
    """
    config = read_json(folder / "config.json")
    _refuse(folder, config)
    home = _base(folder, language)
    vision, vision_folder = _vision(home, config, tower)
    image = image_rule(config, vision)
    settings: dict[str, Any] = {"select_layer": config.get("mm_vision_select_layer", -2)}
    if config.get("mm_vision_select_feature", "patch") != "patch":
        settings["features"] = config["mm_vision_select_feature"]
    towers = TowerConfig(kind="transformers", weights=vision_folder, image_size=vision["image_size"], **settings)
    connector = config.get("mm_projector_type", "linear")
    model = ModelConfig(tower=towers, connector=connector, language=home)
    return Composition(model, image, vision, text_config(config), _tokens(folder, config, image, template))


def _refuse(folder: Path, config: dict[str, Any]) -> None:
    if config.get("model_type") not in FAMILIES:
        raise ConfigError(f"{folder} is a {config.get('model_type')}; Rebus reads {', '.join(FAMILIES)}.")
    for field in ("s2", "mm_resampler_type", "mm_perceiver_depth"):
        if config.get(field):
            raise ConfigError(f"{folder}/config.json has {field} = {config[field]}, which Rebus does not compute.")
    if not re.fullmatch(r"linear|identity|mlp[1-9]x_gelu", config.get("mm_projector_type", "linear")):
        raise ConfigError(
            f"{folder} has projector '{config['mm_projector_type']}'; known: linear, mlpNx_gelu, identity."
        )


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's config: of all fields those that its own class knows."""
    import transformers

    family = FAMILIES[config["model_type"]]
    known = {*transformers.AutoConfig.for_model(family).to_dict(), "rope_theta", "rope_scaling"}
    known -= {"architectures", "transformers_version", "_name_or_path", "dtype"}
    return {**{name: value for name, value in config.items() if name in known}, "model_type": family}


def is_lora(folder: Path) -> bool:
    """Whether a folder holds LLaVA's adapters, not a whole model."""
    return _is_llavas(folder) and any((folder / name).is_file() for name in ADAPTERS)


def _base(folder: Path, language: Path | None) -> Path:
    """The folder of the weights: this one, or the base that its adapters stand on."""
    if not is_lora(folder):
        return folder
    base = language or Path(str(read_json(folder / "adapter_config.json").get("base_model_name_or_path")))
    if not base.is_dir():
        raise DataError(f"{folder} holds adapters on the base {base}, which is not here: --language FOLDER names it.")
    return base


def unwrapped(name: str) -> str:
    """A name without the wrappers that peft and a nested model put before it."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith(("model.model.", "model.lm_head.")) else name


def _vision(folder: Path, config: dict[str, Any], tower: Sequence[Path]) -> tuple[dict[str, Any], Path]:
    """The tower's hub config, and the folder that holds its weights: this one, if it carries them."""
    has_tower = any(name.startswith(TOWER) for name in stored_names(folder))
    named = str(config["mm_vision_tower"])
    local = next((p for p in (*tower, Path(named), folder / named) if p.is_dir()), None)
    known = names.vision_of_hub(named)
    if local is not None:
        settings = read_json(local / "config.json")
        return settings.get("vision_config", settings), folder if has_tower else local
    if known is None:
        raise DataError(
            f"{folder} stands on the vision tower '{named}', which is no folder here and none that Rebus knows the "
            "shape of. Fetch it and name its folder: --tower FOLDER."
        )
    return known.hub_config(), folder if has_tower else names.resolve(named)


def image_rule(config: dict[str, Any], vision: dict[str, Any]) -> ImageConfig:
    """`image_aspect_ratio`, `mm_patch_merge_type` and `image_grid_pinpoints` as an image rule."""
    is_clip = vision["model_type"] == "clip_vision_model"
    size, patch = vision["image_size"], vision["patch_size"]
    mean, std = (names.CLIP_MEAN, names.CLIP_STD) if is_clip else (names.HALF, names.HALF)
    shared: dict[str, Any] = {"size": size, "patch_size": patch, "tokens_per_side": size // patch}
    shared |= {"mean": mean, "std": std, "reduced_jpeg": False}
    aspect = config.get("image_aspect_ratio") or "square"
    if aspect in ("square", "pad"):
        resize: ResizeName = "pad" if aspect == "pad" else "crop" if is_clip else "squash"
        return FixedConfig(resize=resize, **shared)
    found = re.fullmatch(r"anyres(?:_max_(\d+))?", aspect)
    if found is None:
        raise ConfigError(
            f"image_aspect_ratio '{aspect}' is none that Rebus computes: square, pad, anyres, anyres_max_N."
        )
    merge = config.get("mm_patch_merge_type", "flat")
    if merge not in ("flat", "spatial", "spatial_unpad"):
        raise ConfigError(f"mm_patch_merge_type '{merge}' is none that Rebus computes: flat, spatial, spatial_unpad.")
    max_tiles = int(found[1]) if found[1] and merge == "spatial_unpad" else None
    points = pinpoints(config.get("image_grid_pinpoints"), size)
    return AnyresConfig(kind="anyres", merge=merge, pinpoints=points, max_tiles=max_tiles, **shared)


def pinpoints(value: Any, size: int) -> tuple[tuple[int, int], ...] | None:
    """A list of (width, height), or the same as text, or a range of grids as text: "(1x1),...,(6x6)"."""
    if value is None:
        return None
    if isinstance(value, str) and "x" in value:
        grids = [(int(a), int(b)) for a, b in re.findall(r"(\d+)x(\d+)", value)]
        (first, top), (last, bottom) = grids[0], grids[-1]
        return tuple((i * size, j * size) for i in range(first, last + 1) for j in range(top, bottom + 1))
    listed = ast.literal_eval(value) if isinstance(value, str) else value
    return tuple((int(width), int(height)) for width, height in listed)


def _tokens(folder: Path, config: dict[str, Any], image: ImageConfig, template: str | None) -> dict[str, Any]:
    tokens = {**token_settings(folder, text_config(config), template), "image": image.model_dump(mode="json")}
    tokens["max_tokens"] = config.get("tokenizer_model_max_length") or tokens["max_tokens"]
    start = read_json(folder / "tokenizer_config.json").get("bos_token")
    if start:
        tokens["start_of_text"] = start["content"] if isinstance(start, dict) else start
    if config.get("mm_use_im_start_end"):
        tokens |= {"image_start": "<im_start>", "image_end": "<im_end>"}
    return tokens


def tensors(folder: Path, *, tower: Sequence[Path] = (), language: Path | None = None) -> Iterator[Named]:
    """All stored tensors; the tower's from `tower` or the folder that `mm_vision_tower` names, if none lie here.

    language: for a folder that holds adapters alone, the base they stand on; the adapters are not among the tensors.
    """
    if is_lora(folder):
        yield from stored_tensors(_base(folder, language))
        yield from ((unwrapped(name), tensor) for name, tensor in tensors_of(folder / REST))
    else:
        yield from stored_tensors(folder)
    home = read(folder, tower=tower, language=language).model.tower.weights
    if home is not None and home != _base(folder, language):
        yield from ((TOWER + name.removeprefix("tower.model."), tensor) for name, tensor in tower_tensors(home))


def to_ours(name: str, tensor: torch.Tensor) -> list[Named]:
    if name.endswith((".inv_freq", ".position_ids")):
        return []
    if name.startswith(TOWER):
        return [("tower.model." + name.removeprefix(TOWER).removeprefix("vision_model."), tensor)]
    if name.startswith(PROJECTOR):  # `linear` is one layer without a number
        rest = name.removeprefix(PROJECTOR)
        return [("connector.mlp." + (rest if rest[0].isdigit() else f"0.{rest}"), tensor)]
    return [("connector.image_newline" if name == NEWLINE else f"language.{name}", tensor)]


def from_ours(name: str, tensor: torch.Tensor, *, connector: str = "mlp2x_gelu") -> list[Named]:
    """connector: what the config will call it; only one layer called `linear` goes without a number."""
    part, _, rest = name.partition(".")
    if part == "language":
        return [(rest, tensor)]
    if part == "tower":
        return [(f"{TOWER}vision_model.{rest.removeprefix('model.')}", tensor)]
    if rest == "image_newline":
        return [(NEWLINE, tensor)]
    if not rest.startswith("mlp."):
        return []  # statistics: whoever writes has folded them in
    return [(PROJECTOR + rest.removeprefix("mlp.0." if connector == "linear" else "mlp."), tensor)]


def refusal(model: VisionLanguageModel) -> str | None:
    config, image = model.config, model.image
    if not re.fullmatch(r"linear|identity|mlp[1-9]x_gelu", config.connector) or config.connector_norm:
        return f"LLaVA's layout has no connector '{config.connector}'{' with a norm' * config.connector_norm}"
    if config.tower.kind != "transformers" or not isinstance(image, FixedConfig | AnyresConfig):
        return f"LLaVA's layout has no tower '{config.tower.kind}' under images of kind '{image.kind}'"
    if image.tokens_per_side**2 != model.tower.num_tokens:
        return f"LLaVA's layout cannot pool {model.tower.num_tokens} features to {image.tokens_per_side} a side"
    own = "crop" if (vision_of(model) or {}).get("model_type") == "clip_vision_model" else "squash"
    if isinstance(image, FixedConfig) and image.resize not in ("pad", own):
        return f"LLaVA's layout has 'pad' and the tower's own '{own}' for pictures, not '{image.resize}'"
    return None


def unheld(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """What LLaVA's own code builds above the chosen layer, though nothing reads it."""
    above = llava_family.unheld(model)
    return above if llava_family.num_dead(above) == -1 - model.config.tower.select_layer else {}


def write_configs(model: VisionLanguageModel, tokens: dict[str, Any], folder: Path) -> None:
    """config.json of a model that does not come from this layout. tokens: the TokensConfig as JSON values."""
    text = old_form(model.language.config.to_dict())
    family = {ours: theirs for theirs, ours in FAMILIES.items() if theirs != "llava"}[text["model_type"]]
    suffix = {"llava_llama": "Llama", "llava_mistral": "Mistral", "llava_qwen": "Qwen"}[family]
    fields = {**text, "model_type": family, "architectures": [f"Llava{suffix}ForCausalLM"], **mm_fields(model)}
    fields |= {"tokenizer_model_max_length": tokens.get("max_tokens"), "tokenizer_padding_side": "right"}
    write_json(folder / "config.json", fields)


def mm_fields(model: VisionLanguageModel) -> dict[str, Any]:
    """What LLaVA adds to the language model's config. A linear connector goes by its other name, mlp1x_gelu."""
    image, tower = model.image, model.config.tower
    fields = {
        "mm_vision_tower": str(tower.weights),
        "mm_hidden_size": model.tower.width,
        "mm_projector_type": "mlp1x_gelu" if model.config.connector == "linear" else model.config.connector,
        "mm_vision_select_layer": tower.select_layer,
        "mm_vision_select_feature": tower.features,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "unfreeze_mm_vision_tower": True,  # or LLaVA would not read the tower's weights from here
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
    }
    if isinstance(image, AnyresConfig):
        aspect = "anyres" if image.max_tiles is None else f"anyres_max_{image.max_tiles}"
        grids = [list(canvas) for canvas in image.canvases]
        rule = {"image_aspect_ratio": aspect, "mm_patch_merge_type": image.merge, "image_grid_pinpoints": grids}
    else:
        aspect = "pad" if isinstance(image, FixedConfig) and image.resize == "pad" else "square"
        rule = {"image_aspect_ratio": aspect, "mm_patch_merge_type": "flat"}
    return fields | rule
