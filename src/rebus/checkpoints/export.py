"""A model leaves as a hub folder that plain transformers reads: adapters merged on a copy, statistics
folded into the connector, weights written shard by shard, the folder whole or not at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft.tuners.lora import LoraLayer

from rebus.checkpoints.hub import layout_module, layout_named
from rebus.checkpoints.layouts import tokenizer
from rebus.checkpoints.layouts.folder import read_json, write_json
from rebus.checkpoints.layouts.settings import is_tied
from rebus.checkpoints.save import refuse_filled, write_tensors
from rebus.errors import ConfigError
from rebus.fingerprint import BUILDING
from rebus.log import say, track
from rebus.model.adapters import merged_weight
from rebus.model.connector import Connector
from rebus.model.families import VisionLanguageModel
from rebus.model.quantised import is_quantised

SHARD_BYTES = 5_000_000_000
HUB_LAYOUTS = ("qwen2_vl", "llava_next", "llava")
"""Those that plain transformers reads; the first that can hold a model is its own."""
EMBEDDINGS = ("language.model.embed_tokens.weight", "language.lm_head.weight", "language.lm_head.bias")


@dataclass(frozen=True)
class Piece:
    """One of our tensors as it is to be written. meta: its shape and dtype, without memory. make: its values."""

    name: str
    meta: torch.Tensor
    make: Callable[[], torch.Tensor]


def export(
    model: VisionLanguageModel,
    tokens: dict[str, Any],
    folder: Path,
    layout: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes `folder` in a layout and returns the layout's name; the model stays as it is.

    tokens: the TokensConfig as JSON values. layout: None takes the first that can hold the model. dtype: None keeps
    the model's. Raises: ConfigError with the reason where the layout cannot hold the model, DataError where `folder`
    holds something already.
    """
    refuse_filled(folder)
    name = choose(model, layout)
    with built(folder) as building:
        _write(model, tokens, building, layout_module(name), dtype, shard_bytes)
    return name


@contextmanager
def built(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when all went well, and is gone otherwise.

    Raises: DataError where `folder` holds something already.
    """
    refuse_filled(folder)
    building = folder.with_name(f".{folder.name}{BUILDING}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if folder.is_dir():
            folder.rmdir()
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def choose(model: VisionLanguageModel, layout: str | None) -> str:
    """The layout's name. Raises: ConfigError with why each layout in question cannot hold the model."""
    reasons = {}
    for name in HUB_LAYOUTS if layout is None else [layout]:
        reasons[name] = layout_named(name).refusal(model)
        if reasons[name] is None:
            return name
    rows = [f"  {name}: {reason}." for name, reason in reasons.items()]
    raise ConfigError(
        "\n".join(["no layout can hold this model:" if layout is None else "the layout cannot hold this model:", *rows])
    )


def _write(
    model: VisionLanguageModel,
    tokens: dict[str, Any],
    folder: Path,
    layout: Any,
    dtype: torch.dtype | None,
    shard_bytes: int,
) -> None:
    tokenizer.copy_tokenizer(Path(tokens["tokenizer"]), folder, tokens)
    added = tokenizer.add_tokens(folder, getattr(layout, "SPECIAL_TOKENS", ()))
    tokenizer.say_growth(model, folder, added)
    tokenizer.write_template(tokens, folder, getattr(layout, "PLACEHOLDERS", {}))
    layout.write_configs(model, tokens, folder)
    dtype = dtype or model.head.weight.dtype
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "torch_dtype": str(dtype).removeprefix("torch.")})
    _write_generation(model, tokens, folder)
    _write_weights(list(pieces(model, layout, folder)), layout, folder, dtype, shard_bytes)


def _write_generation(model: VisionLanguageModel, tokens: dict[str, Any], folder: Path) -> None:
    settings = read_json(Path(tokens["tokenizer"]) / "generation_config.json")
    if not settings:
        text = model.language.config
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {name: getattr(text, name) for name in names if getattr(text, name, None) is not None}
    write_json(folder / "generation_config.json", settings)


