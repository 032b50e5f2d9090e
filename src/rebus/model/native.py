"""Qwen2-VL's and Qwen2.5-VL's vision transformers: pictures in their own shape, packed, no padding."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class NativeTowerConfig:
    """What the hub's vision_config says that the computation depends on."""

    width: int

    @classmethod
    def from_hub(cls, vision: dict[str, Any]) -> "NativeTowerConfig":
        raise NotImplementedError


class NativeTower(nn.Module):
    """Rows of pixels [P, 1176] of pictures with grids int64 [N, 3] (host) -> features [P, width]."""

    def __init__(self, config: NativeTowerConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width

    def forward(self, rows: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError
