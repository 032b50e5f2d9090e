"""Walks the members of a tar without trusting it: a damaged header costs the members it describes, not the rest.

Python's tarfile ends silently at a damaged header in the middle of an archive, which would lose whole shards unseen.
"""

import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512  # POSIX.1-1988 ustar: headers and data are padded to blocks of 512 bytes
MAX_NAME_BYTES = 65_536  # of a long name or PAX header; real ones have some hundred bytes

TRUNCATED_TAR = "truncated tar"
DAMAGED_TAR = "damaged tar header"
CLIMBING_PATH = "member path climbs out"
LINK = "link instead of a file"
SPECIAL = "neither file nor folder"
BAD_NAME = "member name is not UTF-8"

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True)
class Member:
    """A regular file in a tar. offset: byte position of its first header; data_offset, size: of its content.

    fault: why the member must not be used, or empty.
    """

    name: str
    offset: int
    data_offset: int
    size: int
    fault: str = ""

    @property
    def end(self) -> int:
        return self.data_offset + self.size

    @property
    def key(self) -> str:
        """WebDataset's rule: the path up to the first dot of its last component."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.split(".", 1)[0]

    @property
    def extension(self) -> str:
        """What follows the key: `webp`, `txt`, `0.jpg`, in lower case; empty where there is no dot."""
        return self.name[len(self.key) + 1 :].lower()


@dataclass(frozen=True)
class _Header:
    """One 512-byte header, and what extension headers before it said."""

    name: str
    kind: bytes
    size: int


def walk_members(file: BinaryIO, num_bytes: int, start: int = 0) -> Iterator[Member]:
    """Yields the members of a tar of `num_bytes` bytes in order, faulty ones with their `fault` set.

    A fault of the archive itself (truncated, damaged header) is a Member without a name; after a damaged header the
    walk goes on at the next header that is whole.
    """
    offset = start
    while offset + BLOCK <= num_bytes:
        member, following = _read_member(file, offset, num_bytes)
        if member is not None:
            yield member
        if following is None:
            return
        offset = following
    yield Member("", offset, offset, 0, TRUNCATED_TAR)


def split_members(data: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample, extension -> content, from the stretch of a tar that holds it: what walk_members
    finds there under this key without a fault, without its cost where all headers are plain."""
    found: dict[str, bytes] = {}
    position, num_bytes = 0, len(data)
    while position + BLOCK <= num_bytes:
        plain = plain_header(data[position : position + BLOCK])
        start = position + BLOCK
        if plain is None or start + plain[1] > num_bytes:
            members = walk_members(io.BytesIO(data), num_bytes)
            return {m.extension: data[m.data_offset : m.end] for m in members if m.key == key and not m.fault}
        name, size = plain
        name = name.removeprefix("./")
        dot = name.find(".", name.rfind("/") + 1)
        if (name if dot < 0 else name[:dot]) == key:
            found[name[len(key) + 1 :].lower()] = data[start : start + size]
        position = start + (size + BLOCK - 1) // BLOCK * BLOCK
    return found


def plain_header(block: bytes) -> tuple[str, int] | None:
    """Name and size from the header of a file of a short, harmless name: nearly all there are, read ten times as fast
    as by tarfile. None for every other header, damaged ones among them: tarfile judges those.

    The checksum is the sum of the bytes with its own field as spaces; Adler-32 holds it plus 1, modulo 65521.
    """
    field, size_field, end = block[148:156], block[124:136].strip(b" \0"), block.find(b"\0", 0, 100)
    if len(block) != BLOCK or block[156] not in b"0\0" or block[345] or end < 1 or not size_field.isdigit():
        return None
    try:
        checksum = int(field.strip(b" \0"), 8)
        if zlib.adler32(block) & 0xFFFF != (checksum - 255 + sum(field)) % 65521:
            return None
        name, size = block[:end].decode(), int(size_field, 8)
    except ValueError:
        return None
    if "\\" in name or ".." in name or name[0] == "/" or name[-1] == "/" or name[1:2] == ":":
        return None
    return name, size


