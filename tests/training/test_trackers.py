"""What trackers are told: read back from TensorBoard's files, and from stand-ins for the services."""

import json
import math
import sys
import types
from pathlib import Path

import pytest

from rebus.errors import ConfigError
from rebus.mesh import Mesh
from rebus.training.config import TrainRecipe
from rebus.training.metrics import StepRow, append_row, rewind
from rebus.training.trackers import open_trackers, scalars


def row(step: int, loss: float = 2.0, **changes) -> StepRow:
    values = {
        **{"step": step, "epoch": 0.5, "loss": loss, "grad_norm": 1.5, "lr": 1e-3, "num_tokens": 100},
        **{"num_supervised": 30, "num_visual": 60, "num_documents": 8, "num_images": 8, "tokens_total": 100},
        **{"step_seconds": 2.0, "phases": {"wait": 0.5, "forward": 1.5}, "mfu": 0.4, "memory_gb": 3.0},
        "grad_norms": {"connector": 1.2, "lora": 0.9},
    }
    return StepRow(**{**values, **changes})


def recipe(out: Path, *trackers: str) -> TrainRecipe:
    tree = {"out": out, "plan": out / "plan", "init": out / "init", "steps": 9, "trains": {"connector": {"lr": 1e-3}}}
    return TrainRecipe.model_validate({**tree, "trackers": trackers, "project": "birds"})


def told(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw: tag -> (step, value) in its order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_names_and_units():
    assert scalars(row(3, heldout=2.5)) == {
        "train/loss": 2.0,
        "train/lr": 1e-3,
        "train/grad_norm": 1.5,
        "train/epoch": 0.5,
        "train/is_skipped": 0.0,
        "heldout/loss": 2.5,
        "speed/tokens_per_second": 50.0,
        "speed/supervised_tokens_per_second": 15.0,
        "speed/visual_tokens_per_second": 30.0,
        "speed/samples_per_second": 4.0,
        "speed/mfu": 0.4,
        "memory/peak_gb": 3.0,
        "data/tokens_total": 100,
        "data/tokens": 100,
        "data/documents": 8,
        "data/images": 8,
        "time/step": 2.0,
        "time/wait": 0.5,
        "time/forward": 1.5,
        "grad_norm/connector": 1.2,
        "grad_norm/lora": 0.9,
    }
    assert not {"heldout/loss", "speed/mfu"} & set(scalars(row(3, mfu=None)))


def test_a_resumed_run_stands_in_tensorboard_once(tmp_path: Path):
    """Killed after step 5 with a state of step 4: steps 4 and 5 are taken again, and what was not flushed is there."""
    metrics = tmp_path / "metrics.jsonl"
    first = open_trackers(recipe(tmp_path, "tensorboard"), tmp_path, 0)
    for step in range(6):
        append_row(metrics, row(step, loss=step))
        if step != 3:  # as if a kill had cut off what the writer held
            first.log(row(step, loss=step))
    first.log_eval(2, {"choice4": 0.5})
    first.close()
    rewind(metrics, 4)
    again = open_trackers(recipe(tmp_path, "tensorboard"), tmp_path, 4)
    for step in range(4, 8):
        again.log(row(step, loss=10 * step))
    again.close()
    assert told(tmp_path)["train/loss"] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60), (7, 70)]
    assert told(tmp_path)["grad_norm/lora"] == [(step, 0.9) for step in range(8)]


def test_late_figures_of_evaluations_remove_nothing(tmp_path: Path):
    trackers = open_trackers(recipe(tmp_path, "tensorboard"), tmp_path, 0)
    for step in range(5):
        trackers.log(row(step))
    trackers.log_eval(2, {"choice4": 0.5})
    trackers.log(row(5))
    trackers.close()
    assert told(tmp_path)["eval/choice4"] == [(2, 0.5)]
    assert len(told(tmp_path)["train/loss"]) == 6


class FakeService(types.ModuleType):
    """Stands for wandb and trackio, whose calls are the same here: what they are called with, and a service that can
    fail."""

    class Error(Exception):
        pass

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.inits: list[dict] = []
        self.logged: list[tuple[int | None, dict]] = []
        self.fails, self.finished = False, 0

    def init(self, **settings) -> "FakeService":
        self.inits.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None: ...

    def log(self, figures: dict, step: int | None = None) -> None:
        if self.fails:
            raise self.Error("the service is down")
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    fake = FakeService(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


def test_a_service_is_told_of_one_run_over_resumes(service: FakeService, tmp_path: Path):
    name = service.__name__
    for first in (0, 4):
        trackers = open_trackers(recipe(tmp_path, name), tmp_path, first)
        trackers.log(row(first, loss=math.nan))
        trackers.close()
    before, after = service.inits
    assert before == after
    assert before["project"] == "birds"
    assert before["resume"] == "allow"
    assert before["config"]["steps"] == 9
    [kept] = json.loads((tmp_path / "trackers.json").read_text()).values()
    assert kept in before.get("id", before["name"])
    assert [step for step, _ in service.logged] == [0, 4]
    assert "train/loss" not in service.logged[0][1], "JSON has no NaN"
    assert service.logged[0][1]["train/grad_norm"] == 1.5
    assert service.finished == 2


def test_a_run_begun_anew_is_another_one(service: FakeService, tmp_path: Path):
    for _ in range(2):
        open_trackers(recipe(tmp_path, service.__name__), tmp_path, 0)
    assert service.inits[0] != service.inits[1]


def test_evaluations_reach_a_service(service: FakeService, tmp_path: Path):
    trackers = open_trackers(recipe(tmp_path, service.__name__), tmp_path, 0)
    trackers.log(row(8))
    trackers.log_eval(5, {"choice4": 0.5})
    step, figures = service.logged[-1]
    assert figures["eval/choice4"] == 0.5
    assert 5 in (step, figures.get("eval/step"))


def test_a_service_that_is_down_stops_nothing(service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if service.__name__ == "trackio":
        service.Error = FakeService.Error = type("Error", (ConnectionError,), {})  # what its client raises
    trackers = open_trackers(recipe(tmp_path, "tensorboard", service.__name__), tmp_path, 0)
    service.fails = True
    for step in range(3):
        trackers.log(row(step))
    trackers.close()
    assert capsys.readouterr().err.count("the service is down") == 1
    assert len(told(tmp_path)["train/loss"]) == 3


def test_a_service_that_cannot_start_is_left_out(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(**settings):
        raise OSError("not logged in")

    monkeypatch.setattr(service, "init", refuse)
    open_trackers(recipe(tmp_path, service.__name__), tmp_path, 0).log(row(0))
    assert f"without {service.__name__}" in capsys.readouterr().err
    assert service.logged == []


def test_a_missing_package_is_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_trackers(recipe(tmp_path, "wandb"), tmp_path, 0)


def test_other_ranks_tell_nobody(tmp_path: Path):
    trackers = open_trackers(recipe(tmp_path, "tensorboard"), tmp_path, 0, Mesh(1, 2))
    trackers.log(row(0))
    trackers.close()
    assert not (tmp_path / "tensorboard").exists()
