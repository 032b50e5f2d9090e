"""DESIGN as failing tests: the direction of imports, no circles, banned names, file length, a quick --help."""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "rebus"

ABOVE = {"__init__", "cli", "__main__", "report", "trace", "show", "doctor"}
BELOW = {"clock", "cluster", "config", "engine", "errors", "fingerprint", "log", "mesh", "pictures", "records"}
BELOW |= {"storage", "towers", "uids", "version"}  # frozen encoders: scoring and the model both look through them
STAGES = {
    "shards": set(),
    "scores": {"shards"},
    "selection": {"shards", "scores"},
    "filters": {"shards", "scores", "selection"},
    "tokens": set(),
    "packs": {"shards", "selection", "tokens"},
    "batches": {"packs", "tokens", "shards"},
    "model": set(),
    "checkpoints": {"model"},
    "training": {"batches", "model", "checkpoints"},
    "evals": {"shards", "tokens", "model", "checkpoints"},
    "server": {"tokens", "model", "checkpoints"},
}
BANNED_NAMES = {"utils", "helpers", "helper", "common", "misc", "core", "manager"}
MAX_LINES = 350
HEAVY = ("torch", "transformers", "ray", "pyarrow", "numpy")


def modules() -> dict[str, Path]:
    """Dotted module name (without the leading `rebus.`) -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Every rebus module that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module == "rebus" or module.startswith("rebus."):
                base = module.removeprefix("rebus").lstrip(".")
                for alias in node.names:
                    names.add(f"{base}.{alias.name}".lstrip("."))
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("rebus.") for a in node.names if a.name.startswith("rebus.")}
    known = modules()
    return {name if name in known else name.rpartition(".")[0] or "__init__" for name in names}


def layer(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_data(module: str):
    own = layer(module)
    assert own in ABOVE | BELOW | set(STAGES), f"{module} belongs to no layer"
    targets = {layer(target) for target in imports_of(modules()[module])} - {own}
    if own in ABOVE:
        return
    allowed = BELOW if own in BELOW else BELOW | STAGES[own]
    assert targets <= allowed, f"{module} imports {sorted(targets - allowed)}; it may import {sorted(allowed)}"


def test_no_import_circles():
    graph = {module: imports_of(path) - {module} for module, path in modules().items()}
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]):
        assert module not in trail, f"circle: {' -> '.join([*trail, module])}"
        if module in done:
            return
        for target in graph.get(module, ()):
            walk(target, (*trail, module))
        done.add(module)

    for module in graph:
        walk(module, ())


def test_no_names_of_nothing():
    bad = [m for m in modules() if set(m.split(".")) & BANNED_NAMES]
    assert not bad


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "data", "docs"])
def test_files_stay_readable(folder: str):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    too_long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES}
    assert not too_long


def test_no_code_from_data():
    """No pickle anywhere; torch.load only in the importer, weights-only."""
    for module, path in modules().items():
        source = path.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|shelve|marshal)\b", source, re.M), module
        assert "allow_pickle=True" not in source, module
        if "torch.load(" in source:
            assert module.startswith("checkpoints."), module
            assert "weights_only=True" in source, module


def run_help() -> tuple[float, subprocess.CompletedProcess]:
    start = time.process_time(), os.times().children_user + os.times().children_system
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rebus", "--help"], capture_output=True, text=True, timeout=60
    )
    return os.times().children_user + os.times().children_system - start[1], result


def test_help_is_quick_and_light():
    """The half second is CPU time of the best of three, so that a busy machine does not fail it."""
    runs = [run_help() for _ in range(3)]
    result = runs[0][1]
    assert result.returncode == 0, result.stderr
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert not loaded & set(HEAVY), f"--help imports {loaded & set(HEAVY)}"
    assert min(seconds for seconds, _ in runs) < 0.5
