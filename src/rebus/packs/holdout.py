"""Which samples are kept for validation: a hash of the uid decides, whatever else is in the mixture."""

import numpy as np

UID_BYTES = 16


def is_held_out(uids: np.ndarray, share: float, seed: int) -> np.ndarray:
    """uids: uint8 [n, 16]. share: of all samples, 0..1. Returns: bool [n].

    splitmix64 (Steele et al. 2014) over both halves: a source's own uids may be numbers in a row.
    """
    halves = np.ascontiguousarray(uids).view(">u8").astype(np.uint64)  # [n, 2]
    mixed = _mix(_mix(halves[:, 0] + np.uint64(seed)) ^ halves[:, 1])
    return (mixed >> np.uint64(11)) * 2.0**-53 < share


def _mix(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, each bit of which depends on every bit; overflow is meant."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
