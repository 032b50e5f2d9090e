"""benchmarks/gpu_pretrain.py on its tiny shapes, as the command runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_pretrain.py"


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=here, timeout=300)


@pytest.mark.parametrize("shape", ["open_qwen2vl", "llava_next_7b", "qwen2_vl_2b"])
def test_a_tiny_shape_trains_and_is_measured(shape: str, tmp_path: Path):
    found = tmp_path / "found.json"
    done = start("--tiny", "--shape", shape, "--steps", "2", "--warmup", "1", "--json", str(found))
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    assert figures["last_loss"] < figures["first_loss"]
    assert figures["tokens_per_second"] > 0
    assert figures["mfu"] is None  # of a CPU no peak is known
    assert figures["paper"] is None  # a tiny shape says nothing about the paper's
    assert sum(figures["phases"].values()) == pytest.approx(figures["seconds_per_step"], rel=0.2)


def test_without_a_gpu_the_real_shapes_are_refused_in_plain_words():
    done = start("--shape", "open_qwen2vl")
    assert done.returncode == 1
    assert "no GPU here" in done.stderr
