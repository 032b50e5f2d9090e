"""Opens the folders of others as they are: configs by their layout, weights streamed into a model made without memory.

The host never holds more than the model and the pages of one file: every tensor is copied out of the mapped file into
its place before the next is touched.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from rebus.checkpoints import layouts
from rebus.checkpoints.layouts.folder import read_json
from rebus.checkpoints.layouts.settings import Composition
from rebus.checkpoints.layouts.stored import stored_tensors
from rebus.errors import ConfigError, DataError, nearest
from rebus.model.assemble import assemble, fill
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import ImageConfig

Named = tuple[str, torch.Tensor]


def layout_names() -> list[str]:
    """Every layout that folders are read from; a module of the package is one if it can recognise a folder."""
    names = [module.name for module in pkgutil.iter_modules(layouts.__path__)]
    return [name for name in names if hasattr(layout_module(name), "recognises")]


def layout_module(name: str) -> Any:
    return importlib.import_module(f"{layouts.__name__}.{name}")


def layout_named(name: str) -> Any:
    """Raises: ConfigError with the nearest name."""
    if name not in layout_names():
        known = layout_names()
        raise ConfigError(f"no layout '{name}'{nearest(name, known)}; there are {', '.join(known)}.")
    return layout_module(name)


def layout_of(folder: Path) -> Any | None:
    """The layout module of a folder, by what its files say; None for others, such as a language model alone."""
    found = [name for name in layout_names() if layout_module(name).recognises(folder)]
    return layout_module(found[0]) if found else None


def known_layout(folder: Path) -> Any:
    """Raises: DataError where no layout knows the folder."""
    layout = layout_of(folder)
    if layout is None:
        kind = read_json(folder / "config.json").get("model_type", "folder without a model_type")
        raise DataError(
            f"{folder} is a {kind}; of vision-language models Rebus reads {', '.join(layout_names())}. "
            "`rebus import --help` says what it converts."
        )
    return layout


def open_hub(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    image: ImageConfig | None = None,
    template: str | None = None,
) -> tuple[VisionLanguageModel, dict[str, Any]]:
    """The model of a folder in eval mode, and its TokensConfig as JSON values.

    image: another image rule than the folder's. template: how turns are written; None: the folder's own chat template.
    Raises: DataError where no layout knows the folder, a tensor is missing, or nothing says the template.
    """
    folder = Path(folder)
    return open_as(known_layout(folder), folder, dtype=dtype, device=device, image=image, template=template)


def open_as(
    layout: Any,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
    image: ImageConfig | None = None,
    template: str | None = None,
    **elsewhere: Any,
) -> tuple[VisionLanguageModel, dict[str, Any]]:
    """As `open_hub`, in a layout that is known. dtype: None keeps that of the stored embeddings. elsewhere: folders of
    what this one does not hold, where the layout takes them (`tower`, `language`)."""
    held = composition(layout, folder, template, **elsewhere)
    rule = image or held.image
    model = assemble(held.model, rule, vision=held.vision, text=held.text)
    if dtype is None:
        stored = stored_in(layout, folder, **elsewhere)
        dtype = next((tensor.dtype for name, tensor in stored if name.endswith("embed_tokens.weight")), torch.float32)
    tensors = our_tensors(layout, folder, is_tied=held.text.get("tie_word_embeddings", False), **elsewhere)
    fill(model, fitting(model, tensors), origin=str(folder), dtype=dtype, device=device)
    return cast(model, dtype).eval(), {**held.tokens, "image": rule.model_dump(mode="json")}


def cast(model: VisionLanguageModel, dtype: torch.dtype) -> VisionLanguageModel:
    """All parameters in one dtype, and the connector's statistics with them; rotary tables stay float32, and layers
    held in few bits stay so."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.connector.to(dtype)
    return model


def composition(layout: Any, folder: Path, template: str | None, **elsewhere: Any) -> Composition:
    """What the folder holds.

    Raises: DataError where neither it nor `template` says how turns are written, or its settings fit no model.
    """
    method = (read_json(folder / "config.json").get("quantization_config") or {}).get("quant_method")
    if method:
        raise DataError(f"{folder} holds weights quantised by {method}; Rebus reads those of 16 or 32 bits.")
    try:
        held: Composition = layout.read(folder, template=template, **elsewhere)
    except ValidationError as error:
        reasons = "; ".join(reason["msg"] for reason in error.errors())
        raise DataError(f"the settings in {folder} fit no model: {reasons}. Fetch it again.") from error
    if "template" not in held.tokens:
        raise DataError(
            f"{folder} has no chat template, and its weights do not say how turns were written. Name the one it was "
            "trained with: `template` or --template (such as vicuna_v1, llama3, mistral, chatml, plain)."
        )
    return held


def stored_in(layout: Any, folder: Path, **elsewhere: Any) -> Iterator[Named]:
    """All tensors of a folder under the layout's names."""
    return layout.tensors(folder, **elsewhere) if hasattr(layout, "tensors") else stored_tensors(folder)


def our_tensors(
    layout: Any, folder: Path, *, is_tied: bool = False, part: str = "", **elsewhere: Any
) -> Iterator[Named]:
    """All tensors of a folder under our names, one at a time, mapped from its files where the format allows.

    part: what their names begin with, such as `tower.`; none: all. is_tied: the output layer is the embeddings; where
    a folder stores it nevertheless, transformers ignores it.
    """
    for name, tensor in stored_in(layout, folder, **elsewhere):
        for ours, value in layout.to_ours(name, tensor):
            if ours.startswith(part) and not (is_tied and ours == "language.lm_head.weight"):
                yield ours, value


def fitting(model: VisionLanguageModel, tensors: Iterable[Named]) -> Iterator[Named]:
    """The tensors, and a fresh image_newline where the image rule has come to need one; without it where not."""
    newline = getattr(model.connector, "image_newline", None)
    found = False
    for name, tensor in tensors:
        is_newline = name == "connector.image_newline"
        found = found or is_newline
        if not is_newline or newline is not None:
            yield name, tensor
    if newline is not None and not found:
        yield "connector.image_newline", fresh_newline(newline.shape[0])


def fresh_newline(width: int) -> torch.Tensor:
    """[width], of length one on average, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(width, generator=generator) / width**0.5
