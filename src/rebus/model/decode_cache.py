"""Keys and values of requests that are decoded together: a row each, every row as long as its own request."""

from typing import Any

import torch

BLOCK = 64
"""Capacity grows by whole blocks of so many tokens, and by half of itself at least."""


class RowCache:
    """Stands where transformers expects its own cache. Rows are added by a prompt each, the first of them extended
    together, the last taken off.

    One buffer a layer, [rows, kv_heads, capacity, d], made at the first prompt and grown when it is full. Nothing is
    padded on the left: row r holds tokens 0 .. lengths[r] - 1, and `mask` hides what lies behind them.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._shape = (0, 0)  # rows, tokens that there is room for
        self._num_stepping = 0  # rows that the running forward extends; 0: it fills the last row
        self._ends = torch.zeros(0, dtype=torch.int64)

    def begin_row(self, num_tokens: int, room: int) -> None:
        """The next forward is a prompt of `num_tokens`, alone; it becomes the last row. room: tokens to come."""
        self.lengths.append(num_tokens)
        self._num_stepping = 0
        self._reserve(len(self.lengths), num_tokens + room)

    def begin_step(self, num_rows: int, device: torch.device) -> torch.Tensor | None:
        """The next forward is one token of each of the first rows. Returns its mask bool [num_rows, 1, 1, longest],
        None where all keys count."""
        self._num_stepping = num_rows
        self._ends = torch.tensor(self.lengths[:num_rows], device=device)
        self.lengths[:num_rows] = [length + 1 for length in self.lengths[:num_rows]]
        longest = max(self.lengths[:num_rows])
        self._reserve(len(self.lengths), longest)
        if min(self.lengths[:num_rows]) == longest:
            return None
        return (torch.arange(longest, device=device) <= self._ends[:, None])[:, None, None, :]

    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""
        for keys, values in self.buffers:
            keys[target], values[target] = keys[source], values[source]
        self.lengths[target] = self.lengths[source]

    def pop(self) -> None:
        """Takes the last row off."""
        self.lengths.pop()

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores [1, kv_heads, T, d] of a prompt or [rows, kv_heads, 1, d] of a step; returns what to attend to."""
        if layer == len(self.buffers):
            rows, capacity = self._shape
            made = [one.new_zeros(rows, one.shape[1], capacity, one.shape[3]) for one in (keys, values)]
            self.buffers.append((made[0], made[1]))
        kept_keys, kept_values = self.buffers[layer]
        if not self._num_stepping:
            self._fill(kept_keys, keys)
            self._fill(kept_values, values)
            return keys, values
        return self._extend(kept_keys, keys), self._extend(kept_values, values)

    def _fill(self, buffer: torch.Tensor, new: torch.Tensor) -> None:
        row, num_tokens = buffer[len(self.lengths) - 1], new.shape[2]
        row[:, :num_tokens] = new[0]
        row[:, num_tokens:] = 0  # what overflowed in another request would reach this one: 0 * inf is no number

    def _extend(self, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        num_rows = self._num_stepping
        buffer[torch.arange(num_rows, device=new.device), :, self._ends] = new[:, :, 0]
        return buffer[:num_rows, :, : max(self.lengths[:num_rows])]

    def get_seq_length(self, *_: Any) -> int:
        """transformers asks where positions are not given; ours always are."""
        return 0

    def _reserve(self, num_rows: int, num_tokens: int) -> None:
        rows, capacity = self._shape
        if num_rows > rows:
            rows = max(num_rows, rows * 2)
        if num_tokens > capacity:
            capacity = -(-max(num_tokens, capacity * 3 // 2) // BLOCK) * BLOCK
        if (rows, capacity) == self._shape:
            return
        self._shape = (rows, capacity)
        for layer, pair in enumerate(self.buffers):  # one layer at a time: old and new never lie in memory together
            self.buffers[layer] = (_grown(pair[0], rows, capacity), _grown(pair[1], rows, capacity))


def _grown(old: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
    new = old.new_zeros(rows, old.shape[1], capacity, old.shape[3])
    new[: old.shape[0], :, : old.shape[2]] = old
    return new
