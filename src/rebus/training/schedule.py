"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from rebus.training.config import ScheduleConfig


def lr_share(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """Share of the peak rate at `step` (0-based) of `num_steps`.

    Rises linearly to 1 at step `warmup_steps - 1`, then falls to `final_share` at the last step (cosine, linear) or
    stays (constant). The first step of a run trains: its share is 1 / warmup_steps, never 0.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    left = max(num_steps - schedule.warmup_steps - 1, 1)
    done = min((step - schedule.warmup_steps) / left, 1.0)
    shape = (1 + math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else 1 - done
    return schedule.final_share + (1 - schedule.final_share) * shape
