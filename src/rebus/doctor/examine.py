"""Reads data to its end and decodes every picture: what an index, which reads headers alone, cannot promise."""

import functools
import importlib
import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.config import Place
from rebus.engine import list_shards, map_shards
from rebus.errors import DataError, UnreachableError
from rebus.records import Damage
from rebus.shards.assemble import Assembled, assemble
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import UNREADABLE_TAR, judge_groups, quarantine_path
from rebus.shards.link import read_link
from rebus.shards.linking import trust_sizes
from rebus.shards.read import read_index, read_quarantine, read_sample, undecodable
from rebus.shards.run import recipe_of
from rebus.shards.sources.meta import read_meta
from rebus.shards.sources.pieces import Piece
from rebus.shards.sources.tars import list_tars
from rebus.storage import is_remote

TABLES = (".csv", ".tsv", ".json", ".jsonl")
SHARDS = (".tar", ".link")
ROWS_PER_PIECE = 1000
CHANGED = "changed since it was indexed"
MAX_NOTED = 100  # pointers for each oddity of a shard; all are counted

Outcome = tuple[str, int, Damage | Assembled]
"""Key, offset (-1: none) and what a sample is."""


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


def examine(recipe: ShardsRecipe) -> Findings:
    """Reads all that the recipe would make shards of, and writes nothing. Raises: DataError."""
    if recipe.root is not None and not recipe.root.is_dir():
        raise DataError(f"no folder at {recipe.root}. `root` is the folder that picture paths start from.")
    if recipe.source == "meta":
        return _sum([examine(recipe_of(recipe, one)) for one in read_meta(recipe.table)])
    function: Callable[[Any], Findings] = examine_shard
    if recipe.source == "tars":
        items: Iterable[Any] = _shards_of(recipe.input)
    else:
        function = functools.partial(examine_piece, recipe=recipe)
        items = _source(recipe).find_pieces(recipe.table, ROWS_PER_PIECE)
    parts = map_shards(function, items, description="examine", num_workers=recipe.num_workers)
    if not parts:
        raise DataError(f"{recipe.input} holds no record.")
    return _sum(parts)


def _sum(parts: list[Findings]) -> Findings:
    return Findings(
        sum(part.num_good for part in parts),
        tuple(one for part in parts for one in part.damaged),
        sum((part.odd for part in parts), Counter()),
        tuple(one for part in parts for one in part.noted),
    )


def _shards_of(input: Place) -> list[Place]:
    """One tar or link, those of a folder, or the tars behind a URL."""
    if is_remote(input):  # one tar is not listed: that takes a right of its own, and plain HTTP has no listings
        return [input] if str(input).endswith(".tar") else [*list_tars(input)]
    return [input] if Path(input).is_file() else [*list_shards(Path(input))]


def _source(recipe: ShardsRecipe) -> Any:
    return importlib.import_module(f"rebus.shards.sources.{recipe.source}")


def opens_pictures(recipe: ShardsRecipe) -> bool:
    """False where a recipe of linked rows asks for none to be opened."""
    return recipe.check_images or not recipe.link or recipe.source == "tars"


def examine_shard(shard: Place) -> Findings:
    """One tar, on disk or behind a URL, or what a link names. An index is not needed for a tar."""
    if is_remote(shard):
        return _gather(shard, [], _outcomes_of_tar(shard))
    path = Path(shard)
    is_rows = read_link(path).layout == "rows"
    return _gather(path, [*_left_out_before(path)], _outcomes_of_rows(path) if is_rows else _outcomes_of_tar(path))


def _left_out_before(shard: Path) -> Iterator[Damage]:
    """Records that converting refused: the quarantine names them, and no tar holds them."""
    if quarantine_path(shard).is_file():
        yield from (one for one in read_quarantine(shard) if one.offset < 0 and one.reason != UNREADABLE_TAR)


def _outcomes_of_tar(shard: Place) -> Iterator[Outcome]:
    for group, outcome in judge_groups(shard):
        yield group.key, group.offset, outcome


