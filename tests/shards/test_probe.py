"""Headers of pictures: the quick reader agrees with Pillow, and passes nothing that Pillow refuses."""

import io
import zlib

import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rebus.records import Image
from rebus.shards import damage, probe
from rebus.shards.assemble import assemble
from rebus.shards.damage import DamagedSampleError
from rebus.shards.frames import MAX_FRAMES, frames_of
from rebus.shards.headers import quick_header
from rebus.shards.probe import open_header, probe_image, probe_named, read_header

MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "RGB"),
}
KINDS = [(form, mode) for form, modes in MODES.items() for mode in modes]


def encode(form: str, mode: str, size: tuple[int, int] = (12, 9), **options: object) -> bytes:
    picture = PIL.Image.effect_noise(size, 80) if mode in ("L", "RGB", "CMYK") else PIL.Image.new("L", size, 99)
    buffer = io.BytesIO()
    picture.convert("I").convert(mode).save(buffer, form, **options) if mode == "I;16" else picture.convert(mode).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def reason_of(data: bytes, extension: str = "") -> str:
    with pytest.raises(DamagedSampleError) as caught:
        probe_named(data, extension)
    return caught.value.reason


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.tuples(st.integers(2, 90), st.integers(2, 90)),
    st.booleans(),
    st.booleans(),
)
def test_sizes_and_notes_are_those_that_pillow_sees(kind, size, progressive, lossless):
    form, mode = kind
    options = {"JPEG": {"progressive": progressive}, "WEBP": {"lossless": lossless}}.get(form, {})
    data = encode(form, mode, size, **options)
    picture = PIL.Image.open(io.BytesIO(data))
    header = read_header(data)
    assert (header.format, header.width, header.height) == (picture.format, *picture.size)
    assert header.notes == ((damage.CMYK,) if mode == "CMYK" else (damage.SIXTEEN_BIT,) if mode == "I;16" else ())


def test_plain_pictures_are_read_quickly():
    plain = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "I;16"), ("WEBP", "RGB")]
    assert [quick_header(encode(form, mode)) is not None for form, mode in plain] == [True] * len(plain)


HARMED = {kind: encode(*kind, size=(23, 17)) for kind in KINDS[:12]}


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(list(HARMED)),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=3),
    st.integers(1, 800),
)
@example(("PNG", "RGB"), [(24, 3)], 800)
@example(("WEBP", "RGB"), [(20, 255)], 800)
@example(("JPEG", "RGB"), [], 200)
def test_nothing_passes_that_pillow_refuses(kind, changes, length):
    data = bytearray(HARMED[kind])
    for place, value in changes:
        data[place % min(len(data), 200)] = value
    harmed = bytes(data[:length])
    found = quick_header(harmed)
    if found is not None:
        picture = open_header(harmed)
        assert (found.format, found.width, found.height) == (picture.format, *picture.size)


def test_damage_has_names():
    big = bytearray(encode("PNG", "RGB"))
    big[16:24] = (20_000).to_bytes(4, "big") * 2
    big[29:33] = zlib.crc32(big[12:29]).to_bytes(4, "big")
    assert reason_of(bytes(big)) == damage.BOMB
    assert reason_of(b"") == damage.ZERO_BYTE_IMAGE
    assert reason_of(b"a text in a picture's clothes") == damage.UNREADABLE_IMAGE
    assert reason_of(encode("PNG", "RGB", (1, 1))) == damage.TINY_PICTURE
    assert reason_of(encode("PNG", "RGB", (1, 40))) == damage.TINY_PICTURE
    assert reason_of(encode("PNG", "RGB", (2, 401))) == damage.EXTREME_ASPECT
    assert probe_image(encode("PNG", "RGB", (400, 2))).width == 400
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n") == damage.UNREADABLE_IMAGE


def test_oddities_have_names():
    frames = [PIL.Image.new("RGB", (12, 9), colour) for colour in ("red", "blue")]
    moving = {}
    for form in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        moving[form.lower()] = buffer.getvalue()
    assert {name: probe_named(data, name)[1] for name, data in moving.items()} == dict.fromkeys(
        moving, (damage.ANIMATED,)
    )
    exif = PIL.Image.Exif()
    exif[274] = 6
    turned = encode("JPEG", "RGB", exif=exif)
    assert probe_named(turned, "jpg")[1] == (damage.EXIF_ROTATED,)
    assert probe_named(turned, "0.png")[1] == (damage.EXIF_ROTATED, damage.WRONG_EXTENSION)
    assert probe_named(encode("JPEG", "L"), "1.jpeg")[1] == ()
    assert probe_named(encode("WEBP", "RGB"), "jpg")[1] == (damage.WRONG_EXTENSION,)


