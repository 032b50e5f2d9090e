"""fp16's loss scale: small gradients would vanish in its range, so the loss is scaled up and gradients down again
(Micikevicius et al. 2018, section 3.2). bf16 and fp32 need none."""

import math
from dataclasses import dataclass

from rebus.training.step import Judge

START = 2.0**16
GROWTH_STEPS = 2000
OVERFLOW = "the loss scale was too large for fp16"


@dataclass(frozen=True)
class LossScale:
    """Halved by a step that overflows, doubled after GROWTH_STEPS that did not; 1 stays 1. A state keeps it as JSON."""

    value: float = 1.0
    num_good: int = 0

    def judge(self, further: Judge) -> Judge:
        """An overflow is the scale's doing, and not for the guard to judge, as long as there is a scale to lower."""

        def judged(loss: float, norm: float) -> str | None:
            overflowed = self.value > 1 and not math.isfinite(norm)
            return OVERFLOW if overflowed else further(loss, norm)

        return judged

    def after(self, refused: str | None) -> "LossScale":
        """The scale of the next step."""
        if refused == OVERFLOW:
            return LossScale(self.value / 2)
        if self.value > 1 and self.num_good + 1 == GROWTH_STEPS:
            return LossScale(self.value * 2)
        return LossScale(self.value, self.num_good + 1 if self.value > 1 else 0)
