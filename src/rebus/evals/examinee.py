"""The one examined: a loaded checkpoint that says how likely a label is, and what it would call a picture."""

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import torch

from rebus.checkpoints.load import load_model
from rebus.errors import ConfigError, DataError
from rebus.evals.config import EvalRecipe, PromptConfig
from rebus.evals.task import Item
from rebus.log import track
from rebus.model.adapters import merge_lora
from rebus.model.decode_sampling import Sampling
from rebus.model.families import VisionLanguageModel
from rebus.model.generate import Prompt, generate, prompt_of, score_continuations
from rebus.pictures.config import FixedConfig, ImageConfig
from rebus.pictures.prepare import prepare_image
from rebus.records import Image
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import Encoded, encode_prompt, encode_spans
from rebus.tokens.positions import prompt_positions
from rebus.tokens.spans import SpecialSpan
from rebus.tokens.template import render_answer, user_turn
from rebus.tokens.tokenizer import Tokens, load_tokens, stop_ids
from rebus.towers.cache import FeatureCache, encode_cached
from rebus.towers.config import tower_fingerprint

PICTURES_AT_ONCE = 16


class Examinee:
    """A checkpoint with the features of all held-out pictures. It is a choice.Judge.

    features: float32 [items, num_tokens, width] as the tower makes them, in the items' order.
    """

    def __init__(self, recipe: EvalRecipe, items: Sequence[Item]) -> None:
        self.model, tokens = load_model(recipe.model, device=recipe.device)
        merge_lora(self.model)  # a third of the matrix products, the same answers
        self.tokens = load_tokens(TokensConfig.model_validate(tokens))
        self.prompt = recipe.prompt
        self.items = {item.uid: number for number, item in enumerate(items)}
        self.features = read_features(self.model, fixed_rule(self.tokens.config.image), items, recipe)
        self.image = items[0].image
        self.label_ids = lru_cache(maxsize=None)(partial(label_ids, prompt=recipe.prompt, tokens=self.tokens))

    def log_likelihoods(self, picture: str | None, labels: Sequence[str]) -> list[float]:
        """Of each label after the prompt, summed over its tokens, in nats. picture: a uid or None."""
        return score_continuations(self.model, self._prompt(picture), [self.label_ids(label) for label in labels])

    def num_tokens(self, label: str) -> int:
        return len(self.label_ids(label))

    def name(self, uid: str, max_new_tokens: int) -> str:
        """What the model calls a picture, greedily."""
        sampling = Sampling(max_new_tokens=max_new_tokens)
        made = generate(self.model, self._prompt(uid), sampling, stop_ids(self.tokens))
        return self.tokens.tokenizer.decode(list(made)).strip()

    def _prompt(self, picture: str | None) -> Prompt:
        encoded = encode_question(self.prompt, self.image if picture is not None else None, self.tokens)
        features = self.features[self.items[picture]][None] if picture is not None else None
        positions = prompt_positions(encoded, self.tokens.config.image)
        key, device = picture or "no picture", self.model.device
        return prompt_of(encoded.ids, positions, encoded.slots, encoded.grids, features, device=device, key=key)


def fixed_rule(image: ImageConfig) -> FixedConfig:
    """Raises: ConfigError where pictures are no squares: features are kept one array a picture."""
    if not isinstance(image, FixedConfig):
        raise ConfigError(f"the evaluation keeps features of square pictures; this checkpoint's are '{image.kind}'.")
    return image


def encode_question(prompt: PromptConfig, image: Image | None, tokens: Tokens) -> Encoded:
    """What precedes the answer. image: only its presence counts here; None leaves out its slots too.

    Without picture and question nothing would precede the answer: then the token that ends texts stands there.
    """
    images = [image] if image is not None else []
    encoded = encode_prompt(user_turn(prompt.question, images) if prompt.question else images, tokens)
    if encoded.num_tokens:
        return encoded
    return encode_spans([SpecialSpan(tokens.config.end_of_text, trainable=False)], tokens)


def label_ids(label: str, prompt: PromptConfig, tokens: Tokens) -> list[int]:
    """The label as an answer, with the token that ends it if the recipe counts that too."""
    spans = render_answer(prompt.answer.replace("{label}", label), tokens, in_turns=bool(prompt.question))
    return encode_spans(spans if prompt.close else spans[:-1], tokens).ids.tolist()


def read_features(
    model: VisionLanguageModel, image: FixedConfig, items: Sequence[Item], recipe: EvalRecipe
) -> torch.Tensor:
    """Features [items, num_tokens, width] of all pictures, from the cache where it has them.

    Raises: DataError that names the picture that cannot be decoded.
    """
    folder = recipe.feature_cache
    cache = FeatureCache(folder, tower_fingerprint(model.config.tower), image.fingerprint) if folder else None
    chunks = [items[start : start + PICTURES_AT_ONCE] for start in range(0, len(items), PICTURES_AT_ONCE)]
    return torch.from_numpy(
        np.concatenate([_features(model, cache, image, chunk) for chunk in track(chunks, "looking")])
    ).to(recipe.device)


def _features(
    model: VisionLanguageModel, cache: FeatureCache | None, image: FixedConfig, items: Sequence[Item]
) -> np.ndarray:
    pictures = {item.image.data or b"": item for item in items}

    def prepare(data: bytes) -> np.ndarray:
        try:
            return prepare_image(data, image)
        except ValueError as error:
            raise DataError(f"sample '{pictures[data].key}': {error}. Leave it out of the shards.") from error

    return encode_cached(model.tower, cache, [item.image.data or b"" for item in items], prepare)
