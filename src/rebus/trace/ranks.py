"""Which rank of how many trained on a pack. The number of ranks is no part of a run's recipe: its states tell it."""

from functools import cached_property
from pathlib import Path

import numpy as np

from rebus.batches.order import deal
from rebus.errors import DataError
from rebus.fingerprint import read_manifest
from rebus.packs.config import CostConfig
from rebus.packs.plan import pack_costs
from rebus.trace.packed import OpenPlan


class Ranks:
    """Deals packs as the run did. world: None where no state is left, or where they were written by different
    numbers of ranks: then nobody knows which steps went to whom."""

    def __init__(self, run: Path, plan: OpenPlan, packs_per_batch: int) -> None:
        self._plan, self._packs_per_batch = plan, packs_per_batch
        self.world = _world(run)

    def place(self, packs: list[int], number: int) -> dict[str, int]:
        """rank, world and the micro-batch of the pack `packs[number]` of a step; empty where nobody knows."""
        if self.world is None:
            return {}
        costs = self._costs[np.array(packs)]
        for rank in range(self.world):
            mine = deal(costs, rank, self.world).tolist()
            if number in mine:
                batch = mine.index(number) // self._packs_per_batch
                return {"rank": rank, "world": self.world, "micro_batch": batch}
        return {}

    @cached_property
    def _costs(self) -> np.ndarray:
        """As packs.plan.Plan.costs."""
        table, facts = self._plan.table, self._plan.artifact.manifest.facts
        lengths, patches = table["num_tokens"].to_numpy(), table["num_patches"].to_numpy()
        cost = CostConfig.model_validate(facts["cost"])
        return pack_costs(lengths, patches, self._plan.bounds, cost, cross_document=bool(facts["cross_document"]))


def _world(run: Path) -> int | None:
    worlds = set()
    for folder in run.glob("states/step-*"):
        try:
            worlds.add(int(read_manifest(folder, "state").facts["world"]))
        except (DataError, KeyError):
            return None
    return worlds.pop() if len(worlds) == 1 else None
