"""Where the patches of a batch of pictures and videos lie, from their grids alone: what attends to what, and the place
of each patch in its frame. Computed on the host once a batch, without a loop over pictures."""

from dataclasses import dataclass

import torch

from rebus.model.attention import Documents, documents_of


@dataclass(frozen=True)
class NativeLayout:
    """frames: every frame a document. windows: every window one, or None where all attention is full. order: int64
    [P], the row of the input that comes n-th when windows lie together, and its inverse; None without windows.
    places: int64 [P, 2], (row, column) of each patch in its frame, in that order. Frames keep their bounds under it.
    """

    frames: Documents
    windows: Documents | None
    order: torch.Tensor | None
    inverse: torch.Tensor | None
    places: torch.Tensor


def native_layout(grids: torch.Tensor, merge_size: int, window: int, device: torch.device | str) -> NativeLayout:
    """grids: int64 [N, 3] on the host, (time, height, width) in patches; one row of the input is one patch, those of
    one token (merge_size x merge_size) side by side. window: its side in tokens; 0: there are none. device: where the
    layout is wanted.
    """
    heights, widths = (grids[:, axis].repeat_interleave(grids[:, 0]) for axis in (1, 2))  # of every frame
    tokens_down, tokens_across = heights // merge_size, widths // merge_size
    frame, down, across = _tokens(tokens_down, tokens_across)
    unit = merge_size**2
    order = inverse = windows = None
    if window:
        token_order, bounds = _windows(frame, down, across, tokens_down, tokens_across, window)
        order = (token_order[:, None] * unit + torch.arange(unit)).flatten()
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        windows = documents_of(bounds * unit, is_causal=False, device=device)
        down, across = down[token_order], across[token_order]
    frames = documents_of(_bounds(heights * widths), is_causal=False, device=device)
    inside = torch.arange(unit).repeat(len(down))
    corners = torch.stack([down, across], 1).repeat_interleave(unit, 0) * merge_size
    places = corners + torch.stack([inside // merge_size, inside % merge_size], 1)
    order, inverse = (index if index is None else index.to(device, non_blocking=True) for index in (order, inverse))
    return NativeLayout(frames, windows, order, inverse, places.to(device, non_blocking=True))


def _bounds(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _tokens(tokens_down: torch.Tensor, tokens_across: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every token: its frame, and its row and column there, in tokens."""
    counts = tokens_down * tokens_across
    frame = torch.arange(len(counts)).repeat_interleave(counts)
    within = torch.arange(len(frame)) - _bounds(counts)[frame]
    return frame, within // tokens_across[frame], within % tokens_across[frame]


def _windows(
    frame: torch.Tensor,
    down: torch.Tensor,
    across: torch.Tensor,
    tokens_down: torch.Tensor,
    tokens_across: torch.Tensor,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of tokens in which windows lie together, int64 [tokens], and the windows' bounds in it. Windows at the
    right and lower edge are what is left of the frame; inside one, tokens keep their order."""
    num_down, num_across = (-(-count // window) for count in (tokens_down, tokens_across))
    first = _bounds(num_down * num_across)
    owner = first[frame] + down // window * num_across[frame] + across // window
    return owner.argsort(stable=True), _bounds(owner.bincount(minlength=int(first[-1])))
