"""The page's sections on the model: what it knows, what it answers."""

import re
from dataclasses import dataclass
from html import escape
from typing import Any

from rebus.report.figures import bar, number
from rebus.report.gather import Artifact, Way, read_json, read_lines
from rebus.report.pictures import load_examples
from rebus.report.results import evenly

CONTROLS = (
    ("right_image", "its own picture", "bar-a"),
    ("wrong_image", "a wrong picture", "bar-b"),
    ("no_image", "no picture", "bar-b"),
)


@dataclass(frozen=True)
class SampleAnswer:
    """One item as it was asked and answered. named: what the model wrote freely; None where it was not asked."""

    uid: str
    key: str
    label: str
    candidates: tuple[str, ...]
    chosen: str
    named: str | None

    @property
    def right(self) -> bool:
        return self.chosen == self.label


def eval_section(way: Way) -> str:
    return "".join(_eval(way, evaluation, len(way.of_kind("eval")) > 1) for evaluation in way.of_kind("eval"))


def _eval(way: Way, evaluation: Artifact, named: bool) -> str:
    results = read_json(evaluation.folder / "results.json")
    title = f"<h3>{escape(evaluation.name)}</h3>" if named else ""
    origin = "" if _trained_on(way, evaluation) else " of shards that no plan here packed"
    asked = f"{results.get('num_eval', 0):,} pictures{origin}"
    return title + "".join(_choice_bars(results, count, asked) for count in choice_counts(results)) + _other(results)


def _trained_on(way: Way, evaluation: Artifact) -> bool:
    """True where a plan of this folder packed shards that the evaluation asks about."""
    packed = {fp for plan in way.of_kind("plan") for name, fp in plan.manifest.inputs.items() if "shards" in name}
    return bool(packed & set(evaluation.manifest.inputs.values()))


def choice_counts(results: dict[str, Any]) -> list[int]:
    """The numbers of candidates that were asked with: 4 for `choice4_right_image`."""
    found = (re.fullmatch(r"choice(\d+)_right_image", name) for name in results)
    return sorted(int(match[1]) for match in found if match)


def _choice_bars(results: dict[str, Any], count: int, asked: str) -> str:
    rows = []
    for control, words, style in CONTROLS:
        name = f"choice{count}_{control}"
        if results.get(name) is None:
            continue
        interval = results.get(f"{name}_ci95")
        between = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}%" if interval else ""
        drawn = bar(results[name], style=style, interval=tuple(interval) if interval else None, mark=1 / count)
        rows.append(
            f'<tr><th scope="row">{words}</th><td class="wide">{drawn}</td>'
            f'<td class="n">{100 * results[name]:.1f}%</td><td class="n">{between}</td></tr>'
        )
    note = f"One right label among {count}; {asked}. Dashed: chance, {100 / count:g}%. Whiskers: 95% interval."
    head = f'<th>shown with</th><th class="wide">{_scale()}</th><th class="n">right</th><th class="n">95% interval</th>'
    return (
        f'<p class="note">{note}</p><table class="bars"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _scale() -> str:
    return '<span class="scale"><span>0%</span><span>50%</span><span>100%</span></span>'


def _other(results: dict[str, Any]) -> str:
    """All other numbers and texts of the evaluation, folded away."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="n">{escape(_plain(value))}</td></tr>'
        for name, value in results.items()
        if isinstance(value, (int, float, str))
    )
    return f"<details><summary>every number of this evaluation</summary><table>{rows}</table></details>" if rows else ""


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, bool) else number(value)


def sample_answers(evaluation: Artifact, count: int) -> list[SampleAnswer]:
    """Items at even distances through the answers, those that were also named freely first."""
    rows = read_lines(evaluation.folder / "answers.jsonl")
    named = {row["uid"]: row["answer"] for row in rows if row.get("task") == "naming"}
    asked = [row for row in rows if row.get("task") == "choice" and row.get("control") == "right"]
    pool = [row for row in asked if row["uid"] in named]
    return [_sample(row, named) for row in evenly(pool if len(pool) >= count else asked, count)]


def _sample(row: dict[str, Any], named: dict[str, str]) -> SampleAnswer:
    draw = row["draws"][0]
    return SampleAnswer(
        row["uid"], row["key"], row["label"], tuple(draw["candidates"]), draw["chosen"], named.get(row["uid"])
    )


def question_of(evaluation: Artifact) -> str:
    """What was asked; the recipe's default where it says nothing, empty where the picture alone was shown."""
    return str(evaluation.recipe.get("prompt", {}).get("question", ""))


def answers_section(way: Way, evaluation: Artifact | None, count: int = 12) -> str:
    if evaluation is None:
        return ""
    answers = sample_answers(evaluation, count)
    examples = load_examples([answer.uid for answer in answers], way.inputs_of(evaluation, "shards"))
    question = question_of(evaluation) or "(the picture alone)"
    cards = "".join(_card(answer, question, _picture(examples, answer.uid)) for answer in answers)
    is_named = all(answer.named is not None for answer in answers)
    those = "the items that were also named freely" if is_named else "all answers"
    note = (
        f"{len(answers)} items at even distances through {those}, none left out for its looks. <b>picked</b>: "
        "the likeliest of the candidates, underlined below; <b>free</b>: what the model writes when nobody offers any."
    )
    return f'<p class="note">{note}</p><ul class="cards">{cards}</ul>' if cards else ""


def _picture(examples: dict, uid: str) -> str:
    example = examples.get(uid)
    if example is None or not example.picture:
        return '<span class="nothing">no picture</span>'
    return f'<img src="{example.picture}" alt="" loading="lazy">'


def _card(answer: SampleAnswer, question: str, picture: str) -> str:
    verdict = '<b class="right">✓ right</b>' if answer.right else '<b class="wrong">✗ wrong</b>'
    choices = "".join(f"<li>{_candidate(answer, name)}</li>" for name in answer.candidates)
    free = "" if answer.named is None else f"<dt>free</dt><dd>{escape(answer.named) or '(nothing)'}</dd>"
    return (
        f'<li>{picture}<div><p class="question">{escape(question)}</p><dl><dt>picked</dt><dd>{escape(answer.chosen)} '
        f"{verdict}</dd><dt>truth</dt><dd>{escape(answer.label)}</dd>{free}</dl>"
        f'<ul class="choices" aria-label="candidates">{choices}</ul></div></li>'
    )


def _candidate(answer: SampleAnswer, name: str) -> str:
    return f"<u>{escape(name)}</u>" if name == answer.chosen else escape(name)
