"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from rebus.training.config import ScheduleConfig


def lr_share(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """Share of the peak rate at `step` (0-based) of `num_steps`.

    Rises linearly to 1 at the last step of the warm-up, then falls to `final_share` at the last step (cosine, linear,
    and wsd in its last `decay_share`) or stays (constant). The first step of a run trains: its share is never 0.
    """
    warmup = warmup_steps(num_steps, schedule)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    start = warmup if schedule.kind != "wsd" else max(warmup, num_steps - math.ceil(schedule.decay_share * num_steps))
    if step < start:
        return 1.0
    done = min((step - start) / max(num_steps - start - 1, 1), 1.0)
    shape = (1 + math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else 1 - done
    return schedule.final_share + (1 - schedule.final_share) * shape


def warmup_steps(num_steps: int, schedule: ScheduleConfig) -> int:
    """Steps of the warm-up: as given, or the share of all steps, rounded up as transformers rounds it."""
    if schedule.warmup_share is not None:
        return math.ceil(schedule.warmup_share * num_steps)
    return schedule.warmup_steps
