"""Which steps are not taken: those whose gradient is no number, or stands out from the ones before it. Judged from
numbers that all ranks share, so that all judge alike, and remembered in the state, so that a resumed run does too."""

import json
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rebus.batches.feed import Feed
from rebus.errors import DataError
from rebus.fingerprint import write_atomically
from rebus.training.config import GuardConfig

NUM_BEFORE_JUDGING = 8
"""Norms of taken steps before any is called a spike."""


class Guard:
    """Judges step after step. `state`, JSON values, is all that it remembers."""

    def __init__(self, config: GuardConfig, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self._config = config
        self._norms: deque[float] = deque(state.get("norms", ()), maxlen=config.window)
        self.num_skipped: int = state.get("num_skipped", 0)
        self.num_in_a_row: int = state.get("num_in_a_row", 0)

    @property
    def state(self) -> dict[str, Any]:
        return {"norms": list(self._norms), "num_skipped": self.num_skipped, "num_in_a_row": self.num_in_a_row}

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why a step with this loss and global gradient norm (before clipping) is not to be taken; None: take it."""
        reason = self._reason(loss, grad_norm)
        if reason is None:
            self._norms.append(grad_norm)
            self.num_in_a_row = 0
        else:
            self.num_skipped += 1
            self.num_in_a_row += 1
        return reason

    def _reason(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            return f"loss {loss:g}, gradient norm {grad_norm:g}: not finite"
        if self._config.spike is None or len(self._norms) < NUM_BEFORE_JUDGING:
            return None
        middle = median(self._norms)
        if grad_norm <= self._config.spike * middle or middle == 0:  # at 0 nothing has learnt yet
            return None
        return f"gradient norm {grad_norm:g} is {grad_norm / middle:.1f} times the median of late, {middle:g}"

    def stop_if_hopeless(self, reason: str, listed: Path) -> None:
        """Raises: DataError where as many steps in a row were skipped as the recipe allows. reason: of the last."""
        if self.num_in_a_row < self._config.max_skipped:
            return
        raise DataError(
            f"{self.num_in_a_row} steps in a row were not taken (guard.max_skipped); of the last: {reason}. The "
            f"parameters are as they were before them. {listed} names the packs of each for `rebus show PLAN --pack`: "
            "mend what is wrong with them, or lower the learning rates or lengthen the warm-up and start anew."
        )


def list_skipped(path: Path, step: int, reason: str, packs: Sequence[int], feed: Feed) -> None:
    """Adds a step that was not taken, its packs and their documents to skipped.jsonl. A resumed run that meets a step
    again writes it anew; what a kill cut short is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = []
    for line in lines:
        try:
            kept += [line] if json.loads(line)["step"] < step else []
        except ValueError:
            break
    uids = [document.uid for pack in packs for document in feed.plan.documents(pack)]
    kept.append(json.dumps({"step": step, "reason": reason, "packs": list(packs), "uids": uids}))
    write_atomically(path, "".join(f"{line}\n" for line in kept))
