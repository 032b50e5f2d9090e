"""Plain statistics of the text: length, words, repetition, share of symbols."""

from collections.abc import Callable

import numpy as np

from rebus.config import Config
from rebus.scores.decode import Decoded

COLUMNS = ("num_chars", "num_words", "repetition", "symbol_share")


class Options(Config):
    """No options."""


def open_scorer(options: Options) -> Callable[[list[Decoded]], dict[str, np.ndarray]]:
    """Returns the measure."""
    return lambda batch: {
        name: np.array(values, dtype=np.float32)
        for name, values in zip(COLUMNS, zip(*map(_statistics, batch), strict=True), strict=True)
    }


def _statistics(item: Decoded) -> tuple[float, ...]:
    """Characters; words; share of words seen before in the same text; share of characters neither letter nor space."""
    words = item.text.lower().split()
    symbols = sum(not (character.isalpha() or character.isspace()) for character in item.text)
    repetition = 1 - len(set(words)) / len(words) if words else 0.0
    return len(item.text), len(words), repetition, symbols / max(len(item.text), 1)
