"""`rebus eval`: asks a checkpoint about held-out pictures, with controls; killed and run again, it goes on."""

import json
import time
from collections.abc import Sequence
from typing import Any

from rebus.config import dump_recipe
from rebus.evals.answers import AnswerLog
from rebus.evals.choice import answer_choices, pictures_to_show
from rebus.evals.config import EvalRecipe
from rebus.evals.naming import answer_names
from rebus.evals.results import show_results, summarise
from rebus.evals.task import Item, Question, ask, read_items, reference_pictures
from rebus.fingerprint import Manifest, is_current, prepare_out, read_manifest, write_atomically, write_manifest
from rebus.log import progress_bar, say

FORMAT = 1


def run(recipe: EvalRecipe) -> dict[str, Any]:
    """Writes answers.jsonl and results.json into `recipe.out` and returns the results."""
    manifest = describe(recipe)
    if is_current(recipe.out, manifest):
        say(f"{recipe.out} is up to date")
        return json.loads((recipe.out / "results.json").read_text())
    items = read_items(recipe.shards)
    choice = recipe.choice
    questions = ask(items, num_choices=choice.num_choices, num_draws=choice.num_draws, seed=recipe.seed)[: recipe.limit]
    prepare_out(recipe.out, manifest)
    started = time.monotonic()
    with AnswerLog(recipe.out / "answers.jsonl", manifest.fingerprint) as log:
        examine(recipe, items, questions, log)
    results = summarise(recipe, questions, log, manifest.inputs)
    write_atomically(recipe.out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    facts = {"num_eval": len(questions)}
    write_manifest(recipe.out, Manifest(manifest.kind, manifest.made_by, manifest.inputs, facts))
    show_results(recipe, results, time.monotonic() - started)
    return results


def describe(recipe: EvalRecipe) -> Manifest:
    """What this evaluation makes, before it is made. Raises: DataError, StrangerError for inputs of another kind."""
    not_shaping = {"out", "model", "shards", "feature_cache", "num_threads"}
    made_by = {"format": FORMAT, **recipe.model_dump(mode="json", exclude=not_shaping)}
    inputs = {
        "model": read_manifest(recipe.model, "checkpoint").fingerprint,
        "shards": read_manifest(recipe.shards, "shards").fingerprint,
    }
    return Manifest("eval", made_by, inputs)


def examine(recipe: EvalRecipe, items: Sequence[Item], questions: Sequence[Question], log: AnswerLog) -> None:
    """Fills the log; the model is loaded only if an answer is missing."""
    num_names = min(recipe.naming.num_items, len(questions))
    if len(log.choices) == 3 * len(questions) and len(log.names) == num_names:
        return
    import torch

    from rebus.evals.examinee import Examinee

    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    examinee = Examinee(recipe, items)
    references = reference_pictures(items, recipe.choice.num_references, recipe.seed)
    with progress_bar() as bar, torch.inference_mode():
        task = bar.add_task("choosing", total=len(pictures_to_show(questions)) + 1, note="")
        for answers in answer_choices(questions, examinee, recipe.choice, set(log.choices), references):
            for answer in answers:
                log.append(answer)
            bar.advance(task)
        task = bar.add_task("naming", total=num_names, completed=len(log.names), note="")
        for name in answer_names(questions, examinee, recipe.naming, set(log.names)):
            log.append(name)
            bar.advance(task)
