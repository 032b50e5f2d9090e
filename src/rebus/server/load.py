"""A model that answers, from its folder or name."""

from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints.load import load_model
from rebus.checkpoints.names import resolve
from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.log import say
from rebus.model.adapters import merge_lora
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import NativeConfig
from rebus.server.engine import Engine
from rebus.tokens.config import TokensConfig
from rebus.tokens.tokenizer import load_tokens

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}


def load(
    path_or_id: str | Path,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    template: str | None = None,
) -> Engine:
    """A checkpoint of Rebus or a model folder of the hub (Qwen2-VL, LLaVA-NeXT, ...), ready to answer.

    path_or_id: a folder, a hub id, or a known short name. device: cuda where there is one, else cpu. dtype: None takes
    bfloat16 on a GPU that computes it, float16 on older ones, float32 on the CPU. min_pixels, max_pixels: of a picture
    after its resize, where the model sees pictures in their own size. template: instead of the model's own.
    Raises: DataError, StrangerError, ConfigError.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = choose_dtype(dtype, place)
    if template is not None:  # an unknown name is said before the weights are read
        check_recipe(TokensConfig, {"tokenizer": ".", "template": template}, "rebus.load")
    model, settings = load_model(resolve(path_or_id), device=place, dtype=kind, template=template)
    config = model.config
    if config.lora is not None:
        merge_lora(model)  # in the precision of the weights; the same answers, a third of the matrix products
    _cast(model, kind)
    if template is None and "template" not in settings:
        say("the model says nothing of a chat template: prompts are laid out as plain text. Name one with `template`.")
    wanted = {**settings, **({"template": template} if template else {})}
    tokens = _with_pixels(check_recipe(TokensConfig, wanted, str(path_or_id)), min_pixels, max_pixels)
    model.image = tokens.image
    return Engine(model.requires_grad_(False), load_tokens(tokens), config)


def choose_dtype(wanted: str | torch.dtype | None, device: str) -> torch.dtype:
    """The dtype to compute in; says so where it is not the one that was asked for. Raises: ConfigError."""
    if isinstance(wanted, str) and wanted != "auto":
        name = SHORT.get(wanted, wanted)
        if name not in DTYPES:
            raise ConfigError(f"dtype '{wanted}' is not known; there are auto, {', '.join(DTYPES)}.")
        wanted = DTYPES[name]
    is_cuda = _is_cuda(device)
    has_bf16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if not isinstance(wanted, torch.dtype):
        return torch.float32 if not is_cuda else torch.bfloat16 if has_bf16 else torch.float16
    if is_cuda and wanted is torch.bfloat16 and not has_bf16:
        say(f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: float16 instead.")
        return torch.float16
    return wanted


def _is_cuda(device: str) -> bool:
    """Raises: ConfigError for a device that is not there."""
    num_gpus = torch.cuda.device_count()
    try:
        place = torch.device(device)
        if place.type != "cuda":
            torch.empty(0, device=place)
            return False
        is_there = torch.cuda.is_available() and (place.index or 0) < max(1, num_gpus)
    except (RuntimeError, AssertionError):  # the latter where torch was built without
        is_there = False
    if not is_there:
        found = f"{num_gpus} GPU{'s'[: num_gpus != 1]}" if num_gpus else "no GPU"
        raise ConfigError(f"device '{device}' cannot be used: torch finds {found}. Use cpu, or see `rebus doctor`.")
    return True


def _cast(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """The weights, but not the buffers of rotary positions: their frequencies are wrong in 8 bits of mantissa."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for part in (model.tower, model.connector):
        for owner in part.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                if buffer.is_floating_point() and name in owner.state_dict():
                    owner.register_buffer(name, buffer.to(dtype))


def _with_pixels(tokens: TokensConfig, min_pixels: int | None, max_pixels: int | None) -> TokensConfig:
    given: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return tokens
    if not isinstance(tokens.image, NativeConfig):
        raise ConfigError(
            f"{' and '.join(given)}: this model's pictures are '{tokens.image.kind}', all of one size or tiling; only "
            "pictures in their own size ('native') have limits."
        )
    try:
        image = NativeConfig.model_validate({**tokens.image.model_dump(), **given})
    except ValueError as error:
        raise ConfigError(f"{given}: min_pixels must be at least 1 and at most max_pixels.") from error
    return tokens.model_copy(update={"image": image})
