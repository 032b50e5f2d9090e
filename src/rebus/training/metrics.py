"""Every step's numbers as one JSON line, so that any tool can draw them. A resumed run drops the lines behind its
starting step first: each step stands there once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rebus.fingerprint import write_atomically


@dataclass(frozen=True)
class StepRow:
    """One line of metrics.jsonl. Times in seconds; rates in tokens of this process's packs per second."""

    step: int
    epoch: float
    loss: float
    grad_norm: float
    lr: float
    num_tokens: int
    num_supervised: int
    tokens_total: int
    step_seconds: float
    wait_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / max(self.step_seconds, 1e-9)


def append_row(path: Path, row: StepRow) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> list[StepRow]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(StepRow(**json.loads(line)))
        except ValueError:
            break
    return rows


def rewind(path: Path, step: int) -> None:
    """Keeps the rows before `step`."""
    kept = [json.dumps(asdict(row)) + "\n" for row in read_rows(path) if row.step < step]
    write_atomically(path, "".join(kept))
