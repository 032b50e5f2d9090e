"""LLaVA's own folders and Prismatic's runs become folders that Rebus and transformers read."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints import export
from rebus.checkpoints.hub import open_as
from rebus.checkpoints.layouts import original_files, original_llava, prismatic, tokenizer
from rebus.checkpoints.layouts.folder import write_json
from rebus.checkpoints.save import refuse_filled, save_model, write_tensors
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import (
    MANIFEST,
    Manifest,
    file_fingerprint,
    fingerprint,
    folder_fingerprint,
    is_current,
    read_manifest,
    write_manifest,
)
from rebus.log import say, show_table
from rebus.model.adapters import merge_lora
from rebus.model.families import VisionLanguageModel
from rebus.towers.config import TowerConfig

LAYOUTS: tuple[Any, ...] = (original_llava, prismatic)


def recognises(source: Path) -> bool:
    return original_llava.is_lora(source) or any(layout.recognises(source) for layout in LAYOUTS)


def open_foreign(
    source: Path,
    *,
    tower: Sequence[Path] = (),
    language: Path | None = None,
    template: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[VisionLanguageModel, dict[str, Any]]:
    """The model in eval mode, adapters merged, and its TokensConfig as JSON values.

    tower, language: hub folders of what `source` does not hold. template: how its turns are written, where neither its
    tokenizer nor its ids tell. dtype: None keeps that of the stored embeddings.
    Raises: DataError or ConfigError that say what is missing, and which option names it.
    """
    is_lora = original_llava.is_lora(source)
    layout = original_llava if is_lora else next(one for one in LAYOUTS if one.recognises(source))
    say(f"reading {source}")
    model, tokens = open_as(layout, source, dtype=dtype, template=template, tower=tower, language=language)
    if is_lora:
        original_files.read_lora(model, source)
        merge_lora(model)
    return model.eval(), tokens


def run(
    source: Path,
    out: Path,
    *,
    tower: Sequence[Path] = (),
    language: Path | None = None,
    template: str | None = None,
) -> Path:
    """Writes `out`: a folder of the hub's where transformers has the architecture, else a checkpoint of Rebus; at once
    where that was done before.

    Raises: DataError where `out` holds something else.
    """
    made_by = {"format": 1, "name": source.name, "template": template}
    places = [("source", source), *((f"tower {n}", one) for n, one in enumerate(tower)), ("language", language)]
    inputs = {name: _bytes_of(place) for name, place in places if place is not None}
    manifest = Manifest("weights", made_by, inputs)
    if _is_done(out, manifest):
        say(f"{out} is up to date")
        return out
    refuse_filled(out)
    model, tokens = open_foreign(source, tower=tower, language=language, template=template)
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(Path(tokens["tokenizer"]), Path(folder), tokens)
        kind = _write({**tokens, "tokenizer": folder}, model, out, manifest)
    numbers = [
        ("parameters", sum(p.numel() for p in model.parameters())),
        ("tokens a picture, most", most_tokens(model)),
    ]
    files = [path for path in sorted(out.rglob("[!.]*")) if path.is_file()]
    rows = [*numbers, *((path.relative_to(out).as_posix(), path.stat().st_size) for path in files)]
    show_table(f"imported to {out}: {kind}, template {tokens['template']}", ["file", "bytes"], rows)
    return out


def _bytes_of(place: Path) -> str:
    """Fingerprint of what an import reads there."""
    if not prismatic.recognises(place):
        return folder_fingerprint(place)
    config = {path.name: file_fingerprint(path) for path in prismatic.run_folder(place).glob("config.*")}
    return fingerprint({**config, "weights": file_fingerprint(prismatic.weights_file(place))})


def _is_done(out: Path, manifest: Manifest) -> bool:
    """A checkpoint's manifest has a kind of its own, and says among its inputs what it was made from."""
    if (out / "model.json").is_file() and (out / MANIFEST).is_file():
        return read_manifest(out, "checkpoint").inputs == {"import": manifest.fingerprint}
    return is_current(out, manifest)


def _write(tokens: dict[str, Any], model: VisionLanguageModel, out: Path, manifest: Manifest) -> str:
    try:
        kind = export.choose(model, None)
    except ConfigError as error:
        say(f"{error}\nIt becomes a checkpoint of Rebus.")
    else:
        export.export(model, tokens, out, kind)
        write_manifest(out, manifest)
        return kind
    try:
        _write_checkpoint(model, tokens, out, {"import": manifest.fingerprint})
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return "checkpoint of Rebus"


def _write_tokenizer(source: Path, folder: Path, tokens: dict[str, Any]) -> None:
    """The tokenizer as tokenizer.json, with the tokens that a run added and the template that it wrote turns by.

    LLaVA's own folders often hold tokenizer.model alone, which transformers converts.
    """
    if not (source / "tokenizer.json").is_file():
        import transformers

        try:
            transformers.AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
        except (ImportError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise DataError(f"{source} has no tokenizer.json, and transformers makes none of it: {reason}") from error
    else:
        tokenizer.copy_tokenizer(source, folder, tokens)
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    if tokens["template"] == "prismatic_qwen2":
        tokenizer.add_tokens(folder, prismatic.ADDED_TOKENS)
        (folder / "chat_template.jinja").write_text(prismatic.CHAT_TEMPLATE)


def most_tokens(model: VisionLanguageModel) -> int:
    image: Any = model.image
    tiles = max((w * h // image.size**2 for w, h in image.canvases), default=0) if image.kind == "anyres" else 0
    return image.tokens_per_side**2 * (1 + tiles)


def _write_checkpoint(model: VisionLanguageModel, tokens: dict[str, Any], out: Path, inputs: dict[str, str]) -> None:
    """All of it lies in `out`: the towers, the language model with its tokenizer, the connector."""
    source = Path(tokens["tokenizer"])
    parts = model.config.tower.parts or (model.config.tower,)
    modules = getattr(model.tower, "parts", [model.tower])
    homes = [_write_tower(m, p, out / "towers" / str(n)) for n, (m, p) in enumerate(zip(modules, parts, strict=True))]
    whole = model.config.tower.model_copy(update={"parts": tuple(homes)}) if len(homes) > 1 else homes[0]
    model.config = model.config.model_copy(update={"tower": whole})
    model.tower.requires_grad_(False)
    model.language.requires_grad_(True)  # so that it is written here, not looked for where it came from
    save_model(model, {**tokens, "tokenizer": str((out / "language").absolute())}, out, inputs)
    tokenizer.copy_tokenizer(source, out / "language", tokens)


def _write_tower(tower: Any, config: TowerConfig, home: Path) -> TowerConfig:
    """A hub folder of a tower, with the blocks that are used and no others; so the chosen layer is its last."""
    home.mkdir(parents=True)
    write_tensors(home / "model.safetensors", tower.model.state_dict())
    named = ("stage_names", "out_features", "out_indices")  # of backbones; they count blocks that are gone
    settings = {name: value for name, value in tower.model.config.to_dict().items() if name not in named}
    write_json(home / "config.json", settings)
    return config.model_copy(update={"weights": home.absolute(), "select_layer": -1})
