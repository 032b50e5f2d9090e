"""Qwen2-VL's and Qwen2.5-VL's towers against transformers' own, on random weights of tiny shapes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.errors import ConfigError, SlotMismatchError
from rebus.model.assemble import parameters_on_meta
from rebus.model.native import NativeTower, NativeTowerConfig
from rebus.model.native_layout import native_layout

# Pictures of different sizes, a video, less than a window, exactly windows, no multiple of one (a window is 8 x 8).
GRIDS = torch.tensor([[1, 4, 6], [3, 10, 18], [1, 16, 8], [1, 2, 2], [2, 8, 8]])
SHAPES = {"depth": 3, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
KINDS = ["qwen2_vl", "qwen2_5_vl"]


def reference_tower(kind: str) -> Any:
    """transformers' tower, every parameter lively: with fresh weights attention would hardly matter."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    torch.manual_seed(0)
    if kind == "qwen2_vl":
        shapes = {**SHAPES, "embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2}
        model: Any = Qwen2VisionTransformerPretrainedModel._from_config(
            Qwen2VLConfig(vision_config=shapes).vision_config, attn_implementation="sdpa"
        )
    else:
        shapes = {**SHAPES, "hidden_size": 16, "intermediate_size": 20, "out_hidden_size": 24, "window_size": 112}
        shapes["fullatt_block_indexes"] = [1]
        model = Qwen2_5_VisionTransformerPretrainedModel._from_config(
            Qwen2_5_VLConfig(vision_config=shapes).vision_config, attn_implementation="sdpa"
        )
    for name, parameter in model.named_parameters():
        parameter.data.normal_(
            1.0 if "norm" in name and "weight" in name else 0.0, 0.25 if "patch" not in name else 0.05
        )
    return model.eval()


def ours(reference: Any) -> NativeTower:
    """The same weights: Conv3d as a matrix, the merger left out."""
    tower = NativeTower(NativeTowerConfig.from_hub(reference.config.to_dict())).eval()
    state = {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith("merger.")}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    tower.load_state_dict(state)
    return tower


def rows_of(grids: torch.Tensor) -> torch.Tensor:
    return torch.randn(int(grids.prod(1).sum()), 1176)


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_gradients_equal_transformers(kind: str):
    """Before the merger where the order of rows is the input's (Qwen2-VL), and after it for both."""
    reference = reference_tower(kind)
    tower, rows = ours(reference), rows_of(GRIDS)
    theirs, features = reference(rows, grid_thw=GRIDS), tower(rows, GRIDS)
    if kind == "qwen2_vl":
        torch.testing.assert_close(features, theirs.last_hidden_state, rtol=1e-5, atol=1e-5)
    merged = reference.merger(features)
    torch.testing.assert_close(merged, theirs.pooler_output, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(merged)
    names = [name for name, _ in tower.named_parameters()]
    gradients = torch.autograd.grad((merged * weights).sum(), list(tower.parameters()))
    wanted = torch.autograd.grad(
        (theirs.pooler_output * weights).sum(), [reference.get_parameter(name) for name in names]
    )
    for name, gradient, expected in zip(names, gradients, wanted, strict=True):
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(gradient, expected.view_as(gradient), rtol=1e-5, atol=1e-5 * max(scale, 1), msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_alone_and_reference(kind: str):
    tower, rows = ours(reference_tower(kind)), rows_of(GRIDS)
    together = tower(rows, GRIDS)
    parts = rows.split(GRIDS.prod(1).tolist())
    alone = torch.cat([tower(part, grid[None]) for part, grid in zip(parts, GRIDS, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    tower.attention = "rebus_reference"
    torch.testing.assert_close(together, tower(rows, GRIDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(kind: str):
    tower, rows, found = ours(reference_tower(kind)).train(), rows_of(GRIDS), []
    for is_checkpointed in (False, True):
        tower.gradient_checkpointing = is_checkpointed
        found.append(torch.autograd.grad(tower(rows, GRIDS).square().sum(), list(tower.parameters())))
    for gradient, expected in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_frames_of_a_video_do_not_meet():
    tower = ours(reference_tower("qwen2_vl"))
    grid, rows = torch.tensor([[2, 4, 4]]), rows_of(torch.tensor([[2, 4, 4]]))
    other = rows.clone()
    other[16:] = torch.randn(16, 1176)
    before, after = tower(rows, grid), tower(other, grid)
    torch.testing.assert_close(before[:16], after[:16])
    assert (before[16:] - after[16:]).abs().min() > 0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4))
def test_layout_by_hand(sizes: list[tuple[int, int, int]]):
    """Every patch written out: pictures, frames, windows of 3 x 3 tokens, tokens of 2 x 2 patches."""
    grids = torch.tensor([[time, 2 * down, 2 * across] for time, down, across in sizes])
    places: list[tuple[int, int]] = []
    frames: list[int] = [0]
    owners: list[tuple[int, int, int]] = []
    for time, down, across in sizes:
        for _ in range(time):
            for row in range(down):
                for column in range(across):
                    places += [(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
                    owners += [(len(frames), row // 3, column // 3)] * 4
            frames.append(len(places))
    order = sorted(range(len(places)), key=lambda patch: owners[patch])
    edges = [n for n in range(len(order)) if n == 0 or owners[order[n]] != owners[order[n - 1]]]
    layout = native_layout(grids, merge_size=2, window=3, device="cpu")
    assert layout.frames.bounds.tolist() == frames
    assert layout.order is not None
    assert layout.inverse is not None
    assert layout.windows is not None
    assert layout.order.tolist() == order
    assert layout.windows.bounds.tolist() == [*edges, len(order)]
    assert layout.places.tolist() == [list(places[patch]) for patch in order]
    assert torch.equal(layout.order[layout.inverse], torch.arange(len(order)))
    plain = native_layout(grids, merge_size=2, window=0, device="cpu")
    assert (plain.windows, plain.order) == (None, None)
    assert plain.places.tolist() == [list(place) for place in places]


def test_published_shapes_on_meta():
    """631.2 million parameters before the merger, at every size of the language model."""
    with parameters_on_meta():
        tower = NativeTower(
            NativeTowerConfig.from_hub({"model_type": "qwen2_vl", "hidden_size": 1536, "embed_dim": 1280})
        )
        newer = NativeTower(NativeTowerConfig.from_hub({"model_type": "qwen2_5_vl", "hidden_size": 1280}))
    assert all(parameter.is_meta for parameter in tower.parameters())
    assert round(sum(parameter.numel() for parameter in tower.parameters()) / 1e5) == 6312
    assert tower.width == newer.width == 1280
    assert (newer.config.window, newer.config.full_blocks, newer.config.inner_width) == (4, (7, 15, 23, 31), 3420)
    assert tower.blocks[0].mlp.fc1.weight.shape == (5120, 1280)  # type: ignore[union-attr, index]


def test_strangers_are_refused():
    with pytest.raises(ConfigError, match="a qwen3_vl is no native-resolution tower"):
        NativeTowerConfig.from_hub({"model_type": "qwen3_vl"})
    with pytest.raises(ConfigError, match="this one says 'gelu'"):
        NativeTowerConfig.from_hub({"model_type": "qwen2_vl", "hidden_act": "gelu"})
    tower = NativeTower(NativeTowerConfig(16, 1, 2, 16, 1176, 2))
    with pytest.raises(SlotMismatchError, match=r"3 rows of pixels, but the grids of 1 pictures: 4\."):
        tower(torch.zeros(3, 1176), torch.tensor([[1, 2, 2]]))
