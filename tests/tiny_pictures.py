"""Encoded pictures for tests, and how EXIF turns them."""

import io

import numpy as np
import PIL.Image


def encoded(picture: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> PIL.Image.Image:
    """Every pixel by chance: no error of a resize hides in it."""
    rng = np.random.default_rng(width * 7919 + height)
    return PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Smooth noise with a few hard edges, as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)
    for _ in range(5):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        picture.paste(tuple(rng.integers(0, 256, 3).tolist()), (left, top, left + width // 5, top + height // 7))
    return picture


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),  # the stored top row stands at the right
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}
