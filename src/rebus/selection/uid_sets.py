"""Set algebra over files of uids, in one line: `dfn.npy | su85.npy`, `(a.npy & b.txt) - runs/selection`.

|: union; &: what both have; -: what the right one has not; ^: what one has and not both. & binds closer than the
other three, which go from left to right. A path with white space or with one of | & ^ ( ) stands in quotes; since
paths may hold a `-`, minus stands between spaces. A file is a set however often it names a uid: what it repeats is
counted.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebus.errors import ConfigError
from rebus.fingerprint import write_atomically
from rebus.log import show_table
from rebus.selection.uid_files import read_uids
from rebus.uids import in_one, intersection, minus, union, unique

Set = NDArray[np.void]
OPERATIONS: dict[str, Callable[[Set, Set], Set]] = {"|": union, "-": minus, "^": in_one, "&": intersection}
_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>[()|&^]|-(?=[\s(]|$))|"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<word>[^\s()|&^"']+))"""
)


@dataclass(frozen=True)
class Join:
    """Two expressions and what stands between them."""

    sign: str
    left: "Expression"
    right: "Expression"


Expression = Path | Join


@dataclass(frozen=True)
class Operand:
    """num_uids: distinct ones. num_repeats: how many more the file names."""

    path: Path
    num_uids: int
    num_repeats: int


@dataclass(frozen=True)
class Evaluation:
    """uids: the resulting set, `<u8,<u8` [N] sorted. operands: as they stand in the expression."""

    uids: Set
    operands: list[Operand]


def run(expression: str, out: Path) -> Evaluation:
    """`rebus uids`: writes the set in DataComp's form. Raises: ConfigError for the expression, DataError for a file."""
    if out.suffix != ".npy":
        raise ConfigError(f"--out {out}: the set is written in DataComp's form, a file that ends in .npy.")
    found = explain(expression)
    buffer = io.BytesIO()
    np.save(buffer, found.uids)
    write_atomically(out, buffer.getvalue())
    rows = [(str(one.path), f"{one.num_uids:,}", f"{one.num_repeats:,}") for one in found.operands]
    show_table(expression, ["file", "uids", "repeated"], [*rows, (str(out), f"{len(found.uids):,}", "")])
    return found


def evaluate(expression: str) -> Set:
    """The set that an expression means, sorted. Raises: ConfigError, DataError."""
    return explain(expression).uids


def explain(expression: str) -> Evaluation:
    """The set, and how large its operands are."""
    operands: list[Operand] = []
    return Evaluation(_evaluate(parse(expression), operands), operands)


def _evaluate(expression: Expression, operands: list[Operand]) -> Set:
    if isinstance(expression, Join):
        left = _evaluate(expression.left, operands)
        return OPERATIONS[expression.sign](left, _evaluate(expression.right, operands))
    named = read_uids(expression)
    found = unique(named)
    operands.append(Operand(expression, len(found), len(named) - len(found)))
    return found


def paths_of(expression: Expression) -> list[Path]:
    """The files of an expression, each once."""
    if isinstance(expression, Join):
        return list(dict.fromkeys(paths_of(expression.left) + paths_of(expression.right)))
    return [expression]


def parse(text: str) -> Expression:
    """Raises: ConfigError that shows the place."""
    tokens = _tokens(text)
    expression = _chain(text, tokens, "|-^")
    if tokens:
        raise _wrong(text, tokens[0][2], "an operator was expected: | & ^, or - between spaces")
    return expression


def _tokens(text: str) -> list[tuple[str, str, int]]:
    """(sign or empty, path or empty, place) of each."""
    tokens, place = [], 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            raise _wrong(text, place, "a quotation mark that is not closed")
        sign, path = match["sign"] or "", match["double"] or match["single"] or match["word"] or ""
        tokens.append((sign, path, match.end() - len(match[0].lstrip())))
        place = match.end()
    return tokens


def _chain(text: str, tokens: list[tuple[str, str, int]], signs: str) -> Expression:
    """Operands between operators of one rank, from left to right; & ranks above the others."""
    operand = _operand if signs == "&" else _product
    left = operand(text, tokens)
    while tokens and tokens[0][0] and tokens[0][0] in signs:
        sign = tokens.pop(0)[0]
        left = Join(sign, left, operand(text, tokens))
    return left


def _product(text: str, tokens: list[tuple[str, str, int]]) -> Expression:
    return _chain(text, tokens, "&")


def _operand(text: str, tokens: list[tuple[str, str, int]]) -> Expression:
    sign, path, place = tokens.pop(0) if tokens else ("", "", len(text))
    if path:
        return Path(path)
    if sign != "(":
        raise _wrong(text, place, "a file or ( was expected")
    inner = _chain(text, tokens, "|-^")
    closing = tokens.pop(0) if tokens else ("", "", len(text))
    if closing[0] != ")":
        raise _wrong(text, closing[2], ") was expected")
    return inner


def _wrong(text: str, place: int, what: str) -> ConfigError:
    return ConfigError(f"cannot read the expression: {what}, here:\n  {text}\n  {' ' * place}^")
