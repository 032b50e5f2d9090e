"""A perceptual hash: pictures that look alike differ in few of its 64 bits, whatever their size and encoding.

The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.2: a
32 x 32 grey picture, the 8 x 8 lowest frequencies of its cosine transform without the constant ones, a bit for each
that lies above their median. Hashes made by other programs differ in resampling and bit order: compare ours with ours.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

SIDE = 32
NUM_FREQUENCIES = 8
DEAD_ZONE = 1.0
"""Coefficients within this of the median leave their bit 0. Rounding to 8 bits alone moves one by 0.3 (standard
deviation): without it, the bits of a flat or symmetric picture would be noise."""


def perceptual_hash(grey: "PIL.Image.Image") -> int:
    """64-bit hash of a picture of mode L. Bits run row by row from the lowest frequencies, the first is the highest.

    A picture of one colour hashes to 0.
    """
    import PIL.Image

    small = np.asarray(grey.resize((SIDE, SIDE), PIL.Image.Resampling.BOX), dtype=np.float64)
    low = _COSINES @ small @ _COSINES.T  # [8, 8]
    bits = low > np.median(low) + DEAD_ZONE
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
    """Rows 1 to 8 of the orthonormal DCT-II: [8, 32]."""
    frequency, place = np.arange(1, NUM_FREQUENCIES + 1)[:, None], np.arange(SIDE)[None]
    return np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


_COSINES = _cosines()
