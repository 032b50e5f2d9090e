"""results.json and the closing table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rebus.evals.answers import CONTROLS, AnswerLog
from rebus.evals.choice import describe_rule
from rebus.evals.config import EvalRecipe
from rebus.evals.metrics import sign_test, wilson
from rebus.evals.task import Question
from rebus.log import show_table

SHOWN = {"right": "the right picture", "wrong": "a wrong picture", "none": "no picture"}


def summarise(
    recipe: EvalRecipe, questions: Sequence[Question], log: AnswerLog, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """What results.json says. The same answers give the same bytes: no time, no path.

    Intervals are Wilson's at 95 % over items; more draws of an item sharpen its share but count as one item.
    """
    uids = [question.item.uid for question in questions]
    name = f"choice{recipe.choice.num_choices}"
    shares = {control: [log.choices[uid, control].share_correct for uid in uids] for control in CONTROLS}
    results: dict[str, Any] = {}
    for control in CONTROLS:
        accuracy = sum(shares[control]) / len(uids)
        results[f"{name}_{control_name(control)}"] = accuracy
        results[f"{name}_{control_name(control)}_ci95"] = list(wilson(accuracy, len(uids)))
    return {
        **results,
        f"{name}_chance": 1 / recipe.choice.num_choices,
        f"{name}_right_vs_wrong_p": sign_test(shares["right"], shares["wrong"]),
        "num_eval": len(uids),
        "num_draws": recipe.choice.num_draws,
        **_naming(uids, log),
        "rule": describe_rule(recipe.choice),
        "prompt": recipe.prompt.model_dump(mode="json"),
        "seed": recipe.seed,
        "inputs": dict(inputs),
    }


def control_name(control: str) -> str:
    return f"{control}_image" if control != "none" else "no_image"


def _naming(uids: Sequence[str], log: AnswerLog) -> dict[str, Any]:
    names = [log.names[uid] for uid in uids if uid in log.names]
    if not names:
        return {"num_naming": 0}
    return {
        "naming_exact": sum(answer.exact for answer in names) / len(names),
        "naming_exact_ci95": list(wilson(sum(answer.exact for answer in names) / len(names), len(names))),
        "naming_overlap": sum(answer.overlap for answer in names) / len(names),
        "num_naming": len(names),
        "naming": [asdict(answer) for answer in names],
    }


def show_results(recipe: EvalRecipe, results: Mapping[str, Any], seconds: float) -> None:
    """Prints accuracies beside chance, and some names."""
    name = f"choice{recipe.choice.num_choices}"
    rows = []
    for control in CONTROLS:
        key = f"{name}_{control_name(control)}"
        low, high = results[f"{key}_ci95"]
        rows.append((f"{name}, {SHOWN[control]}", f"{results[key]:.3f}", f"{low:.3f} to {high:.3f}"))
    if results["num_naming"]:
        low, high = results["naming_exact_ci95"]
        rows.append(("free naming, exact", f"{results['naming_exact']:.3f}", f"{low:.3f} to {high:.3f}"))
        rows.append(("free naming, word overlap (F1)", f"{results['naming_overlap']:.3f}", ""))
    chance, num_eval = results[f"{name}_chance"], results["num_eval"]
    show_table(f"{num_eval} pictures in {seconds:.0f} s; chance is {chance:.2f}", ["task", "share", "95 %"], rows)
    some = results.get("naming", [])[:5]
    if some:
        show_table("free naming", ["label", "answer"], [(answer["label"], answer["answer"]) for answer in some])
