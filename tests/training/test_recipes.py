"""Every recipe under recipes/ is whole, says what it was made from, and agrees with its source's hyper-parameters."""

import os
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rebus.batches.order import num_steps_for
from rebus.config import load_recipe
from rebus.packs.config import PackRecipe, ShardsFolder
from rebus.shards.config import ShardsRecipe
from rebus.training.config import TrainRecipe
from stand_ins import REPOSITORY, recipe_paths

TRAIN, PACK, SHARDS = recipe_paths(TrainRecipe), recipe_paths(PackRecipe), recipe_paths(ShardsRecipe)


def read_train(path: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, REPOSITORY / path)


def read_pack(path: str) -> PackRecipe:
    return load_recipe(PackRecipe, REPOSITORY / path)


def pack_of(recipe: TrainRecipe) -> PackRecipe:
    [found] = [one for one in map(read_pack, PACK) if one.out == recipe.plan]
    return found


@dataclass(frozen=True)
class Source:
    """What a source trained with. rates: of each part; decay: of weights; batch: of documents, or of packs where
    `is_packed`; gpus: whose multiple packs_per_step is; warmup: a share of the steps, or steps; max_tokens: limit of
    a document. lora: rank, alpha, dropout."""

    rates: dict[str, float]
    decay: float
    batch: int
    max_tokens: int
    gpus: int = 8
    is_packed: bool = False
    epochs: float = 1
    warmup: float = 0.03
    kind: str = "cosine"
    lora: tuple[int, float, float] | None = None


FULL = {"tower": 5e-5, "connector": 5e-5, "language": 5e-5}
SFT = {"connector": 2e-5, "language": 2e-5}
OQ_PRETRAIN = Source({"connector": 5e-5, "language": 5e-5}, 0.01, 256, 4096, is_packed=True)
OQ_FINETUNE = Source(SFT, 0.1, 128, 4096)
VICUNA_ALIGN = Source({"connector": 1e-3, "newline": 1e-3}, 0.0, 256, 4096)
VICUNA_SFT = Source({"tower": 2e-6, "newline": 2e-5, **SFT}, 0.0, 128, 4096)
VICUNA_LORA = Source({"connector": 2e-5, "newline": 2e-5, "lora": 2e-4}, 0.0, 128, 4096, lora=(128, 256, 0.05))
QWEN_SFT = Source({"connector": 1e-5, "language": 1e-5}, 0.1, 32, 8192, warmup=100)  # their 1e-8 trains nothing
QWEN_LORA = replace(QWEN_SFT, rates={"connector": 1e-5, "lora": 1e-4}, lora=(12, 256, 0.0))
OWN = Source({"tower": 1e-5, "connector": 1e-5, "language": 1e-5}, 0.01, 4, 4096, gpus=1, epochs=10)

SOURCES = {
    "open_qwen2vl/align": Source({"connector": 1e-3}, 0.0, 256, 4096),
    "open_qwen2vl/pretrain": OQ_PRETRAIN,
    "open_qwen2vl/full_pretrain": replace(OQ_PRETRAIN, rates=FULL),
    "open_qwen2vl/sft_llava665k": OQ_FINETUNE,
    "open_qwen2vl/sft_mammoth10m": OQ_FINETUNE,
    "open_qwen2vl/full_finetune": replace(OQ_FINETUNE, rates={"tower": 2e-5, **SFT}),
    "open_qwen2vl/one_gpu_pretrain": replace(OQ_PRETRAIN, gpus=1),
    "open_qwen2vl/one_gpu_sft_llava665k": replace(OQ_FINETUNE, gpus=1),
    "llava_next/vicuna_7b/align": VICUNA_ALIGN,
    "llava_next/vicuna_7b/sft": VICUNA_SFT,
    "llava_next/vicuna_7b/lora": VICUNA_LORA,
    "llava_next/vicuna_7b/qlora_24gb": replace(VICUNA_LORA, gpus=1),
    "llava_next/llama3_8b/align": replace(VICUNA_ALIGN, max_tokens=6144),
    "llava_next/llama3_8b/sft": replace(VICUNA_SFT, max_tokens=6144),
    "llava_next/llama3_8b/lora": replace(VICUNA_LORA, max_tokens=6144),
    "qwen2_vl/2b/sft": QWEN_SFT,
    "qwen2_vl/2b/lora": QWEN_LORA,
    "qwen2_vl/2b/lora_24gb": replace(QWEN_LORA, gpus=1),
    "qwen2_vl/7b/sft": QWEN_SFT,
    "qwen2_vl/7b/lora": QWEN_LORA,
    "qwen2_vl/7b/qlora_24gb": replace(QWEN_LORA, gpus=1),
    "qwen2_vl/72b/sft": replace(QWEN_SFT, gpus=16),
    "qwen2_vl/72b/lora": QWEN_LORA,
    "qwen2_vl/own_data": replace(OWN, kind="constant", warmup=0),
}


def source_of(path: str) -> Source:
    return SOURCES[path.removeprefix("recipes/").removesuffix(".yaml")]


def test_every_recipe_has_its_source():
    assert {path.removeprefix("recipes/").removesuffix(".yaml") for path in TRAIN} == set(SOURCES)


