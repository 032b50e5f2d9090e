"""What the model is asked: caption, criteria, and the form of the answer, as MLM-Filter's four metrics are published
(Wang et al. 2024, arXiv:2403.02677, section 3.2). The wording is our own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rebus.errors import ConfigError
from rebus.scores.mlm.config import Metric

PLACE = "{caption}"

CRITERIA: dict[Metric, str] = {
    "image_text_matching": (
        "Judge how well the caption matches the picture. Give a high score where the caption says what the picture "
        "mainly shows: its subjects, what they do, and the scene. Give a low score where the caption names things that "
        "are not in the picture, misses its main subject, or has nothing to do with it."
    ),
    "object_detail_fulfillment": (
        "Judge how much detail the caption gives of the objects in the picture. Give a high score where it describes "
        "their properties truly and closely: number, colour, size, material, shape, position, posture and their "
        "relations to one another. Give a low score where objects are named without any property, or with wrong ones."
    ),
    "caption_text_quality": (
        "Judge the caption as a piece of text. Give a high score where it is fluent, grammatical, varied in its words, "
        "whole and to the point. Give a low score where it is broken or repeats itself, or where it holds web "
        "addresses, file names, hashtags, advertising, markup or words that mean nothing."
    ),
    "semantic_understanding": (
        "Judge how much the caption adds that cannot be read off the pixels alone, and that is right. Such knowledge "
        "is: the role or kind of a person or thing more precisely than it looks; concepts from outside the picture; "
        "the particular place, time or event; names of persons, works, brands or species; the context or purpose that "
        "is not shown; relations that take common sense to see. Give a high score where the caption teaches much of "
        "this, and a low score where it only repeats what is visible or where it adds nothing true."
    ),
}

FORM = """Here is a caption that was found with this picture:

{caption}

{criteria}

Answer with a whole number from 0 to 100, where 0 is worst and 100 is best. Use the whole range, and not only \
multiples of 5 or 10. Write the number alone on the first line; you may explain it from the second line on."""


def read_prompts(metrics: Sequence[Metric], files: Mapping[Metric, Path]) -> dict[Metric, str]:
    """The prompt of each metric, `{caption}` still in it. Raises: ConfigError for a file that has no such place."""
    return {metric: _read(files[metric]) if metric in files else _ours(metric) for metric in metrics}


def fill(prompt: str, caption: str) -> str:
    """Puts the caption in its place; braces in the caption mean nothing."""
    return prompt.replace(PLACE, caption.strip())


def _ours(metric: Metric) -> str:
    return FORM.replace("{criteria}", CRITERIA[metric])


def _read(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"no prompt at {path}. It is a text file with {PLACE} where the caption goes.")
    text = path.read_text(encoding="utf-8")
    if PLACE not in text:
        raise ConfigError(f"{path} says nowhere where the caption goes: write {PLACE} there.")
    return text
