"""What was answered, kept line by line, so that an evaluation that was killed goes on where it stopped."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Control = Literal["right", "wrong", "none"]
"""Which picture is shown: the item's own, another held-out one, or no picture at all."""

CONTROLS: tuple[Control, ...] = ("right", "wrong", "none")


@dataclass(frozen=True)
class Draw:
    """One choice. log_likelihoods: of each candidate, in nats, before the scoring rule; scores: after it."""

    candidates: tuple[str, ...]
    log_likelihoods: tuple[float, ...]
    scores: tuple[float, ...]
    chosen: str


@dataclass(frozen=True)
class ChoiceAnswer:
    """An item under one control. picture: uid of the picture shown, empty without one."""

    uid: str
    key: str
    label: str
    control: Control
    picture: str
    draws: tuple[Draw, ...]

    @property
    def share_correct(self) -> float:
        return sum(draw.chosen == self.label for draw in self.draws) / len(self.draws)


@dataclass(frozen=True)
class NamingAnswer:
    """A picture named freely. overlap: F1 of the words, 0..1."""

    uid: str
    key: str
    label: str
    answer: str
    exact: bool
    overlap: float


Answer = ChoiceAnswer | NamingAnswer


class AnswerLog:
    """The answers of one evaluation: those found in the file, and those appended since.

    A row counts only if it carries this evaluation's fingerprint. The file is cut at the first row that does not, or
    that is incomplete: that is where the process died.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.choices: dict[tuple[str, Control], ChoiceAnswer] = {}
        self.names: dict[str, NamingAnswer] = {}
        num_bytes = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            answer = read_row(line, fingerprint)
            if answer is None:
                break
            self._keep(answer)
            num_bytes += len(line)
        self.file = open(path, "ab")  # noqa: SIM115 - closed by __exit__
        self.file.truncate(num_bytes)

    def __enter__(self) -> "AnswerLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, answer: Answer) -> None:
        """Keeps an answer, on disk too when this returns; one that is there already is left as it is."""
        if not self._keep(answer):
            return
        task = "choice" if isinstance(answer, ChoiceAnswer) else "naming"
        row = {"task": task, "fingerprint": self.fingerprint, **asdict(answer)}
        self.file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def _keep(self, answer: Answer) -> bool:
        """True if the answer is new."""
        if isinstance(answer, ChoiceAnswer):
            return self.choices.setdefault((answer.uid, answer.control), answer) is answer
        return self.names.setdefault(answer.uid, answer) is answer


def read_row(line: bytes, fingerprint: str) -> Answer | None:
    """One line of answers.jsonl; None where it is cut or belongs to another evaluation."""
    if not line.endswith(b"\n"):
        return None
    try:
        row: dict[str, Any] = json.loads(line)
        if row.pop("fingerprint") != fingerprint:
            return None
        if row.pop("task") == "naming":
            return NamingAnswer(**row)
        draws = tuple(_draw(draw) for draw in row.pop("draws"))
        return ChoiceAnswer(**row, draws=draws)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _draw(row: dict[str, Any]) -> Draw:
    return Draw(tuple(row["candidates"]), tuple(row["log_likelihoods"]), tuple(row["scores"]), row["chosen"])
