"""LLaVA's own folders and Prismatic's runs become folders that Rebus and transformers read."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints import export
from rebus.checkpoints.hub import Named, fitting
from rebus.checkpoints.layouts import original_files, original_llava, prismatic, vocabulary
from rebus.checkpoints.layouts.folder import write_json
from rebus.checkpoints.save import save_model, write_tensors
from rebus.errors import ConfigError, DataError
from rebus.log import say, show_table, track
from rebus.model.assemble import assemble, fill
from rebus.model.families import VisionLanguageModel, merge_lora
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
    held = layout.read(source, template=template, tower=tower, language=language)
    if "template" not in held.tokens:
        raise DataError(f"{source} does not say how its turns are written: --template NAME (see docs/templates.md).")
    model = assemble(held.model, held.image, vision=held.vision, text=held.text)
    dtype = dtype or _stored_dtype(layout.tensors(source, tower=tower, language=language))
    stored = layout.tensors(source, tower=tower, language=language)
    ours = (named for name, tensor in track(stored, "reading") for named in _ours(layout, name, tensor, held.text))
    fill(model, fitting(model, ours), origin=str(source), dtype=dtype)
    if is_lora:
        original_files.read_lora(model, source)
        merge_lora(model)
    return model.eval(), held.tokens


def _ours(layout: Any, name: str, tensor: torch.Tensor, text: dict[str, Any]) -> Iterator[Named]:
    """Our tensors of a stored one, in memory of their own; a stored output layer of tied embeddings is ignored."""
    for ours, value in layout.to_ours(name, tensor):
        if not (text.get("tie_word_embeddings") and ours == "language.lm_head.weight"):
            yield ours, value.clone()


def _stored_dtype(stored: Iterator[Named]) -> torch.dtype:
    return next((tensor.dtype for name, tensor in stored if name.endswith("embed_tokens.weight")), torch.float32)


def run(
    source: Path,
    out: Path,
    *,
    tower: Sequence[Path] = (),
    language: Path | None = None,
    template: str | None = None,
) -> Path:
    """Writes `out`: a folder of the hub's where transformers has the architecture, else a checkpoint of Rebus.

    Raises: DataError where `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty. Name another folder, or remove it first.")
    model, tokens = open_foreign(source, tower=tower, language=language, template=template)
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(Path(tokens["tokenizer"]), Path(folder), tokens)
        kind = _write({**tokens, "tokenizer": folder}, model, out)
    numbers = [
        ("parameters", sum(p.numel() for p in model.parameters())),
        ("tokens a picture, most", most_tokens(model)),
    ]
    files = [path for path in sorted(out.rglob("[!.]*")) if path.is_file()]
    rows = [*numbers, *((path.relative_to(out).as_posix(), path.stat().st_size) for path in files)]
    show_table(f"imported to {out}: {kind}, template {tokens['template']}", ["file", "bytes"], rows)
    return out


def _write(tokens: dict[str, Any], model: VisionLanguageModel, out: Path) -> str:
    try:
        kind = export.choose(model, None)
    except ConfigError as error:
        say(f"{error}\nIt becomes a checkpoint of Rebus.")
        _write_checkpoint(model, tokens, out)
        return "checkpoint of Rebus"
    export.export(model, tokens, out, kind)
    return kind


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
        vocabulary.copy_tokenizer(source, folder, tokens)
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    if tokens["template"] == "prismatic_qwen2":
        vocabulary.add_tokens(folder, prismatic.ADDED_TOKENS)
        (folder / "chat_template.jinja").write_text(prismatic.CHAT_TEMPLATE)


def most_tokens(model: VisionLanguageModel) -> int:
    image: Any = model.image
    tiles = max((w * h // image.size**2 for w, h in image.canvases), default=0) if image.kind == "anyres" else 0
    return image.tokens_per_side**2 * (1 + tiles)


def _write_checkpoint(model: VisionLanguageModel, tokens: dict[str, Any], out: Path) -> None:
    """All of it lies in `out`: the towers, the language model with its tokenizer, the connector."""
    source = Path(tokens["tokenizer"])
    parts = model.config.tower.parts or (model.config.tower,)
    modules = getattr(model.tower, "parts", [model.tower])
    homes = [_write_tower(m, p, out / "towers" / str(n)) for n, (m, p) in enumerate(zip(modules, parts, strict=True))]
    whole = model.config.tower.model_copy(update={"parts": tuple(homes)}) if len(homes) > 1 else homes[0]
    model.config = model.config.model_copy(update={"tower": whole})
    model.tower.requires_grad_(False)
    model.language.requires_grad_(True)  # so that it is written here, not looked for where it came from
    save_model(model, {**tokens, "tokenizer": str((out / "language").absolute())}, out)
    vocabulary.copy_tokenizer(source, out / "language", tokens)


def _write_tower(tower: Any, config: TowerConfig, home: Path) -> TowerConfig:
    """A hub folder of a tower, with the blocks that are used and no others; so the chosen layer is its last."""
    home.mkdir(parents=True)
    write_tensors(home / "model.safetensors", tower.model.state_dict())
    named = ("stage_names", "out_features", "out_indices")  # of backbones; they count blocks that are gone
    settings = {name: value for name, value in tower.model.config.to_dict().items() if name not in named}
    write_json(home / "config.json", settings)
    return config.model_copy(update={"weights": home.absolute(), "select_layer": -1})