def _outcomes_of_rows(shard: Path) -> Iterator[Outcome]:
    for damage in read_quarantine(shard):
        if damage.offset >= 0:
            yield damage.key, damage.offset, damage
    link = read_link(shard)
    for row in read_index(shard).to_pylist():
        try:
            notes = tuple(note for note in row["notes"].split(", ") if note)
            yield row["key"], row["offset"], Assembled(row["kind"], read_sample(shard, row, link), notes)
        except UnreachableError:
            raise
        except DataError as error:
            yield row["key"], row["offset"], Damage(shard.name, row["key"], row["offset"], CHANGED, str(error))


def examine_piece(piece: Piece, *, recipe: ShardsRecipe) -> Findings:
    """A stretch of a source's records."""
    module = _source(recipe)
    records = module.read_piece(piece, recipe.tokenizer) if recipe.tokenizer else module.read_piece(piece)
    offsets = itertools.repeat(-1) if piece.offsets is None else piece.offsets.tolist()

    def judge(key: str, offset: int, record: dict[str, Any] | DamagedSampleError) -> Damage | Assembled:
        try:
            if isinstance(record, DamagedSampleError):
                raise record
            return _assemble(recipe, module, key, record)
        except DamagedSampleError as error:
            return Damage(Path(piece.file).name, key, offset, error.reason, error.detail)

    places = zip(offsets, records, strict=False)  # only tables have an offset a record
    outcomes = ((key, offset, judge(key, offset, record)) for offset, (key, record) in places)
    return _gather(Path(piece.file), [], outcomes, decode=opens_pictures(recipe))


def _assemble(recipe: ShardsRecipe, module: Any, key: str, record: dict[str, Any]) -> Assembled:
    """What the recipe makes of a record. Raises: DamagedSampleError."""
    if recipe.link:
        metadata, names = module.survey(record)  # refuses what only converting can take: videos
        if not recipe.check_images:
            images, _ = trust_sizes(record, names)
            return assemble(key, recipe.table.name, {}, metadata=metadata, images=images)
    return assemble(key, recipe.table.name, module.build(record, recipe.image_root))


def _gather(path: Place, damages: list[Damage], outcomes: Iterable[Outcome], *, decode: bool = True) -> Findings:
    """Decodes what is whole and makes a pointer for each finding."""
    name = Path(path).name
    keys, odd = Counter(damage.key for damage in damages), Counter[str]()
    num_good, noted = 0, []
    for key, offset, outcome in outcomes:
        keys[key] += 1
        damage = _judge(name, offset, outcome, decode)
        if damage is not None:
            damages.append(damage)
            continue
        assert isinstance(outcome, Assembled)
        num_good += 1
        odd.update(outcome.notes)
        noted += [Damage(name, key, offset, note) for note in outcome.notes if odd[note] <= MAX_NOTED]

    def finding(one: Damage) -> Finding:
        known = one.key if keys[one.key] == 1 and one.key.isprintable() else ""
        return Finding(str(path), one.key, one.offset, one.reason, one.detail, pointer(path, known, one.offset))

    return Findings(num_good, tuple(map(finding, damages)), odd, tuple(map(finding, noted)))


def _judge(name: str, offset: int, outcome: Damage | Assembled, decode: bool) -> Damage | None:
    if isinstance(outcome, Damage):
        return outcome
    return undecodable(Path(name), offset, outcome.sample) if decode else None


def pointer(path: Place, key: str, offset: int) -> str:
    """The command that shows a sample: by its key, or where it has none of its own by the byte that it begins at.

    Empty for what `rebus show` does not open: whatever lies behind a URL, in parquet or in packs.
    """
    suffix = Path(path).suffix
    is_shard = suffix in SHARDS
    if is_remote(path) or not (is_shard or (suffix.lower() in TABLES and offset >= 0)):
        return ""
    shown = f"rebus show {shlex.quote(str(path))}"
    if is_shard and key:
        name = shlex.quote(key)
        return f"{shown} --sample{'=' if name.startswith('-') else ' '}{name}"
    return f"{shown} --at {offset}" if offset >= 0 else shown
