"""Plain statistics of the picture: size, aspect, entropy of its grey levels, sharpness, how empty it is, and a
perceptual hash by which near-duplicates are found."""

from typing import Any

import numpy as np

from rebus.config import Config
from rebus.scores.content import content_hash
from rebus.scores.decode import Decoded
from rebus.scores.perceptual import perceptual_hash
from rebus.scores.scorer import Opened, per_sample

COLUMNS = {
    "width": "float32",
    "height": "float32",
    "aspect": "float32",
    "entropy": "float32",
    "sharpness": "float32",
    "flatness": "float32",
    "white_border": "float32",
    "phash": "uint64",
    "content": "uint64",
}
ALIKE = 8
"""Grey levels on either side of the commonest one that count as the same colour: room for noise of a few levels."""

WHITE = 240
"""Grey level from which a margin counts as white. Beside a dark edge JPEG rings below it (219 at quality 75), within
its 8-pixel block: of a box in a 128-pixel picture, quality 30 to 75 moves the share by at most 0.025."""


class Options(Config):
    """No options."""


def open_scorer(options: Options) -> Opened:
    """Columns of a sample without a picture hold no value."""
    return per_sample(COLUMNS, _statistics)


def _statistics(item: Decoded) -> tuple[Any, ...]:
    """In the order of COLUMNS; what they mean stands in docs/scorers.md."""
    if item.picture is None:
        return tuple(np.nan if dtype == "float32" else None for dtype in COLUMNS.values())
    width, height = item.picture.size
    grey = item.picture.convert("L")  # once for all
    levels = np.asarray(grey)  # [height, width], no copy
    counts = np.array(grey.histogram())
    return (
        width,
        height,
        max(width, height) / min(width, height),
        _entropy(counts),
        _laplacian_variance(levels),
        _flatness(counts),
        _white_border(levels),
        perceptual_hash(grey),
        content_hash(item.image_bytes or b""),
    )


def _entropy(counts: np.ndarray) -> float:
    """Bits (0 to 8) of the grey levels, counts [256]."""
    shares = counts / counts.sum()
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def _flatness(counts: np.ndarray) -> float:
    """Share of pixels whose grey level lies within ALIKE of the commonest one; 1 for a picture of one colour."""
    commonest = int(counts.argmax())
    return float(counts[max(commonest - ALIKE, 0) : commonest + ALIKE + 1].sum() / counts.sum())


def _white_border(levels: np.ndarray) -> float:
    """Share of the area outside the box of all that is not white. Transparency was laid on white."""
    rows = np.flatnonzero(levels.min(axis=1) < WHITE)
    if not len(rows):
        return 1.0
    columns = np.flatnonzero(levels.min(axis=0) < WHITE)
    inside = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return float(1 - inside / levels.size)


def _laplacian_variance(levels: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian (Pech-Pacheco et al. 2000); 0 for pictures under 3 pixels a side.

    Summed in 16-bit integers, which hold it exactly (-1020 to 1020), and only then made floats.
    """
    if min(levels.shape) < 3:
        return 0.0
    g = levels.astype(np.int16)
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1]
    laplacian += g[1:-1, :-2]
    laplacian += g[1:-1, 2:]
    laplacian -= g[1:-1, 1:-1] << 2
    return float(laplacian.astype(np.float32).var())
