"""`rebus budget`: what a run will take, before it is started: memory, steps, hours, cost; and what makes it fit where
it does not. docs/budget.md states the formulae and what of them is assumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from transformers.initialization import no_init_weights

from rebus.batches.loader import check_division
from rebus.batches.order import num_steps_for
from rebus.checkpoints.skeleton import open_skeleton
from rebus.config import load_recipe
from rebus.errors import ConfigError, DataError
from rebus.log import output, say, show_table
from rebus.mesh import Mesh
from rebus.model.config import LoraConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import ImageConfig
from rebus.training.budget_facts import Facts, facts_of, feed_of, likely_image
from rebus.training.config import TrainRecipe, TrainsConfig
from rebus.training.devices import Gpus, parse_gpus
from rebus.training.flops import flops_of
from rebus.training.memory import Memory, accumulates, memory_of
from rebus.training.metrics import read_rows
from rebus.training.parts import freeze_all_but

GPUS = "8xA100-40G"
MFU = 0.35
"""Of the GPU's peak, where no run was measured: an assumption."""
GB = 1e9


@dataclass(frozen=True)
class Asked:
    """What the person asked: GPUs, the share of their peak that is reached and where that is from, price of a GPU hour;
    prefer_expected: the recipe's own figures, even where a plan lies here."""

    gpus: Gpus
    mfu: float = MFU
    mfu_source: str = "assumed"
    price: float | None = None
    prefer_expected: bool = False


@dataclass(frozen=True)
class Question:
    """The same of several recipes. gpus: None for those that each expects."""

    gpus: str | None
    mfu: float = MFU
    mfu_source: str = "assumed"
    price: float | None = None
    prefer_expected: bool = False

    def of(self, recipe: TrainRecipe) -> Asked:
        """Raises: ConfigError for GPUs that are not known."""
        gpus = self.gpus or (recipe.expected.gpus if recipe.expected is not None else GPUS)
        return Asked(parse_gpus(gpus), self.mfu, self.mfu_source, self.price, self.prefer_expected)


@dataclass(frozen=True)
class Budget:
    """A run foretold. flops: model FLOPs of a step over all GPUs; again: what is computed twice beside. seconds: of a
    step. state: bytes of one saved state; final: of the checkpoint."""

    facts: Facts
    memory: Memory
    steps: int
    tokens: float
    flops: float
    again: float
    seconds: float
    hours: float
    cost: float | None
    state: float
    final: float


def recipes_in(path: Path) -> list[Path]:
    """A recipe, or all of a folder that say what they expect. Raises: DataError where there is none."""
    if not path.is_dir():
        return [path]
    trees = {file: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(path.rglob("*.yaml"))}
    found = [file for file, tree in trees.items() if isinstance(tree, dict) and {"trains", "expected"} <= set(tree)]
    if not found:
        raise DataError(f"{path} holds no training recipe with an `expected` section. Name a recipe's file.")
    return found


def run(paths: Sequence[Path], overrides: Sequence[str], question: Question, *, markdown: bool = False) -> None:
    """Prints one budget, or a row for each recipe. Raises: ConfigError where a single run does not fit its GPUs."""
    if markdown:
        output.print("\n".join(_markdown(paths, overrides, question)), markup=False, highlight=False, soft_wrap=True)
        return
    for path in paths:
        recipe = load_recipe(TrainRecipe, path, list(overrides))
        asked = question.of(recipe)
        budget = foretell(recipe, path, asked)
        _show(path, budget, asked)
        if not fits(budget, asked):
            raise ConfigError(_refusal(recipe, path, budget, asked))


def read_mfu(text: str | None) -> tuple[float, str]:
    """A number, or the metrics.jsonl of a run: the mean MFU of its second half. Raises: ConfigError for neither."""
    if text is None:
        return MFU, "assumed"
    path = Path(text)
    if path.is_file():
        found = [row.mfu for row in read_rows(path) if row.mfu is not None]
        if not found:
            raise ConfigError(f"{path} says no MFU: it is of a run on a device whose peak is not known.")
        half = found[len(found) // 2 :]
        return sum(half) / len(half), f"measured, {path}"
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"--mfu {text}: no number, and no metrics.jsonl of a run.") from None
    if not 0 < value <= 1:
        raise ConfigError(f"--mfu {value}: a share of the peak lies above 0 and at most at 1, such as 0.35.")
    return value, "as given"


