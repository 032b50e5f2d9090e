"""Tokens of a picture are counted from its size alone: as the hub's processors count, and as the papers' code does."""

import math
import random
from typing import Any

import pytest
from pydantic import ValidationError
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from rebus.pictures.anyres import best_canvas, num_tokens, tile
from rebus.pictures.config import AnyresConfig, FixedConfig, NativeConfig
from rebus.pictures.native import fit, resized
from rebus.pictures.prepare import layout
from rebus.records import Image, Video

NUM_SIZES = 10_000
ANYRES, NATIVE = AnyresConfig(kind="anyres"), NativeConfig(kind="native")


def sizes() -> list[tuple[int, int]]:
    """Both sides from 9 to 5,000 pixels, small ones as often as large ones, up to the ratio of 200 that is used."""
    rng = random.Random(4)
    found: list[tuple[int, int]] = []
    while len(found) < NUM_SIZES:
        width, height = (round(math.exp(rng.uniform(math.log(9), math.log(5000)))) for _ in range(2))
        if max(width, height) <= 200 * min(width, height):
            found.append((width, height))
    return found


def tokens_of(size: tuple[int, int], config: Any) -> int:
    return layout(Image(*size), config).num_tokens


def processor(kind: type, config: AnyresConfig, **more: object) -> Any:
    """A processor of the hub that counts; it is never asked for text, so it has no tokenizer."""
    found = object.__new__(kind)
    pinpoints = [(height, width) for width, height in config.canvases]
    found.image_processor = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints)
    found.patch_size, found.num_additional_image_tokens = config.patch_size, 1
    for name, value in more.items():
        setattr(found, name, value)
    return found


def test_spatial_unpad_takes_as_many_as_llava_next_s_processor_writes():
    theirs = processor(LlavaNextProcessor, ANYRES)
    for width, height in sizes():
        wanted = theirs._get_number_of_features(height, width, 336, 336) - 1  # of CLIP's class token
        assert num_tokens(width, height, ANYRES) == wanted, (width, height)