def animated(num_frames: int = 3) -> bytes:
    frames = [PIL.Image.effect_noise((200, 150), 90 + number) for number in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_a_picture_cut_anywhere_is_a_picture_or_damage():
    """Pillow raises IndexError for a GIF that ends within its second frame."""
    exif = PIL.Image.Exif()
    exif[274] = 6
    whole = [
        animated(), tiff(*[PIL.Image.effect_noise((9, 9), 50)] * 2), encode("JPEG", "RGB", exif=exif),
        encode("PNG", "RGB", icc_profile=b"x" * 200, exif=exif), encode("WEBP", "RGB", exif=exif),
    ]  # fmt: skip
    for data in whole:
        refused = 0
        for end in range(0, len(data), max(1, len(data) // 200)):
            try:
                for frame in frames_of(data[:end]):
                    probe_named(frame, "")
            except DamagedSampleError:
                refused += 1
        assert refused
    with pytest.raises(DamagedSampleError, match=damage.UNREADABLE_IMAGE):
        probe_named(animated()[: len(animated()) // 3 + 300], "gif")


def test_looking_at_a_header_decodes_no_pixel():
    data = bytearray(encode("PNG", "RGB", (64, 64), icc_profile=b"x" * 300))
    data[data.index(b"IDAT") + 40] ^= 0xFF
    assert quick_header(bytes(data)) is None
    assert (read_header(bytes(data)).width, read_header(bytes(data)).height) == (64, 64)


def tiff(*frames: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=list(frames[1:]))
    return buffer.getvalue()


def test_frames_of_a_tiff_are_pictures_of_their_own():
    modes = ("1", "L", "P", "RGB", "RGBA", "I;16")
    pages = [
        PIL.Image.effect_noise((20 + number, 9), 70).convert("I" if mode == "I;16" else mode).convert(mode)
        for number, mode in enumerate(modes)
    ]
    opened = [PIL.Image.open(io.BytesIO(frame)) for frame in frames_of(tiff(*pages))]
    assert [picture.format for picture in opened] == ["PNG"] * len(pages)
    assert [picture.convert("RGBA").tobytes() for picture in opened] == [
        page.convert("RGBA").tobytes() for page in pages
    ]
    jpeg = encode("JPEG", "RGB")
    assert frames_of(jpeg) == [jpeg]
    assert len(frames_of(tiff(PIL.Image.new("CMYK", (4, 4))))) == 1


def test_a_tiff_is_bounded(monkeypatch):
    dot = PIL.Image.new("1", (2, 2))
    assert len(frames_of(tiff(*[dot] * MAX_FRAMES))) == MAX_FRAMES
    with pytest.raises(DamagedSampleError, match=damage.TOO_MANY_FRAMES):
        frames_of(tiff(*[dot] * (MAX_FRAMES + 1)))
    with pytest.raises(DamagedSampleError, match=damage.UNREADABLE_IMAGE):
        frames_of(tiff(PIL.Image.effect_noise((64, 64), 50))[:900])
    monkeypatch.setattr(probe, "MAX_PIXELS", 100)
    with pytest.raises(DamagedSampleError, match=damage.BOMB):
        frames_of(tiff(PIL.Image.new("1", (20, 20))))


def test_a_sample_tells_what_is_odd_of_it():
    webp, caption = encode("WEBP", "RGB"), b"a picture"
    assert assemble("a", "s", {"webp": webp, "txt": caption, "json": b"{}"}).notes == ()
    assert assemble("a", "s", {"jpg": webp, "txt": caption}).notes == (damage.WRONG_EXTENSION, damage.NO_JSON)
    assert assemble("a", "s", {"txt": caption}, images=[Image(9, 9)]).notes == (damage.NO_JSON,)
    page = b'{"texts": [null, "between", null]}'
    red, blue = (PIL.Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    found = assemble("a", "s", {"tif": tiff(red, blue), "json": page})
    assert [(image.width, image.height) for image in found.sample.images] == [(30, 20)] * 2
    assert found.notes == ()
