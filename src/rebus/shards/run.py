"""`rebus shards`: brings raw data into the form that every later stage reads."""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rebus.config import check_recipe, dump_recipe
from rebus.engine import map_shards
from rebus.errors import DataError
from rebus.fingerprint import (
    BUILDING,
    MANIFEST,
    Manifest,
    holds_other,
    is_begun,
    is_current,
    prepare_out,
    read_manifest,
    write_atomically,
    write_manifest,
)
from rebus.log import say, show_table
from rebus.records import Damage
from rebus.shards.config import ShardsRecipe
from rebus.shards.convert import convert
from rebus.shards.download.reasons import is_retryable
from rebus.shards.download.retries import has_retryable, last_round
from rebus.shards.download.shard import is_done
from rebus.shards.index import VERSION, is_indexed
from rebus.shards.inputs import input_fingerprints
from rebus.shards.read import read_index, read_quarantine
from rebus.shards.sources.meta import MIXTURE, DataSet, mixture, read_meta
from rebus.shards.sources.tars import INDEXING, adopt, list_tars, prepare_in_place


@dataclass(frozen=True)
class ShardsSummary:
    """What lies in a shards folder. reasons, notes: damage by reason, samples by what is odd, most frequent first."""

    out: Path
    num_shards: int
    num_samples: int
    num_damaged: int
    reasons: dict[str, int]
    notes: dict[str, int] = field(default_factory=dict)


def run(recipe: ShardsRecipe) -> ShardsSummary:
    """Writes or indexes shards. Raises: DataError where more than `max_bad_share` of the samples is damaged."""
    return _run_meta(recipe) if recipe.source == "meta" else _run_one(recipe)


def _run_meta(recipe: ShardsRecipe) -> ShardsSummary:
    """A shards folder of each data set of a list, and the mixture that `rebus pack` reads. Returns their sum."""
    if (recipe.out / MANIFEST).is_file():
        raise DataError(f"{recipe.out} is an artifact itself. Choose another `out`, for a folder a data set.")
    data_sets = read_meta(recipe.table)
    found = [_run_one(recipe_of(recipe, one)) for one in data_sets]
    write_atomically(recipe.out / MIXTURE, mixture(data_sets, recipe.out))
    reasons: Counter[str] = sum((Counter(one.reasons) for one in found), Counter())
    notes: Counter[str] = sum((Counter(one.notes) for one in found), Counter())
    summary = ShardsSummary(
        recipe.out,
        sum(one.num_shards for one in found),
        sum(one.num_samples for one in found),
        sum(one.num_damaged for one in found),
        dict(reasons.most_common()),
        dict(notes.most_common()),
    )
    _show(summary)
    return summary


def recipe_of(recipe: ShardsRecipe, one: DataSet) -> ShardsRecipe:
    root = recipe.root or one.root
    changes = {"source": "conversations", "input": one.annotation, "out": recipe.out / one.name, "root": root}
    return check_recipe(ShardsRecipe, recipe.model_dump() | changes, f"{recipe.input}, '{one.name}'")


def _run_one(recipe: ShardsRecipe) -> ShardsSummary:
    manifest = _manifest(recipe)
    if is_current(recipe.out, manifest):
        shards = [*recipe.out.glob("*.tar"), *recipe.out.glob("*.link")]
        if _is_whole(recipe, shards) and not (recipe.download.retry_failed and has_retryable(recipe)):
            summary = summarize(recipe.out, shards)
            _refuse_bad_share(summary, recipe.max_bad_share)
            say(f"{recipe.out} is up to date")
            return summary
        # A finished folder that lost a file, or is to ask again for what failed, is one that was never finished: what
        # is there is kept.
        write_atomically(recipe.out / (INDEXING if recipe.in_place else BUILDING), manifest.fingerprint)
    tars = _index_tars(recipe, manifest) if recipe.source == "tars" else _convert(recipe, manifest)
    summary = summarize(recipe.out, tars)
    _refuse_bad_share(summary, recipe.max_bad_share)
    _finish(recipe, manifest, summary)
    _show(summary)
    return summary


def _is_whole(recipe: ShardsRecipe, shards: list[Path]) -> bool:
    is_finished = is_done if recipe.source == "urls" else is_indexed
    return len(shards) == read_manifest(recipe.out, "shards").facts["num_shards"] and all(map(is_finished, shards))


def _manifest(recipe: ShardsRecipe) -> Manifest:
    """Only what shapes the bytes: where a folder lies and how many processes worked do not; for links it does."""
    made_by: dict[str, Any] = {"source": recipe.source, "index_version": VERSION}
    if recipe.source != "tars":
        made_by["samples_per_shard"] = recipe.rows_per_shard
    if recipe.source == "urls":
        made_by["download"] = recipe.download.shaping()
    if recipe.link:
        made_by["link"] = str(recipe.input if isinstance(recipe.input, str) else recipe.input.resolve())
    if recipe.link and recipe.source != "tars":
        made_by |= {"root": str(recipe.image_root.resolve()), "check_images": recipe.check_images}
    return Manifest("shards", made_by, input_fingerprints(recipe))


