"""The parts that a model stands on, where they lie: their configs, and their tensors by our names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.checkpoints.hub import Named, layout_of, our_tensors
from rebus.checkpoints.layouts.settings import NATIVE, stored_vision
from rebus.checkpoints.layouts.stored import stored_names, stored_tensors, tower_tensors
from rebus.errors import DataError
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel, load_language
from rebus.towers.build import build_tower
from rebus.towers.config import TowerConfig, required_weights
from rebus.towers.hub import vision_settings


def located(folder: Path, config: ModelConfig, language: Path | None, tower_weights: Path | None) -> ModelConfig:
    """A checkpoint's config with the folders that its parts lie in now: its own where it carries them."""
    if (folder / "language").is_dir():
        language = folder / "language"
    language = language or config.language
    if not language.is_dir():
        raise DataError(f"{folder} stands on the language model {language}, which is not there. Import it again.")
    tower_weights = tower_weights or config.tower.weights
    is_trained = (folder / "tower").is_dir()
    if config.tower.kind in NATIVE and is_trained:
        tower_weights = folder / "tower"
    tower = _imported(folder, config.tower.model_copy(update={"weights": tower_weights}))
    for home in () if is_trained else [part.weights for part in tower.parts or (tower,)]:
        if home is not None and not home.exists():
            raise DataError(f"{folder} stands on the vision tower {home}, which is not there. Fetch it again.")
    return config.model_copy(update={"language": language, "tower": tower})


def _imported(folder: Path, tower: TowerConfig) -> TowerConfig:
    """An imported checkpoint carries its towers, wherever it lies now."""
    homes = sorted((folder / "towers").glob("*"))
    if not homes:
        return tower
    pairs = zip(tower.parts or [tower], homes, strict=True)
    parts = [part.model_copy(update={"weights": home}) for part, home in pairs]
    return tower.model_copy(update={"parts": tuple(parts)}) if tower.parts else parts[0]


def vision_config(tower: TowerConfig, trained: Path | None = None) -> dict[str, Any] | None:
    """The hub's config of a tower as JSON values; None for kinds that it has none of. trained: the checkpoint's own
    folder of it. Raises: ConfigError or DataError where it is missing."""
    if trained is not None and (trained / "config.json").is_file():
        return stored_vision(trained)
    if tower.kind in NATIVE:
        return stored_vision(required_weights(tower))
    if tower.kind == "transformers":
        return vision_settings(required_weights(tower))
    if tower.kind == "fused" and all(part.kind == "transformers" for part in tower.parts):
        return {"parts": [vision_config(part) for part in tower.parts]}
    return None


def text_config(language: Path) -> dict[str, Any]:
    """The config of a folder's language model as JSON values. Raises: DataError where there is none to read."""
    import transformers

    layout = layout_of(language)
    if layout is not None:
        text: dict[str, Any] = layout.read(language, template="plain").text
        return text
    if not (language / "config.json").is_file():
        raise DataError(
            f"no language model at {language}: it holds no config.json. `rebus import --help` shows how to make one."
        )
    settings: dict[str, Any] = transformers.AutoConfig.from_pretrained(language, local_files_only=True).to_dict()
    method = (settings.get("quantization_config") or {}).get("quant_method")
    if method:
        raise DataError(f"{language} holds weights quantised by {method}; Rebus reads those of 16 or 32 bits.")
    return settings


def tower_of(tower: TowerConfig, trained: Path | None = None) -> Iterator[Named]:
    """A tower's tensors. trained: as of `vision_config`."""
    layout = layout_of(tower.weights) if tower.weights is not None else None
    if trained is not None:
        yield from ((f"tower.{name}", tensor) for name, tensor in stored_tensors(trained))
    elif layout is not None and tower.weights is not None:
        yield from our_tensors(layout, tower.weights, part="tower.")
    else:
        yield from _tower_of(tower, "tower.")


def _tower_of(tower: TowerConfig, prefix: str) -> Iterator[Named]:
    if tower.kind == "fused":
        for number, part in enumerate(tower.parts):
            yield from _tower_of(part, f"{prefix}parts.{number}.")
    elif tower.kind == "transformers":
        for name, tensor in tower_tensors(required_weights(tower)):
            yield prefix + name.removeprefix("tower."), tensor
    elif tower.kind in NATIVE:
        stored = stored_tensors(required_weights(tower))
        yield from ((prefix + name, tensor) for name, tensor in stored)
    else:
        yield from ((prefix + name, tensor) for name, tensor in build_tower(tower).state_dict().items())


def language_of(model: VisionLanguageModel, config: ModelConfig) -> Iterator[Named]:
    """The language model's tensors. A tied output layer that a folder stores nevertheless is left out, as transformers
    leaves it, and so is what has no place in the model, such as old rotary tables."""
    layout = layout_of(config.language)
    is_tied = model.head.weight is model.language.get_input_embeddings().weight
    if layout is not None:
        yield from our_tensors(layout, config.language, is_tied=is_tied, part="language.")
        return
    wanted = {name.replace(".base_layer.", ".") for name, _ in model.language.named_parameters()}
    wanted = {name for name in wanted if ".lora_" not in name}
    if wanted <= stored_names(config.language):
        wanted |= {name for name, _ in model.language.named_buffers()}
        stored = stored_tensors(config.language)
    else:  # stored otherwise than transformers holds it (experts in one tensor, a bare decoder): that is its to read
        stored = iter(load_language(config).state_dict().items())
    yield from ((f"language.{name}", tensor) for name, tensor in stored if name in wanted)
