"""The verbs that make a model and use it: train, budget, eval, chat, generate."""

from pathlib import Path
from typing import Annotated

import typer

from rebus.cli.options import Overrides, RecipePath, recipe_kind, recipe_of

verbs = typer.Typer()


@verbs.command(epilog="Example: rebus train recipes/quickstart/align.yaml trains.connector.lr=2e-3")
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[str, typer.Option(help="auto: from the last whole state; never: anew.")] = "auto",
    replace: Annotated[bool, typer.Option("--replace", help="Remove another recipe's run in `out`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen; needs no weights.")] = False,
) -> None:
    """Train on a plan, or a filter network on trusted pairs; killed and run again, it goes on with the same numbers."""
    if resume not in ("auto", "never"):
        raise typer.BadParameter(f"'{resume}': it is auto or never.", param_hint="--resume")
    if recipe_kind(recipe) == "dual_encoder":
        if dry_run or replace or resume == "never":
            raise typer.BadParameter("a filter network knows none of --dry-run, --replace, --resume.")
        from rebus.filters.config import FilterRecipe
        from rebus.filters.run import run as train_filter

        train_filter(recipe_of(FilterRecipe, recipe, overrides))
        return
    from rebus.training.config import TrainRecipe

    checked = recipe_of(TrainRecipe, recipe, overrides)
    if dry_run:
        from rebus.training.dry_run import dry_run as foretell

        foretell(checked)
        return
    from rebus.training.loop import run

    run(checked, anew=resume == "never", replace=replace)


@verbs.command(epilog="Example: rebus budget recipes/open_qwen2vl/pretrain.yaml --gpus 8xA100-40G --price 2.0")
def budget(
    recipes: Annotated[
        list[str],
        typer.Argument(
            help="YAML recipes of `rebus train`, or folders of them, and overrides.",
            metavar="RECIPE... [KEY=VALUE]...",
        ),
    ],
    gpus: Annotated[
        str | None,
        typer.Option(help="Such as A100-40G, 8xH100, or 2x8xH100 for two nodes; else those that the recipe expects."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of an hour of one GPU.")] = None,
    mfu: Annotated[str | None, typer.Option(help="Share of the peak, or metrics.jsonl of a run that knows.")] = None,
    expected: Annotated[bool, typer.Option("--expected", help="By the recipe's `expected`, not the plan.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="One table row a recipe.")] = False,
) -> None:
    """Foretell memory, hours and cost of a training run, and what makes it fit; fails where it cannot."""
    from rebus.training.budget import Question, read_mfu, recipes_in, run

    paths = [path for one in recipes if "=" not in one for path in recipes_in(Path(one))]
    overrides = [one for one in recipes if "=" in one]
    run(paths, overrides, Question(gpus, *read_mfu(mfu), price, expected), markdown=markdown)


@verbs.command("eval", epilog="Example: rebus eval recipes/quickstart/eval.yaml limit=20")
def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Evaluate a checkpoint: multiple choice by likelihood, free naming, with controls and intervals."""
    from rebus.evals.config import EvalRecipe

    checked = recipe_of(EvalRecipe, recipe, overrides)
    from rebus.evals.run import run

    run(checked)


@verbs.command(epilog='Example: rebus chat runs/demo/sft --image data/emoji/dog.png --question "What is this?"')
def chat(
    model: Annotated[str, typer.Argument(help="A checkpoint, a model folder of the hub, its id or short name.")],
    image: Annotated[Path | None, typer.Option(help="A picture to talk about.")] = None,
    question: Annotated[str | None, typer.Option(help="Ask this one question and leave.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 picks the likeliest token.")] = 0.0,
) -> None:
    """Talk to a checkpoint in the terminal; the answer streams as it is made."""
    from rebus.server.chat import run

    run(model, image=image, question=question, max_tokens=max_tokens, temperature=temperature)


@verbs.command(epilog='Example: rebus generate Qwen/Qwen2-VL-2B-Instruct --image dog.png --question "What is this?"')
def generate(
    model: Annotated[str, typer.Argument(help="A checkpoint, a model folder of the hub, its id or short name.")],
    image: Annotated[list[str] | None, typer.Option(help="A picture: path or URL. Give it again for more.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="A video: path or URL. Give it again for more.")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask.")] = None,
    system: Annotated[str | None, typer.Option(help="What the system says first.")] = None,
    temperature: Annotated[float, typer.Option(help="0 picks the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the tokens that hold this share of probability.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many of the likeliest tokens.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said is said less.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the draws; the same seed, the same answer.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU where there is one.")] = None,
    template: Annotated[str | None, typer.Option(help="Lay prompts out by this template instead.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Least pixels of a picture or frame, if native.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a picture or frame, if native.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames taken of a second of video.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames taken of a video.")] = None,
    batch: Annotated[Path | None, typer.Option(help="JSON lines with a question each (docs/generate.md).")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the answers to --batch go, line by line.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of --batch decoded together.")] = 8,
    benchmark: Annotated[int | None, typer.Option(min=1, help="Time this many runs: latency, speed, memory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Results as one line of JSON.")] = False,
) -> None:
    """Ask a model about pictures and videos: one question, a file of them, or a benchmark."""
    from rebus.model.decode_sampling import Sampling
    from rebus.server.generate import Asked, run

    sampling = Sampling(max_tokens, temperature, top_p, seed, top_k, repetition_penalty, tuple(stop or ()))
    pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    chosen = {"fps": fps, "num_frames": num_frames, **pixels}
    options = {name: value for name, value in chosen.items() if value is not None}
    asked = Asked(
        *(question, image or (), video or (), system, options, batch, out, batch_size),
        as_json=as_json,
        num_runs=benchmark,
    )
    loading = {"dtype": dtype, "device": device, "template": template}
    raise typer.Exit(run(model, asked, sampling, {**loading, **pixels}))
