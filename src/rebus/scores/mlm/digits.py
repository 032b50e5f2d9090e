"""A number from 0 to 100 as a model says it: token by token. What the model thinks of every number, not of one alone.

A model that writes "85" gives at each step a distribution over its next token. Multiplied along the tokens of a number
they are that number's probability, and the mean over all numbers is a finer score than the number it would write.
The tree of distributions is keyed by what was said before: () -> {"8": 0.7, "9": 0.2, ...}, ("8",) -> {"5": 0.6, ...}.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

END = ""
"""Stands in a distribution for all tokens that are not told apart: none of them continues a number."""

Path = tuple[str, ...]
Tree = Mapping[Path, Mapping[str, float]]

HIGHEST = 100
NUMBERS = {str(number): number for number in range(HIGHEST + 1)}
GROWING = {text for text in NUMBERS if any(other != text and other.startswith(text) for other in NUMBERS) and text}
"""1 to 9 and 10: what may become another number up to 100. What follows any other is no question for its value."""

_SAID = re.compile(r"([0-9]+)(.*)", re.DOTALL)


def number_probabilities(tree: Tree) -> np.ndarray:
    """The probability [101] that the answer begins with each number, over all ways to cut it into tokens.

    A number ends with a token that is no digit, or inside one ("85."). Numbers are written without leading zeros.
    Where the tree does not hold what follows a number that can grow, that branch counts nowhere: it is not known.
    Where it does not hold what follows one that cannot, such as 85, the number counts as said.
    """
    found = np.zeros(HIGHEST + 1)
    _walk(tree, (), "", 1.0, found)
    return found


def expectation(tree: Tree) -> tuple[float, float]:
    """(the mean of the numbers 0 to 100, weighted by their probabilities; their probability together). NaN for none."""
    probabilities = number_probabilities(tree)
    mass = float(probabilities.sum())
    if mass <= 0:
        return float("nan"), 0.0
    return float(probabilities @ np.arange(HIGHEST + 1)) / mass, mass


def spread_off_path(tree: Tree) -> dict[Path, Mapping[str, float]]:
    """The tree of a greedy answer, with what its first digit might else have been: 2 to 9, each counted as the middle
    of its ten (ten second digits, equally likely). That is off by 4.5 at most for each, where leaving them out would
    make the score jump by ten when two first digits change places.

    Not for 1, which may be 10 to 19 or 100. Not where a token holds two digits: there a lone digit means itself.
    """
    filled = dict(tree)
    uniform = {str(digit): 0.1 for digit in range(10)}
    for path, following in tree.items():
        if "".join(path).strip() or any(len(token.strip()) > 1 and token.strip().isdecimal() for token in following):
            continue
        for token in following:
            if token.strip() in GROWING - {"1", "10"}:
                filled.setdefault((*path, token), uniform)
    return filled


def paths_to_ask(tokens: Iterable[str]) -> list[Path]:
    """The beginnings after which a model must be asked what it says next, so that every number's probability is known.

    tokens: the texts in its vocabulary that hold digits. With one token a digit: (), ten digits less 0, and ("1", "0").
    """
    tokens = list(tokens)
    paths: list[Path] = [()]
    for path in paths:
        for token in tokens:
            said, ended = _read(token, "".join(path).strip())
            if said in GROWING and not ended and said != "".join(path).strip():
                paths.append((*path, token))
    return paths


def hard_parse(text: str) -> int | None:
    """MLM-Filter's own reading: the first line, commas and semicolons stripped, must be a whole number; else None.

    So "85;" is 85, and "85.", "85/100", "Score: 85" and "850" are none.
    """
    lines = text.strip().splitlines()
    line = lines[0].strip(" \t,;") if lines else ""
    number = int(line) if re.fullmatch(r"[0-9]{1,9}", line) else None
    return number if number is not None and number <= HIGHEST else None


def is_way_to_number(path: Path) -> bool:
    """Whether an answer that began so may still be a number, white space before it allowed."""
    said = "".join(path)
    return not said.strip() or (re.fullmatch(r"\s*[0-9]+", said) is not None and len(said.strip()) <= len(str(HIGHEST)))


def _walk(tree: Tree, path: Path, said: str, mass: float, found: np.ndarray) -> None:
    for token, probability in tree.get(path, {}).items():
        whole, ended = _read(token, said)
        longer = (*path, token)
        if whole and (ended or (longer not in tree and whole not in GROWING)):
            if whole in NUMBERS:
                found[NUMBERS[whole]] += mass * probability
        elif longer in tree and (whole in NUMBERS or not token.strip()):
            _walk(tree, longer, whole, mass * probability, found)


def _read(token: str, said: str) -> tuple[str, bool]:
    """(the digits said after this token, whether the number ends with it). White space may stand before the first."""
    match = _SAID.match(token if said else token.lstrip())
    if match is None:
        return said, bool(said)
    return said + match[1], bool(match[2])
