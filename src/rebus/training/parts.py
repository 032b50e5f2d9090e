"""Which parameters train: parts of the model by their structural names, as a recipe's `trains` names them."""

import re
from collections.abc import Mapping

from torch import nn

from rebus.errors import ConfigError
from rebus.model.quantised import is_quantised
from rebus.training.config import Part, TrainsConfig

BLOCK = re.compile(r"\.(?:layers|blocks|layer)\.(\d+)\.")
"""Where the number of a block stands in a parameter's name, in language models and towers of the hub alike."""


def part_of(name: str, named: Mapping[Part, object]) -> Part:
    """The part that a parameter goes by: the finest of those that `named` holds, else the coarsest there is."""
    if ".lora_" in name:
        return "lora"
    if "newline" in named and name.endswith(".image_newline"):
        return "newline"
    if "embeddings" in named and _is_embedding(name):
        return "embeddings"
    coarse: dict[str, Part] = {"tower": "tower", "connector": "connector", "language": "language"}
    return coarse[name.split(".", 1)[0]]


def _is_embedding(name: str) -> bool:
    return name.startswith("language.") and (".embed_tokens." in name or name.startswith("language.lm_head."))


def freeze_all_but(model: nn.Module, trains: Mapping[Part, TrainsConfig]) -> dict[str, nn.Parameter]:
    """Sets requires_grad as `trains` says and returns the parameters that learn by name, in the model's order.

    Raises: ConfigError where a part that shall learn has no parameter, or fewer layers than it shall train.
    """
    trainable = {}
    behind = {part: _first_block(model, part, settings) for part, settings in trains.items()}
    for name, parameter in model.named_parameters():
        part = part_of(name, trains)
        learns = part in trains and trains[part].lr > 0 and _lies_behind(name, behind[part])
        if parameter.is_floating_point():
            parameter.requires_grad_(learns)
        if learns:
            trainable[name] = parameter
    missing = {part for part, settings in trains.items() if settings.lr > 0}
    missing -= {part_of(name, trains) for name in trainable}
    _refuse_two_ways(model, trainable)
    if missing:
        found = sorted({part_of(name, dict.fromkeys(trains)) for name, _ in model.named_parameters()})
        raise ConfigError(f"`trains` names {sorted(missing)}, but the model's parts are {found}.")
    return trainable


def _refuse_two_ways(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> None:
    """A checkpoint holds a part's adapters and names the weights beneath them as they were, so only one kind learns."""
    adapted = {name.split(".", 1)[0] for name, _ in model.named_parameters() if ".lora_" in name}
    both = sorted({name.split(".", 1)[0] for name in trainable if ".lora_" not in name} & adapted)
    if both:
        raise ConfigError(
            f"`trains` names the {both[0]}'s own weights, but it has adapters: train `lora` alone there, or merge the "
            "adapters (rebus export --merge) and train all of it."
        )
    of_language = [name for name in trainable if name.startswith("language.") and ".lora_" not in name]
    if of_language and any(is_quantised(module) for module in model.modules()):
        raise ConfigError(
            f"`trains` names {len(of_language)} weights of the language model, such as {of_language[0]}, which "
            "`lora.quantise` freezes. Leave them out of `trains`, or `quantise` out of `lora`."
        )


def _first_block(model: nn.Module, part: Part, settings: TrainsConfig) -> int | None:
    """The first block that learns, where not all do."""
    if settings.last_layers is None:
        return None
    numbers = {int(found[1]) for name, _ in model.named_parameters() if (found := _block(name, part))}
    if len(numbers) < settings.last_layers:
        raise ConfigError(f"`trains.{part}.last_layers` is {settings.last_layers}; there are {len(numbers)} layers.")
    return max(numbers) + 1 - settings.last_layers


def _block(name: str, part: str) -> re.Match[str] | None:
    return BLOCK.search(name) if name.startswith(f"{part}.") else None


def _lies_behind(name: str, first: int | None) -> bool:
    """Whether a parameter is of block `first` or one after it, or of the norm behind the last."""
    if first is None:
        return True
    found = BLOCK.search(name)
    return int(found[1]) >= first if found else name.endswith((".norm.weight", ".norm.bias"))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices alone: norms, biases and single vectors have none."""
    return parameter.ndim > 1 and not name.endswith(".bias")


def by_part(
    trainable: Mapping[str, nn.Parameter], trains: Mapping[Part, TrainsConfig]
) -> dict[str, list[nn.Parameter]]:
    """The parameters that learn, listed by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        parts.setdefault(part_of(name, trains), []).append(parameter)
    return parts