def foretell(recipe: TrainRecipe, path: Path, asked: Asked) -> Budget:
    """path: of the recipe; where its `init` is not made yet, the recipe beside it that makes it says the shapes.

    Raises: ConfigError where recipe and GPUs do not go together, DataError where no model's shapes are to be found.
    """
    device, world = asked.gpus.device, asked.gpus.num
    if recipe.precision == "bf16" and not device.has_bf16:
        raise ConfigError(f"a {device.name} has no bf16: add precision=fp16.")
    check_division(recipe.packs_per_step, recipe.packs_per_batch, Mesh(world=world))
    model, facts = open_shapes(recipe, path, asked)
    freeze_all_but(model, recipe.trains)
    flops = flops_of(model, recipe.activations)
    mean = facts.mean if recipe.feature_cache is None else replace(facts.mean, encoded=0.0)
    most = facts.most if recipe.feature_cache is None else replace(facts.most, encoded=0.0)
    batch = type(most)(**{one.name: getattr(most, one.name) * recipe.packs_per_batch for one in fields(most)})
    steps = recipe.steps or num_steps_for(
        recipe.epochs or 0, num_packs=facts.packs, packs_per_step=recipe.packs_per_step
    )
    step_flops = flops.model(mean) * recipe.packs_per_step
    seconds = step_flops / (world * device.peak * asked.mfu)
    hours = steps * seconds / 3600
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Budget(
        facts=facts,
        memory=memory_of(model, recipe, batch, world=world),
        steps=steps,
        tokens=mean.tokens * recipe.packs_per_step,
        flops=step_flops,
        again=flops.recomputed(mean) * recipe.packs_per_step,
        seconds=seconds,
        hours=hours,
        cost=None if asked.price is None else hours * world * asked.price,
        state=learning * (4 + (4 if recipe.optimizer.kind == "muon" else 8) + (4 if recipe.ema else 0)),
        final=learning * 4.0,
    )


def open_shapes(recipe: TrainRecipe, path: Path, asked: Asked) -> tuple[VisionLanguageModel, Facts]:
    """The model on the meta device and what it will read. Adapters are made; what they stand on is not quantised here,
    since memory_of counts that from its shape."""
    start, feed = _start(recipe, path), feed_of(recipe)
    image: ImageConfig | None = feed.plan.tokens.image if feed is not None else None
    if image is None and start.model is not None:
        has_newline = "newline" in start.trains or "newline" in recipe.trains
        image = likely_image(recipe, start.model, has_newline=has_newline)
    lora = recipe.lora.model_copy(update={"quantise": None}) if recipe.lora is not None else None
    with no_init_weights():
        model = open_skeleton(start.init, start.model, image=image, lora=lora, weights=False).model
    model.language.tie_weights()
    return model, facts_of(recipe, feed, model.image, prefer_expected=asked.prefer_expected)


def _start(recipe: TrainRecipe, path: Path) -> TrainRecipe:
    """The recipe that names a start which is there: this one, or the one beside it that makes its `init`."""
    if recipe.init is None or recipe.init.exists():
        return recipe
    for other in sorted(path.parent.glob("*.yaml")):
        tree = yaml.safe_load(other.read_text(encoding="utf-8"))
        if isinstance(tree, dict) and "trains" in tree and Path(str(tree.get("out"))) == recipe.init:
            return _start(load_recipe(TrainRecipe, other), other)
    raise DataError(
        f"{recipe.init} is not there, and no recipe beside {path} makes it. Fetch it, or name another init."
    )


def fits(budget: Budget, asked: Asked) -> bool:
    return budget.memory.total <= asked.gpus.device.memory


