"""Positions of tokens: one row, or Qwen2-VL's three (time, height, width) where pictures keep their own shape.

M-RoPE by the official rule (Qwen2-VL, section 2.1; modeling code of QwenLM and transformers 4.x): a picture's tokens
start where the text stopped and count along each axis of its grid; the next text goes on at the largest of the three
plus one. transformers 5.17 ignores the time axis there, and cuts seconds a grid to whole numbers.
"""

import numpy as np

from rebus.pictures.config import ImageConfig, NativeConfig
from rebus.tokens.encode import Encoded

ROUNDING = 1e-6
"""Added before cutting to whole steps: 0.1 s * 20 steps a second is 2, not 1.9999."""


def prompt_positions(encoded: Encoded, config: ImageConfig) -> np.ndarray:
    """Of one document alone: int64 [T], or [3, T]."""
    bounds = np.array([0, encoded.num_tokens])
    return token_positions(bounds, encoded.image_starts, encoded.image_lengths, encoded.grids, encoded.seconds, config)


def token_positions(
    bounds: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    grids: np.ndarray,
    seconds: np.ndarray,
    config: ImageConfig,
) -> np.ndarray:
    """Positions int64 [T], or [3, T] under native resolution; every stretch between bounds [S + 1] counts from 0.

    starts, lengths: int [N] of the slots, ascending, in T. grids: int [N, 3] in patches. seconds: float [N] of video
    in one step of the time axis.
    """
    bounds = bounds.astype(np.int64)
    num_tokens = int(bounds[-1])
    if not isinstance(config, NativeConfig):
        return np.arange(num_tokens) - np.repeat(bounds[:-1], np.diff(bounds))
    starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
    merged = grids.astype(np.int64).reshape(-1, 3) // (1, config.merge_size, config.merge_size)
    pace = np.where(seconds > 0, seconds.astype(np.float64) * config.tokens_per_second, 1.0)
    if not config.tokens_per_second:
        pace = np.ones(len(merged))
    last = np.floor((merged[:, 0] - 1) * pace + ROUNDING).astype(np.int64)  # the last step of time
    widths = np.maximum(last + 1, merged[:, 1:].max(axis=1, initial=1))
    return _axes(bounds, starts, lengths, merged, pace, widths)


def _axes(
    bounds: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    merged: np.ndarray,
    pace: np.ndarray,
    widths: np.ndarray,
) -> np.ndarray:
    """widths: int64 [N], by how much each slot moves the text after it on."""
    inside = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())  # [slot tokens]
    advance = np.ones(int(bounds[-1]), np.int64)
    advance[inside] = 0
    advance[starts + lengths - 1] = widths
    base = np.cumsum(advance) - advance
    base -= np.repeat(base[bounds[:-1]], np.diff(bounds))
    positions = np.stack([base, base, base])
    place = inside - np.repeat(starts, lengths)  # of a token in its slot
    height, width = np.repeat(merged[:, 1], lengths), np.repeat(merged[:, 2], lengths)
    time = np.floor(place // (height * width) * np.repeat(pace, lengths) + ROUNDING).astype(np.int64)
    positions[:, inside] += np.stack([time, place // width % height, place % width])
    return positions
