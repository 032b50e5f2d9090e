"""Contract 3 with real processes: 1, 2 and 4 ranks give the losses, the gradient norms and, to rounding, the weights of
one, however the model is laid over them, whatever of it learns, and however a step is cut into micro-batches."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from forked_ranks import Ranks
from rebus.training.metrics import StepRow, read_rows

STEPS = 4
LORA = {
    "lora": {"rank": 2, "alpha": 4},  # no dropout: it is drawn rank by rank
    "trains": {"connector": {"lr": 1e-2}, "lora": {"lr": 1e-2, "weight_decay": 0.1}},
}
EVERYTHING = {
    "lora": None,
    "trains": {
        "tower": {"lr": 1e-3},
        "connector": {"lr": 1e-2},
        "language": {"lr": 1e-3, "weight_decay": 0.1},
    },
}
CASES = {
    "adapters": {**LORA, "packs_per_batch": 2},
    "everything": {**EVERYTHING, "optimizer": {"max_grad_norm": 0.1}},
    "everything_again": {**EVERYTHING, "activations": "full", "ema": {"decay": 0.5}, "packs_per_batch": 2},
    "muon": {**EVERYTHING, "optimizer": {"kind": "muon"}},
}
LAYOUTS = {
    1: [{"kind": "shard"}],
    2: [{"kind": "shard"}, {"kind": "replicate"}],
    4: [
        {"kind": "shard", "reshard_after_forward": False, "reduce_every_batch": True},
        {"kind": "replicate"},
        {"kind": "hybrid", "shard_ranks": 2},
    ],
}
ONLY = {
    "everything_again": ((1, "shard"), (2, "shard"), (4, "hybrid")),
    "muon": ((1, "shard"), (2, "shard"), (4, "hybrid")),
}
NAMES = [
    (case, world, layout["kind"])
    for case in CASES
    for world, layouts in LAYOUTS.items()
    for layout in layouts
    if case not in ONLY or (world, layout["kind"]) in ONLY[case]
]


@pytest.fixture(scope="module")
def runs(module_way) -> Path:
    """The folder of every run, `<case>_<world>_<kind>`; each world's processes start once and go through all of its
    runs, one world after the other."""
    for world, layouts in LAYOUTS.items():
        recipes = [
            module_way.recipe(
                f"{case}_{world}_{layout['kind']}",
                **{"steps": STEPS, "packs_per_step": 8, "save_every": 100, "trackers": [], "stall_seconds": 120.0},
                **CASES[case],
                parallel=layout,
            )
            for layout in layouts
            for case in CASES
            if (case, world, layout["kind"]) in NAMES
        ]
        ranks = Ranks(recipes, world, module_way.folder / f"{world}.log")
        assert ranks.wait() == [0] * world, ranks.said
    return module_way.folder


def rows_of(folder: Path) -> list[StepRow]:
    return read_rows(folder / "metrics.jsonl")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = [path for path in sorted(folder.rglob("*.safetensors")) if "states" not in path.parts]
    assert files
    return {f"{path.name}/{name}": one for path in files for name, one in safetensors.torch.load_file(path).items()}


@pytest.mark.parametrize(("case", "world", "kind"), [name for name in NAMES if name[1] > 1])
def test_many_ranks_train_as_one(runs: Path, case: str, world: int, kind: str):
    one, many = runs / f"{case}_1_shard", runs / f"{case}_{world}_{kind}"
    expected, found = rows_of(one), rows_of(many)
    assert [row.loss for row in found] == pytest.approx([row.loss for row in expected], abs=1e-5)
    assert [row.grad_norm for row in found] == pytest.approx([row.grad_norm for row in expected], rel=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.grad_norms == pytest.approx(theirs.grad_norms, rel=1e-4)
        assert (ours.num_tokens, ours.num_supervised) == (theirs.num_tokens, theirs.num_supervised)
        assert (ours.num_documents, ours.num_images) == (theirs.num_documents, theirs.num_images)
    before, after = weights_of(one), weights_of(many)
    assert before.keys() == after.keys()
    for name, weights in before.items():
        torch.testing.assert_close(after[name], weights, rtol=1e-3, atol=1e-4)


def test_the_cases_could_differ(runs: Path):
    """Losses move by far more than the tolerance, the cases differ, and clipping was felt where it was asked for."""
    losses = {case: [row.loss for row in rows_of(runs / f"{case}_1_shard")] for case in CASES}
    for found in losses.values():
        assert max(found) - min(found) > 1e-2
    assert losses["adapters"][1] != pytest.approx(losses["everything"][1], abs=1e-4)
    assert min(row.grad_norm for row in rows_of(runs / "everything_1_shard")) > 0.1
    recipe = yaml.safe_load((runs / "everything_4_hybrid.yaml").read_text())
    assert recipe["parallel"] == {"kind": "hybrid", "shard_ranks": 2}
