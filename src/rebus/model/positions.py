"""Positions of tokens in a pack. One row: every document counts from zero (M-RoPE's three rows would live here)."""

import torch


def document_positions(bounds: torch.Tensor) -> torch.Tensor:
    """bounds [D + 1] -> positions int64 [T], restarting at 0 with each document."""
    bounds = bounds.long()
    starts = torch.repeat_interleave(bounds[:-1], bounds.diff())
    return torch.arange(int(bounds[-1]), device=bounds.device) - starts


def document_indices(bounds: torch.Tensor) -> torch.Tensor:
    """bounds [D + 1] -> int64 [T]: which document each token belongs to."""
    bounds = bounds.long()
    return torch.repeat_interleave(torch.arange(len(bounds) - 1, device=bounds.device), bounds.diff())
