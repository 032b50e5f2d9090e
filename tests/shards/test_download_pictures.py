"""What becomes of the bytes of an answer: sizes, shapes and formats."""

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.shards.damage import BOMB, UNDECODABLE_IMAGE, DamagedSampleError
from rebus.shards.download import reasons
from rebus.shards.download.config import Download
from rebus.shards.download.resize import exif_of, resize, scaled_size
from web_server import bomb, encoded


def opened(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


def refused(data: bytes, **options) -> str:
    with pytest.raises(DamagedSampleError) as found:
        resize(data, Download(**options))
    return found.value.reason


@pytest.mark.parametrize(
    ("mode", "only_if_bigger", "size", "expected"),
    [
        ("no", True, (400, 100), (400, 100)),
        ("keep_ratio", True, (400, 200), (100, 50)),
        ("keep_ratio", True, (400, 40), (400, 40)),
        ("keep_ratio", False, (40, 10), (200, 50)),
        ("keep_ratio_largest", True, (400, 200), (50, 25)),
        ("keep_ratio_largest", True, (40, 20), (40, 20)),
        ("keep_ratio_largest", False, (25, 5), (50, 10)),
        ("center_crop", True, (400, 200), (50, 50)),
        ("center_crop", True, (400, 40), (400, 40)),
        ("center_crop", False, (40, 10), (50, 50)),
        ("border", True, (400, 200), (50, 50)),
        ("border", True, (40, 20), (40, 20)),
        ("border", False, (40, 20), (50, 50)),
    ],
)
def test_sizes_of_every_mode(mode, only_if_bigger, size, expected):
    options = Download(image_size=50, resize_mode=mode, resize_only_if_bigger=only_if_bigger)
    found = resize(encoded("JPEG", size), options)
    assert (found.size, found.original_size) == (expected, size)
    assert opened(found.data).size == expected


def test_the_middle_is_cut_out_and_laid_on_white():
    picture = PIL.Image.new("RGB", (300, 100), "blue")
    picture.paste("red", (100, 0, 200, 100))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    options = {"image_size": 50, "encode_format": "png"}
    cut = np.asarray(opened(resize(buffer.getvalue(), Download(resize_mode="center_crop", **options)).data))
    assert (cut[:, 3:-3] == (255, 0, 0)).all()
    laid = np.asarray(opened(resize(buffer.getvalue(), Download(resize_mode="border", **options)).data))
    assert laid.shape == (50, 50, 3)
    assert (laid[:16] == 255).all()
    assert (laid[34:] == 255).all()
    assert (laid[20:30, 20:30] == (255, 0, 0)).all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 600), st.sampled_from(["keep_ratio", "border"]))
@settings(max_examples=200, deadline=None)
def test_the_named_side_has_the_named_length(width: int, height: int, side: int, mode: str):
    size = scaled_size((width, height), Download(image_size=side, resize_mode=mode))
    which = max if mode == "border" else min
    if size is None:
        assert which(width, height) <= side
    else:
        assert which(size) == side
        assert abs(size[0] * height - size[1] * width) <= max(width, height) or 1 in size


def test_bytes_stay_where_nothing_changes_them():
    whole = encoded("JPEG", (60, 50), quality=30)
    assert resize(whole, Download(image_size=50)).data == whole
    assert resize(whole, Download(image_size=50, skip_reencode=False)).data != whole
    assert opened(resize(whole, Download(image_size=50, encode_format="webp")).data).format == "WEBP"


@pytest.mark.parametrize(("kind", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_every_format_is_written(kind: str, name: str):
    low, high = (0, 9) if kind == "png" else (5, 95)
    data = [
        resize(encoded("BMP", (64, 64)), Download(encode_format=kind, encode_quality=quality)).data
        for quality in (low, high)
    ]
    assert opened(data[0]).format == name
    assert len(data[0]) != len(data[1])


def test_pictures_stand_upright():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    data = encoded("JPEG", (200, 100), exif=exif)
    found = resize(data, Download(image_size=50))
    assert (found.original_size, found.size) == ((100, 200), (50, 100))
    assert opened(found.data).size == (50, 100)
    assert not opened(found.data).getexif()
    kept = resize(data, Download())
    assert (kept.data, kept.size) == (data, (100, 200))
    assert '"Make": "a camera"' in exif_of(data)
    assert exif_of(b"nothing") == "{}"


def test_a_large_picture_is_the_same_small_one_as_by_pillow():
    original = encoded("JPEG", (1600, 1200), quality=95)
    found = opened(resize(original, Download(image_size=150, encode_format="png")).data)
    wanted = opened(original).resize((200, 150), PIL.Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(found, np.int16) - np.asarray(wanted, np.int16))
    assert difference.mean() < 1.5


def test_what_is_refused():
    assert refused(bomb()) == BOMB
    assert refused(encoded("PNG", (100, 100)), max_pixels=9999) == reasons.TOO_MANY_PIXELS
    assert refused(encoded("PNG", (100, 99)), min_image_size=100) == reasons.TOO_SMALL
    assert refused(encoded("PNG", (301, 100)), max_aspect_ratio=3) == reasons.TOO_LONG
    assert refused(encoded("PNG", (300, 200))[:-50], encode_format="png") == UNDECODABLE_IMAGE
    assert refused(encoded("JPEG", (300, 200))[:-500]) == UNDECODABLE_IMAGE
    assert (
        refused(encoded("PNG", (3000, 16)), image_size=16_384, resize_only_if_bigger=False) == reasons.TOO_MANY_PIXELS
    )
    assert refused(b"<?xml?><svg>") == reasons.SVG
    assert refused(b"\xef\xbb\xbf <HTML>") == reasons.HTML
    assert resize(encoded("PNG", (300, 100)), Download(max_aspect_ratio=3)).size == (300, 100)