def _read_member(file: BinaryIO, offset: int, num_bytes: int) -> tuple[Member | None, int | None]:
    """The member at `offset` (None for a folder) and where the next one begins (None: the archive ends)."""
    position, name, size = offset, "", -1
    while True:
        try:
            header = _read_header(file, position)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return None, None
        except tarfile.HeaderError:
            following = _next_whole_header(file, position + BLOCK, num_bytes)
            if following is None and _is_damaged_end(file, position):
                return Member("", offset, position, 0, TRUNCATED_TAR), None
            return Member(_guess_name(file, position, following), offset, position, 0, DAMAGED_TAR), following
        data = position + BLOCK
        if data + header.size > num_bytes:
            return Member(name or header.name, offset, data, num_bytes - data, TRUNCATED_TAR), None
        following = data + _padded(header.size)
        if header.kind in _EXTENSIONS and header.size <= MAX_NAME_BYTES:
            name, size = _read_extension(file, header, data, name, size)
        elif header.kind != tarfile.XGLTYPE:
            header = _Header(name or header.name, header.kind, header.size if size < 0 else size)
            if data + header.size > num_bytes:
                return Member(header.name, offset, data, num_bytes - data, TRUNCATED_TAR), None
            return _judge(header, offset, data), data + _padded(header.size)
        position = following


def _judge(header: _Header, offset: int, data: int) -> Member | None:
    if header.kind == tarfile.DIRTYPE:
        return None
    fault = ""
    if header.kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        fault = LINK
    elif header.kind not in _FILES:
        fault = SPECIAL
    elif climbs_out(header.name):
        fault = CLIMBING_PATH
    elif any("\ud800" <= character <= "\udfff" for character in header.name):
        fault = BAD_NAME
    return Member(header.name.removeprefix("./"), offset, data, header.size, fault)


def climbs_out(name: str) -> bool:
    """True if a relative path would leave its folder, on any system."""
    path = name.replace("\\", "/")
    return path.startswith("/") or ".." in path.split("/") or path[1:2] == ":" or "\0" in path


def _read_header(file: BinaryIO, position: int) -> _Header:
    """Raises: tarfile.HeaderError where there is no whole header (checksum included)."""
    file.seek(position)
    block = file.read(BLOCK)
    plain = plain_header(block)
    if plain is not None:
        return _Header(plain[0], tarfile.REGTYPE, plain[1])
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if info.size < 0:
        raise tarfile.HeaderError("negative size")
    sizeless = info.type in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
    return _Header(info.name, info.type, 0 if sizeless else info.size)


def _read_extension(file: BinaryIO, header: _Header, data: int, name: str, size: int) -> tuple[str, int]:
    """A long name (GNU) or a list of `length key=value` records (PAX): only path and size concern us."""
    file.seek(data)
    content = file.read(header.size)
    if header.kind == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape"), size
    if header.kind == tarfile.GNUTYPE_LONGLINK:
        return name, size
    while content:
        length_text, _, _ = content.partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        keyword, _, value = content[len(length_text) + 1 : max(length - 1, 0)].partition(b"=")
        if keyword == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size" and value.isdigit():
            size = int(value)
        content = content[length:] if length > 0 else b""
    return name, size


def _next_whole_header(file: BinaryIO, position: int, num_bytes: int) -> int | None:
    while position + BLOCK <= num_bytes:
        file.seek(position)
        block = file.read(BLOCK)
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return position
            except tarfile.HeaderError:
                pass
        position += BLOCK
    return None


def _is_damaged_end(file: BinaryIO, position: int) -> bool:
    """An end mark is a block of zeros; any header has a name, a mode, a size and a checksum, 50 bytes at least."""
    file.seek(position)
    return BLOCK - file.read(BLOCK).count(0) < 16


def _guess_name(file: BinaryIO, position: int, following: int | None) -> str:
    """The name in a damaged header, if the next whole header confirms its key; else empty."""
    if following is None:
        return ""
    file.seek(position)
    name = file.read(100).split(b"\0", 1)[0].decode("utf-8", "replace")
    guess = Member(name, position, position, 0)
    return name if guess.key == Member(_read_header(file, following).name, 0, 0, 0).key else ""


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK
