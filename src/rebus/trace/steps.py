"""Which steps of a run trained on a pack, and which packs a step trained on: arithmetic, as in batches.order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rebus.batches.order import num_steps_for, packs_between, permutation
from rebus.errors import DataError, RebusError
from rebus.fingerprint import BUILDING
from rebus.trace.found import Artifact, Ways, open_artifact
from rebus.trace.judged import read_lines
from rebus.trace.packed import OpenPlan, pack_documents
from rebus.trace.ranks import Ranks

TRAINED, SKIPPED, UNUSABLE, AHEAD = "trained", "not taken by the guard", "without a usable document", "not reached yet"


@dataclass(frozen=True)
class Training:
    """A run whose order of packs is known. num_done: steps behind it; skipped: those that the guard did not take;
    trained: those that have a row in metrics.jsonl."""

    artifact: Artifact
    plan: OpenPlan
    num_steps: int
    packs_per_step: int
    seed: int
    num_done: int
    trained: frozenset[int]
    skipped: frozenset[int]
    ranks: Ranks

    def packs(self, step: int) -> list[int]:
        """The packs of a step over all ranks, in the order in which they are dealt."""
        first = step * self.packs_per_step
        packs = packs_between(first, first + self.packs_per_step, self.plan.num_packs, self.seed, self.plan.blocks)
        found: list[int] = packs.tolist()
        return found

    def steps(self, pack: int) -> list[dict[str, Any]]:
        """Every time that the pack comes: epoch and step, both from 0, what became of the step, and where it went."""
        num_packs = self.plan.num_packs
        found = []
        for epoch in range(-(-self.num_steps * self.packs_per_step // num_packs)):
            order = permutation(epoch, num_packs, self.seed, self.plan.blocks)
            place = epoch * num_packs + int(np.flatnonzero(order == pack)[0])
            step, number = divmod(place, self.packs_per_step)
            if step < self.num_steps:
                about = {"pack": pack, "epoch": epoch, "step": step, "state": self.state(step)}
                found.append({**about, **self.ranks.place(self.packs(step), number)})
        return found

    def state(self, step: int) -> str:
        if step in self.skipped:
            return SKIPPED
        if step in self.trained:
            return TRAINED
        return UNUSABLE if step < self.num_done else AHEAD


def open_training(ways: Ways, run: Artifact) -> Training:
    """Raises: DataError that says what is unknown, and why."""
    plan = _plan_of(ways, run)
    recipe = run.recipe
    try:
        per_step, seed = int(recipe["packs_per_step"]), int(recipe["seed"])
        per_batch = int(recipe.get("packs_per_batch") or 1)
        steps, epochs = recipe.get("steps"), float(recipe.get("epochs") or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{run.folder}/recipe.yaml does not say how it walked its plan ({error}).") from error
    opened = OpenPlan(plan)
    foretold = num_steps_for(epochs, num_packs=opened.num_packs, packs_per_step=per_step)
    rows = read_lines(run.folder / "metrics.jsonl")
    trained = frozenset(int(row["step"]) for row in rows if not row.get("is_skipped"))
    skipped = frozenset(int(row["step"]) for row in rows if row.get("is_skipped"))
    num_steps = int(run.manifest.facts.get("steps") or steps or foretold)
    is_finished = run.fingerprint is not None
    num_done = num_steps if is_finished else max([-1, *trained, *skipped]) + 1
    ranks = Ranks(run.folder, opened, per_batch)
    return Training(run, opened, num_steps, per_step, seed, num_done, trained, skipped, ranks)


def _plan_of(ways: Ways, run: Artifact) -> Artifact:
    """The plan that the run walked, by its fingerprint."""
    named = open_artifact(Path(run.recipe["plan"])) if isinstance(run.recipe.get("plan"), str) else None
    if run.fingerprint is None:
        if named is None or named.kind != "plan":
            raise DataError(f"{run.folder} is not finished, and its plan {run.recipe.get('plan')} is not there.")
        _check_unfinished(run)
        return named
    wanted = run.manifest.inputs.get("plan")
    plan = ways.made(wanted) or (named if named is not None and named.fingerprint == wanted else None)
    if plan is not None:
        _check_order(run)
        return plan
    now = f"{named.folder} is now {named.fingerprint}" if named is not None else f"{run.recipe.get('plan')} is gone"
    raise DataError(
        f"{run.folder} trained on plan {wanted}; {now}. Which packs its steps held cannot be told from another plan."
    )


def _check_order(run: Artifact) -> None:
    """Raises: DataError where another version of Rebus trained, in another order than this one's arithmetic."""
    from rebus.training.start import FORMAT

    if (found := run.manifest.made_by.get("format")) != FORMAT:
        raise DataError(f"{run.folder} was trained by another version of Rebus (its order is {found}, ours {FORMAT}).")


def _check_unfinished(run: Artifact) -> None:
    """A run that goes on left the fingerprint of what it makes, its plan's in it.

    Raises: DataError where it is another by now.
    """
    from rebus.config import load_recipe
    from rebus.training.config import TrainRecipe
    from rebus.training.start import describe

    marker = run.folder / BUILDING
    try:
        expected = describe(load_recipe(TrainRecipe, run.folder / "recipe.yaml")).fingerprint
    except (RebusError, OSError) as error:
        raise DataError(f"{run.folder} is not finished, and whether its plan is still the same: {error}") from error
    if not marker.is_file() or marker.read_text(encoding="utf-8").strip() != expected:
        raise DataError(
            f"{run.folder} is not finished, and its plan, its start or its recipe is another than when it began. Which "
            "packs its steps held cannot be told."
        )


def runs_of(ways: Ways, packed: list[dict[str, Any]], keys: set[str]) -> list[dict[str, Any]]:
    """For each run on a plan that holds the sample, the steps that it came in. packed: of packed.packs_of. keys: the
    sample's, by which a run's quarantine lists it."""
    plans = {Path(one["plan"]).resolve(): one["documents"] for one in packed}
    found: list[dict[str, Any]] = []
    for run in ways.of_kind("checkpoint"):
        if "plan" not in run.recipe and "plan" not in run.manifest.inputs:
            continue  # weights from elsewhere
        try:
            training = open_training(ways, run)
        except DataError as error:
            found.append({"run": str(run.folder), "steps": [], "unknown": str(error)})
            continue
        documents = plans.get(training.plan.artifact.folder.resolve(), [])
        steps: list[dict[str, Any]] = [
            step for pack in dict.fromkeys(document["pack"] for document in documents) for step in training.steps(pack)
        ]
        lost = [row for row in read_lines(run.folder / "quarantine.jsonl") if row.get("key") in keys]
        about = {"run": str(run.folder), "plan": str(training.plan.artifact.folder), "num_steps": training.num_steps}
        found.append({**about, "steps": sorted(steps, key=lambda one: one["step"]), "damaged": lost})
    return found


def describe_step(ways: Ways, run: Artifact, step: int) -> dict[str, Any]:
    """The packs of a step and their documents. Raises: DataError."""
    training = open_training(ways, run)
    if not 0 <= step < training.num_steps:
        raise DataError(f"{run.folder} has steps 0 to {training.num_steps - 1}, no step {step}.")
    numbers = training.packs(step)
    packs = [
        {"pack": pack, **training.ranks.place(numbers, place), "documents": pack_documents(training.plan, pack)}
        for place, pack in enumerate(numbers)
    ]
    first = step * training.packs_per_step
    return {
        "run": str(run.folder),
        "plan": str(training.plan.artifact.folder),
        "step": step,
        "epoch": first // training.plan.num_packs,
        "state": training.state(step),
        "packs": packs,
    }
