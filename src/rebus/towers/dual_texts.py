"""How a dual encoder wants its texts: tokens, their greatest number, and what fills a batch up."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rebus.errors import ConfigError
from rebus.log import say

if TYPE_CHECKING:
    import torch

LAST = ("siglip_text_model", "siglip2_text_model")
"""Read the last position whatever stands there (SigLIP, section 4.2): always filled up to one length, no mask."""

CAUSAL = ("clip_text_model",)
"""Read the first end token and see nothing behind it: what fills a text up changes nothing, and no mask is needed."""

SHORTEST = 16
"""Texts run in groups of up to 16, 32, 64 ... tokens: one long caption does not make its whole batch as long."""


class Texts(NamedTuple):
    """Texts of like length. rows: which of the batch. ids: int64 [N, L]; mask: int64 [N, L], None where none is
    needed."""

    rows: np.ndarray
    ids: np.ndarray
    mask: np.ndarray | None


class TextRule:
    """tokenizer: of transformers. length: tokens of the longest text, ends included; what is longer is cut off."""

    def __init__(self, tokenizer: Any, length: int, *, model_type: str) -> None:
        """model_type: of the text tower's config."""
        self.tokenizer, self.length = tokenizer, length
        self.fills_up = model_type in LAST
        self.masks = model_type not in LAST + CAUSAL and "attention_mask" in tokenizer.model_input_names
        # Behind the end token anything may stand, but CLIP's first models look for the greatest id: 0 is never it.
        self.padding = 0 if model_type in CAUSAL else tokenizer.pad_token_id or 0
        self.from_left = self.fills_up and tokenizer.padding_side == "left"
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._backend is not None:
            self._backend.enable_truncation(length, direction=tokenizer.truncation_side)
            self._backend.no_padding()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, ends included. Half the time of a call for each text (42 us instead of 92), and it
        lets other threads run."""
        if self._backend is not None:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
        return self.tokenizer(list(texts), truncation=True, max_length=self.length)["input_ids"]

    def groups(self, texts: Sequence[str], *, one: bool = False) -> Iterator[Texts]:
        """The batch in groups of like length, each filled up to its longest text (SigLIP: one group, to `length`).

        one: a single group, its width the bound of its bucket, so that few shapes occur.
        """
        ids = self.ids(texts)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        bounds = self._bounds(lengths)
        if one and len(bounds):
            bounds = np.full_like(bounds, bounds.max())
        for bound in np.unique(bounds):
            rows = np.flatnonzero(bounds == bound)
            width = int(bound) if one or self.fills_up else max(1, int(lengths[rows].max()))
            yield self._filled(rows, [ids[row] for row in rows], lengths[rows], width)

    def _bounds(self, lengths: np.ndarray) -> np.ndarray:
        """Of each text's bucket: 16, 32, 64 ... but no more than `length`."""
        if self.fills_up:
            return np.full_like(lengths, self.length)
        powers = SHORTEST * 2 ** np.arange(32)
        return np.minimum(powers[np.searchsorted(powers, lengths)], self.length)

    def _filled(self, rows: np.ndarray, ids: list[list[int]], lengths: np.ndarray, width: int) -> Texts:
        places = np.arange(width)
        is_text = places >= width - lengths[:, None] if self.from_left else places < lengths[:, None]  # [N, width]
        filled = np.full((len(ids), width), self.padding, np.int64)
        filled[is_text] = np.concatenate(ids)
        return Texts(rows, filled, is_text.astype(np.int64) if self.masks else None)


def open_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, as transformers reads it; where that wants a package that is not installed (SigLIP's
    own class: sentencepiece), or the folder names no class, what tokenizer.json says.

    Raises: ConfigError where neither can be read.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ImportError, ValueError, OSError) as error:
        if not (folder / "tokenizer.json").is_file():
            reason = str(error).strip()
            raise ConfigError(f"{folder} has no tokenizer that can be read here: {reason}") from error
    say(f"{folder}: texts are cut by its tokenizer.json alone")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def longest_text(tokenizer: Any, text_model: "torch.nn.Module", settings: Any) -> int:
    """Tokens of the longest text that both the tokenizer and the model's table of positions allow."""
    import torch

    room = int(settings.max_position_embeddings)
    for name, module in text_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            room -= 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts positions from there
    return min(room, int(tokenizer.model_max_length))
