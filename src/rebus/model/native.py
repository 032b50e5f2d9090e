"""Qwen2-VL's and Qwen2.5-VL's vision transformers: pictures in their own shape, packed, no padding (Qwen2-VL, section
2.1; Qwen2.5-VL, section 2.1.1). The merger that follows is a connector."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from rebus.errors import ConfigError, SlotMismatchError
from rebus.model.attention import PACKED, REFERENCE, Documents, packed_attention, reference_attention
from rebus.model.native_layout import native_layout

ATTENTION = {PACKED: packed_attention, REFERENCE: reference_attention}
THETA = 10000.0
"""Base of the rotary frequencies."""


@dataclass(frozen=True)
class NativeTowerConfig:
    """What the hub's vision_config says that the computation depends on.

    row_width: values of one patch. window: side of a window in merged tokens, 0 where attention is full everywhere;
    full_blocks: the blocks that attend to whole frames nevertheless. is_gated: RMSNorm and a gated MLP (Qwen2.5-VL)
    in place of LayerNorm and QuickGELU.
    """

    width: int
    depth: int
    num_heads: int
    inner_width: int
    row_width: int
    merge_size: int
    is_gated: bool = False
    window: int = 0
    full_blocks: tuple[int, ...] = ()

    @classmethod
    def from_hub(cls, vision: dict[str, Any]) -> "NativeTowerConfig":
        """vision: the hub's vision_config as JSON values; what it leaves out is as in the published models.

        Raises: ConfigError where it belongs to another architecture, or asks for an activation that is not its own.
        """
        is_gated = _is_gated(vision)
        patch, merge = vision.get("patch_size", 14), vision.get("spatial_merge_size", 2)
        width = vision.get("hidden_size", 1280) if is_gated else vision.get("embed_dim", 1280)
        inner = vision.get("intermediate_size", 3420) if is_gated else int(width * vision.get("mlp_ratio", 4))
        return cls(
            width=width,
            depth=vision.get("depth", 32),
            num_heads=vision.get("num_heads", 16),
            inner_width=inner,
            row_width=3 * vision.get("temporal_patch_size", 2) * patch**2,
            merge_size=merge,
            is_gated=is_gated,
            window=vision.get("window_size", 112) // merge // patch if is_gated else 0,
            full_blocks=tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31))) if is_gated else (),
        )


def _is_gated(vision: dict[str, Any]) -> bool:
    name = vision.get("model_type")
    gates = {"qwen2_vl": False, "qwen2_vl_vision": False, "qwen2_5_vl": True, "qwen2_5_vl_vision": True}
    if name not in gates:
        raise ConfigError(f"a {name} is no native-resolution tower; known: {', '.join(gates)}.")
    activation = "silu" if gates[name] else "quick_gelu"
    if vision.get("hidden_act", activation) != activation:
        raise ConfigError(f"a {name} has hidden_act '{activation}', this one says '{vision['hidden_act']}'.")
    return gates[name]


class NativeTower(nn.Module):
    """Rows of pixels [P, row_width] of pictures with grids int64 [N, 3] (host) -> features [P, width], rows in the
    input's order: those of one token stand side by side.

    attention: `rebus_packed` or `rebus_reference`. gradient_checkpointing: activations inside blocks are computed
    again in the backward pass.
    """

    def __init__(self, config: NativeTowerConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.attention, self.gradient_checkpointing = PACKED, False
        self._gradient_checkpointing_func: Any = partial(checkpoint, use_reentrant=False)  # as transformers names it
        self.patch_embed = _PatchEmbed(config)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))

    def forward(self, rows: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Raises: SlotMismatchError where the grids speak of another number of patches than there are."""
        num_patches = int(grids.prod(1).sum())
        if num_patches != len(rows):
            raise SlotMismatchError(
                f"{len(rows)} rows of pixels, but the grids of {len(grids)} pictures: {num_patches}."
            )
        layout = native_layout(grids, self.config.merge_size, self.config.window, rows.device)
        states = self.patch_embed(rows)
        if layout.order is not None:
            states = states[layout.order]
        turn = rotary_tables(layout.places, self.width // self.config.num_heads)
        for number, block in enumerate(self.blocks):
            is_full = layout.windows is None or number in self.config.full_blocks
            documents = layout.frames if is_full else layout.windows
            if self.gradient_checkpointing and self.training:
                states = self._gradient_checkpointing_func(block, states, turn, documents, self.attention)
            else:
                states = block(states, turn, documents, self.attention)
        return states if layout.inverse is None else states[layout.inverse]


def rotary_tables(places: torch.Tensor, head_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) int64 [P, 2] -> cos, sin float32 [P, 1, head_width]: a quarter of the channels turn with each,
    and again in the other half."""
    quarter = torch.arange(0, head_width // 2, 2, device=places.device, dtype=torch.float32) / (head_width // 2)
    angles = (places[:, :, None].float() / THETA**quarter).flatten(1).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _turned(heads: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[P, heads, d], rotated in float32."""
    cos, sin = turn
    exact = heads.float()
    first, second = exact.chunk(2, dim=-1)
    return (exact * cos + torch.cat([-second, first], -1) * sin).to(heads.dtype)


class _PatchEmbed(nn.Module):
    """A patch is cut out already, so the checkpoints' Conv3d is one matrix; in bf16 torch's Conv3d is far slower."""

    def __init__(self, config: NativeTowerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.row_width, config.width, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.proj(rows.to(self.proj.weight.dtype))


class _Block(nn.Module):
    def __init__(self, config: NativeTowerConfig) -> None:
        super().__init__()
        norm = nn.RMSNorm if config.is_gated else nn.LayerNorm
        self.norm1, self.norm2 = norm(config.width, eps=1e-6), norm(config.width, eps=1e-6)
        self.attn = _Attention(config)
        self.mlp = _GatedMlp(config) if config.is_gated else _Mlp(config)

    def forward(
        self,
        states: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        documents: Documents,
        attention: str,
    ) -> torch.Tensor:
        states = states + self.attn(self.norm1(states), turn, documents, attention)
        return states + self.mlp(self.norm2(states))


class _Attention(nn.Module):
    def __init__(self, config: NativeTowerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(
        self,
        states: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        documents: Documents,
        attention: str,
    ) -> torch.Tensor:
        query, key, value = self.qkv(states).unflatten(1, (3, self.num_heads, -1)).unbind(1)  # each [P, heads, d]
        query, key = _turned(query, turn), _turned(key, turn)
        query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        output, _ = ATTENTION[attention](self, query, key, value, None, documents=documents)
        return self.proj(output[0].flatten(1))


class _Mlp(nn.Module):
    def __init__(self, config: NativeTowerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.inner_width)
        self.fc2 = nn.Linear(config.inner_width, config.width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = self.fc1(states)
        return self.fc2(inner * torch.sigmoid(1.702 * inner))  # QuickGELU


class _GatedMlp(nn.Module):
    def __init__(self, config: NativeTowerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.inner_width)
        self.up_proj = nn.Linear(config.width, config.inner_width)
        self.down_proj = nn.Linear(config.inner_width, config.width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu(self.gate_proj(states)) * self.up_proj(states))
