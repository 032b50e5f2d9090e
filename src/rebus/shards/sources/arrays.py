"""Where the elements of a JSON array lie, for arrays larger than memory: the file is read in blocks."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rebus.errors import DataError

MAX_ROW_BYTES = 256 * 2**20  # beyond, no end of a row is looked for
NUM_KEYED = 1000  # rows whose first key is remembered, to know a row's beginning by
_NEAR = 16  # the parser points less than this before the cut where a literal or an escape was cut in two
_SPACE = re.compile(r"[ \t\n\r]*")
_SEPARATOR = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r])")
_CUT_SEPARATOR = re.compile(r"[ \t\n\r]*(?:,[ \t\n\r]*|\][ \t\n\r]*)?\Z")
_END = re.compile(r"[ \t\n\r]*\][ \t\n\r]*\Z")
_FIRST_KEY = re.compile(r'\{[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:')


class _Window:
    """The part of a file that is looked at, as latin-1: one character a byte. start: offset of its first byte."""

    def __init__(self, file: BinaryIO, block_bytes: int):
        self.file, self.block_bytes = file, block_bytes
        self.text, self.start, self.ended = "", 0, False

    def refill(self, place: int) -> None:
        """Drops what lies before `place` and reads on, so much that a long row is not parsed again and again."""
        rest = self.text[place:]
        if len(rest) > MAX_ROW_BYTES:
            raise DataError(f"{self.file.name}: no end of the row at byte {self.start + place}. Mend it.")
        more = self.file.read(max(self.block_bytes, len(rest)))
        self.start, self.text, self.ended = self.start + place, rest + more.decode("latin-1"), not more

    def skip_space(self, place: int) -> int:
        while (place := _SPACE.match(self.text, place).end()) == len(self.text) and not self.ended:  # type: ignore[union-attr]
            self.refill(place)
            place = 0
        return place


def scan_array(path: Path, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) of every element. An element that is not JSON reaches to where the next one begins: to
    `}, {"key":` with a first key that other elements have too. Whoever parses it finds it damaged, and it alone.

    Raises: DataError where there is no array, or no end to it.
    """
    scan = json.JSONDecoder(strict=False).scan_once  # type: ignore[attr-defined]  # control characters: parsing tells
    keys: set[str] = set()
    num_rows = 0
    with open(path, "rb") as file:
        window = _Window(file, block_bytes)
        place = _enter(window, path)
        while not (window.ended and _END.match(window.text, place)):
            end, cut = _element(scan, window.text, place)
            found = _SEPARATOR.match(window.text, end) if end else None
            if found:
                if num_rows < NUM_KEYED and (key := _FIRST_KEY.match(window.text, place)):
                    keys.add(key[1])
                yield window.start + place, end - place
                num_rows += 1
                place = found.end()
            elif not window.ended and (cut or (end and _CUT_SEPARATOR.match(window.text, end))):
                window.refill(place)
                place = 0
            elif end and _END.match(window.text, end):
                yield window.start + place, end - place
                return
            else:
                end, place = _resume(window, place, keys, path)
                yield window.start, end
                if not place:
                    return


def _enter(window: _Window, path: Path) -> int:
    """Goes behind the bracket that opens the array, to its first element or its end."""
    window.refill(0)
    while len(window.text) < 3 and not window.ended:
        window.refill(0)
    place = window.skip_space(3 if window.text.startswith("ï»¿") else 0)
    if window.text[place : place + 1] != "[":
        hint = " One object a line is .jsonl." if window.text[place : place + 1] == "{" else ""
        raise DataError(f"{path} must hold an array of samples.{hint}")
    place = window.skip_space(place + 1)
    while window.text[place : place + 1] == "]" and not window.ended:
        window.refill(place)
        place = 0
    return place


def _element(scan: Callable[[str, int], tuple[Any, int]], text: str, place: int) -> tuple[int, bool]:
    """(where the element at `place` ends, or 0 where it cannot be parsed; whether the end of the text cut it)."""
    try:
        return scan(text, place)[1], False
    except StopIteration as error:
        return 0, error.value > len(text) - _NEAR
    except json.JSONDecodeError as error:
        return 0, error.pos > len(text) - _NEAR or error.msg.startswith("Unterminated string")
    except RecursionError:
        return 0, False


def _resume(window: _Window, place: int, keys: set[str], path: Path) -> tuple[int, int]:
    """Moves the window to the damaged element at `place`. Returns (its end, where the next element begins or 0)."""
    own = _FIRST_KEY.match(window.text, place)
    names = keys or ({own[1]} if own else set())
    key = f"(?:{'|'.join(map(re.escape, sorted(names)))})[ \t\n\r]*:" if names else ""
    close = r"\}?" if keys else r"\}"  # where rows are known by their keys, a row may have lost its brace
    boundary = re.compile(rf"({close})[ \t\n\r]*,[ \t\n\r]*(?=\{{[ \t\n\r]*{key})")
    while not (found := boundary.search(window.text, place)):
        if window.ended:
            return _last(window, place, path), 0
        window.refill(place)
        place = 0
    window.start, window.text = window.start + place, window.text[place:]
    return found.end(1) - place, found.end() - place


def _last(window: _Window, place: int, path: Path) -> int:
    rest = window.text[place:].rstrip(" \t\n\r")
    window.start += place
    if not rest.endswith("]"):
        size = window.start + len(window.text) - place
        raise DataError(
            f"{path} is cut off: its {size} bytes end within the row at byte {window.start}, without the closing "
            "bracket of the array. Fetch it again."
        )
    return len(rest) - 1
