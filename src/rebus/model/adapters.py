"""Low-rank adapters (LoRA, Hu et al. 2021) on the language model, the tower or both: peft's layers, on linear layers
that are named by kind. The layers beneath may be quantised (QLoRA)."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rebus.errors import ConfigError
from rebus.model.config import LoraConfig
from rebus.model.quantised import exact_weight, is_quantised, plain_linear, quantise

PARTS = ("language", "tower")
BLOCK = re.compile(r"(?:^|\.)(?:layers|blocks|layer)\.\d+\.")
"""Stands in the name of a layer inside one of the repeated blocks, in language models and towers of the hub alike."""
ATTENTION = {"self_attn", "attn", "attention"}
"""What language models and towers call the module around the projections of attention."""
KINDS = ("attention", "mlp", "all_linear")


def add_lora(model: Any, lora: LoraConfig, seed: int | None = None) -> None:
    """Puts fresh adapters on linear layers of a VisionLanguageModel, in place, and freezes the parts they are on.

    Adapters are float32 whatever the layers beneath are in, and on their device; on meta they wait for
    `fresh_adapters`. seed: as there. A language model that is to be quantised, is.
    Raises: ConfigError where a target matches nothing, the model has adapters already, or bitsandbytes is missing.
    """
    import peft

    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise ConfigError(
            "the model has adapters already: go on with those, without a `lora` section, or export --merge first."
        )
    targets = targets_of(model, lora)
    if lora.quantise is not None:
        quantise(model.language, linears_of(model.language), lora)
    with torch.random.fork_rng(devices=[]):  # what peft draws for modules on meta counts for nothing
        for part, names in targets.items():
            settings = peft_settings(lora, names)
            peft.inject_adapter_in_model(settings, getattr(model, part), low_cpu_mem_usage=True)
    model.train(model.training)  # peft's layers come in training mode, with dropout
    model.config = model.config.model_copy(update={"lora": lora})
    if model.device.type != "meta":
        _fill(model, fresh_adapters(model, seed))


def _fill(model: nn.Module, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        layer: Any = model.get_submodule(owner.split(".lora_")[0])
        device = layer.get_base_layer().weight.device
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(device)))


def fresh_adapters(model: nn.Module, seed: int | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """(parameter's name, float32 on the CPU) of every adapter as it starts: A uniform as peft draws it, B zero.

    The model may be on meta and sharded. seed: draws as after torch.manual_seed; None goes on with torch's generator.
    """
    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    for path, layer in lora_layers(model):
        rank, base = layer.r["default"], layer.get_base_layer()
        for shape in ((rank, base.in_features), (base.out_features, rank)):
            # peft draws both matrices as any linear layer, then A anew: the same seed gives the same adapters as peft
            torch.empty(shape).uniform_(generator=generator)
        first = torch.empty(rank, base.in_features)
        yield f"{path}.lora_A.default.weight", nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        yield f"{path}.lora_B.default.weight", torch.zeros(base.out_features, rank)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, peft's layer) of all that have an adapter, the language model's first."""
    from peft.tuners.lora import LoraLayer

    for part in PARTS:
        for name, module in model.get_submodule(part).named_modules(prefix=part):
            if isinstance(module, LoraLayer):
                yield name, module


def peft_settings(lora: LoraConfig, targets: list[str], **more: Any) -> Any:
    """peft's own config of such adapters."""
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=targets,
        **more,
    )


def linears_of(part: nn.Module) -> list[str]:
    """Names of the linear layers inside a part's blocks, as they are without adapters: all but an output head and what
    cuts pictures into patches."""
    named = [(name, module) for name, module in part.named_modules() if BLOCK.search(name) and ".lora_" not in name]
    return [name.removesuffix(".base_layer") for name, module in named if isinstance(module, nn.Linear)]


def targets_of(model: Any, lora: LoraConfig) -> dict[str, list[str]]:
    """Part -> names of the layers that get an adapter, in the model's order.

    Raises: ConfigError that lists what there is, where a target is found in no part, or a part has none of them.
    """
    wanted = (lora.targets,) if isinstance(lora.targets, str) else lora.targets
    there = {part: linears_of(getattr(model, part)) for part in PARTS if lora.on in (part, "both")}
    found = {part: [n for n in names if any(_is_meant(n, one) for one in wanted)] for part, names in there.items()}
    for one in wanted:
        if not any(_is_meant(name, one) for names in found.values() for name in names):
            raise ConfigError(f"`lora.targets` names '{one}', {_offer(there)}")
    for part, names in found.items():
        if not names:
            raise ConfigError(
                f"`lora.on` names the {part}, where `lora.targets` finds nothing, {_offer({part: there[part]})}"
            )
    return found


def _is_meant(name: str, target: str) -> bool:
    if target in KINDS:
        return target == "all_linear" or (target == "attention") != ATTENTION.isdisjoint(name.split("."))
    return name == target or name.endswith(f".{target}")


def _offer(there: dict[str, list[str]]) -> str:
    """What could be named: layers by what they are called inside their block."""
    rows = []
    for part, names in there.items():
        inside = dict.fromkeys(BLOCK.split(name)[-1] for name in names)
        rows.append(f"the {part} has {', '.join(inside) or 'no linear layer inside blocks'}")
    return f"but {'; '.join(rows)}. Kinds are {', '.join(KINDS)}."


def merged_weight(layer: Any) -> torch.Tensor:
    """The weight [out, in] of a linear layer with its adapter, if it has one, added as peft adds it."""
    if not hasattr(layer, "get_base_layer"):
        return exact_weight(layer)
    weight = exact_weight(layer.get_base_layer())
    with torch.no_grad():
        return sum((layer.get_delta_weight(adapter) for adapter in layer.active_adapters), weight).to(weight.dtype)


def merge_lora(model: Any) -> None:
    """Adds the adapters into the weights and takes them off: same outputs, plain layers, no way back. Quantised layers
    become plain ones of the same values, in the dtype of the output layer."""
    for name, layer in list(lora_layers(model)):
        weight = merged_weight(layer)
        base = layer.get_base_layer()
        if is_quantised(base):
            base = plain_linear(base, model.head.weight.dtype)
        base.weight.data = weight.to(base.weight.dtype)
        model.set_submodule(name, base)
    for name, layer in list(model.named_modules()):
        if is_quantised(layer):
            model.set_submodule(name, plain_linear(layer, model.head.weight.dtype))
    model.config = model.config.model_copy(update={"lora": None})
