"""What lies in a shard at some byte, usable or not: names, sizes and first bytes of its members, and the verdict."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from rebus.errors import DataError
from rebus.log import output, printable
from rebus.records import Damage
from rebus.shards.assemble import assemble, is_image_name
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import DUPLICATE_KEY
from rebus.shards.link import SUFFIX, read_link
from rebus.shards.members import DAMAGED_TAR, Member, walk_members
from rebus.shards.read import undecodable
from rebus.show.terminal import shown, thumbnail
from rebus.storage import file_size, open_file, read_range

NUM_BYTES = 32  # of a member's content, in hexadecimal
NUM_CHARS = 600  # of a member's text
ROW_BYTES = 65_536  # of a table from the byte asked for
MAX_MEMBER_BYTES = 2**28  # of a member that is looked into; the start of a larger one is shown


@dataclass(frozen=True)
class Found:
    """A member and the first bytes of its content, all of them up to MAX_MEMBER_BYTES."""

    member: Member
    content: bytes


def print_damage(shard: Path, damage: Damage) -> None:
    """Why a sample is left out, then what lies where it should be."""
    output.print(Text(printable(f"{damage.key or '(no key)'}  damaged: {damage.reason}"), "bold red"))
    if damage.detail:
        output.print(Text(shown(damage.detail), "red"))
    if damage.offset < 0:
        output.print(Text(f"{shard} does not hold it: it was left out when the shard was made.", "grey62"))
    else:
        _print_place(shard, damage.offset)


def print_at(path: Path, offset: int) -> None:
    """Whatever begins at a byte of a shard or of a table. Raises: DataError beyond its end."""
    _print_place(path, offset)
    if _is_tar(path):
        found = members_at(path, offset)
        verdict, style = _judge(path, found)
        output.print(Text(printable(verdict), style))


def members_at(shard: Path, offset: int) -> list[Found]:
    """The members of the sample that begins at `offset`. Raises: DataError beyond the end."""
    data = read_link(shard).data
    num_bytes = file_size(data)
    if offset >= num_bytes:
        raise DataError(f"{shard} has {num_bytes:,} bytes: nothing begins at byte {offset:,}.")
    found: list[Found] = []
    with open_file(data) as file:
        for member in walk_members(file, num_bytes, offset):
            doubled = [one for one in found if one.member.name == member.name]
            if found and (member.key != found[0].member.key or doubled or not member.name):
                break
            file.seek(member.data_offset)
            size = min(member.size, MAX_MEMBER_BYTES) if member.fault != DAMAGED_TAR else 0
            found.append(Found(member, file.read(size)))
    return found


def _is_tar(path: Path) -> bool:
    return path.suffix == ".tar" or (path.suffix == SUFFIX and read_link(path).layout == "tar")


def _judge(shard: Path, found: list[Found]) -> tuple[str, str]:
    faults = [one.member.fault for one in found if one.member.fault]
    if faults or not found:
        return f"damaged: {faults[0] if faults else 'nothing begins here'}", "bold red"
    try:
        members = {one.member.extension: one.content for one in found}
        assembled = assemble(found[0].member.key, shard.name, members)
    except DamagedSampleError as error:
        return f"damaged: {error}", "bold red"
    first = found[0].member
    if _came_before(shard, first.key, first.offset):
        return f"damaged: {DUPLICATE_KEY}: the first sample called {first.key} is used", "bold red"
    hidden = undecodable(shard, first.offset, assembled.sample)
    if hidden is not None:
        return f"damaged: {hidden.reason}: {hidden.detail}", "bold red"
    return ", ".join(["usable", *assembled.notes]), "bold green"


def _came_before(shard: Path, key: str, offset: int) -> bool:
    """From the headers alone: a seek a member."""
    data = read_link(shard).data
    with open_file(data) as file:
        members = itertools.takewhile(lambda one: one.offset < offset, walk_members(file, file_size(data)))
        return any(member.key == key for member in members)


def _print_place(path: Path, offset: int) -> None:
    output.print(Text(f"byte {offset:,} of {path}", "bold cyan"), soft_wrap=True)
    if not _is_tar(path):
        _print_row(path, offset)
        return
    for one in members_at(path, offset):
        _print_member(one)


def _print_row(path: Path, offset: int) -> None:
    """Rows have no marks at their ends, so the start of what follows is shown up to the end of its line."""
    data = read_link(path).data if path.suffix == SUFFIX else str(path)
    content = read_range(data, offset, ROW_BYTES)
    if not content:
        raise DataError(f"{path} has {file_size(data):,} bytes: nothing begins at byte {offset:,}.")
    line = content.split(b"\n", 1)[0] or content
    output.print(Text(shown(line.decode("utf-8", "replace")[: 4 * NUM_CHARS])))


def _print_member(found: Found) -> None:
    member, content = found.member, found.content
    head = f"{member.name or '(no name)'}  {member.size:,} bytes at byte {member.offset:,}"
    output.print(Text(printable(head), "bold") + Text(f"  {member.fault}" if member.fault else "", "red"))
    if not content:
        return
    if is_image_name(member.extension):
        output.print(Text(f"{content[:NUM_BYTES].hex(' ')}  {_readable(content[:NUM_BYTES])}", "grey62"))
        output.print(thumbnail(content, columns=32))
    else:
        text = content[: 4 * NUM_CHARS].decode("utf-8", "replace")[:NUM_CHARS]
        output.print(Text(shown(text) + (" ..." if len(content) > len(text.encode()) else ""), "grey62"))


def _readable(content: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in content)
