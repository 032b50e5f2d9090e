"""A picture of any size becomes one square: what each strategy keeps of it, and what reduced decoding costs."""

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.pictures.config import FixedConfig
from rebus.pictures.decode import Target, decode, decode_image
from rebus.pictures.fixed import resize_image, square
from rebus.pictures.prepare import layout, normalise, prepare, prepare_image
from rebus.records import Image
from tiny_pictures import UPRIGHT, encoded, photo

ALL = ["squash", "crop", "letterbox", "pad"]


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    resize=st.sampled_from(ALL),
    size=st.sampled_from([1, 7, 32]),
)
@settings(max_examples=60, deadline=None)
def test_any_size_becomes_the_square(width: int, height: int, resize: str, size: int):
    config = FixedConfig(size=size, resize=resize)
    assert resize_image(PIL.Image.new("RGB", (width, height)), config).shape == (size, size, 3)


def test_pixels_are_normalised_per_channel():
    config = FixedConfig(size=4, mean=(0, 127, 100), std=(1, 128, 2))
    pixels = prepare_image(encoded(PIL.Image.new("RGB", (9, 9), (10, 255, 90))), config)
    assert pixels.shape == (3, 4, 4)
    assert pixels.dtype == np.float32
    assert np.allclose(pixels[:, 0, 0], [10, 1, -5])


def left_red_right_blue() -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", (80, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (60, 0, 80, 20))
    return picture


def test_squash_keeps_all_of_the_width():
    squashed = np.asarray(resize_image(left_red_right_blue(), FixedConfig(size=16, resize="squash")))
    assert squashed[:, 0, 0].min() > 200
    assert squashed[:, -1, 2].min() > 200


def test_crop_takes_the_centre():
    cropped = np.asarray(resize_image(left_red_right_blue(), FixedConfig(size=16, resize="crop")))
    assert cropped[..., 0].min() > 200


def test_letterbox_pads_with_the_mean():
    boxed = np.asarray(resize_image(left_red_right_blue(), FixedConfig(size=16, mean=(10, 20, 30))))
    assert (boxed[:6] == [10, 20, 30]).all()
    assert (boxed[10:] == [10, 20, 30]).all()
    assert boxed[7, 0, 0] > 200
    assert boxed[7, -1, 2] > 200


def test_letterbox_never_loses_a_thin_line():
    boxed = np.asarray(resize_image(PIL.Image.new("RGB", (1000, 1), "red"), FixedConfig(size=8)))
    assert (boxed == [255, 0, 0]).all(axis=-1).any()


def test_damaged_picture_is_a_value_error():
    with pytest.raises(ValueError, match="not a readable picture"):
        prepare_image(encoded(PIL.Image.new("RGB", (64, 64)))[:60], FixedConfig())


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (640, 480)])
def test_any_picture_takes_the_square_of_tokens_per_side(size: tuple[int, int]):
    found = layout(Image(*size), FixedConfig(size=64, tokens_per_side=7, patch_size=16))
    assert (found.num_tokens, found.num_patches, found.grid) == (49, 16, (1, size[1], size[0]))


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("rebus.pictures.decode.MAX_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match="64 x 64 pixels, over the limit of 4,095"):
        prepare_image(encoded(PIL.Image.new("RGB", (64, 64))), FixedConfig())


@pytest.mark.parametrize("resize", ALL)
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_reduced_picture_stands_upright(resize: str, orientation: int):
    stored, exif = photo(401, 270), PIL.Image.Exif()
    exif[0x0112] = orientation
    upright = PIL.Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(stored))))
    config = FixedConfig(size=60, resize=resize)
    wanted = np.asarray(resize_image(upright, config)).astype(int)
    found = square(encoded(stored, "JPEG", quality=95, exif=exif), config)
    assert np.abs(found - wanted).mean() < 2


@given(
    sides=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    size=st.sampled_from([1, 8, 31, 64]),
    resize=st.sampled_from(ALL),
)
@settings(max_examples=80, deadline=None)
def test_jpeg_is_decoded_no_smaller_than_the_resize_needs(sides: tuple[int, int], size: int, resize: str):
    is_longer = resize in ("letterbox", "pad")
    picture, box, _ = decode(encoded(PIL.Image.new("RGB", sides), "JPEG"), Target(size, is_longer))
    which = max if is_longer else min
    scale = next((scale for scale in (8, 4, 2) if which(sides) >= scale * size), 1)
    exact = sides[0] / (box[2] if box else picture.width)
    assert exact in (1, 2, 4, 8)
    assert exact <= scale
    assert exact == scale or min(sides) < scale, "only a line thinner than the scale is decoded larger"
    assert which(picture.size) >= min(size, which(sides))


@pytest.mark.parametrize("resize", ALL)
@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (801, 603), (1023, 511)])
def test_reduced_scale_looks_like_full_scale(resize: str, width: int, height: int):
    config = FixedConfig(size=120, resize=resize)
    data = encoded(photo(width, height, seed=width), "JPEG", quality=90)
    full = np.asarray(resize_image(decode_image(data), config)).astype(int)
    reduced = square(data, config)
    assert not np.array_equal(reduced, full), "nothing was reduced"
    assert np.abs(reduced - full).mean() < 2


def test_small_jpeg_and_other_formats_are_decoded_whole():
    config = FixedConfig(size=100)
    for data in (encoded(photo(199, 120), "JPEG"), encoded(photo(600, 400)), encoded(photo(600, 400), "WEBP")):
        full = np.asarray(resize_image(decode_image(data), config))
        assert np.array_equal(square(data, config), full)


def test_prepare_image_is_prepared_pixels_normalised():
    config = FixedConfig(size=50, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    data = encoded(photo(300, 200), "JPEG")
    pixels = square(data, config)
    assert pixels.dtype == np.uint8
    planes = pixels.transpose(2, 0, 1).astype(np.float32)
    wanted = np.stack([(planes[c] - np.float32(config.mean[c])) / np.float32(config.std[c]) for c in range(3)])
    assert np.array_equal(prepare_image(data, config), wanted)
    assert np.array_equal(normalise(planes[None].astype(np.uint8), config)[0], wanted)
    prepared = prepare(Image(300, 200, data), config)
    assert prepared.grid == (1, 200, 300)
    assert np.array_equal(normalise(prepared.rows, config)[0], wanted)


def test_the_rule_is_part_of_the_fingerprint(monkeypatch):
    before = FixedConfig().fingerprint
    monkeypatch.setattr("rebus.pictures.config.RULE", 99)
    assert FixedConfig().fingerprint != before
