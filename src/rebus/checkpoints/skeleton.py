"""What a run starts from, as shapes and a stream: a model with its parameters on the meta device, and the tensors that
fill it one at a time. Between the two a run may shard it, so that no process ever holds more than its share.

Every start is one: a checkpoint of Rebus, a hub folder of a known layout, a config with a fresh connector.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from rebus.checkpoints import parts
from rebus.checkpoints.adapter_files import homes, stored_adapters
from rebus.checkpoints.hub import Named, composition, fitting, known_layout, layout_of, our_tensors
from rebus.checkpoints.layouts.stored import tensors_of
from rebus.checkpoints.save import base_fingerprints, is_writer
from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.fingerprint import MANIFEST, read_manifest, refuse_stranger
from rebus.model.adapters import add_lora, fresh_adapters
from rebus.model.assemble import assemble
from rebus.model.config import LoraConfig, ModelConfig
from rebus.model.connector import build_connector
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import ImageConfig


@dataclass(frozen=True)
class Skeleton:
    """A start. `assemble.fill(model, tensors(), origin=origin)` makes it whole.

    model: in eval mode, its parameters on the meta device, its buffers real. tensors: begins the stream of (our name,
    values), mapped from files where the format allows. tokens: the TokensConfig that it was trained with, as JSON
    values; none where it is new. origin: what errors name.
    """

    model: VisionLanguageModel
    tensors: Callable[[], Iterator[Named]]
    tokens: dict[str, Any]
    origin: str


def open_skeleton(
    init: Path | None,
    model: ModelConfig | None,
    *,
    image: ImageConfig | None,
    template: str | None = None,
    seed: int = 0,
    lora: LoraConfig | None = None,
    weights: bool = True,
) -> Skeleton:
    """The start that a recipe names: a folder (`init`) or a config (`model`), which gets a fresh connector.

    image, template: of the plan, in place of the folder's. seed: fixes what is drawn at random here, whatever was
    drawn before. lora: fresh adapters, where the start has none. weights: False for shapes alone, from folders that
    may hold only configs; the stream then must not be begun.
    Raises: ConfigError, DataError or StrangerError where the start is not whole or not what it was.
    """
    if (init is None) == (model is None):
        raise ConfigError("a start is a folder (init) or a config (model): exactly one of them.")
    if init is not None:
        start = of_folder(init, image=image, template=template, weights=weights)
    else:
        assert model is not None
        assert image is not None
        start = _fresh(model, image, seed=seed, weights=weights)
    held = start.model.config.lora
    if lora is not None and held is not None and lora != held:
        raise ConfigError(
            f"{init} has adapters of its own: {held}. Leave `lora` out, or `rebus export --merge` it first."
        )
    if lora is None or held is not None:
        return start
    add_lora(start.model, lora)
    homes(start.model.config)  # refuses what no save could write
    return _followed(start, lambda: fresh_adapters(start.model, seed))


def of_folder(
    folder: Path,
    *,
    image: ImageConfig | None = None,
    template: str | None = None,
    language: Path | None = None,
    tower_weights: Path | None = None,
    weights: bool = True,
) -> Skeleton:
    """Of a checkpoint of Rebus, or of a folder of others; arguments as of `load_model`."""
    if is_foreign(folder):
        return _of_hub(folder, image, template)
    read_manifest(folder, "checkpoint")
    body = json.loads((folder / "model.json").read_text())
    config = check_recipe(ModelConfig, body["model"], str(folder / "model.json"))
    config = parts.located(folder, config, language, tower_weights)
    if weights and is_writer():  # one rank reads them all for the others
        _refuse_changed(folder, config, body["base"])
    rule = image or TypeAdapter(ImageConfig).validate_python(body["image"])
    start = _of_checkpoint(folder, config, rule, _tokens(body["tokens"], config, image, template), weights=weights)
    if config.lora is None:
        return start
    add_lora(start.model, config.lora)
    return _followed(start, lambda: stored_adapters(start.model, folder))


def is_foreign(folder: Path) -> bool:
    """Whether a folder is of others: of a layout, or a hub folder that no layout knows and `open_hub` refuses."""
    is_hub = (folder / "config.json").is_file() and not (folder / MANIFEST).is_file()
    return is_hub or layout_of(folder) is not None


def _of_hub(folder: Path, image: ImageConfig | None, template: str | None) -> Skeleton:
    layout = known_layout(folder)
    held = composition(layout, folder, template)
    rule = image or held.image
    model = assemble(held.model, rule, vision=held.vision, text=held.text).eval()
    is_tied = held.text.get("tie_word_embeddings", False)
    tokens = {**held.tokens, "image": rule.model_dump(mode="json")}
    return Skeleton(model, lambda: fitting(model, our_tensors(layout, folder, is_tied=is_tied)), tokens, str(folder))


def _of_checkpoint(
    folder: Path, config: ModelConfig, image: ImageConfig, tokens: dict[str, Any], *, weights: bool
) -> Skeleton:
    """Without its adapters. What was trained comes from the checkpoint, the rest from where it lies."""
    trained = folder / "tower" if (folder / "tower").is_dir() else None
    vision, text = parts.vision_config(config.tower, trained), parts.text_config(config.language)
    model = assemble(config, image, vision=vision, text=text, with_weights=weights).eval()
    model.trained_tower = trained if config.tower.weights != trained else None

    def tensors() -> Iterator[Named]:
        connector = ((f"connector.{name}", value) for name, value in tensors_of(folder / "connector.safetensors"))
        held = itertools.chain(parts.tower_of(config.tower, trained), parts.language_of(model, config), connector)
        return fitting(model, held)

    return Skeleton(model, tensors, tokens, str(folder))


def _tokens(
    tokens: dict[str, Any], config: ModelConfig, image: ImageConfig | None, template: str | None
) -> dict[str, Any]:
    found = tokens if image is None else {**tokens, "image": image.model_dump(mode="json")}
    if not Path(found.get("tokenizer", "")).exists() and (config.language / "tokenizer.json").is_file():
        found = {**found, "tokenizer": str(config.language)}  # it moved, and lies beside the language model
    return found if template is None else {**found, "template": template}


def _refuse_changed(folder: Path, config: ModelConfig, base: dict[str, str]) -> None:
    """A trained tower is in the checkpoint, and names no base."""
    found = base_fingerprints(config, config.language, with_tower="tower" in base)
    refuse_stranger(folder, base, found, "The base weights changed. Import those of the training again.")


def _fresh(config: ModelConfig, image: ImageConfig, *, seed: int, weights: bool) -> Skeleton:
    """The pretrained parts that a config names around the connector that `families.build` draws from the seed."""
    vision, text = parts.vision_config(config.tower), parts.text_config(config.language)
    config = config.model_copy(update={"lora": None})
    model = assemble(config, image, vision=vision, text=text, with_weights=weights).eval()

    def tensors() -> Iterator[Named]:
        return itertools.chain(
            parts.tower_of(config.tower), parts.language_of(model, config), _fresh_connector(model, seed)
        )

    return Skeleton(model, tensors, {}, str(config.language))


def _fresh_connector(model: VisionLanguageModel, seed: int) -> Iterator[Named]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = model.language.config.get_text_config().hidden_size
        connector = build_connector(model.config, model.image, model.tower, width)
    yield from ((f"connector.{name}", tensor) for name, tensor in connector.state_dict().items())


def _followed(start: Skeleton, more: Callable[[], Iterator[Named]]) -> Skeleton:
    return Skeleton(start.model, lambda: itertools.chain(start.tensors(), more()), start.tokens, start.origin)
