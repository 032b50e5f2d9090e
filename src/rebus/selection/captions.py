"""Which captions hold one of some words."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.errors import DataError
from rebus.selection.texts import map_texts
from rebus.selection.view import View


def read_words(path: Path) -> list[str]:
    """One word a line, lower case made of it. Raises: DataError."""
    if not path.is_file():
        raise DataError(f"no list of words at {path}; docs/select.md says how to make one.")
    words = sorted({line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()} - {""})
    if not words:
        raise DataError(f"{path} holds no word: one a line is wanted.")
    return words


def hold_a_word(view: View, words: list[str]) -> NDArray[np.bool_]:
    """[n] whether a sample's text, cut at white space and in lower case, has one of the words. Reads the texts."""
    found = np.zeros(len(view), dtype=bool)
    for places, holds in map_texts(view, partial(any_word, words=words)):
        found[places] = holds
    return found


def any_word(texts: pa.Array, words: list[str]) -> NDArray[np.bool_]:
    """bool [n]. texts: Arrow strings [n]."""
    pieces = pc.utf8_split_whitespace(pc.utf8_lower(texts))
    is_word = pc.is_in(pieces.flatten(), value_set=pa.array(words, pa.string())).to_numpy(zero_copy_only=False)
    owners = pc.list_parent_indices(pieces).to_numpy(zero_copy_only=False)
    return np.bincount(owners[is_word.astype(bool)], minlength=len(texts)).astype(bool)
