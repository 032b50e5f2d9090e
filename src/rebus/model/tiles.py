"""The tokens of anyres tiles put in the order of the whole picture: one gather for all pictures of a batch."""

from functools import lru_cache

import torch
from torch.nn import functional

from rebus.pictures.anyres import Tiling, num_tokens, tile
from rebus.pictures.config import AnyresConfig


def arrange(
    crops: torch.Tensor, grids: torch.Tensor, config: AnyresConfig, newline: torch.Tensor | None
) -> tuple[torch.Tensor, list[int]]:
    """crops [R, n, H] of N pictures -> their tokens [M, H] and how many each has.

    grids: int64 [N, 3] (crops, height, width in pixels) on the host. newline [H]: ends the rows of `spatial_unpad`.
    """
    sizes = [(height, width) for _, height, width in grids.tolist()]
    table = crops.flatten(0, 1) if newline is None else torch.cat([crops.flatten(0, 1), newline[None].to(crops.dtype)])
    parts, start = [], 0
    for height, width in sizes:
        index, num_rows = _index(width, height, config)
        parts.append(torch.where(index < 0, len(table) - 1, index + start))
        start += num_rows
    tokens = table.index_select(0, torch.cat(parts).to(table.device, non_blocking=True))
    if config.max_tiles is None:
        return tokens, [len(part) for part in parts]
    pieces = tokens.split([len(part) for part in parts])
    shrunk = [_shrink(piece, tile(w, h, config), config) for piece, (h, w) in zip(pieces, sizes, strict=True)]
    return torch.cat(shrunk), [num_tokens(width, height, config) for height, width in sizes]


@lru_cache(maxsize=1024)
def _index(width: int, height: int, config: AnyresConfig) -> tuple[torch.Tensor, int]:
    """(where each token of a picture stands among its crops' tokens, -1 for the newline; how many its crops have)."""
    tiling, side = tile(width, height, config), config.tokens_per_side
    base = torch.arange(side * side)
    tiles = side * side + torch.arange(tiling.rows * tiling.columns * side * side)
    if config.merge == "flat":
        return torch.cat([base, tiles]), side * side * tiling.num_crops
    whole = tiles.view(tiling.rows, tiling.columns, side, side).transpose(1, 2).flatten(2).flatten(0, 1)
    kept = whole[tiling.top : tiling.top + tiling.height, tiling.left : tiling.left + tiling.width]
    if config.merge == "spatial_unpad":
        kept = torch.cat([kept, torch.full((len(kept), 1), -1)], dim=1)
    return torch.cat([base, kept.flatten()]), side * side * tiling.num_crops


def _shrink(tokens: torch.Tensor, tiling: Tiling, config: AnyresConfig) -> torch.Tensor:
    """tokens [m, H] of one picture, its grid brought to the size that `max_tiles` allows (LLaVA-OneVision)."""
    if tiling.shrunk is None:
        return tokens
    base, grid = tokens.split([config.tokens_per_side**2, len(tokens) - config.tokens_per_side**2])
    rows = grid.unflatten(0, (tiling.height, tiling.width + 1))  # [h, w + 1, H], the newline last
    picture = functional.interpolate(rows[:, :-1].permute(2, 0, 1)[None], tiling.shrunk, mode="bilinear")[0]
    newlines = rows[:1, -1:].expand(tiling.shrunk[0], -1, -1)
    return torch.cat([base, torch.cat([picture.permute(1, 2, 0), newlines], dim=1).flatten(0, 1)])
