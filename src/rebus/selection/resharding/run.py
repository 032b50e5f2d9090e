"""`rebus reshard`: a subset of shards, copied into new ones that any tool reads. Killed and run again, it goes on."""

import io
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebus.config import dump_recipe
from rebus.engine import map_shards
from rebus.errors import DataError, UnreachableError
from rebus.fingerprint import (
    BUILDING,
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
from rebus.selection.resharding.blur import boxes_fingerprint
from rebus.selection.resharding.config import ReshardRecipe
from rebus.selection.resharding.inputs import Input, Wanted, check_sizes, open_input, subset_fingerprint, wanted_rows
from rebus.selection.resharding.plan import Copies, Piece, Rows, copy_rows, cut_pieces, in_order, read_rows, shuffle
from rebus.selection.resharding.write import Written, list_damages, write_piece
from rebus.shards.index import VERSION, is_indexed
from rebus.shards.read import read_quarantine
from rebus.shards.run import summarize
from rebus.storage import list_versions, upload

FORMAT = 1
"""Part of what makes resharded tars: count it up when the same recipe writes other bytes."""

SUBSET_FILE, MISSING_FILE, META_FILE = "sample_ids.npy", "missing_uids.npy", "meta.json"
NOT_SHAPING = {
    *("input", "out", "subset", "num_workers", "shard_stats_format", "shard_table", "blur_metadata_map", "dry_run"),
    *("overwrite", "strict", "max_bad_share"),
}


@dataclass(frozen=True)
class ReshardSummary:
    """num_read: whole samples of the input, beside the num_bad in its quarantine; num_kept: those of them that the
    subset names; num_copies: written beyond one of each; num_missing: uids of the subset that no shard has;
    num_damaged: of what was to be written, in the quarantine of `out`."""

    out: Path
    num_read: int
    num_bad: int
    num_kept: int
    num_copies: int
    num_missing: int
    num_damaged: int
    num_shards: int
    num_bytes: int


def run(recipe: ReshardRecipe) -> ReshardSummary:
    """Raises: DataError where nothing is kept, where `out` holds something else, or, with `strict`, for a uid that no
    shard has."""
    found = open_input(recipe)
    _refuse_nested(recipe, found)
    manifest = _manifest(recipe, found)
    if _is_whole(recipe, manifest):
        say(f"{recipe.out} is up to date")
        return _summary(recipe, read_manifest(recipe.out, "shards").facts)
    for line in check_sizes(recipe, found):
        say(line)
    rows = read_rows(list(found.shards))
    wanted = wanted_rows(recipe, found, rows)
    _judge_missing(recipe, wanted)
    copies = shuffle(copy_rows(rows, wanted.times), recipe.shuffle_bufsize, recipe.seed)
    pieces = cut_pieces(rows, copies, recipe.shard_size)
    if not pieces:
        raise DataError(f"the subset names none of the {len(rows):,} samples of {recipe.input}: nothing to write.")
    facts = _facts(found, rows, wanted, copies, pieces)
    if recipe.dry_run:
        return _show(_summary(recipe, facts), is_dry=True)
    _prepare(recipe, manifest)
    written = _write(recipe, found, pieces)
    summary = _finish(recipe, manifest, written, facts, _beside(recipe, rows, wanted, copies, written))
    return _show(summary)


def _manifest(recipe: ReshardRecipe, found: Input) -> Manifest:
    """Only what shapes the bytes: where files lie and how many processes worked do not."""
    inputs = {"shards": found.fingerprint}
    if recipe.subset is not None:
        inputs["subset"] = subset_fingerprint(recipe.subset)
    if recipe.blur_metadata_map is not None:
        inputs["boxes"] = boxes_fingerprint(recipe.blur_metadata_map)
    shape = recipe.model_dump(mode="json", exclude=NOT_SHAPING)
    return Manifest("shards", {"source": "reshard", "format": FORMAT, "index_version": VERSION, **shape}, inputs)


def _refuse_nested(recipe: ReshardRecipe, found: Input) -> None:
    out, folder = recipe.out.resolve(), found.folder.resolve()
    if out.is_relative_to(folder) or folder.is_relative_to(out):
        raise DataError(f"`out` ({out}) and `input` ({folder}) lie inside each other. Choose another `out`.")


def _is_whole(recipe: ReshardRecipe, manifest: Manifest) -> bool:
    """A finished folder that lost a shard is one that was never finished: what is there is kept."""
    if not is_current(recipe.out, manifest):
        return False
    shards = [*recipe.out.glob("*.tar"), *recipe.out.glob("*.link")]
    num_shards = read_manifest(recipe.out, "shards").facts["num_shards"]
    if len(shards) == num_shards and all(map(is_indexed, shards)):
        return True
    if not recipe.dry_run:
        write_atomically(recipe.out / BUILDING, manifest.fingerprint)
    return False


def _judge_missing(recipe: ReshardRecipe, wanted: Wanted) -> None:
    if wanted.missing is None or not len(wanted.missing):
        return
    found = f"{len(wanted.missing):,} uids of {recipe.subset} are in no shard that is read of {recipe.input}"
    if recipe.strict:
        first = wanted.missing[0]
        raise DataError(f"{found}, {first['f0']:016x}{first['f1']:016x} among them; `strict` asks for all.")
    say(f"warning: {found}; {recipe.out / MISSING_FILE} lists them")


def _prepare(recipe: ReshardRecipe, manifest: Manifest) -> None:
    """An earlier build of the same goes on; another goes only where `overwrite` says so. Raises: DataError."""
    if not recipe.overwrite and not is_begun(recipe.out, manifest):
        if holds_other(recipe.out, "shards"):
            raise DataError(f"{recipe.out} holds other shards. Choose another `out`, or set `overwrite: true`.")
        if recipe.upload is not None and (there := _uploaded(recipe.upload)):
            raise DataError(f"{recipe.upload} holds {len(there)} tars already. Choose another, or `overwrite: true`.")
    prepare_out(recipe.out, manifest)


def _uploaded(place: str) -> list[str]:
    try:
        return list(list_versions(place, ".tar"))
    except UnreachableError:
        raise
    except DataError:  # no such folder
        return []


def _write(recipe: ReshardRecipe, found: Input, pieces: list[Piece]) -> list[Written]:
    function = partial(write_piece, recipe=recipe, shards=found.shards)
    written = map_shards(function, pieces, description="reshard", num_workers=recipe.num_workers)
    damages = list_damages(written)
    planned = sum(one.num_planned for one in written)
    if len(damages) > recipe.max_bad_share * planned:
        counts = Counter(damage.reason for damage in damages).most_common()
        reasons = "\n".join(f"  {count:>8,}  {reason}" for reason, count in counts)
        raise DataError(
            f"{len(damages):,} of {planned:,} samples could not be written, more than max_bad_share = "
            f"{recipe.max_bad_share}:\n{reasons}\nThe *.quarantine.jsonl files in {recipe.out} name each one."
        )
    return written


def _beside(recipe: ReshardRecipe, rows: Rows, wanted: Wanted, copies: Copies, written: list[Written]) -> list[Path]:
    """The files beside the tars that tell what is in them."""
    uids = wanted.uids if wanted.uids is not None else in_order(rows.uids[copies.place])
    contents = {SUBSET_FILE: _npy(uids)}
    if wanted.missing is not None and len(wanted.missing):
        contents[MISSING_FILE] = _npy(wanted.missing)
    names = [f"{one.shard.stem}.tar" for one in written]
    sizes = {name: one.num_samples for name, one in zip(names, written, strict=True)}
    if recipe.write_shard_table:
        contents[recipe.shard_table] = (json.dumps(sizes, indent=1) + "\n").encode()
    shape = recipe.model_dump(mode="json", exclude={"num_workers", "dry_run", "overwrite"})
    meta = {**shape, "num_samples": sum(sizes.values()), "num_output_shards": len(written), "shard_sizes": sizes}
    contents[META_FILE] = (json.dumps(meta, indent=1) + "\n").encode()
    for name, content in contents.items():
        write_atomically(recipe.out / name, content)
    return [recipe.out / name for name in contents]


def _npy(uids: NDArray[np.void]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, uids)
    return buffer.getvalue()


def _facts(found: Input, rows: Rows, wanted: Wanted, copies: Copies, pieces: list[Piece]) -> dict[str, int]:
    num_kept = int(np.count_nonzero(wanted.times))
    return {
        "num_read": len(rows),
        "num_bad": sum(len(read_quarantine(shard)) for shard in found.shards),
        "num_kept": num_kept,
        "num_copies": len(copies) - num_kept,
        "num_missing": 0 if wanted.missing is None else len(wanted.missing),
        "num_damaged": 0,
        "num_shards": len(pieces),
        "num_bytes": 0,
    }


def _finish(
    recipe: ReshardRecipe, manifest: Manifest, written: list[Written], facts: dict[str, int], beside: list[Path]
) -> ReshardSummary:
    found = summarize(recipe.out, [one.shard for one in written])
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    if recipe.upload is not None:
        for path in beside:
            upload(path, f"{recipe.upload.rstrip('/')}/{path.name}")
    facts = {**facts, "num_damaged": found.num_damaged, "num_bytes": sum(one.num_bytes for one in written)}
    about = {"num_samples": found.num_samples, "reasons": found.reasons, "notes": found.notes, "in_place": False}
    write_manifest(recipe.out, replace(manifest, facts={**facts, **about}))
    (recipe.out / BUILDING).unlink(missing_ok=True)
    return _summary(recipe, facts)


def _summary(recipe: ReshardRecipe, facts: dict[str, int]) -> ReshardSummary:
    names = [name for name in ReshardSummary.__dataclass_fields__ if name != "out"]
    return ReshardSummary(recipe.out, **{name: facts[name] for name in names})


def _show(summary: ReshardSummary, *, is_dry: bool = False) -> ReshardSummary:
    rows = [
        ("samples read", summary.num_read),
        ("in the input's quarantine", summary.num_bad),
        ("kept", summary.num_kept),
        ("further copies of them", summary.num_copies),
        ("uids that no shard has", summary.num_missing),
    ]
    if not is_dry:
        rows += [("damaged, in quarantine", summary.num_damaged), ("bytes", summary.num_bytes)]
    rows.append(("shards", summary.num_shards))
    what = "would write, nothing is written" if is_dry else "reshard"
    show_table(f"{what}: {summary.out}", ["", "number"], rows)
    return summary
