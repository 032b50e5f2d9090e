"""A scorer that notes whom it measured, and dies where it is told to: for tests of what a kill costs."""

import os
import signal
from pathlib import Path

import numpy as np

from rebus.config import Config
from rebus.scores.decode import Decoded
from rebus.scores.scorer import Opened


class Options(Config):
    """notes: the file that gets a line a measured sample. REBUS_DIE_AFTER in the environment: lines before it kills."""

    notes: Path
    pictures: bool = True


def open_scorer(options: Options) -> Opened:
    def look(item: Decoded) -> tuple[str, str, bool]:
        return item.uid, item.text, item.picture is None

    def measure(batch: list[tuple[str, str, bool]]) -> dict[str, np.ndarray]:
        with open(options.notes, "a") as notes:
            notes.writelines(f"{uid}\n" for uid, _, _ in batch)
        limit = int(os.environ.get("REBUS_DIE_AFTER", "0"))
        if limit and len(options.notes.read_text().splitlines()) >= limit:
            os.kill(os.getpid(), signal.SIGKILL)
        lengths = np.array([[len(text), len(text) ** 2] for _, text, _ in batch], dtype=np.float16)
        return {
            "chars": lengths[:, 0].astype(np.float32),
            "blind": np.array([is_blind for _, _, is_blind in batch]),
            "vector": lengths,
        }

    return Opened(look, measure, options.pictures)
