"""Qwen2-VL's multimodal rotary embedding (section 2.1), around any plain one: every frequency turns with one of three
axes. After it, queries and keys are rotated as ever, so the language model is the stock one."""

import torch
from torch import nn


class MultimodalRotary(nn.Module):
    """plain: a transformers rotary module. section: how many frequencies turn with time, height and width; they are
    half the head's width together."""

    axes: torch.Tensor

    def __init__(self, plain: nn.Module, section: tuple[int, int, int]) -> None:
        super().__init__()
        self.plain = plain
        axes = torch.repeat_interleave(torch.arange(3), torch.tensor(section)).repeat(2)  # [d]
        self.register_buffer("axes", axes, persistent=False)

    @torch.no_grad()
    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """position_ids [3, B, T] -> cos, sin [B, T, d]."""
        turned = (table.unflatten(0, (3, -1)) for table in self.plain(states, position_ids.flatten(0, 1)))
        cos, sin = (table.gather(0, self.axes.expand(1, *table.shape[1:]))[0] for table in turned)
        return cos, sin
