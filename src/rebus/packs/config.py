"""Recipe of `rebus pack`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rebus.config import Config
from rebus.engine import default_workers
from rebus.tokens.config import TokensConfig


class ShardsFolder(Config):
    """A folder of shards and how often its documents come in an epoch.

    selection: what `rebus select` made of the folder; none keeps all samples. repeat: 2.5 is every document twice and a
    seeded half of them once more; 0.1 is a seeded tenth. weight: instead, the folder's share of an epoch's documents,
    against the other weights; an epoch keeps as many documents as there are.
    """

    folder: Path
    selection: Path | None = None
    repeat: float | None = Field(default=None, gt=0)
    weight: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_one(self) -> "ShardsFolder":
        if self.repeat is not None and self.weight is not None:
            raise ValueError(f"{self.folder} has both `repeat` and `weight`: give one of them")
        return self


class CostConfig(Config):
    """Relative work of a pack: per_token x tokens + per_token_squared x sum of squared lengths + per_patch x patches.

    Equal tokens are not equal work; packs that are dealt to ranks side by side should cost alike. The unit is one
    token through the language model, forward and backward: 6N FLOPs, N its parameters, the tied output layer included.

    The defaults are of Open-Qwen2VL. Qwen2.5-1.5B has L = 28 layers of width h = 1536 and N = 1.54e9. Attention
    multiplies queries by keys and weights by values, 4Lh FLOPs a pair of positions, of which a causal kernel works
    half: 2Lh against 2N a token (backward adds the same factor to both): 28 * 1536 / 1.54e9 = 2.8e-5.
    A frozen SigLIP-SO400M has N = 4.1e8 (27 layers, width 1152) and goes forward once, 2N, and its 729 patches attend
    to each other, 4 * 27 * 1152 * 729 = 9.1e7: (8.2e8 + 0.9e8) / (6 * 1.54e9) = 0.1 a patch. A trained tower: 0.3.
    """

    per_token: float = Field(default=1.0, ge=0)
    per_token_squared: float = Field(default=2.8e-5, ge=0)
    per_patch: float = Field(default=0.1, ge=0)


class PackRecipe(Config):
    """shards: folders that `rebus shards` made, each a path or {folder, selection, repeat or weight}, or a mixture.json
    that lists them. resample: `sqrt` gives each folder a share of the epoch as the square root of its documents.
    selection: of the folder, where `shards` is one path.

    holdout: share of the samples kept for validation; a hash of uid and holdout_seed decides, so that a sample is on
    the same side in every mixture. part: which side this plan is of.

    capacity: positions of a pack, image positions included. max_images_per_pack, max_patches_per_pack: bound the
    tower's work on a pack. oversize: documents longer than a pack or than tokens.max_tokens are refused, or cut
    between their parts (packs.cutting).
    block_shards: packs hold documents of one block of that many shards (where there are several folders, each by its
    share), so that reading stays nearly sequential; none mixes all. cross_document: attention and positions run
    through the whole pack, as Open-Qwen2VL was trained. cost: what packs are balanced by.
    max_bad_share: share of the samples that may be unusable (too long, nothing to train on) before the stage stops.
    """

    shards: list[Path | ShardsFolder] = Field(min_length=1)
    resample: Literal["sqrt"] | None = None
    selection: Path | None = None
    holdout: float = Field(default=0.0, ge=0, lt=1)
    holdout_seed: int = Field(default=0, ge=0)
    part: Literal["train", "heldout"] = "train"
    tokens: TokensConfig
    capacity: int = Field(default=1024, ge=2)
    max_images_per_pack: int | None = Field(default=None, ge=1)
    max_patches_per_pack: int | None = Field(default=None, ge=1)
    oversize: Literal["refuse", "cut"] = "refuse"
    block_shards: int | None = Field(default=None, ge=1)
    cross_document: bool = False
    cost: CostConfig = CostConfig()
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    out: Path
    num_workers: int = Field(default_factory=default_workers, ge=1)

    @model_validator(mode="after")
    def _check_shares(self) -> "PackRecipe":
        weighted = [not isinstance(one, Path) and one.weight is not None for one in self.shards]
        if any(weighted) and not all(weighted):
            raise ValueError("`weight` is a share of all folders: give one to each of `shards`, or to none")
        if any(weighted) and self.resample is not None:
            raise ValueError("`resample` works out the shares that `weight` sets: give one of them")
        if self.part == "heldout" and self.holdout == 0:
            raise ValueError("`part: heldout` of `holdout: 0` is nothing: set the same `holdout` as for training")
        return self
