"""Where a run's numbers are shown beside metrics.jsonl: TensorBoard by default, Weights & Biases and trackio where the
recipe names them. Rank 0 alone reports, and no tracker ever stops a run."""

import importlib
import json
import math
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from rebus.errors import ConfigError
from rebus.fingerprint import write_atomically
from rebus.log import say
from rebus.mesh import Mesh
from rebus.training.config import TrainRecipe
from rebus.training.metrics import StepRow, read_rows

AGAIN = 1_000
"""Steps before a resumed one that TensorBoard is told again: what a killed process had not flushed (30 s) is in
metrics.jsonl all the same."""

FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, sqlite3.Error)
"""What a full disk, a service that is down or its local database raise; trackers add their own."""


def scalars(row: StepRow) -> dict[str, float]:
    """The numbers of a step by the names that trackers show. Units: docs/training.md."""
    seconds = max(row.step_seconds, 1e-9)
    named: dict[str, float | None] = {
        "train/loss": row.loss,
        "train/lr": row.lr,
        "train/grad_norm": row.grad_norm,
        "train/epoch": row.epoch,
        "train/is_skipped": float(row.is_skipped),
        "heldout/loss": row.heldout,
        "speed/tokens_per_second": row.tokens_per_second,
        "speed/supervised_tokens_per_second": row.num_supervised / seconds,
        "speed/visual_tokens_per_second": row.num_visual / seconds,
        "speed/samples_per_second": row.num_documents / seconds,
        "speed/mfu": row.mfu,
        "memory/peak_gb": row.memory_gb,
        "data/tokens_total": row.tokens_total,
        "data/tokens": row.num_tokens,
        "data/documents": row.num_documents,
        "data/images": row.num_images,
        "time/step": row.step_seconds,
        **{f"time/{phase}": spent for phase, spent in row.phases.items()},
        **{f"grad_norm/{part}": norm for part, norm in row.grad_norms.items()},
    }
    return {name: value for name, value in named.items() if value is not None}


class Tracker(Protocol):
    """failures: what its calls raise where it cannot report."""

    name: str
    failures: tuple[type[Exception], ...]

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def log_late(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step that lies behind others already."""

    def close(self) -> None: ...


class Trackers:
    """All trackers of a run. What one raises is said once; the others and the run go on."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers
        self._complained: set[str] = set()

    def log(self, row: StepRow) -> None:
        self._each(lambda tracker: tracker.log(row.step, scalars(row)))

    def log_eval(self, step: int, figures: Mapping[str, float]) -> None:
        """What an evaluation of the checkpoint after `step` steps found; it may come many steps later."""
        named = {f"eval/{name}": value for name, value in figures.items()}
        self._each(lambda tracker: tracker.log_late(step, named))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            try:
                act(tracker)
            except tracker.failures as error:
                if tracker.name not in self._complained:
                    self._complained.add(tracker.name)
                    say(f"{tracker.name}: {type(error).__name__}: {error}. It lacks steps; metrics.jsonl has them.")


def open_trackers(recipe: TrainRecipe, folder: Path, resume_step: int, mesh: Mesh = Mesh()) -> Trackers:  # noqa: B008 - frozen
    """The recipe's trackers, on rank 0; none on others. A resumed run goes on in the same run of each.

    Raises: ConfigError where a package is not installed. A service that does not answer is said and left out.
    """
    opened: list[Tracker] = []
    for name in recipe.trackers if mesh.is_main else ():
        module = _module(name)
        failures = (*FAILURES, *_own_failures(module))
        try:
            opened.append(OPEN[name](module, failures, recipe, folder, resume_step))
        except failures as error:
            say(f"without {name}: {type(error).__name__}: {error}")
    return Trackers(opened)


MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        raise ConfigError(
            f"the recipe names the tracker {name}, which cannot be imported ({error}). Install it with "
            f"`pip install {name}`, or take it off `trackers`."
        ) from error


def _own_failures(module: ModuleType) -> tuple[type[Exception], ...]:
    """wandb's errors derive from Exception alone; trackio's server is asked by httpx."""
    import httpx

    own = getattr(module, "Error", None)
    return (httpx.HTTPError, own) if isinstance(own, type) and issubclass(own, Exception) else (httpx.HTTPError,)


class TensorBoard:
    """Event files in <out>/tensorboard. A resumed run hides the steps of before that it takes again."""

    name = "tensorboard"

    def __init__(
        self, module: Any, failures: tuple[type[Exception], ...], recipe: TrainRecipe, folder: Path, resume_step: int
    ) -> None:
        self.failures = failures
        first = max(0, resume_step - AGAIN)
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        for row in read_rows(folder / "metrics.jsonl"):
            if first <= row.step < resume_step:
                self.log(row.step, scalars(row))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    log_late = log

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline and its other variables hold. Steps that a resumed run takes again
    are already there: the service keeps the first."""

    name = "wandb"

    def __init__(
        self, module: Any, failures: tuple[type[Exception], ...], recipe: TrainRecipe, folder: Path, resume_step: int
    ) -> None:
        self.failures = failures
        self._run = module.init(
            project=recipe.project,
            name=recipe.out.name,
            id=run_id(folder, self.name, anew=resume_step == 0),
            resume="allow",
            dir=str(folder),
            config=recipe.model_dump(mode="json"),
        )
        self._run.define_metric("eval/*", step_metric="eval/step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(_finite(figures), step=step)

    def log_late(self, step: int, figures: Mapping[str, float]) -> None:
        """The service drops a step that lies behind: these figures have an axis of their own."""
        self._run.log({**_finite(figures), "eval/step": step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, on this machine or where TRACKIO_SPACE_ID says. It knows a run by its name."""

    name = "trackio"

    def __init__(
        self, module: Any, failures: tuple[type[Exception], ...], recipe: TrainRecipe, folder: Path, resume_step: int
    ) -> None:
        self.failures, self._module = failures, module
        module.init(
            project=recipe.project,
            name=f"{recipe.out.name}-{run_id(folder, self.name, anew=resume_step == 0)}",
            resume="allow",
            config=recipe.model_dump(mode="json"),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._module.log(_finite(figures), step=step)

    log_late = log

    def close(self) -> None:
        self._module.finish()


OPEN: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def run_id(folder: Path, tracker: str, *, anew: bool) -> str:
    """The tracker's name for this run, kept in <out>/trackers.json so that a resumed run finds it again."""
    path = folder / "trackers.json"
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if anew or tracker not in known:
        known[tracker] = uuid.uuid4().hex[:8]
        write_atomically(path, json.dumps(known, indent=2) + "\n")
    return known[tracker]


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """JSON knows no NaN; a step that was skipped has one."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}
