"""A transformers model answers, and tells what else it might have said: its distributions at every prefix of a number.

One pass over the prompts fills the cache of keys and values. The greedy answer, and then each prefix that is asked for
("8", "1", "1 0"), is one pass of a single token per prompt, and is cut off the cache again. With one token a digit that
is one long pass, `max_tokens` short ones, and eleven more for `exact`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rebus.scores.mlm.digits import END, Path, is_way_to_number, paths_to_ask

if TYPE_CHECKING:
    import torch

_DIGITS = re.compile(r"[ ▁Ġ]?[0-9]+([^0-9].?)?")
_SPACES = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that matter. digits: text -> id of those that begin with a number. ends: ids that end an answer."""

    digits: dict[str, int]
    ends: frozenset[int]
    tokenizer: Any

    def text(self, token: int) -> str:
        """A token's text, the white space before it included."""
        return str(self.tokenizer.convert_ids_to_tokens(token)).translate(_SPACES)


@dataclass(frozen=True)
class Heard:
    """The ids of a greedy answer, and the distributions found (see digits.py)."""

    ids: list[int]
    tree: dict[Path, dict[str, float]]


def read_vocabulary(tokenizer: Any, ends: Sequence[int]) -> Vocabulary:
    special = set(tokenizer.all_special_tokens)
    digits = {
        text.translate(_SPACES): number
        for text, number in tokenizer.get_vocab().items()
        if _DIGITS.fullmatch(text) and text not in special
    }
    return Vocabulary(dict(sorted(digits.items(), key=lambda pair: pair[1])), frozenset(ends), tokenizer)


def hear(model: Any, inputs: dict[str, Any], vocabulary: Vocabulary, max_tokens: int, *, exact: bool) -> list[Heard]:
    """What the model answers to each prompt. inputs: of a left-padded batch, as its processor makes them.

    Goes through `generate` with a loop of our own, so that positions and cache are prepared as the model wants them.
    """
    import torch
    from transformers import GenerationConfig

    heard: list[Heard] = []

    def loop(model: Any, input_ids: "torch.Tensor", **rest: Any) -> "torch.Tensor":
        for name in ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer"):
            rest.pop(name, None)
        heard.extend(_Walk(model, input_ids, rest, vocabulary).run(max_tokens, exact))
        return input_ids

    pad = inputs["input_ids"].new_zeros(()).item()
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_tokens, pad_token_id=pad, use_cache=True)
    with torch.inference_mode():
        model.generate(**inputs, generation_config=settings, custom_generate=loop)
    return heard


class _Walk:
    """A batch of prompts in the cache, and steps on from there."""

    def __init__(self, model: Any, input_ids: "torch.Tensor", rest: dict[str, Any], vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        first = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **rest)
        found = model(**first, return_dict=True)
        self.cache = found.past_key_values
        self.cache.activate_past_recording()
        self.logits = found.logits[:, -1]  # [rows, vocabulary]
        self.mask = rest["attention_mask"]
        self.positions = rest.get("position_ids")
        self.num_steps = 0

    def run(self, max_tokens: int, exact: bool) -> list[Heard]:
        num_rows = len(self.logits)
        first = self.logits
        heard = self._greedy(max_tokens)
        if exact:
            self._back(self.num_steps)
            self.logits = first
            for path in paths_to_ask(self.vocabulary.digits)[1:]:
                for token in path:
                    self._step(self.mask.new_full((num_rows,), self.vocabulary.digits[token]))
                for one, following in zip(heard, self._following(), strict=True):
                    one.tree.setdefault(path, following)
                self._back(len(path))
        return heard

    def _greedy(self, max_tokens: int) -> list[Heard]:
        """Each row up to the token that ends it, or to the end of its first line."""
        heard = [Heard([], {}) for _ in range(len(self.logits))]
        paths: list[Path | None] = [()] * len(heard)
        open_rows = set(range(len(heard)))
        for number in range(max_tokens):
            chosen = self.logits.argmax(dim=-1)
            ids = chosen.tolist()
            followings = self._following(chosen)
            for row in sorted(open_rows):
                path = paths[row]
                if path is not None:
                    heard[row].tree[path] = followings[row]
                    longer = (*path, self.vocabulary.text(ids[row]))
                    paths[row] = longer if is_way_to_number(longer) else None
                heard[row].ids.append(ids[row])
                if ids[row] in self.vocabulary.ends or self._is_line_over(heard[row].ids):
                    open_rows.discard(row)
            if not open_rows or number + 1 == max_tokens:
                return heard
            self._step(chosen)
        return heard

    def _is_line_over(self, ids: list[int]) -> bool:
        return "\n" in self.vocabulary.tokenizer.decode(ids).lstrip()

    def _following(self, chosen: "torch.Tensor | None" = None) -> list[dict[str, float]]:
        """Of each row the probabilities of the tokens with digits, and of all others together; and that of `chosen`."""
        import torch

        ids = torch.tensor(list(self.vocabulary.digits.values()), device=self.logits.device)
        probabilities = self.logits.float().softmax(dim=-1)
        rows = probabilities[:, ids].tolist()
        found = [dict(zip(self.vocabulary.digits, row, strict=True)) for row in rows]
        if chosen is not None:
            taken = probabilities.gather(1, chosen[:, None])[:, 0].tolist()
            for following, token, probability in zip(found, chosen.tolist(), taken, strict=True):
                if token not in self.vocabulary.ends:
                    following.setdefault(self.vocabulary.text(token), probability)
        for following in found:
            following[END] = max(0.0, 1.0 - sum(following.values()))
        return found

    def _step(self, tokens: "torch.Tensor") -> None:
        """One token [rows] more for each row."""
        import torch

        self.num_steps += 1
        mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), self.num_steps))], dim=1)
        places = {} if self.positions is None else {"position_ids": self.positions[..., -1:] + self.num_steps}
        found = self.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
            **places,
        )
        self.logits = found.logits[:, -1]

    def _back(self, num_steps: int) -> None:
        """Cuts the last steps off the cache."""
        self.num_steps -= num_steps
        if num_steps:
            self.cache.crop(-num_steps)