@pytest.mark.parametrize("path", TRAIN)
def test_a_recipe_says_what_its_source_says(path: str):
    recipe, source = read_train(path), source_of(path)
    assert {part: one.lr for part, one in recipe.trains.items()} == source.rates
    assert {one.weight_decay for one in recipe.trains.values()} == {source.decay}
    assert recipe.epochs == source.epochs
    assert recipe.schedule.kind == source.kind
    assert (recipe.schedule.warmup_share or recipe.schedule.warmup_steps) == source.warmup
    assert recipe.schedule.final_share == 0
    assert (recipe.optimizer.kind, recipe.optimizer.betas, recipe.optimizer.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert recipe.optimizer.max_grad_norm == 1.0
    assert pack_of(recipe).tokens.max_tokens == source.max_tokens
    lora = recipe.lora and (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout)
    assert lora == source.lora


@pytest.mark.parametrize("path", TRAIN)
def test_a_step_holds_as_many_documents_as_whole_multiples_of_the_gpus_allow(path: str):
    recipe, source = read_train(path), source_of(path)
    expected, pack = recipe.expected, pack_of(recipe)
    assert expected is not None
    assert expected.capacity == pack.capacity
    if source.is_packed:
        assert (recipe.packs_per_step, pack.capacity) == (source.batch, source.max_tokens)
        return
    documents = expected.capacity * expected.fill / expected.document_tokens  # of a pack
    nearest = max(1, round(source.batch / documents / source.gpus)) * source.gpus
    assert recipe.packs_per_step == nearest
    said = re.search(r"(\d+) packs = (\d+) documents", header(path))
    assert said is not None
    assert (int(said[1]), int(said[2])) == (nearest, round(nearest * documents))


def header(path: str) -> str:
    """The comment that a recipe begins with, as one line."""
    lines = (REPOSITORY / path).read_text().splitlines()
    comments = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.lstrip("# ") for line in comments)


@pytest.mark.parametrize("path", TRAIN)
def test_a_recipe_says_how_it_is_run_and_where_it_departs(path: str):
    text = header(path)
    for word in ("Command: ", "Hardware: ", "Time: ", "Source: ", "Batch: ", "Expect (theirs): ", "Departs from the"):
        assert word in text, f"{path} does not say '{word}'"
    command = text.split("Command: ")[1].split("Hardware: ")[0]
    assert path in command
    started = re.search(r"--nproc-per-node (\d+)|--nodes (\d+)", command)
    gpus = source_of(path).gpus
    assert gpus == (1 if started is None or "own_data" in path else int(started[1] or 8 * int(started[2])))


@pytest.mark.parametrize("path", [*PACK, *SHARDS])
def test_every_other_recipe_says_how_it_is_run(path: str):
    assert f"Command: rebus {'pack' if path in PACK else 'shards'} {path}" in header(path)


def test_what_a_recipe_reads_another_one_makes():
    trains, packs = [read_train(path) for path in TRAIN], [read_pack(path) for path in PACK]
    shards = {load_recipe(ShardsRecipe, REPOSITORY / path).out for path in SHARDS}
    assert {one.plan for one in trains} == {one.out for one in packs}
    started = {one.init for one in trains if one.init is not None and one.init.parts[0] == "runs"}
    assert started <= {one.out for one in trains}
    assert {folder_of(entry) for one in packs for entry in one.shards} == shards


def folder_of(entry: Path | ShardsFolder) -> Path:
    folder = entry.folder if isinstance(entry, ShardsFolder) else entry
    return folder.parent if folder.suffix == ".json" else folder


def test_no_two_recipes_write_to_one_place():
    outs = [read_train(path).out for path in TRAIN] + [read_pack(path).out for path in PACK]
    assert len(outs) == len(set(outs))


def row(path: str) -> str:
    """A recipe's line in docs/recipes.md."""
    recipe, expected = read_train(path), read_train(path).expected
    assert expected is not None
    rates = ", ".join(f"{part} {settings.lr:.0e}".replace("e-0", "e-") for part, settings in recipe.trains.items())
    documents = recipe.packs_per_step * expected.capacity * expected.fill / expected.document_tokens
    epochs = recipe.epochs or 0
    steps = num_steps_for(epochs, num_packs=expected.packs, packs_per_step=recipe.packs_per_step)
    name = path.removeprefix("recipes/").removesuffix(".yaml")
    return f"| {name} | {rates} | {recipe.packs_per_step} x {expected.capacity:,} | {documents:,.0f} | {steps:,} |"


@pytest.mark.parametrize("path", TRAIN)
def test_the_docs_list_every_recipe(path: str):
    assert row(path) in (REPOSITORY / "docs" / "recipes.md").read_text()


LAUNCH = REPOSITORY / "recipes" / "launch"


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment whose torchrun, srun and scontrol print what they are asked for."""
    commands = {"torchrun": 'echo torchrun "$@"', "srun": 'echo srun "$@"', "scontrol": "printf 'node7\\nnode8\\n'"}
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "31", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", **slurm}


@pytest.mark.parametrize(
    ("script", "arguments", "wanted"),
    [
        (
            "multi_node.sh",
            ["node7", "2", "1"],
            "torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr node7",
        ),
        (
            "slurm.sh",
            [],
            "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-id 31 --rdzv-backend c10d --rdzv-endpoint node7",
        ),
    ],
)
def test_launchers_start_torchrun(script: str, arguments: list[str], wanted: str, cluster: dict[str, str]):
    command = [str(LAUNCH / script), *arguments, "recipe.yaml", "seed=3"]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, check=True)
    assert wanted in done.stdout
    assert done.stdout.rstrip().endswith("-m rebus train recipe.yaml seed=3")


@pytest.mark.parametrize("script", ["multi_node.sh", "slurm.sh"])
def test_launchers_say_how_they_are_used(script: str, cluster: dict[str, str]):
    done = subprocess.run([str(LAUNCH / script)], env=cluster, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
