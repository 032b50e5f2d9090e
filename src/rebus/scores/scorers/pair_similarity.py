"""How well a picture and its text belong together, judged by heads that never saw the pair.

No contrastive encoder is needed: from the frozen features of any vision tower a ridge regression foretells the mean
token embedding of the text in any language model. It is fitted on the pool itself, noise included, by cross-fitting:
the pool is cut into folds, and the pairs of a fold are judged by a head fitted on the others. The score says how far
the pair's cosine similarity stands above that of its picture with all other texts and of its text with all other
pictures, in standard deviations. This is not a CLIP score.

Only feature means, scales and the text's principal axes, which no label enters, are taken over the whole pool.
The kernel form costs O(pool^3): 0.3 s for 1,400 pairs, minutes for 20,000, which is its limit.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from rebus.config import Config
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import folder_fingerprint
from rebus.pictures.config import FixedConfig
from rebus.pictures.prepare import prepare_image
from rebus.scores.decode import Decoded
from rebus.scores.scorer import Opened
from rebus.towers.config import TowerConfig, tower_fingerprint

MAX_POOL = 20_000


class Options(Config):
    """tower: the frozen vision encoder. language: a hub folder whose input embeddings stand for the text.

    ridge: regularisation, in units of the mean squared norm of a standardised feature vector. text_dims: principal
    axes of the text that are kept.
    """

    tower: TowerConfig
    image: FixedConfig
    language: Path
    ridge: float = Field(default=10.0, gt=0)
    num_folds: int = Field(default=5, ge=2)
    text_dims: int = Field(default=300, gt=0)
    seed: int = 0
    feature_cache: Path | None = None


def open_scorer(options: Options) -> Opened:
    """Measures `image` [batch, C] mean tower feature, `text` [batch, hidden] mean token embedding.

    Raises: ConfigError where the language folder has no tokenizer or no embedding table.
    """
    from tokenizers import Tokenizer

    from rebus.towers.build import build_tower
    from rebus.towers.cache import FeatureCache, encode_cached

    if not (options.language / "tokenizer.json").is_file():
        raise ConfigError(f"{options.language} holds no tokenizer.json. `rebus import` makes hub folders that do.")
    table = _embedding_table(options.language)
    tokenizer = Tokenizer.from_file(str(options.language / "tokenizer.json"))
    tower = build_tower(options.tower)
    cache = None
    if options.feature_cache is not None:
        cache = FeatureCache(options.feature_cache, tower_fingerprint(options.tower), options.image.fingerprint)

    def look(item: Decoded) -> tuple[bytes, list[int]]:
        if item.image_bytes is None:
            raise DataError(f"pair_similarity needs a picture in every sample; '{item.key}' has none.")
        return item.image_bytes, tokenizer.encode(item.text, add_special_tokens=False).ids

    def measure(batch: list[tuple[bytes, list[int]]]) -> dict[str, np.ndarray]:
        images, ids = [image for image, _ in batch], [row for _, row in batch]
        features = encode_cached(tower, cache, images, lambda data: prepare_image(data, options.image))
        text = np.stack([table[row].mean(axis=0) if row else np.zeros(table.shape[1], table.dtype) for row in ids])
        return {"image": features.mean(axis=1), "text": text}

    return Opened(look, measure, takes_all_cores=True)


def inputs(options: Options) -> dict[str, str]:
    """Fingerprints of the weights that the features come from."""
    return {
        "language": folder_fingerprint(options.language, "*.safetensors"),
        "tower": tower_fingerprint(options.tower),
    }


def judge(options: Options, pool: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores a pool of pairs: image [pool, C] and text [pool, hidden] -> z [pool], higher means a better match.

    Raises: DataError for a pool that is too small to fold or too large for the kernel form.
    """
    num_pairs = len(pool["image"])
    if not 4 * options.num_folds <= num_pairs <= MAX_POOL:
        raise DataError(
            f"pair_similarity can judge {4 * options.num_folds:,} to {MAX_POOL:,} pairs, this pool has {num_pairs:,}."
        )
    similarity = _cross_fitted_similarity(options, pool["image"].astype(np.float64), _principal(options, pool["text"]))
    own = similarity.diagonal()
    by_picture = (own - similarity.mean(axis=1)) / similarity.std(axis=1)
    by_text = (own - similarity.mean(axis=0)) / similarity.std(axis=0)
    return {"z": ((by_picture + by_text) / 2).astype(np.float32)}


def _cross_fitted_similarity(options: Options, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Cosine similarity [pool, pool] of foretold and real texts; row i by the head that was fitted without fold(i)."""
    num_pairs = len(image)
    image = (image - image.mean(axis=0)) / np.maximum(image.std(axis=0), 1e-4) / np.sqrt(image.shape[1])
    gram = image @ image.T
    folds = np.random.default_rng(options.seed).permutation(num_pairs) % options.num_folds
    similarity = np.empty((num_pairs, num_pairs))
    for fold in range(options.num_folds):
        seen, judged = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        centre = text[seen].mean(axis=0)
        kernel = gram[np.ix_(seen, seen)] + options.ridge * np.eye(len(seen))
        foretold = gram[np.ix_(judged, seen)] @ np.linalg.solve(kernel, text[seen] - centre)
        similarity[judged] = _unit(foretold) @ _unit(text - centre).T
    return similarity


def _principal(options: Options, text: np.ndarray) -> np.ndarray:
    """Texts on their principal axes, each axis scaled by the root of its standard deviation (half-whitened)."""
    centred = text.astype(np.float64) - text.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, : options.text_dims] * np.sqrt(singular[: options.text_dims])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _embedding_table(folder: Path) -> np.ndarray:
    """The input embeddings [vocabulary, hidden] of a hub folder, read without building the model."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                if name.endswith("embed_tokens.weight"):
                    return tensors.get_tensor(name).astype(np.float32)
    raise ConfigError(
        f"{folder} holds no embed_tokens.weight in a .safetensors file. `rebus import` makes hub folders."
    )
