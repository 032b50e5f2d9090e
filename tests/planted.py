"""A pool in which every kind of damage of contract 7 was planted, beside clean samples and odd ones that are whole."""

import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from rebus.shards import damage, index, members

CLEAN = [f"clean{number:02d}" for number in range(26)]
CUT = [f"cut{number}" for number in range(4)]
"""Samples of the shard that was cut off: the last one lost its end."""


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 40), seed: int = 90) -> bytes:
    buffer = io.BytesIO()
    noise = PIL.Image.effect_noise(size, seed)
    noise = noise.convert("I").convert(mode) if mode == "I;16" else noise.convert(mode)
    noise.save(buffer, kind)
    return buffer.getvalue()


def animation() -> bytes:
    frames = [PIL.Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header asks for 40,000 x 40,000 pixels: 4.8 GB as RGB."""
    data = bytearray(picture())
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def clean(key: str) -> dict[str, bytes]:
    return {"png": picture(), "txt": f"a photo of {key}".encode(), "json": json.dumps({"key": key}).encode()}


def page(texts: list[str | None]) -> bytes:
    return json.dumps({"texts": texts}).encode()


@dataclass(frozen=True)
class Planted:
    """A sample with the reason that it must be found under."""

    reason: str
    members: dict[str, bytes]


DAMAGED = {
    "harmed": Planted(members.DAMAGED_TAR, clean("harmed")),
    "zero": Planted(damage.ZERO_BYTE_IMAGE, {**clean("zero"), "png": b""}),
    "dot": Planted(damage.TINY_PICTURE, {**clean("dot"), "png": picture(size=(1, 1))}),
    "ribbon": Planted(damage.EXTREME_ASPECT, {**clean("ribbon"), "png": picture(size=(1000, 2))}),
    "bomb": Planted(damage.BOMB, {**clean("bomb"), "png": bomb()}),
    "textual": Planted(damage.UNREADABLE_IMAGE, {"jpg": b"this is not a picture", "txt": b"a photo", "json": b"{}"}),
    "latin": Planted(damage.BAD_UTF8, {**clean("latin"), "txt": "caf\xe9".encode("latin-1")}),
    "clean03": Planted(index.DUPLICATE_KEY, clean("another")),
    "pictureless": Planted(damage.MISSING_IMAGE, {"txt": b"a photo", "json": b"{}"}),
    "placeholder": Planted(damage.PLACEHOLDER_IN_CAPTION, {**clean("x"), "txt": b"a photo <image> of a square"}),
    "miscounted": Planted(
        damage.PLACEHOLDER_MISMATCH, {"png": picture(), "json": page([None, "between the two", None])}
    ),
    "empty": Planted(damage.EMPTY_CAPTION, {**clean("empty"), "txt": b"  \n"}),
    "endless": Planted(damage.OVERSIZED_CAPTION, {**clean("endless"), "txt": b"word " * 20_000}),
    "linked": Planted(members.LINK, clean("linked")),
    "../escaped": Planted(members.CLIMBING_PATH, {"png": picture()}),
    "broken": Planted(damage.BAD_JSON, {**clean("broken"), "json": b"{'key': "}),
    "wordless": Planted(damage.MISSING_CAPTION, {"png": picture(), "json": b"{}"}),
}
"""What an index finds. Fifteen of the twenty kinds, and two more; the truncated tar is a shard of its own."""

ODD = {
    "cmyk": Planted(damage.CMYK, {"jpg": picture("JPEG", "CMYK"), "txt": b"a photo", "json": b"{}"}),
    "deep": Planted(damage.SIXTEEN_BIT, {"png": picture(mode="I;16"), "txt": b"a photo", "json": b"{}"}),
    "moving": Planted(damage.ANIMATED, {"gif": animation(), "txt": b"a photo", "json": b"{}"}),
    "jsonless": Planted(damage.NO_JSON, {"png": picture(), "txt": b"a photo"}),
    "misnamed": Planted(damage.WRONG_EXTENSION, {"jpg": picture("WEBP"), "txt": b"a photo", "json": b"{}"}),
}
"""Whole but odd: used, and noted. Four of the twenty kinds, and one more."""

HALF = {**clean("half"), "png": picture()[:300]}
"""What decoding alone shows."""

TWENTY = len(DAMAGED) - 2 + len(ODD) - 1 + 1


def plant(folder: Path) -> Path:
    """Writes the pool: 00000.tar with a planted sample after each clean one, 00001.tar cut off in its last sample."""
    folder.mkdir()
    planted = [*DAMAGED.items(), *ODD.items(), ("half", Planted(damage.UNDECODABLE_IMAGE, HALF))]
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, key in enumerate(CLEAN):
            write(tar, key, {**clean(key), "png": picture(mode=("RGB", "L", "RGBA", "1")[number % 4])})
            if number < len(planted):
                write(tar, planted[number][0], planted[number][1].members)
    harm_header(folder / "00000.tar", "harmed.png")
    with tarfile.open(folder / "00001.tar", "w") as tar:
        for key in CUT:
            write(tar, key, clean(key))
        end = tar.offset
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[: end - 4 * 512 - 600])  # within the picture: text and json follow it
    return folder


def write(tar: tarfile.TarFile, key: str, content: dict[str, bytes]) -> None:
    for number, (extension, data) in enumerate(content.items()):
        info = tarfile.TarInfo(f"{key}.{extension}")
        if key == "linked" and number == 0:
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            data = b""
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def harm_header(tar: Path, name: str) -> None:
    """Changes the size that a header states; its checksum no longer fits."""
    data = bytearray(tar.read_bytes())
    data[data.index(name.encode() + b"\0") + 124] ^= 0x41
    tar.write_bytes(bytes(data))
