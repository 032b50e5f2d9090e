"""The one decode against pixels that are known without it: depth, inks, transparency, orientation."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.pictures.config import FixedConfig
from rebus.pictures.decode import decode_image
from rebus.pictures.fixed import square
from rebus.shards.probe import read_header
from tiny_pictures import UPRIGHT, encoded


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data)).astype(int)


GREY = np.arange(256, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_shades(form: str):
    found = pixels_of(encoded(PIL.Image.fromarray(GREY * 257), form))
    assert (found == GREY[..., None]).all()


def png_16_bit_rgb(values: np.ndarray) -> bytes:
    """uint16 [H, W, 3] -> PNG, which Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bit_colours_keep_their_shades():
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    assert np.abs(pixels_of(png_16_bit_rgb(values)) - values / 257).max() <= 1


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e6])
def test_float_grey_is_scaled_by_the_white_that_it_reaches(white: float):
    values = (GREY * (white / 255)).astype(np.float32)
    assert (pixels_of(encoded(PIL.Image.fromarray(values), "TIFF")) == GREY[..., None]).all()


def test_floats_that_are_no_numbers_are_black():
    values = np.array([[np.nan, np.inf, -np.inf, -1, 1]], np.float32)
    assert pixels_of(encoded(PIL.Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 0, 0, 255]


@pytest.mark.parametrize("white", [65535, 2**31 - 1])
def test_32_bit_grey_is_no_white_sheet(white: int):
    values = (GREY.astype(np.int64) * white // 255).astype(np.int32)
    assert np.abs(pixels_of(encoded(PIL.Image.fromarray(values), "TIFF")) - GREY[..., None]).max() <= 1


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


INKS = (200, 100, 0, 40)  # cyan, magenta, yellow, black


def printed(inks: tuple[int, ...]) -> list[int]:
    return [round((255 - ink) * (255 - inks[3]) / 255) for ink in inks[:3]]


def test_inks_of_adobe_s_jpeg_are_inverted_in_the_file_and_not_in_the_picture():
    jpeg = encoded(PIL.Image.new("CMYK", (16, 16), INKS), "JPEG", quality=100)
    assert np.abs(pixels_of(jpeg) - printed(INKS)).max() <= 2


def test_inks_of_other_jpeg_are_as_they_stand():
    jpeg = encoded(PIL.Image.new("CMYK", (16, 16), tuple(255 - ink for ink in INKS)), "JPEG", quality=100)
    assert np.abs(pixels_of(without_adobe_marker(jpeg)) - printed(INKS)).max() <= 2


def test_inks_of_tiff_are_as_they_stand():
    tiff = encoded(PIL.Image.new("CMYK", (8, 8), INKS), "TIFF")
    assert np.abs(pixels_of(tiff) - printed(INKS)).max() <= 1


def test_transparency_is_laid_on_white():
    half_red = PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 127))
    assert pixels_of(encoded(half_red))[0, 0].tolist() == [255, 128, 128]
    assert pixels_of(encoded(half_red, "WEBP", lossless=True))[0, 0].tolist() == [255, 128, 128]
    assert pixels_of(encoded(PIL.Image.new("LA", (4, 4), (0, 63))))[0, 0].tolist() == [192, 192, 192]


def test_a_transparent_entry_of_a_palette_is_white():
    picture = PIL.Image.new("P", (4, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2, 1])
    wanted = [[255, 0, 0], [255, 255, 255], [0, 0, 255], [255, 255, 255]]
    assert pixels_of(encoded(picture, transparency=1))[0].tolist() == wanted
    assert pixels_of(encoded(picture, transparency=bytes([255, 0, 255])))[0].tolist() == wanted
    assert pixels_of(encoded(picture, "GIF", transparency=1))[0].tolist() == wanted


def test_a_transparent_colour_is_white():
    picture = PIL.Image.new("RGB", (2, 1), (9, 8, 7))
    picture.putpixel((1, 0), (1, 2, 3))
    assert pixels_of(encoded(picture, transparency=(1, 2, 3)))[0].tolist() == [[9, 8, 7], [255, 255, 255]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(form: str):
    picture = PIL.Image.new("1", (2, 1))
    picture.putpixel((1, 0), 255)
    assert pixels_of(encoded(picture, form))[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(form: str):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert pixels_of(data)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_stand_upright(form: str, orientation: int):
    stored = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(PIL.Image.fromarray(stored), form, exif=exif, **options)
    assert np.array_equal(pixels_of(data), UPRIGHT[orientation](stored))
    header = read_header(data)
    assert (header.width, header.height) == decode_image(data).size, "what is counted by is what is decoded"


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_jpeg_s_size_in_its_header_is_that_of_the_upright_picture(orientation: int):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIL.Image.new("RGB", (60, 40)), "JPEG", exif=exif)
    header = read_header(data)
    assert (header.width, header.height) == decode_image(data).size == ((40, 60) if orientation > 4 else (60, 40))


def test_what_a_png_says_of_its_orientation_behind_the_pixels_counts_nowhere():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = encoded(PIL.Image.new("RGB", (6, 4)), exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert PIL.Image.open(io.BytesIO(late)).getexif()[0x0112] == 6
    header = read_header(late)
    assert (header.width, header.height) == decode_image(late).size == (6, 4)
    assert decode_image(data).size == (4, 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing():
    for body in (b"", b"garbage", b"MM\0*\0\0\0\x08\0\x01\x01\x12"):
        data = encoded(PIL.Image.new("RGB", (8, 4), "red"), "JPEG", exif=b"Exif\0\0" + body)
        assert decode_image(data).size == (8, 4)


FORMS = [
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("PNG", "P"),
    ("PNG", "I;16"),
    ("WEBP", "RGB"),
    ("GIF", "P"),
    ("TIFF", "RGB"),
]


@pytest.mark.filterwarnings("ignore")
@given(
    form=st.sampled_from(FORMS),
    spots=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 2000),
)
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_a_picture_or_a_value_error(form: tuple[str, str], spots: list[tuple[int, int]], cut: int):
    data = bytearray(encoded(PIL.Image.radial_gradient("L").resize((40, 30)).convert(form[1]), form[0]))
    for place, value in spots:
        data[place % len(data)] = value
    data = data[: cut or None]
    try:
        pixels = square(bytes(data), FixedConfig(size=8))
    except ValueError:
        return
    assert pixels.shape == (8, 8, 3)
