"""How well scores tell right pairs from planted mismatches: the area under the ROC curve, with its uncertainty."""

from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Auc:
    """value: the chance that a right pair scores above a wrong one (ties count half). low, high: 95% bootstrap."""

    value: float
    low: float
    high: float


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """right [R], wrong [W]: scores. The Mann-Whitney statistic over R * W. NaN where one of them is empty."""
    if not len(right) or not len(wrong):
        return float("nan")
    ordered = np.sort(wrong)
    below, upto = np.searchsorted(ordered, right, "left"), np.searchsorted(ordered, right, "right")
    return float((below + upto).sum() / (2 * len(right) * len(wrong)))


def auc_with_interval(right: np.ndarray, wrong: np.ndarray, seed: int) -> Auc:
    """Resamples right and wrong pairs, each with replacement."""
    dice = np.random.default_rng(seed)
    values = [
        auc(dice.choice(right, len(right)), dice.choice(wrong, len(wrong))) if len(right) and len(wrong) else np.nan
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return Auc(auc(right, wrong), float(low), float(high))


def planted_circle(texts: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hands the texts of half the pairs on in one circle. Returns which text each pair now has [N], and which pairs
    are thereby wrong [N] (a text equal to the pair's own makes no mismatch)."""
    order = np.arange(len(texts))
    circle = np.random.default_rng(seed).permutation(len(texts))[: len(texts) // 2]
    order[circle] = np.roll(circle, 1)
    words = np.array(texts)
    return order, words[order] != words
