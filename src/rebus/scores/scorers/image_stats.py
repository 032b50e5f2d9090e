"""Plain statistics of the picture: size, aspect, entropy of its grey levels, sharpness."""

from collections.abc import Callable

import numpy as np

from rebus.config import Config
from rebus.scores.decode import Decoded


class Options(Config):
    """No options."""


def open_scorer(options: Options) -> Callable[[list[Decoded]], dict[str, np.ndarray]]:
    """Returns the measure; its columns are NaN where a sample has no picture."""
    return lambda batch: {
        name: np.array(values, dtype=np.float32)
        for name, values in zip(COLUMNS, zip(*map(_statistics, batch), strict=True), strict=True)
    }


COLUMNS = ("width", "height", "aspect", "entropy", "sharpness")


def _statistics(item: Decoded) -> tuple[float, ...]:
    """Width and height in pixels; long side over short; entropy in bits (0..8); variance of the Laplacian."""
    if item.picture is None:
        return (np.nan,) * len(COLUMNS)
    width, height = item.picture.size
    grey = np.asarray(item.picture.convert("L"))
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    shares = shares[shares > 0]
    entropy = float(-(shares * np.log2(shares)).sum())
    return width, height, max(width, height) / min(width, height), entropy, _laplacian_variance(grey)


def _laplacian_variance(grey: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian (Pech-Pacheco et al. 2000); 0 for pictures under 3 pixels a side."""
    if min(grey.shape) < 3:
        return 0.0
    g = grey.astype(np.float32)
    centre = g[1:-1, 1:-1]
    return float((g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * centre).var())
