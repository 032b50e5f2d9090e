"""The one resize: shapes, what each strategy keeps of the picture, the numbers the tower sees."""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rebus.tokens.images import num_image_tokens

from rebus.pictures.config import FixedConfig
from rebus.pictures.fixed import resize_image
from rebus.pictures.prepare import prepare_image


def png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    resize=st.sampled_from(["squash", "crop", "letterbox"]),
    size=st.sampled_from([1, 7, 32]),
)
@settings(max_examples=60, deadline=None)
def test_any_size_becomes_the_square(width: int, height: int, resize: str, size: int):
    config = FixedConfig(size=size, resize=resize)
    assert resize_image(PIL.Image.new("RGB", (width, height)), config).shape == (size, size, 3)


def test_pixels_are_normalised_per_channel():
    config = FixedConfig(size=4, mean=(0, 127, 100), std=(1, 128, 2))
    pixels = prepare_image(png(PIL.Image.new("RGB", (9, 9), (10, 255, 90))), config)
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
        prepare_image(png(PIL.Image.new("RGB", (64, 64)))[:60], FixedConfig())


def test_image_takes_the_square_of_tokens_per_side():
    assert num_image_tokens(640, 480, FixedConfig(tokens_per_side=7)) == 49


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("rebus.pictures.MAX_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match="64 x 64 pixels, over the limit of 4,095"):
        prepare_image(png(PIL.Image.new("RGB", (64, 64))), FixedConfig())
