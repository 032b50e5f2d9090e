"""`rebus report`: a folder of artifacts -> results.json and one self-contained page."""

import json
import shlex
from pathlib import Path

from rebus.fingerprint import write_atomically
from rebus.log import output, say, show_table
from rebus.report.gather import Artifact, Way, find_way, read_clock
from rebus.report.page import build_page
from rebus.report.pictures import find_picture
from rebus.report.results import checkpoint_of, gather_results, headline_eval
from rebus.report.section_made import closing_rows
from rebus.report.section_model import SampleAnswer, question_of, sample_answers


def run(folder: Path) -> Path:
    """Writes FOLDER/results.json and FOLDER/report.html and says what to type next. Returns the page's path.

    Raises: DataError where the folder holds no artifact.
    """
    way = find_way(folder)
    results = gather_results(way)
    write_atomically(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    page = folder / "report.html"
    write_atomically(page, build_page(way, results))
    show_table(str(folder), ["result", "value"], closing_rows(results))
    if not read_clock(folder):
        say(f"no {folder / 'clock.jsonl'}: time and memory were not measured")
    for artifact in way.artifacts:
        for name in way.strangers_of(artifact):
            say(f"{artifact.folder} was made of another {name} than there is now. Make it again before you trust it.")
    evaluation = headline_eval(way)
    answers = sample_answers(evaluation, 6) if evaluation else []
    if answers:
        show_table(
            "six answers", ["picture", "truth", "picked of the candidates", "", "written freely"], _rows(answers)
        )
    output.print(f"page: {page}", highlight=False, soft_wrap=True)
    _say_what_next(way, evaluation, answers)
    return page


def _rows(answers: list[SampleAnswer]) -> list[tuple[str, ...]]:
    return [
        (a.key, a.label, a.chosen, "right" if a.right else "wrong", "" if a.named is None else a.named) for a in answers
    ]


def _say_what_next(way: Way, evaluation: Artifact | None, answers: list[SampleAnswer]) -> None:
    """The command to type next, with a picture that it can be typed with: the first of the sample answers."""
    checkpoint = checkpoint_of(way, evaluation)
    if checkpoint is None:
        return
    picture = "PICTURE"
    if evaluation and answers:
        found = find_picture(answers[0].uid, way.inputs_of(evaluation, "shards"))
        if found is not None:
            path = way.folder / f"example.{found.extension}"
            write_atomically(path, found.data)
            picture = shlex.quote(str(path))
    question = question_of(evaluation) if evaluation else ""
    asked = f" --question {shlex.quote(question)}" if question else ""
    output.print(
        f"next: rebus chat {shlex.quote(str(checkpoint.folder))} --image {picture}{asked}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
