"""Pixels are those of transformers' processors (the PIL ones, which need no torchvision), for every rule."""

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from rebus.pictures.config import CLIP_MEAN, CLIP_STD, AnyresConfig, FixedConfig, ImageConfig, NativeConfig
from rebus.pictures.prepare import layout, normalise, prepare
from rebus.records import Image
from tiny_pictures import encoded, noise, photo

SIZES = [
    (1, 1), (1, 900), (900, 1), (336, 336), (1000, 10), (10, 1000), (37, 53), (500, 333), (333, 500), (641, 480),
    (1008, 336), (335, 337), (2, 3), (672, 671), (7, 200), (959, 31), (33, 799),
]  # fmt: skip
SIZE = 63
CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD, "reduced_jpeg": False}
HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3, "reduced_jpeg": False}
SQUARE = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}


def compare(config: ImageConfig, theirs: Callable, size: tuple[int, int], **options: object) -> None:
    """The resized bytes are equal: a step of one of 255 would be a difference of 0.007 at least."""
    picture = noise(*size)
    wanted = np.asarray(theirs(picture, **options)["pixel_values"], np.float32)
    image = Image(*size, encoded(picture))
    prepared = prepare(image, config)
    assert prepared.grid == layout(image, config).grid
    found = normalise(prepared.rows, config)
    assert found.size == wanted.size
    assert np.abs(found - wanted.reshape(found.shape)).max() <= 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_squash_is_siglip_s(size: tuple[int, int]):
    config = FixedConfig(size=SIZE, resize="squash", **HALF)
    compare(config, SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}), size)


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_clip_s(size: tuple[int, int]):
    compare(FixedConfig(size=SIZE, resize="crop", **CLIP), CLIPImageProcessorPil(**SQUARE), size)


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_llava_s(size: tuple[int, int]):
    compare(FixedConfig(size=SIZE, resize="pad", **CLIP), LlavaImageProcessorPil(do_pad=True, **SQUARE), size)


FULL_SIZE = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


@pytest.mark.parametrize("size", SIZES)
def test_anyres_is_llava_next_s(size: tuple[int, int]):
    """Its canvases are (height, width), ours (width, height): its own list holds both of every kind, so order alone
    differs, and that only where two fit equally."""
    transposed = [(height, width) for width, height in AnyresConfig(kind="anyres").canvases]
    theirs = LlavaNextImageProcessorPil(image_grid_pinpoints=transposed, **FULL_SIZE)
    compare(AnyresConfig(kind="anyres"), theirs, size)


@pytest.mark.parametrize("pinpoints", [((126, 63), (63, 189)), ((63, 63),), ((252, 63), (126, 126), (63, 126))])
@pytest.mark.parametrize("size", [(1, 1), (100, 40), (40, 100), (333, 127), (1000, 10)])
def test_any_list_of_pinpoints_is_read_transposed(pinpoints: tuple, size: tuple[int, int]):
    config = AnyresConfig(kind="anyres", size=SIZE, pinpoints=pinpoints, tokens_per_side=4, patch_size=15)
    transposed = [(height, width) for width, height in pinpoints]
    compare(config, LlavaNextImageProcessorPil(image_grid_pinpoints=transposed, **SQUARE), size)


@pytest.mark.parametrize("limits", [(3136, 12_845_056), (16 * 784, 64 * 784), (784, 2 * 784)])
@pytest.mark.parametrize("size", [size for size in SIZES if max(size) <= 200 * min(size) and min(size) >= 14])
def test_native_is_qwen2_vl_s(size: tuple[int, int], limits: tuple[int, int]):
    config = NativeConfig(kind="native", min_pixels=limits[0], max_pixels=limits[1])
    compare(config, Qwen2VLImageProcessorPil(), size, min_pixels=limits[0], max_pixels=limits[1])


def test_limits_of_one_picture_are_those_of_its_call():
    picture = noise(300, 200)
    theirs = Qwen2VLImageProcessorPil()(picture, min_pixels=20 * 784, max_pixels=30 * 784)
    image = Image(300, 200, encoded(picture), limits=(("min_pixels", 20 * 784), ("max_pixels", 30 * 784)))
    config = NativeConfig(kind="native")
    assert np.abs(normalise(prepare(image, config).rows, config) - theirs["pixel_values"]).max() <= 1e-5
    assert prepare(image, config).grid == tuple(theirs["image_grid_thw"][0]) == layout(image, config).grid


@pytest.mark.parametrize("config", [
    FixedConfig(size=SIZE, resize="crop", **CLIP), FixedConfig(size=SIZE, resize="pad", **CLIP),
    AnyresConfig(kind="anyres", size=SIZE, tokens_per_side=4, patch_size=15), NativeConfig(kind="native"),
], ids=["crop", "pad", "anyres", "native"])  # fmt: skip
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_jpeg_gives_the_pixels_of_the_upright_picture(config: ImageConfig, orientation: int):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(401, 272), "JPEG", exif=exif)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    found, wanted = (prepare(Image(*upright.size, one), config) for one in (data, encoded(upright)))
    assert found.grid == wanted.grid
    assert np.array_equal(found.rows, wanted.rows)