@pytest.mark.parametrize("max_tiles", [1, 4, 9])
def test_anyres_max_takes_as_many_as_llava_onevision_s_processor_writes(max_tiles: int):
    grids = tuple((columns, rows) for columns in range(1, 7) for rows in range(1, 7))
    config = AnyresConfig(kind="anyres", size=384, grids=grids, max_tiles=max_tiles, tokens_per_side=27)
    theirs = processor(LlavaOnevisionProcessor, config, vision_aspect_ratio=f"anyres_max_{max_tiles}")
    shrunk = 0
    for width, height in sizes()[:2000]:
        found = num_tokens(width, height, config)
        # LLaVA-NeXT, llava_arch.py, anyres_max_N: times = sqrt(h w / (N unit^2)), above 1.1 both sides by // times
        tiling = tile(width, height, config)
        times = math.sqrt(tiling.height * tiling.width / (max_tiles * 27**2))
        rows, columns = tiling.height, tiling.width
        if times > 1.1:
            rows, columns, shrunk = int(rows // times), int(columns // times), shrunk + 1
        assert found == 27 * 27 + rows * (columns + 1), (width, height)
        canvas = best_canvas(width, height, config.canvases)
        sides = (canvas[1] // 384, canvas[0] // 384)
        assert found == 27 * 27 + sum(theirs._get_unpadded_features(height, width, 27, 27, *sides)), (width, height)
    assert shrunk > 100


@pytest.mark.parametrize(
    ("size", "canvas", "num_crops", "kept", "total"),
    [
        *(((side, side), (672, 672), 5, (48, 48), 2928) for side in (337, 448, 672, 3000)),
        *(((side, side), (336, 672), 3, (24, 24), 1176) for side in (1, 224, 336)),
        ((1000, 300), (1008, 336), 4, (22, 72), 2182),
        ((300, 1000), (336, 1008), 4, (72, 22), 2232),
        *((size, (672, 672), 5, (36, 48), 2340) for size in ((640, 480), (1024, 768), (1600, 1200))),
        ((480, 640), (672, 672), 5, (48, 36), 2352),
        *((size, (672, 672), 5, (28, 48), 1948) for size in ((1920, 1080), (1280, 720))),
        ((1080, 1920), (672, 672), 5, (48, 28), 1968),
        ((1024, 899), (672, 672), 5, (42, 48), 2634),
        ((500, 333), (672, 336), 3, (24, 36), 1464),
        ((672, 336), (672, 336), 3, (24, 48), 1752),
        ((336, 672), (336, 672), 3, (48, 24), 1776),
        ((1008, 336), (1008, 336), 4, (24, 72), 2328),
        ((336, 1008), (336, 1008), 4, (72, 24), 2376),
        ((1344, 336), (1008, 336), 4, (18, 72), 1890),
        ((2000, 200), (1008, 336), 4, (8, 72), 1160),
        ((2480, 3508), (672, 672), 5, (48, 34), 2256),
        ((1000, 10), (1008, 336), 4, (0, 72), 576),
    ],
)
def test_the_published_table_of_llava_next(size, canvas, num_crops, kept, total):
    tiling = tile(*size, ANYRES)
    assert best_canvas(*size, ANYRES.canvases) == canvas
    assert (tiling.height, tiling.width) == kept
    assert tokens_of(size, ANYRES) == total
    for merge in ("flat", "spatial"):
        config = ANYRES.model_copy(update={"merge": merge})
        assert tokens_of(size, config) == 576 * num_crops
    assert layout(Image(*size), ANYRES)[0::2] == ((num_crops, size[1], size[0]), 576 * num_crops)


@pytest.mark.parametrize(
    ("size", "total"), [((336, 336), 2928), ((640, 480), 2340), ((1000, 300), 1262), ((1920, 1080), 1948)]
)
def test_one_canvas_for_all(size: tuple[int, int], total: int):
    assert tokens_of(size, AnyresConfig(kind="anyres", pinpoints=((672, 672),))) == total


def original_tokens(width: int, height: int) -> int:
    """Of LLaVA's own unpad_image, which cuts int(x) where transformers (and we) cut int(round(x, 7))."""
    canvas = best_canvas(width, height, ANYRES.canvases)
    across, down = canvas[0] // 14, canvas[1] // 14
    if width / height > across / down:
        down -= 2 * ((down - int(height * (across / width))) // 2)
    else:
        across -= 2 * ((across - int(width * (down / height))) // 2)
    return 576 + down * (across + 1)


@pytest.mark.parametrize(
    ("size", "original", "ours"),
    [((88, 55), 926, 976), ((328, 205), 926, 976), ((376, 799), 1826, 1876), ((748, 352), 1800, 1848)],
)
def test_where_transformers_and_the_original_code_differ_we_count_as_transformers(size, original: int, ours: int):
    assert (original_tokens(*size), tokens_of(size, ANYRES)) == (original, ours)


def test_they_differ_in_no_more_than_a_few_sizes():
    assert sum(original_tokens(*size) != tokens_of(size, ANYRES) for size in sizes()) <= 5


@pytest.mark.parametrize("limits", [(3136, 12_845_056), (3136, 1280 * 784), (256 * 784, 512 * 784)])
def test_native_takes_as_many_as_qwen2_vl_s_processor_writes(limits: tuple[int, int]):
    config = NativeConfig(kind="native", min_pixels=limits[0], max_pixels=limits[1])
    theirs, asked = Qwen2VLImageProcessorPil(), {"min_pixels": limits[0], "max_pixels": limits[1]}
    differing = []
    for width, height in sizes():
        wanted = theirs.get_number_of_image_patches(height, width, asked) // 4
        if tokens_of((width, height), config) != wanted:
            differing.append((width, height))
    # of a side that rounds to no patch at all: test_both_branches_are_clamped
    assert all(min(size) <= 14 for size in differing)
    assert bool(differing) == (limits[0] == 3136)
    assert len(differing) < NUM_SIZES / 5


@pytest.mark.parametrize(
    ("size", "limits", "ours", "theirs"),
    [
        ((1000, 10), (3136, 12_845_056), (28, 1008), (28, 560)),  # their first rounding gives 0 rows, then enlarges
        ((14, 14), (3136, 12_845_056), (56, 56), (56, 56)),
        ((100, 14), (784, 12_845_056), (28, 112), (28, 84)),
    ],
)
def test_both_branches_are_clamped(size, limits, ours, theirs):
    width, height = size
    assert fit(height, width, 28, *limits) == ours
    assert smart_resize(height, width, 28, *limits) == theirs


def test_a_side_never_shrinks_to_nothing():
    """qwen-vl-utils does not clamp where it shrinks: 3000 x 20 within 3,136 pixels is (672, 0) there."""
    beta = math.sqrt(3000 * 20 / 3136)
    assert (math.floor(3000 / beta / 28) * 28, math.floor(20 / beta / 28) * 28) == (672, 0)
    assert fit(3000, 20, 28, 784, 3136) == smart_resize(3000, 20, 28, 784, 3136) == (672, 28)


@pytest.mark.parametrize(
    ("size", "most", "sides", "total"),
    [
        ((1920, 1080), 16384, (1092, 1932), 2691),
        ((1654, 2339), 16384, (2352, 1652), 4956),
        ((1654, 2339), 1280, None, 1260),
        ((56, 56), 16384, (56, 56), 4),
    ],
)
def test_the_table_of_qwen2_vl(size, most: int, sides, total: int):
    config = NativeConfig(kind="native", max_pixels=most * 784)
    assert sides is None or resized(Image(*size), config) == sides
    assert tokens_of(size, config) == total


def test_llava_takes_its_grid_of_patches():
    theirs = object.__new__(LlavaProcessor)
    theirs.patch_size, theirs.num_additional_image_tokens = 14, 1
    theirs.vision_feature_select_strategy = "default"
    theirs.image_processor = type("Square", (), {"crop_size": {"height": 336, "width": 336}, "size": {}})()
    config = FixedConfig(size=336, tokens_per_side=24, patch_size=14)
    for size in sizes()[:50]:
        (wanted,) = theirs._get_num_multimodal_tokens(image_sizes=[size]).num_image_tokens
        assert tokens_of(size, config) == wanted == 576


LIMITED = [
    ({"max_pixels": 10 * 784}, (84, 84)),
    ({"min_pixels": 100 * 784}, (280, 280)),
    ({"min_pixels": 20_000 * 784}, (3976, 3976)),  # above the rule's max_pixels, which gives way
    ({"resized_height": 100, "resized_width": 50}, (112, 56)),
    ({"resized_height": 100}, (140, 140)),  # one of the two says nothing
    ({"resized_height": 10, "resized_width": 10}, (56, 56)),  # within the rule's limits, as qwen-vl-utils has it
    ({"resized_height": 10**6, "resized_width": 10**6}, (3584, 3584)),
]


@pytest.mark.parametrize(("limits", "sides"), LIMITED)
def test_a_picture_s_own_limits_go_before_the_rule_s(limits: dict[str, int], sides: tuple[int, int]):
    assert resized(Image(140, 140, limits=tuple(limits.items())), NATIVE) == sides


@pytest.mark.parametrize(
    ("limits", "sides"),
    [
        ({}, (560, 1008)),
        ({"max_pixels": 200 * 784}, (280, 504)),
        ({"max_pixels": 10**9}, (560, 1008)),  # within the ceiling of a frame
        ({"max_pixels": 50 * 784}, (140, 252)),  # below the rule's least size of a frame, which gives way
        ({"min_pixels": 900 * 784}, (644, 1120)),  # its floor times 1.05 is the ceiling then
        ({"total_pixels": 4100 * 784}, (420, 728)),
        ({"total_pixels": 784}, (224, 420)),  # 1.05 times the least size of a frame
        ({"resized_height": 280, "resized_width": 280}, (280, 280)),
    ],
)
def test_a_video_s_own_limits_go_before_the_rule_s(limits: dict[str, int], sides: tuple[int, int]):
    frame = Image(1280, 720, limits=tuple(limits.items()))
    for num_frames in (19, 20):  # an odd number fills its last pair by itself
        assert resized(Video((frame,) * num_frames, ()), NATIVE) == sides


def test_sizes_that_no_rule_can_count_are_value_errors():
    for config in (ANYRES, NATIVE):
        with pytest.raises(ValueError, match="must be known"):
            layout(Image(0, 0), config)
        with pytest.raises(ValueError, match="must be known"):
            layout(Image(640, 0), config)
    with pytest.raises(ValueError, match="at most 200"):
        layout(Image(2010, 10), NATIVE)
    with pytest.raises(ValueError, match="no frames"):
        layout(Video((), ()), NATIVE)
    with pytest.raises(ValueError, match="min_pixels 10 is above max_pixels 5"):
        layout(Image(9, 9, limits=(("min_pixels", 10), ("max_pixels", 5))), NATIVE)
    with pytest.raises(ValueError, match="no place for a whole video"):
        layout(Video((Image(9, 9),), (0.0,)), ANYRES)


@pytest.mark.parametrize("kind", [AnyresConfig, NativeConfig])
def test_a_reduced_decode_is_refused_where_sizes_are_counted(kind: type):
    with pytest.raises(ValidationError, match="reduced_jpeg is for `kind: fixed`"):
        kind(kind=kind.model_fields["kind"].annotation.__args__[0], reduced_jpeg=True)