def _index_tars(recipe: ShardsRecipe, manifest: Manifest) -> list[Path]:
    if recipe.in_place:
        prepare_in_place(recipe.out, manifest.fingerprint)
    else:
        prepare_out(recipe.out, manifest)
    function = functools.partial(adopt, out=recipe.out, link=recipe.link)
    return map_shards(function, list_tars(recipe.input), description="index", num_workers=recipe.num_workers)


def _convert(recipe: ShardsRecipe, manifest: Manifest) -> list[Path]:
    _refuse_out_with_input(recipe)
    if recipe.source == "urls":
        _refuse_other_download(recipe, manifest)
    prepare_out(recipe.out, manifest)
    return convert(recipe)


def _refuse_out_with_input(recipe: ShardsRecipe) -> None:
    """An `out` that holds its own input would empty it; inside of a folder that is read whole it would be read."""
    out = recipe.out.resolve()
    for name, path in (("input", recipe.table), ("root", recipe.image_root)):
        inside, around = out.is_relative_to(path.resolve()), path.resolve().is_relative_to(out)
        if around or (inside and name == "input"):
            raise DataError(f"`out` ({out}) and `{name}` ({path}) lie inside each other. Choose another `out`.")


def _refuse_other_download(recipe: ShardsRecipe, manifest: Manifest) -> None:
    """What takes days to fetch, and may be gone from the web by now, is never removed by another recipe."""
    if is_begun(recipe.out, manifest) or not holds_other(recipe.out, "shards"):
        return
    if any(recipe.out.glob("*.tar")) or any(one.stat().st_size for one in recipe.out.glob("*.journal")):
        raise DataError(
            f"{recipe.out} holds what another recipe downloaded: another table, or other sizes or formats. "
            "Choose another `out`, or remove that folder yourself."
        )


def summarize(out: Path, tars: list[Path]) -> ShardsSummary:
    """Counts samples and damage of indexed shards from their files."""
    reasons = Counter(damage.reason for damage in _open_damage(out, tars))
    num_samples, notes = 0, Counter[str]()
    for tar in tars:
        column = read_index(tar, ["notes"])["notes"]
        num_samples += len(column)
        for entry in column.value_counts().to_pylist():
            notes.update({note: entry["counts"] for note in (entry["values"] or "").split(", ") if note})
    counts = dict(reasons.most_common()), dict(notes.most_common())
    return ShardsSummary(out, len(tars), num_samples, reasons.total(), *counts)


def _open_damage(out: Path, tars: list[Path]) -> Iterator[Damage]:
    """All damage but what a later round of downloads asked for again: that round says what became of it."""
    last = last_round(out)
    for tar in tars:
        is_earlier = last > 0 and int(tar.stem) < last
        yield from (damage for damage in read_quarantine(tar) if not (is_earlier and is_retryable(damage.reason)))


def _refuse_bad_share(summary: ShardsSummary, limit: float) -> None:
    total = summary.num_samples + summary.num_damaged
    if total == 0:
        raise DataError(f"{summary.out} holds no sample.")
    if summary.num_damaged > limit * total:
        _show(summary)
        share = f"{summary.num_damaged} of {total} samples ({summary.num_damaged / total:.1%}) are damaged"
        raise DataError(
            f"{summary.out}: {share}, more than max_bad_share = {limit:.1%}. "
            f"The *.quarantine.jsonl files there name each one; mend the source or raise max_bad_share."
        )
    if not summary.num_samples:
        _show(summary)
        first = f", most often for '{next(iter(summary.reasons))}'" if summary.reasons else ""
        raise DataError(f"{summary.out}: none of {total} samples is usable{first}: see its *.quarantine.jsonl files.")


def _finish(recipe: ShardsRecipe, manifest: Manifest, summary: ShardsSummary) -> None:
    facts = {
        "num_samples": summary.num_samples,
        "num_shards": summary.num_shards,
        "num_damaged": summary.num_damaged,
        "reasons": summary.reasons,
        "notes": summary.notes,
        "in_place": recipe.in_place,
    }
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    _sweep(recipe.out)
    write_manifest(recipe.out, replace(manifest, facts=facts))
    (recipe.out / BUILDING).unlink(missing_ok=True)
    (recipe.out / INDEXING).unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Removes the half-written files of processes that were killed: `.00003.tar.4711.tmp`."""
    for path in out.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.(tar|parquet|jsonl|json|yaml)\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def _show(summary: ShardsSummary) -> None:
    rows: list[tuple[str, int]] = [("usable samples", summary.num_samples), ("shards", summary.num_shards)]
    rows += [(f"damaged: {reason}", count) for reason, count in summary.reasons.items()]
    rows += [(f"noted: {note}", count) for note, count in summary.notes.items()]
    show_table(f"shards: {summary.out}", ["", "number"], rows)
