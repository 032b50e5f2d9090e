"""`rebus train` with `kind: dual_encoder`: trusted pairs -> a filter network, and its AUC on planted mismatches."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from rebus.config import dump_recipe
from rebus.filters import assemble
from rebus.filters.auc import auc_with_interval, planted_circle
from rebus.filters.config import ELSEWHERE, FilterRecipe, PairsConfig
from rebus.filters.data import Pair, read_pairs, split, squares
from rebus.filters.network import build, fold
from rebus.filters.side import together
from rebus.filters.train import STATE, train
from rebus.fingerprint import (
    Manifest,
    discard,
    is_current,
    prepare_out,
    read_manifest,
    write_atomically,
    write_manifest,
)
from rebus.log import duration, say, show_table
from rebus.towers.dual import DualEncoder, open_dual

FORMAT = 1
MISMATCHES = "mismatches.json"
MIN_HELD = 8


def run(recipe: FilterRecipe) -> Path:
    """Trains the network of a recipe into `recipe.out`, a hub folder; killed and run again, it goes on."""
    import torch

    weights = assemble.inputs(recipe)
    manifest = Manifest(
        "weights",
        {"format": FORMAT, **recipe.model_dump(mode="json", exclude=set(ELSEWHERE))},
        {**weights, **_pair_inputs("trusted", recipe.trusted), **_pair_inputs("heldout", recipe.heldout)},
    )
    if is_current(recipe.out, manifest):
        say(f"{recipe.out} is up to date")
        return recipe.out
    prepare_out(recipe.out, manifest)
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    started = time.monotonic()
    device = recipe.device if recipe.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    pairs, heldout = _read(recipe)
    rows = _learn(recipe, device, pairs, weights)
    facts = {"num_pairs": len(pairs), "num_heldout": len(heldout), "num_steps": len(rows), "loss": rows[-1]["loss"]}
    facts |= _measure(recipe, device, heldout)
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    (recipe.out / STATE).unlink()
    discard(recipe.out / "features")
    write_manifest(recipe.out, Manifest(manifest.kind, manifest.made_by, manifest.inputs, facts))
    _close(recipe, rows, facts, time.monotonic() - started)
    return recipe.out


def _pair_inputs(name: str, pairs: PairsConfig | None) -> dict[str, str]:
    if pairs is None:
        return {}
    found = {f"{name}.shards": read_manifest(pairs.shards, "shards").fingerprint}
    if pairs.selection is not None:
        found[f"{name}.selection"] = read_manifest(pairs.selection, "selection").fingerprint
    return found


def _read(recipe: FilterRecipe) -> tuple[list[Pair], list[Pair]]:
    """(trained on, held out)"""
    trusted = read_pairs(recipe.trusted, recipe)
    if recipe.heldout is None:
        return split(trusted, recipe.heldout_share, recipe.seed)
    return trusted, read_pairs(recipe.heldout, recipe)


def _learn(recipe: FilterRecipe, device: str, pairs: list[Pair], weights: dict[str, str]) -> list[dict[str, float]]:
    encoder = assemble.assemble(recipe, device)
    network = build(recipe, encoder, pairs, weights)
    rows = train(recipe, network, recipe.out)
    fold(network, encoder)
    assemble.save(encoder, recipe, recipe.out)
    return rows


def _measure(recipe: FilterRecipe, device: str, heldout: list[Pair]) -> dict[str, Any]:
    """Reads the folder as `rebus score` does, and lets it judge held-out pairs of which half got another's text."""
    if len(heldout) < MIN_HELD:
        say(f"{len(heldout)} pairs held out, {MIN_HELD} are needed to measure mismatches")
        return {}
    image, text = embeddings(open_dual(recipe.out, "float32", device), heldout)
    texts = [pair.texts[0] for pair in heldout]
    found = []
    for seed in recipe.auc_seeds:
        order, is_wrong = planted_circle(texts, seed)
        scores = (image * text[order]).sum(axis=1)
        area = auc_with_interval(scores[~is_wrong], scores[is_wrong], seed)
        found.append({"seed": seed, "auc": area.value, "low": area.low, "high": area.high})
    write_atomically(recipe.out / MISMATCHES, json.dumps(found, indent=1) + "\n")
    return {"auc": float(np.mean([row["auc"] for row in found])), "auc_seeds": list(recipe.auc_seeds)}


def embeddings(encoder: DualEncoder, pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [N, D] of the pictures and of their first texts."""
    import torch

    images, texts, size = [], [], together(encoder.device)
    with torch.inference_mode():
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            pixels = encoder.normalised(torch.from_numpy(squares(part, encoder.image_rule)))
            images.append(encoder.image(pixels).cpu().numpy())
            texts.append(encoder.texts([pair.texts[0] for pair in part]).cpu().numpy())
    return np.concatenate(images), np.concatenate(texts)


def _close(recipe: FilterRecipe, rows: list[dict[str, float]], facts: dict[str, Any], seconds: float) -> None:
    places = sorted({round(share * (len(rows) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
    curve = [
        (f"{rows[at]['step'] + 1:,}", f"{rows[at]['loss']:.3f}", f"{rows[at]['logit_scale']:.1f}") for at in places
    ]
    show_table(
        f"{facts['num_pairs']:,} pairs, {len(rows):,} steps in {duration(seconds)}", ["step", "loss", "scale"], curve
    )
    if "auc" not in facts:
        return
    found = json.loads((recipe.out / MISMATCHES).read_text())
    table = [(str(row["seed"]), *(f"{row[name]:.3f}" for name in ("auc", "low", "high"))) for row in found]
    title = f"AUC {facts['auc']:.3f} on {facts['num_heldout']:,} held-out pairs, half of them planted mismatches"
    show_table(title, ["seed", "AUC", "2.5%", "97.5%"], table)