def knobs(recipe: TrainRecipe, world: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What could make a run smaller, in the order of what it costs: (as said on the command line, fields; of
    `parallel` those that change)."""
    if recipe.packs_per_batch > 1:
        yield "packs_per_batch=1", {"packs_per_batch": 1}
    if world > 1 and accumulates(recipe, world) and not recipe.parallel.reduce_every_batch:
        yield "parallel.reduce_every_batch=true", {"parallel": {"reduce_every_batch": True}}
    if recipe.activations != "full":
        yield "activations=full", {"activations": "full"}
    if recipe.parallel.kind != "shard":
        yield "parallel.kind=shard", {"parallel": {"kind": "shard", "shard_ranks": None}}
    if recipe.optimizer.kind == "adamw":
        yield "optimizer.kind=adamw_8bit", {"optimizer": recipe.optimizer.model_copy(update={"kind": "adamw_8bit"})}
    lora = recipe.lora or LoraConfig()
    if recipe.lora is None and "language" in recipe.trains:
        kept = {part: one for part, one in recipe.trains.items() if part not in ("language", "embeddings", "tower")}
        trains = {**kept, "lora": TrainsConfig(lr=1e-4)}
        yield "LoRA (a `lora` section, trains.lora for trains.language)", {"lora": lora, "trains": trains}
        quantised = lora.model_copy(update={"quantise": "nf4"})
        yield "QLoRA (the same, with lora.quantise=nf4)", {"lora": quantised, "trains": trains}
    elif recipe.lora is not None and lora.quantise is None:
        yield "QLoRA (lora.quantise=nf4)", {"lora": lora.model_copy(update={"quantise": "nf4"})}
    if not recipe.parallel.cpu_offload:
        yield "parallel.cpu_offload=true", {"parallel": {"cpu_offload": True}}


def turned(recipe: TrainRecipe, update: dict[str, Any]) -> TrainRecipe:
    """The recipe with some of what `knobs` yields."""
    parallel = recipe.parallel.model_copy(update=update.get("parallel", {}))
    return recipe.model_copy(update={**update, "parallel": parallel})


def what_fits(recipe: TrainRecipe, path: Path, asked: Asked) -> str | None:
    """The first knob that makes the run fit by itself, else the first that does on top of those before it."""
    tried = list(knobs(recipe, asked.gpus.num))
    for name, update in tried:
        if fits(foretell(turned(recipe, update), path, asked), asked):
            return name
    together: dict[str, Any] = {}
    names: list[str] = []
    for name, update in tried:
        parallel = {**together.get("parallel", {}), **update.get("parallel", {})}
        together = {**together, **update, "parallel": parallel}
        names.append(name)
        if fits(foretell(turned(recipe, together), path, asked), asked):
            return " with ".join([names[-1], *names[:-1]])
    return None


def _refusal(recipe: TrainRecipe, path: Path, budget: Budget, asked: Asked) -> str:
    device = asked.gpus.device
    needs, has = budget.memory.total / GB, device.memory / GB
    knob = what_fits(recipe, path, asked)
    smaller = f"packs of a smaller capacity than {budget.facts.capacity:,} tokens, or more or larger GPUs"
    return f"{path} needs {needs:,.1f} GB a GPU, a {device.name} has {has:,.1f} GB. " + (
        f"It fits with {knob}." if knob else f"No setting makes it fit: take {smaller}."
    )


def _show(path: Path, budget: Budget, asked: Asked) -> None:
    facts, gpus = budget.facts, asked.gpus
    held = [(one.name, f"{getattr(budget.memory, one.name) / GB:,.2f}") for one in fields(Memory)]
    total = [("total", f"{budget.memory.total / GB:,.2f}"), ("the GPU has", f"{gpus.device.memory / GB:,.2f}")]
    shown = [row for row in held if row[0] != "host" or budget.memory.host]
    show_table(f"{path} on {gpus}: memory of a GPU, GB (10^9 bytes)", ["", ""], [*shown, *total])
    rows: list[tuple[str, object]] = [
        ("packs", facts.packs),
        ("fill", f"{facts.fill:.1%} of {facts.capacity:,}"),
        ("steps", budget.steps),
        ("tokens a step", f"{budget.tokens:,.0f}"),
        ("model FLOPs a step", f"{budget.flops:.3g}"),
        ("computed again", f"{budget.again / budget.flops:.0%} of that beside it"),
        ("MFU", f"{asked.mfu:.1%}, {asked.mfu_source}"),
        ("step", f"{budget.seconds:,.2f} s"),
        ("tokens/s", f"{budget.tokens / budget.seconds:,.0f}"),
        ("hours", f"{budget.hours:,.1f}"),
        ("GPU hours", f"{budget.hours * gpus.num:,.1f}"),
        ("a saved state", f"{budget.state / GB:,.1f} GB"),
        ("what learned, in the checkpoint", f"{budget.final / GB:,.1f} GB"),
    ]
    if budget.cost is not None:
        rows.append(("cost", f"{budget.cost:,.0f}"))
    show_table("the run", ["", ""], rows)
    for line in facts.assumed:
        say(f"assumed: {line}")


def _markdown(paths: Sequence[Path], overrides: Sequence[str], question: Question) -> Iterator[str]:
    yield "| recipe | GPUs | GB a GPU | fill | steps | tokens a step | s a step | hours | GPU hours | fits |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for path in paths:
        recipe = load_recipe(TrainRecipe, path, list(overrides))
        asked = question.of(recipe)
        try:
            budget = foretell(recipe, path, asked)
        except (ConfigError, DataError) as error:  # of these GPUs, or of this recipe: the others have their rows
            yield f"| {path.with_suffix('')} | {asked.gpus} | | | | | | | | {error} |"
            continue
        knob = "yes" if fits(budget, asked) else what_fits(recipe, path, asked)
        cells = [f"{budget.memory.total / GB:,.1f}", f"{budget.facts.fill:.1%}"]
        cells += [f"{budget.steps:,}", f"{budget.tokens:,.0f}"]
        cells += [f"{budget.seconds:,.1f}", f"{budget.hours:,.1f}", f"{budget.hours * asked.gpus.num:,.0f}"]
        answer = "no" if knob is None else knob if knob == "yes" else f"with {knob}"
        yield f"| {path.with_suffix('')} | {asked.gpus} | {' | '.join(cells)} | {answer} |"
