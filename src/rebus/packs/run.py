"""`rebus pack`: lengths -> packs -> plan.arrow. Killed and run again, it goes on from counted shards."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from rebus.config import dump_recipe
from rebus.engine import list_shards, map_shards
from rebus.errors import DataError, StrangerError
from rebus.fingerprint import (
    Manifest,
    is_current,
    prepare_out,
    read_manifest,
    write_atomically,
    write_manifest,
)
from rebus.log import say
from rebus.packs.choice import MAX_EXACT, choose_packs
from rebus.packs.config import PackRecipe, ShardsFolder
from rebus.packs.copies import separate_copies
from rebus.packs.cutting import Limits
from rebus.packs.lengths import Counting, Lengths, count_shard, read_lengths, uid_array, write_kept_rows
from rebus.packs.mixture import expand, folder_repeats, list_folders, shard_blocks
from rebus.packs.plan import PLAN_FILE, SCHEMA, VERSION, pack_costs, write_plan
from rebus.packs.summary import SUMMARY_FILE, PackSummary, plan_facts, read_summary, report, summarise
from rebus.tokens.tokenizer import load_tokens, tokens_fingerprint

LENGTHS = "lengths"
NUM_WRITTEN = 1 << 20  # rows of the plan that are gathered in memory at once
SHAPING = (
    "capacity", "max_images_per_pack", "max_patches_per_pack", "seed", "resample", "holdout", "holdout_seed", "part",
    "oversize", "block_shards", "cross_document", "cost",
)  # fmt: skip
"""Settings that make another plan. `shards` come in as inputs, and with their repeats."""


@dataclass(frozen=True)
class Packing:
    """document: int32 [m], rows of Lengths, a document once for each copy. packs: int32 [m], all placed.
    blocks: the first pack of each block of shards, and the number of packs. rules: that made them."""

    document: np.ndarray
    packs: np.ndarray
    blocks: tuple[int, ...]
    rule: str


def run(recipe: PackRecipe) -> PackSummary:
    """Plans which documents share a pack; see the recipe for what goes in.

    Raises: DataError where nothing is left to pack or too much is unusable; StrangerError where the selection was made
    of other shards.
    """
    folders = list_folders(recipe.shards, recipe.selection)
    wanted = _manifest(recipe, folders)
    if is_current(recipe.out, wanted):
        say(f"{recipe.out} is up to date")
        return read_summary(recipe.out)
    load_tokens(recipe.tokens)
    prepare_out(recipe.out, wanted)
    by_folder = [list_shards(one.folder) for one in folders]
    shards = [shard for listed in by_folder for shard in listed]
    lengths, bad_lines = _count(recipe, folders, by_folder)
    _stop_if_too_bad(recipe, lengths, bad_lines)
    packing = pack_documents(recipe, lengths, folders, [len(listed) for listed in by_folder])
    write_plan(recipe.out, _plan_rows(lengths, packing))
    summary = _summarise(recipe, lengths, packing, bad_lines)
    write_atomically(recipe.out / "quarantine.jsonl", "".join(line + "\n" for line in bad_lines))
    write_atomically(recipe.out / SUMMARY_FILE, json.dumps(vars(summary), indent=2) + "\n")
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    shutil.rmtree(recipe.out / LENGTHS)
    facts = plan_facts(recipe, [one.folder for one in folders], shards, packing.blocks, summary)
    write_manifest(recipe.out, Manifest(wanted.kind, wanted.made_by, wanted.inputs, facts))
    report(recipe, summary)
    return summary


def _manifest(recipe: PackRecipe, folders: Sequence[ShardsFolder]) -> Manifest:
    inputs = {f"shards/{i}": read_manifest(one.folder, "shards").fingerprint for i, one in enumerate(folders)}
    for i, one in enumerate(folders):
        if one.selection is not None:
            inputs[f"selection/{i}"] = _check_selection(one.selection, one.folder, inputs[f"shards/{i}"])
    shares = [one.model_dump(mode="json", exclude={"folder", "selection"}) for one in folders]
    made_by = {"version": VERSION, "shares": shares, **recipe.model_dump(mode="json", include=set(SHAPING))}
    return Manifest("plan", {**made_by, "tokens": tokens_fingerprint(recipe.tokens)}, inputs)


def _check_selection(path: Path, folder: Path, shards: str) -> str:
    """A selection names shards by file name alone, so it must be of exactly the folder that is packed."""
    selection = read_manifest(path, "selection")
    if shards not in selection.inputs.values():
        raise StrangerError(
            f"{path} was made of other shards than {folder}: it knows {selection.inputs}, the "
            f"shards are {shards}. Select again: `rebus select`."
        )
    return selection.fingerprint


def _limits(recipe: PackRecipe, num_tokens: int) -> Limits:
    return Limits(num_tokens, recipe.max_images_per_pack, recipe.max_patches_per_pack)


def _count(
    recipe: PackRecipe, folders: Sequence[ShardsFolder], by_folder: Sequence[Sequence[Path]]
) -> tuple[Lengths, list[str]]:
    """Lengths of all documents, and the unusable samples as lines of JSON. by_folder: the shards of each folder."""
    out = recipe.out / LENGTHS
    out.mkdir(exist_ok=True)
    for one, own in zip(folders, by_folder, strict=True):
        if one.selection is not None:
            write_kept_rows(one.selection, out, own)
    counting = Counting(
        tokens=recipe.tokens,
        limits=_limits(recipe, min(recipe.capacity, recipe.tokens.max_tokens)),
        cut=recipe.oversize == "cut",
        holdout=recipe.holdout,
        holdout_seed=recipe.holdout_seed,
        part=recipe.part,
    )
    function = partial(count_shard, counting=counting, out=out)
    shards = list(chain.from_iterable(by_folder))
    paths = map_shards(function, shards, description="counting tokens", num_workers=recipe.num_workers)
    bad_lines = [line for path in paths for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return read_lengths(paths), bad_lines


def _stop_if_too_bad(recipe: PackRecipe, lengths: Lengths, bad_lines: Sequence[str]) -> None:
    num_samples = int((lengths.columns["first_part"] == 0).sum()) + len(bad_lines)
    listed = "\n".join(f"  {reason}: {number:,}" for reason, number in _reasons(bad_lines).items())
    if num_samples == len(bad_lines):
        raise DataError(f"no sample is left to pack, of {num_samples:,}.\n{listed}")
    share = len(bad_lines) / num_samples
    if share > recipe.max_bad_share:
        raise DataError(
            f"{len(bad_lines):,} of {num_samples:,} samples ({share:.1%}) cannot be packed; max_bad_share allows "
            f"{recipe.max_bad_share:.1%}:\n{listed}\nMend the data, raise `capacity` and `tokens.max_tokens`, set "
            "`oversize: cut`, or raise `max_bad_share`."
        )


def pack_documents(
    recipe: PackRecipe, lengths: Lengths, folders: Sequence[ShardsFolder], num_shards: Sequence[int]
) -> Packing:
    """Repeats documents as the mixture wants, and packs them block by block. num_shards: of each folder.

    Raises: DataError where the mixture leaves no document.
    """
    shard = lengths.columns["shard"]
    bounds = np.searchsorted(shard, np.cumsum([0, *num_shards]))
    repeats = folder_repeats(np.diff(bounds).tolist(), folders, recipe.resample)
    document, place = expand(bounds, repeats, recipe.seed)
    if not len(document):
        raise DataError(f"repeats of {', '.join(f'{one:.3g}' for one in repeats)} leave no document to pack.")
    block = shard_blocks(num_shards, recipe.block_shards)
    if block.max():
        order = np.argsort(block[shard[document]], kind="stable")
        document, place = document[order], place[order]
    edges = np.searchsorted(block[shard[document]], np.arange(block.max() + 2))
    packs, blocks, rules = np.empty(len(document), np.int32), [0], []
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if end == start:  # nothing of these shards is used
            continue
        part = slice(start, end)
        rule, found = _pack_block(recipe, lengths, document[part], place[part], exact=len(document) <= MAX_EXACT)
        packs[part] = found + blocks[-1]
        blocks.append(blocks[-1] + int(found.max()) + 1)
        rules.append(rule)
    return Packing(document, packs, tuple(blocks), Counter(rules).most_common(1)[0][0])


def _pack_block(
    recipe: PackRecipe, lengths: Lengths, document: np.ndarray, place: np.ndarray, *, exact: bool
) -> tuple[str, np.ndarray]:
    """The rule, and the pack of each document, int32 from 0 on."""
    tokens, images, patches = (lengths.columns[name][document] for name in ("num_tokens", "num_images", "num_patches"))
    rule, packs = choose_packs(tokens, _limits(recipe, recipe.capacity), images, patches, place, exact=exact)
    if (np.diff(document) == 0).any():
        packs = separate_copies(document, packs, (tokens, images, patches))
    return rule, packs


def _plan_rows(lengths: Lengths, packing: Packing) -> Iterator[pa.RecordBatch]:
    """The rows of plan.arrow, sorted by pack, a stretch at a time: the whole would be in memory twice."""
    order = np.argsort(packing.packs, kind="stable").astype(np.int32)
    for start in range(0, len(order), NUM_WRITTEN):
        places = order[start : start + NUM_WRITTEN]
        rows = packing.document[places]
        columns = {name: column[rows] for name, column in lengths.columns.items() if name in SCHEMA.names}
        arrays = {"pack": packing.packs[places], **columns}
        uids = uid_array(lengths.uids[rows])
        batch = [uids if name == "uid" else pa.array(arrays[name]) for name in SCHEMA.names]
        yield pa.RecordBatch.from_arrays(batch, schema=SCHEMA)


def _summarise(recipe: PackRecipe, lengths: Lengths, packing: Packing, bad_lines: Sequence[str]) -> PackSummary:
    order = np.argsort(packing.packs, kind="stable").astype(np.int32)
    rows = packing.document[order]
    num_tokens, patches = lengths.columns["num_tokens"][rows], lengths.columns["num_patches"][rows]
    bounds = np.searchsorted(packing.packs[order], np.arange(packing.blocks[-1] + 1))
    return summarise(
        recipe,
        num_tokens,
        np.bincount(packing.document, minlength=len(lengths)),
        pack_costs(num_tokens, patches, bounds, recipe.cost, cross_document=recipe.cross_document),
        num_image_tokens=int(lengths.columns["num_image_tokens"][rows].sum(dtype=np.int64)),
        unusable=_reasons(bad_lines),
        rule=packing.rule,
        tally=lengths.tally,
        plan_bytes=(recipe.out / PLAN_FILE).stat().st_size,
    )


def _reasons(bad_lines: Sequence[str]) -> dict[str, int]:
    return dict(Counter(json.loads(line)["reason"] for line in bad_lines).most_common())
