"""How the next token is chosen from logits. Every request draws by its own generator, so company changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rebus.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token (greedy). top_k: draw among so many of the likeliest, None: all. top_p:
    draw among the likeliest tokens that hold this share of probability (Holtzman et al., 2020, "The curious case of
    neural text degeneration", section 3.1). repetition_penalty: above 1 makes tokens of prompt and answer less likely
    (Keskar et al., 2019, "CTRL", section 4.1). seed: of the draws; the same seed gives the same text.
    stop: texts that end the answer, themselves left out of it."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = {
            "max_new_tokens": (self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature, self.temperature >= 0, "0 or more"),
            "top_p": (self.top_p, 0 <= self.top_p <= 1, "between 0 and 1"),
            "top_k": (self.top_k, self.top_k is None or self.top_k >= 1, "at least 1"),
            "repetition_penalty": (self.repetition_penalty, self.repetition_penalty > 0, "above 0"),
            "stop": (self.stop, all(self.stop), "texts that are not empty"),
        }
        for name, (value, is_right, wanted) in wrong.items():
            if not is_right:
                raise ConfigError(f"{name} is {value}; it must be {wanted}.")


class Chooser:
    """One request's draws. seen: ids of the prompt; what is chosen joins them."""

    def __init__(self, sampling: Sampling, seen: torch.Tensor) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device="cpu").manual_seed(sampling.seed)
        self.seen = set(seen[seen >= 0].tolist()) if sampling.repetition_penalty != 1 else set()

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from logits [V]."""
        sampling = self.sampling
        if sampling.repetition_penalty != 1:
            logits = _penalised(logits, sorted(self.seen), sampling.repetition_penalty)
        token = int(logits.argmax()) if sampling.temperature <= 0 else self._draw(logits)
        self.seen.add(token)
        return token

    def _draw(self, logits: torch.Tensor) -> int:
        sampling = self.sampling
        scaled = logits.float() / sampling.temperature
        if sampling.top_k is not None:
            ranked, ids = scaled.topk(min(sampling.top_k, len(scaled)))
        else:
            ranked, ids = scaled.sort(descending=True, stable=True)
        shares = ranked.softmax(-1)
        upto = shares.cumsum(0)
        num_kept = max(1, int((upto - shares < sampling.top_p).sum()))  # the likeliest always stays
        point = torch.rand((), generator=self.generator).to(upto.device) * upto[num_kept - 1]
        place = int(torch.searchsorted(upto[:num_kept], point, right=True))
        return int(ids[min(place, num_kept - 1)])


def choose_all(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of every request from logits [B, V]; greedy ones cost one look at the device together."""
    if all(one.sampling.temperature <= 0 and one.sampling.repetition_penalty == 1 for one in choosers):
        return logits.argmax(-1).tolist()
    return [chooser.choose(row) for row, chooser in zip(logits, choosers, strict=True)]


def _penalised(logits: torch.Tensor, seen: list[int], penalty: float) -> torch.Tensor:
    places = torch.tensor(seen, dtype=torch.int64, device=logits.device)
    values = logits[places].float()
    values = torch.where(values > 0, values / penalty, values * penalty)
    return logits.float().index_copy(0, places, values)
