"""Which rule packs the documents of a plan."""

import numpy as np

from rebus.packs.binning import best_fit_decreasing
from rebus.packs.complement import fill_exactly
from rebus.packs.cutting import Limits
from rebus.packs.patches import best_fit_patches

MAX_EXACT = 200_000
"""Documents up to which exact fill is tried. At a million it fills 0.03 to 3.3 points better than best-fit decreasing,
most where a pack holds few documents, but at 0.09 to 0.94 million documents a second against 2.8 to 27
(benchmarks/binning.py): ten million would wait up to two minutes."""
EXACT, BEST_FIT = "exact fill", "best-fit decreasing"


def choose_packs(
    lengths: np.ndarray,
    limits: Limits,
    num_images: np.ndarray,
    num_patches: np.ndarray,
    place: np.ndarray,
    *,
    exact: bool = True,
) -> tuple[str, np.ndarray]:
    """The rule that makes fewer packs, and the pack of each document, int32 [n]; on a tie the more even one.

    lengths, num_images, num_patches: int [n], each document within the limits. place: documents of one size are taken
    in the order of their places: neighbours in the source should not be neighbours in a pack. exact: try exact fill,
    which knows no limit on pictures, so that it only counts where it happens to keep them.
    """
    order = np.argsort(place, kind="stable").astype(np.int32)
    best = _best_fit(lengths, limits, num_images, num_patches, order)
    if not exact or len(lengths) > MAX_EXACT:
        return BEST_FIT, best
    found = np.empty_like(best)
    found[order] = fill_exactly(lengths[order], limits.num_tokens)
    within = _most(found, num_images, limits.num_images) and _most(found, num_patches, limits.num_patches)
    return (EXACT, found) if within and found.max() <= best.max() else (BEST_FIT, best)


def _best_fit(
    lengths: np.ndarray, limits: Limits, num_images: np.ndarray, num_patches: np.ndarray, order: np.ndarray
) -> np.ndarray:
    max_images, max_patches = limits.num_images, limits.num_patches
    if max_patches is not None and (each := _patches_of_an_image(num_images, num_patches)) is not None:
        # Pictures of one size: a limit on patches is one on images, which costs a tenth of the time.
        fitting = max_patches // each if each else int(num_images.sum())
        max_images, max_patches = min(fitting, max_images) if max_images is not None else fitting, None
    if max_patches is None:
        return best_fit_decreasing(lengths, limits.num_tokens, num_images, max_images, order)
    return best_fit_patches(lengths, limits.num_tokens, num_images, max_images, num_patches, max_patches, order)


def _patches_of_an_image(num_images: np.ndarray, num_patches: np.ndarray) -> int | None:
    """Patches of every image, where all have as many; 0 where there is no image."""
    total = int(num_images.sum(dtype=np.int64))
    each = int(num_patches.sum(dtype=np.int64)) // total if total else 0
    return each if (num_patches == num_images * each).all() else None


def _most(packs: np.ndarray, sizes: np.ndarray, limit: int | None) -> bool:
    """True if no pack holds more than the limit."""
    return limit is None or np.bincount(packs[packs >= 0], weights=sizes[packs >= 0]).max(initial=0) <= limit
