"""What the answers amount to, and how sure that is."""

import math
import re
from collections import Counter
from collections.abc import Sequence

Z95 = 1.959963984540054  # standard normal quantile at 0.975


def wilson(share: float, num_trials: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a binomial share; 95% by default.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22; advised for
    small samples by Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion".
    """
    if num_trials < 1 or not 0 <= share <= 1:
        raise ValueError(f"no interval for a share of {share} in {num_trials} trials")
    spread = z * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    centre, scale = share + z * z / (2 * num_trials), 1 + z * z / num_trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def sign_test(firsts: Sequence[float], seconds: Sequence[float]) -> float:
    """Two-sided exact p-value that pairs differ in neither direction; equal pairs say nothing.

    With one right or wrong answer a pair it is McNemar's exact test (McNemar 1947, Psychometrika 12).
    """
    wins = sum(first > second for first, second in zip(firsts, seconds, strict=True))
    losses = sum(first < second for first, second in zip(firsts, seconds, strict=True))
    num_pairs = wins + losses
    tail = sum(math.comb(num_pairs, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**num_pairs)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: what counts when names are compared."""
    return re.findall(r"\w+", text.casefold())


def exact_match(answer: str, label: str) -> bool:
    return words(answer) == words(label)


def word_overlap(answer: str, label: str) -> float:
    """F1 of the two bags of words, 0..1 (SQuAD's token F1: Rajpurkar et al. 2016, section 6.1)."""
    ours, wanted = Counter(words(answer)), Counter(words(label))
    num_shared = (ours & wanted).total()
    return 2 * num_shared / (ours.total() + wanted.total()) if num_shared else 0.0
