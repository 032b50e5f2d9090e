"""Free naming: what the model calls a picture when nobody offers names."""

from collections.abc import Iterator, Sequence, Set
from typing import Protocol

from rebus.evals.answers import NamingAnswer
from rebus.evals.config import NamingConfig
from rebus.evals.metrics import exact_match, word_overlap
from rebus.evals.task import Question


class Namer(Protocol):
    """Whoever can name a picture."""

    def name(self, uid: str, max_new_tokens: int) -> str: ...


def answer_names(
    questions: Sequence[Question], namer: Namer, config: NamingConfig, done: Set[str]
) -> Iterator[NamingAnswer]:
    """Yields a name for each of the first `num_items` pictures that is not in `done`."""
    for question in questions[: config.num_items]:
        item = question.item
        if item.uid not in done:
            answer = namer.name(item.uid, config.max_new_tokens)
            exact, overlap = exact_match(answer, item.label), word_overlap(answer, item.label)
            yield NamingAnswer(item.uid, item.key, item.label, answer, exact, overlap)
