"""Reads data to its end and decodes every picture: what an index, which reads headers alone, cannot promise."""

import functools
import importlib
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.engine import list_shards, map_shards
from rebus.errors import DataError
from rebus.records import Damage
from rebus.shards.assemble import Assembled, assemble
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import UNREADABLE_TAR, judge_groups, quarantine_path
from rebus.shards.link import read_link
from rebus.shards.pages import is_page
from rebus.shards.read import read_index, read_quarantine, read_sample, undecodable
from rebus.shards.sources.pieces import Piece
from rebus.shards.sources.tables import find_pieces, read_piece

TABLES = (".csv", ".tsv", ".json", ".jsonl")
SHARDS = (".tar", ".link")
ROWS_PER_PIECE = 1000
CHANGED = "changed since it was indexed"
MAX_NOTED = 100  # pointers for each oddity of a shard; all are counted


@dataclass(frozen=True)
class Finding:
    """One sample with something to say of it. reason: damage's, or what is odd about it. pointer: shows it."""

    shard: str
    key: str
    offset: int
    reason: str
    detail: str
    pointer: str


@dataclass(frozen=True)
class Findings:
    """What data holds. num_good: usable samples, odd ones among them. odd: samples by oddity; noted: some of each."""

    num_good: int
    damaged: tuple[Finding, ...]
    odd: Counter[str]
    noted: tuple[Finding, ...]

    @property
    def num_samples(self) -> int:
        return self.num_good + len(self.damaged)


def examine(path: Path, root: Path, num_workers: int) -> Findings:
    """path: a shard, a folder of shards, or a table whose pictures lie under `root`. Raises: DataError."""
    if not path.exists():
        raise DataError(f"nothing at {path}. Give a shard (.tar, .link), a folder of them, or a table of samples.")
    if path.is_dir() or path.suffix in SHARDS:
        shards = list_shards(path) if path.is_dir() else [path]
        parts = map_shards(examine_shard, shards, description="examine", num_workers=num_workers)
    elif path.suffix.lower() in TABLES:
        function = functools.partial(examine_piece, root=root, source=find_source(path))
        pieces = find_pieces(path, ROWS_PER_PIECE)
        parts = map_shards(function, pieces, description="examine", num_workers=num_workers)
    else:
        raise DataError(f"{path} is neither a shard ({', '.join(SHARDS)}) nor a table ({', '.join(TABLES)}).")
    return Findings(
        sum(part.num_good for part in parts),
        tuple(one for part in parts for one in part.damaged),
        sum((part.odd for part in parts), Counter()),
        tuple(one for part in parts for one in part.noted),
    )


def find_source(table: Path) -> str:
    """The source that reads the rows of a table, by the fields of its first whole row. Raises: DataError."""
    for piece in find_pieces(table, ROWS_PER_PIECE):
        for _, record in read_piece(piece):
            if isinstance(record, dict):
                return _source_of(table, record)
    raise DataError(f"{table} holds no whole row.")


def _source_of(table: Path, record: dict[str, Any]) -> str:
    if is_page(record):
        return "pages"
    if "conversations" in record or "messages" in record:
        return "conversations"
    if {"file", "caption"} <= set(record):
        return "pairs"
    wanted = "`texts` or `text_list` (pages), `conversations` or `messages`, or `file` and `caption` (pairs)"
    raise DataError(f"{table}: its rows have {', '.join(map(str, record))}; {wanted} are known.")


def examine_shard(shard: Path) -> Findings:
    """One tar, or what a link names. An index is not needed for a tar."""
    if read_link(shard).layout == "rows":
        outcomes = _outcomes_of_rows(shard)
    else:
        outcomes = ((group.key, group.offset, outcome) for group, outcome in judge_groups(shard))
    return _gather(shard, shard.name, [*_left_out_before(shard)], outcomes)


def _left_out_before(shard: Path) -> Iterator[Damage]:
    """Records that converting refused: the quarantine names them, and no tar holds them."""
    if quarantine_path(shard).is_file():
        yield from (one for one in read_quarantine(shard) if one.offset < 0 and one.reason != UNREADABLE_TAR)


def _outcomes_of_rows(shard: Path) -> Iterator[tuple[str, int, Damage | Assembled]]:
    for damage in read_quarantine(shard):
        if damage.offset >= 0:
            yield damage.key, damage.offset, damage
    link = read_link(shard)
    for row in read_index(shard).to_pylist():
        try:
            notes = tuple(note for note in row["notes"].split(", ") if note)
            yield row["key"], row["offset"], Assembled(row["kind"], read_sample(shard, row, link), notes)
        except DataError as error:
            yield row["key"], row["offset"], Damage(shard.name, row["key"], row["offset"], CHANGED, str(error))


def examine_piece(piece: Piece, *, root: Path, source: str) -> Findings:
    """A stretch of a table's rows."""
    table = Path(piece.file)
    build = importlib.import_module(f"rebus.shards.sources.{source}").build
    offsets = piece.offsets.tolist() if piece.offsets is not None else [-1] * piece.num_rows

    def judge(key: str, offset: int, record: dict[str, Any] | DamagedSampleError) -> Damage | Assembled:
        try:
            if isinstance(record, DamagedSampleError):
                raise record
            return assemble(key, table.name, build(record, root))
        except DamagedSampleError as error:
            return Damage(table.name, key, offset, error.reason, error.detail)

    rows = zip(offsets, read_piece(piece), strict=True)
    outcomes = ((key, offset, judge(key, offset, record)) for offset, (key, record) in rows)
    return _gather(table, table.name, [], outcomes, by_offset=True)


def _gather(
    path: Path,
    name: str,
    damages: list[Damage],
    outcomes: Iterable[tuple[str, int, Damage | Assembled]],
    *,
    by_offset: bool = False,
) -> Findings:
    """Decodes what is whole and makes a pointer for each finding. by_offset: keys name nothing that lies there."""
    keys, odd = Counter(damage.key for damage in damages), Counter[str]()
    num_good, noted = 0, []
    for key, offset, outcome in outcomes:
        keys[key] += 1
        damage = outcome if isinstance(outcome, Damage) else undecodable(Path(name), offset, outcome.sample)
        if damage is not None:
            damages.append(damage)
            continue
        assert isinstance(outcome, Assembled)
        num_good += 1
        odd.update(outcome.notes)
        noted += [Damage(name, key, offset, note) for note in outcome.notes if odd[note] <= MAX_NOTED]

    def finding(one: Damage) -> Finding:
        is_named = keys[one.key] == 1 and one.key.isprintable() and not by_offset
        return Finding(
            str(path),
            one.key,
            one.offset,
            one.reason,
            one.detail,
            pointer(path, one.key if is_named else "", one.offset),
        )

    return Findings(num_good, tuple(map(finding, damages)), odd, tuple(map(finding, noted)))


def pointer(path: Path, key: str, offset: int) -> str:
    """The command that shows a sample: by its key, or where it has none of its own by the byte that it begins at."""
    shard = shlex.quote(str(path))
    if key:
        name = shlex.quote(key)
        return f"rebus show {shard} --sample{'=' if name.startswith('-') else ' '}{name}"
    return f"rebus show {shard} --at {offset}" if offset >= 0 else f"rebus show {shard}"
