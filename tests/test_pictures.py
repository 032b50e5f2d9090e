"""The one decode against pixels that are known without it: depth, inks, transparency, orientation, reduced scale."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.pictures.config import FixedConfig
from rebus.pictures.decode import decode_image
from rebus.pictures.fixed import resize_image, square
from rebus.pictures.prepare import normalise, prepare_image

RESIZES = ["squash", "crop", "letterbox"]


def encoded(picture: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data)).astype(int)


def photo(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Smooth noise with a few hard edges, as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)
    for _ in range(5):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        picture.paste(tuple(rng.integers(0, 256, 3).tolist()), (left, top, left + width // 5, top + height // 7))
    return picture


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


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),  # the stored top row stands at the right
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_stand_upright(form: str, orientation: int):
    stored = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(PIL.Image.fromarray(stored), form, exif=exif, **options)
    assert np.array_equal(pixels_of(data), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_reduced_picture_stands_upright(resize: str, orientation: int):
    stored, exif = photo(401, 270), PIL.Image.Exif()
    exif[0x0112] = orientation
    upright = PIL.Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(stored))))
    config = FixedConfig(size=60, resize=resize)
    wanted = np.asarray(resize_image(upright, config)).astype(int)
    found = square(encoded(stored, "JPEG", quality=95, exif=exif), config)
    assert np.abs(found - wanted).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing():
    for body in (b"", b"garbage", b"MM\0*\0\0\0\x08\0\x01\x01\x12"):
        data = encoded(PIL.Image.new("RGB", (8, 4), "red"), "JPEG", exif=b"Exif\0\0" + body)
        assert decode_image(data).size == (8, 4)


@given(
    sides=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    size=st.sampled_from([1, 8, 31, 64]),
    resize=st.sampled_from(RESIZES),
)
@settings(max_examples=80, deadline=None)
def test_jpeg_is_decoded_no_smaller_than_the_resize_needs(sides: tuple[int, int], size: int, resize: str):
    config = FixedConfig(size=size, resize=resize)
    picture, box, _ = decode(encoded(PIL.Image.new("RGB", sides), "JPEG"), Target(size, resize == "letterbox"))
    which = max if resize == "letterbox" else min
    scale = next((scale for scale in (8, 4, 2) if which(sides) >= scale * size), 1)
    exact = sides[0] / (box[2] if box else picture.width)
    assert exact in (1, 2, 4, 8)
    assert exact <= scale
    assert exact == scale or min(sides) < scale, "only a line thinner than the scale is decoded larger"
    assert which(picture.size) >= min(size, which(sides))


@pytest.mark.parametrize("resize", RESIZES)
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
    wanted = [(pixels[c].astype(np.float32) - np.float32(config.mean[c])) / np.float32(config.std[c]) for c in range(3)]
    assert np.array_equal(prepare_image(data, config), np.stack(wanted))
    assert np.array_equal(normalise(pixels, config), np.stack(wanted))


def test_the_rule_is_part_of_the_fingerprint(monkeypatch):
    before = FixedConfig().fingerprint
    monkeypatch.setattr("rebus.pictures.RULE", 99)
    assert FixedConfig().fingerprint != before


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
    assert pixels.shape == (3, 8, 8)
