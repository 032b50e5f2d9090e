"""What a run will read: counted from its plan where that lies here, else as its recipe expects; then as work a pack."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from rebus.batches.feed import Feed, open_feed
from rebus.errors import ConfigError
from rebus.fingerprint import MANIFEST
from rebus.model.config import ModelConfig
from rebus.pictures.config import AnyresConfig, FixedConfig, ImageConfig, NativeConfig
from rebus.training.config import ExpectedConfig, TrainRecipe
from rebus.training.flops import Work

UNPADDED = 0.8
"""Of a tile's tokens, those that are picture and no margin: LLaVA-NeXT's canvases hold a 4:3 picture to 75 to 89%."""


@dataclass(frozen=True)
class Facts:
    """packs: in one epoch. capacity: of one. fill: of it, tokens. visual, supervised: shares of those. documents: a
    pack. mean, most: work of the mean pack, and of the fullest. image: the rule of pictures.
    assumed: what of it is no count.
    """

    packs: int
    capacity: int
    fill: float
    visual: float
    supervised: float
    documents: float
    mean: Work
    most: Work
    image: ImageConfig
    assumed: tuple[str, ...]


def feed_of(recipe: TrainRecipe) -> Feed | None:
    """The recipe's plan, opened, where it lies here."""
    return open_feed(recipe.plan) if (recipe.plan / MANIFEST).is_file() else None


def facts_of(recipe: TrainRecipe, feed: Feed | None, image: ImageConfig, *, prefer_expected: bool = False) -> Facts:
    """image: of the model. prefer_expected: the recipe's own figures, even where there is a plan.

    Raises: ConfigError where there is neither.
    """
    if recipe.expected is not None and (feed is None or prefer_expected):
        return _expected(recipe.expected, image)
    if feed is None:
        raise ConfigError(
            f"there is no plan at {recipe.plan}, and the recipe has no `expected` section to foretell from. Make the "
            "plan (`rebus pack`), or say what it will hold."
        )
    return _counted(feed, recipe.expected)


def _counted(feed: Feed, expected: ExpectedConfig | None) -> Facts:
    plan = feed.plan
    lengths = plan.table["num_tokens"].to_numpy().astype(np.float64)
    patches = plan.table["num_patches"].to_numpy().astype(np.float64)
    images = plan.table["num_images"].to_numpy().astype(np.float64)
    packs, image = plan.num_packs, plan.tokens.image
    visual = plan.manifest.facts["num_image_tokens"] / lengths.sum()
    supervised = expected.supervised if expected is not None else 1 - visual
    per_pack = np.add.reduceat(lengths, plan.bounds[:-1])
    stretches = per_pack if plan.cross_document else lengths
    rows = patches if isinstance(image, NativeConfig) else patches / (image.size // image.patch_size) ** 2
    squares = np.divide(patches**2, images, out=np.zeros_like(patches), where=images > 0)
    mean = Work(
        tokens=lengths.sum() / packs,
        pairs=float((stretches * (stretches + 1)).sum() / 2 / packs),
        supervised=supervised * lengths.sum() / packs,
        encoded=rows.sum() / packs,
        connected=rows.sum() / packs,
        frame_pairs=squares.sum() / packs if isinstance(image, NativeConfig) else 0.0,
    )
    most = float(np.add.reduceat(rows, plan.bounds[:-1]).max())
    assumed: tuple[str, ...] = (
        () if expected is not None else ("every token of text is supervised (a plan does not say which)",)
    )
    if isinstance(image, NativeConfig):
        assumed += ("pictures of a document are alike, and one frame each",)
    return Facts(
        packs=packs,
        capacity=plan.capacity,
        fill=float(plan.manifest.facts["fill"]),
        visual=float(visual),
        supervised=float(supervised),
        documents=len(lengths) / packs,
        mean=mean,
        most=_fullest(mean, float(per_pack.max()), most),
        image=image,
        assumed=assumed,
    )


def _expected(expected: ExpectedConfig, image: ImageConfig) -> Facts:
    tokens = expected.capacity * expected.fill
    documents = tokens / expected.document_tokens
    pictures = documents * expected.pictures
    visual = tokens * expected.visual
    rows, frame_pairs = _rows(image, visual, pictures)
    mean = Work(
        tokens=tokens,
        pairs=documents * expected.document_tokens * (expected.document_tokens + 1) / 2,
        supervised=tokens * expected.supervised,
        encoded=rows,
        connected=rows,
        frame_pairs=frame_pairs,
    )
    return Facts(
        packs=expected.packs,
        capacity=expected.capacity,
        fill=expected.fill,
        visual=expected.visual,
        supervised=expected.supervised,
        documents=documents,
        mean=mean,
        most=_fullest(mean, expected.capacity, ceil(rows / expected.fill)),
        image=image,
        assumed=("no plan was counted: all documents are of the mean length", f"expected: {expected.source.strip()}"),
    )


def _fullest(mean: Work, tokens: float, rows: float) -> Work:
    share = rows / mean.encoded if mean.encoded else 0.0
    scaled = {"supervised": mean.supervised * tokens / mean.tokens, "pairs": mean.pairs * tokens / mean.tokens}
    return Work(tokens=tokens, encoded=rows, connected=rows, frame_pairs=mean.frame_pairs * share, **scaled)


def _rows(image: ImageConfig, visual: float, pictures: float) -> tuple[float, float]:
    """(rows of pixels, pairs of native patches) of so many visual tokens of so many pictures."""
    if not pictures or not visual:
        return 0.0, 0.0
    if isinstance(image, NativeConfig):
        rows = visual * image.merge_size**2
        return rows, rows**2 / pictures
    if isinstance(image, AnyresConfig):
        tile = image.tokens_per_side**2
        return pictures * (1 + max(0.0, visual / pictures - tile) / (UNPADDED * tile)), 0.0
    return pictures, 0.0


def likely_image(recipe: TrainRecipe, model: ModelConfig, *, has_newline: bool) -> ImageConfig:
    """The rule that a recipe must mean which starts from this and whose plan is not there: LLaVA-NeXT's tiles where a
    newline learns, else squares with as many tokens as `expected` says of a picture. Patches are 14 pixels wide.

    Raises: ConfigError where no such rule goes with the model.
    """
    expected, size = recipe.expected, model.tower.image_size
    if expected is None or model.mrope_section is not None:
        raise ConfigError(
            f"there is no plan at {recipe.plan}, and nothing else says how pictures are cut. Make the plan (`rebus "
            "pack`) first."
        )
    if has_newline:
        return AnyresConfig(kind="anyres", size=size, tokens_per_side=size // 14)
    tokens = expected.visual * expected.document_tokens / (expected.pictures or 1)
    side = min(size // 14, max(1, round(tokens**0.5)))
    return FixedConfig(size=size, tokens_per_side=side, patch_size=14)
