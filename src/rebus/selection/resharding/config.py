"""The recipe of `rebus reshard`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rebus.config import Config, Place, Url
from rebus.engine import default_workers


class ReshardRecipe(Config):
    """Copies a subset of shards into new ones, as DataComp's resharder does; docs/reshard.md names what differs.

    input: a shards folder, or a folder or URL of bare tars, which are then indexed beside `out`, in `<out>.input`.
    subset: uids in DataComp's form (`.npy` of u8,u8, or the same without a header), or `.txt` or `.parquet` of them, on
    disk or behind a URL; or a folder that `rebus select` made; none keeps all.
    first_shard, num_shards: of the input's shards in name order, or of the numbers that `shard_format` makes names of.
    shard_stats_format, shard_table: json files beside the input that tell how many samples a shard holds; where they
    are there, they are held against the index.
    upload: a folder of S3-compatible storage that the tars and their json go to; `out` then keeps index and links.
    shuffle_bufsize: no sample moves further than so many places; `all` shuffles the whole. Both by `seed`.
    blur_metadata_map: boxes by uid (docs/reshard.md says how); apply_blur blurs them and writes the picture as WebP of
    quality `reencode_webp_quality`, inject_blur_metadata writes them into the json.
    dry_run: says what would be written. overwrite: removes other shards that Rebus made in `out`. strict: a uid of the
    subset that no shard has is an error. max_bad_share: of the samples written, above which the stage stops.
    """

    input: Place
    out: Path
    subset: Place | None = None
    upload: Url | None = None
    num_shards: int | None = Field(None, ge=1)
    first_shard: int = Field(0, ge=0)
    num_workers: int = Field(default_factory=default_workers, ge=1)
    shard_size: int = Field(10_000, ge=1)
    shard_format: str | None = None
    output_shard_format: str = "{:08d}.tar"
    shard_stats_format: str = "{:08d}_stats.json"
    output_shard_stats_format: str = "{:08d}_stats.json"
    shard_table: str = "sizes.json"
    write_shard_table: bool = False
    shuffle_bufsize: int | Literal["all"] = 0
    seed: int = Field(0, ge=0)
    blur_metadata_map: Path | None = None
    apply_blur: bool = False
    inject_blur_metadata: bool = False
    reencode_webp_quality: int = Field(100, ge=1, le=100)
    dry_run: bool = False
    overwrite: bool = False
    strict: bool = False
    max_bad_share: float = Field(0.05, ge=0, le=1)

    @field_validator("out", mode="before")
    @classmethod
    def _check_out(cls, value: Any) -> Any:
        if "://" in str(value):
            raise ValueError("`out` is a folder on this machine, of index and links; `upload` is where the tars go")
        return value

    @model_validator(mode="after")
    def _check_formats(self) -> "ReshardRecipe":
        formats = {
            "shard_format": (self.shard_format or "{:08d}.tar", ".tar"),
            "output_shard_format": (self.output_shard_format, ".tar"),
            "shard_stats_format": (self.shard_stats_format, ".json"),
            "output_shard_stats_format": (self.output_shard_stats_format, ".json"),
        }
        for name, (pattern, suffix) in formats.items():
            if not _names_numbers(pattern, suffix):
                raise ValueError(f"`{name}` = '{pattern}' makes no file names of numbers, as '{{:08d}}{suffix}' does")
        return self

    @model_validator(mode="after")
    def _check_blur(self) -> "ReshardRecipe":
        if (self.apply_blur or self.inject_blur_metadata) != (self.blur_metadata_map is not None):
            raise ValueError("`blur_metadata_map` goes with `apply_blur` or `inject_blur_metadata`, and they with it")
        if isinstance(self.shuffle_bufsize, int) and self.shuffle_bufsize < 0:
            raise ValueError("`shuffle_bufsize` is a number of places, 0 for none, or `all`")
        return self


def _names_numbers(pattern: str, suffix: str) -> bool:
    """Whether a pattern makes another plain file name of each number."""
    try:
        names = [pattern.format(number) for number in (0, 1, 12)]
    except (ValueError, IndexError, KeyError, AttributeError):
        return False
    return len(set(names)) == 3 and all(name.endswith(suffix) and "/" not in name and name[0] != "." for name in names)
