"""Every step's numbers as one JSON line, so that any tool can draw them. A resumed run drops the lines behind its
starting step first: each step stands there once."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rebus.fingerprint import write_atomically


@dataclass(frozen=True)
class StepRow:
    """One line of metrics.jsonl. Counts are over all ranks; times in seconds, of rank 0.

    loss: mean over supervised tokens, in nats. num_visual: tokens that stand for pictures. phases: seconds of each
    timing.PHASES, whose sum is step_seconds. flops: of the whole step (training.flops), over all ranks; mfu: their
    share of what the devices could do at their peak, None where that is not known. memory_gb: peak of rank 0, in
    10^9 bytes. grad_norms: of each part, before clipping. is_skipped: the guard did not take the step.
    heldout: loss on the held-out plan after this step, where it was measured.
    """

    step: int
    epoch: float
    loss: float
    grad_norm: float
    lr: float
    num_tokens: int
    num_supervised: int
    num_visual: int
    num_documents: int
    num_images: int
    tokens_total: int
    step_seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    mfu: float | None = None
    memory_gb: float = 0.0
    grad_norms: dict[str, float] = field(default_factory=dict)
    is_skipped: bool = False
    heldout: float | None = None

    @property
    def wait_seconds(self) -> float:
        return self.phases.get("wait", 0.0)

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
