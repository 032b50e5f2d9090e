"""docs/your_own_loop.md, run as it stands: the losses of `rebus train` on the same recipe."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rebus.checkpoints.load import load_model
from rebus.config import check_recipe
from rebus.training.config import TrainRecipe
from rebus.training.loop import run
from rebus.training.metrics import read_rows
from tiny_way import TinyWay

PAGE = (Path(__file__).parent.parent / "docs" / "your_own_loop.md").read_text()
LOOP, STEP = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
[RECIPE] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def here(tiny_way: TinyWay, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plan and the checkpoint that the page expects, gone into."""
    (tiny_way.folder / "checkpoint").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tiny_way.folder)
    return tiny_way.folder


def test_its_losses_are_those_of_rebus_train(here: Path):
    names: dict[str, Any] = {}
    exec(LOOP, names)
    rows = read_rows(run(check_recipe(TrainRecipe, yaml.safe_load(RECIPE), "docs/your_own_loop.md")) / "metrics.jsonl")
    assert names["losses"] == [row.loss for row in rows]
    assert names["losses"][-1] < names["losses"][0]
    mine, theirs = (load_model(here / folder)[0].state_dict() for folder in ("mine", "run"))
    assert [name for name, tensor in theirs.items() if not torch.equal(mine[name], tensor)] == []


def test_a_step_by_hand_is_the_same_step(here: Path):
    """It clips by torch's own sums, so to rounding."""
    names: dict[str, Any] = {}
    exec(STEP, names)
    by_hand = LOOP.replace("result = train_step(", "result = by_hand(")
    exec(LOOP, expected := {})
    exec(by_hand, found := {"by_hand": lambda *given, **_: Result(names["step_by_hand"](*given[:3]))})
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)


class Result:
    def __init__(self, loss: float) -> None:
        self.loss, self.grad_norm = loss, 0.0


def test_it_is_a_loop_of_forty_lines():
    assert len([line for line in LOOP.splitlines() if line.strip()]) <= 45