def pieces(model: VisionLanguageModel, layout: Any, folder: Path) -> Iterator[Piece]:
    """Everything to be written, under our names, without adapters and statistics."""
    rows = tokenizer.num_rows(model, folder)
    tied, held = is_tied(model), {**dict(model.named_parameters(remove_duplicate=False)), **_stored_buffers(model)}
    for name, tensor in held.items():
        if ".lora_" in name or name.startswith("connector.feature_") or (tied and name == EMBEDDINGS[1]):
            continue
        make = _maker(model, name, tensor, rows)
        shape = (rows, *tensor.shape[1:]) if name in EMBEDDINGS else tensor.shape
        dtype, layer = tensor.dtype, model.get_submodule(name.rpartition(".")[0])
        if is_quantised(layer) and tensor is layer.weight:
            shape, dtype = (layer.out_features, layer.in_features), model.head.weight.dtype
        yield Piece(name.replace(".base_layer.", "."), torch.empty(shape, dtype=dtype, device="meta"), make)
    if hasattr(layout, "unheld"):
        for name, tensor in layout.unheld(model).items():
            yield Piece(name, tensor.to("meta"), lambda tensor=tensor: tensor)  # type: ignore[misc]


def _stored_buffers(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """Buffers that a state dict holds; what bitsandbytes adds to one beside them is neither buffer nor parameter."""
    buffers = dict(model.named_buffers())
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name in buffers}


def _maker(model: VisionLanguageModel, name: str, tensor: torch.Tensor, rows: int) -> Callable[[], torch.Tensor]:
    if name.endswith(".weight"):
        layer = model.get_submodule(name.removesuffix(".weight").removesuffix(".base_layer"))
        if isinstance(layer, LoraLayer) or is_quantised(layer):
            return lambda: merged_weight(layer)
    if name in EMBEDDINGS and rows != tensor.shape[0]:
        return lambda: _grown(tensor, rows)
    if name.startswith("connector.mlp.0.") and isinstance(model.connector, Connector):
        return lambda: _folded(model.connector, name.rpartition(".")[2])
    return lambda: tensor.detach()


def _grown(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    mean = tensor.detach().float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor.detach(), mean.expand(rows - len(tensor), *tensor.shape[1:])])


def _folded(connector: Connector, leaf: str) -> torch.Tensor:
    """W ((x - mean) / std) + b = (W / std) x + (b - (W / std) mean), summed in float64."""
    first: Any = connector.mlp[0]
    weight, bias = first.weight.detach(), first.bias.detach()
    mean, std = connector.feature_mean, connector.feature_std
    if bool((mean == 0).all() and (std == 1).all()):
        return weight if leaf == "weight" else bias
    scaled = weight.double() / std.double()
    return (scaled if leaf == "weight" else bias.double() - scaled @ mean.double()).to(weight.dtype)


def folded_connector(model: VisionLanguageModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The connector's tensors under our names, its statistics folded in."""
    for name, tensor in model.connector.named_parameters(prefix="connector"):
        yield name, _maker(model, name, tensor, 0)()


def _write_weights(parts: list[Piece], layout: Any, folder: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    """model.safetensors, or shards and their index; no more than one shard is held beside the model."""
    homes = {theirs: piece for piece in parts for theirs, _ in layout.from_ours(piece.name, piece.meta)}
    shapes = {theirs: meta.to(dtype) for piece in parts for theirs, meta in layout.from_ours(piece.name, piece.meta)}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    files = split.filename_to_tensors
    for file in track(files, "writing weights", total=len(files)):
        tensors = {theirs: _made(homes[theirs], theirs, layout, dtype) for theirs in files[file]}
        write_tensors(folder / file, tensors)
    if split.is_sharded:
        body = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", body)
    total = sum(shape.numel() for shape in shapes.values())
    say(f"{total:,} parameters in {len(files)} file{'s' * (len(files) > 1)}")


def _made(piece: Piece, theirs: str, layout: Any, dtype: torch.dtype) -> torch.Tensor:
    return dict(layout.from_ours(piece.name, piece.make()))[theirs].to(dtype)
