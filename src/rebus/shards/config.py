"""The recipe of `rebus shards`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rebus.config import Config, Place
from rebus.engine import default_workers
from rebus.shards.download.config import Download

FOLDER_SOURCES = ("tars", "hub", "open_qwen2vl")
LINKABLE = ("tars", "conversations", "pages", "meta")
REMOTE_SOURCES = ("tars", "urls")
ROWS_PER_TAR, ROWS_PER_LINK, ROWS_PER_DOWNLOAD = 1000, 20_000, 10_000


class ShardsRecipe(Config):
    """Where raw data lies and where its shards go.

    source: `tars` are WebDataset shards that exist already (out equal to input indexes them where they lie, another
    out copies them), `pairs` a CSV, TSV or JSONL table of `file` and `caption`, `conversations` LLaVA or messages
    JSON, `pages` interleaved documents, `hub` parquet files as on the hub, `open_qwen2vl` its packs, `meta` PaddleMIX's
    list of conversation files: a shards folder each under `out`, and out/mixture.json for `rebus pack`; `urls` a
    table of pictures that lie on the web, which are fetched as `download` says.
    input: the folder, or the table; a URL for `tars` and `urls` alone. root: the folder that picture paths in the table
    start from; by default the table's own. tokenizer: with which .pkl packs of `open_qwen2vl` were made.
    link: data stays where it is; `out` gets an index and small `.link` files. Of JSON and JSONL, and of tars elsewhere.
    check_images: for linked rows, look into the header of every picture. False opens none: sizes are the record's
    `width` and `height`, else 0, which token counts that depend on the size refuse.
    samples_per_shard: records a shard, bad ones included; by default 1,000 of a tar, 20,000 linked rows and
    10,000 of `urls`. max_bad_share: above it the stage stops; of `urls` by default any share may fail, as it does.
    num_workers: processes; of `urls` 1 by default, which resizes in as many threads as there are cores. More of them
    share the limits of `download`.
    """

    source: Literal["tars", "pairs", "conversations", "pages", "hub", "open_qwen2vl", "meta", "urls"]
    input: Place
    out: Path
    root: Path | None = None
    tokenizer: Path | None = None
    link: bool = False
    check_images: bool = True
    samples_per_shard: int | None = Field(None, ge=1, le=100_000)
    max_bad_share: float = Field(0.05, ge=0, le=1)
    num_workers: int = Field(default_factory=default_workers, ge=1)
    download: Download = Download()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_urls(cls, tree: Any) -> Any:
        is_urls = isinstance(tree, dict) and tree.get("source") == "urls"
        return {"max_bad_share": 1.0, "num_workers": 1, **tree} if is_urls else tree

    @model_validator(mode="after")
    def _check_source(self) -> "ShardsRecipe":
        if self.source in ("tars", "open_qwen2vl", "urls") and self.root is not None:
            raise ValueError(f"`root` belongs to sources that name image files; source `{self.source}` has none")
        if isinstance(self.input, str) and self.source not in REMOTE_SOURCES:
            raise ValueError(f"`input` is a URL, which only `tars` and `urls` read; fetch the table of `{self.source}`")
        if self.tokenizer is not None and self.source != "open_qwen2vl":
            raise ValueError("`tokenizer` (its folder) belongs to source `open_qwen2vl`, whose .pkl packs hold ids")
        return self

    @model_validator(mode="after")
    def _check_download(self) -> "ShardsRecipe":
        if self.source != "urls" and self.download != Download():
            raise ValueError(f"`download` belongs to source `urls`; source `{self.source}` downloads nothing")
        allowed = min(self.download.concurrency, self.download.concurrency_per_host)
        if self.source == "urls" and self.num_workers > allowed:
            raise ValueError(
                f"`num_workers` = {self.num_workers} processes cannot share {allowed} requests to a host at a time; "
                "raise download.concurrency_per_host, or lower num_workers"
            )
        return self

    @model_validator(mode="after")
    def _check_link(self) -> "ShardsRecipe":
        if not self.link:
            return self
        if self.source not in LINKABLE:
            raise ValueError(f"`link` is for {', '.join(LINKABLE)}; source `{self.source}` is converted")
        if self.in_place:
            raise ValueError("`link` with `out` equal to `input`: tars that are indexed in place need no link")
        if self.source in ("conversations", "pages") and self.table.suffix.lower() not in (".json", ".jsonl"):
            raise ValueError(f"`link` reads .json and .jsonl, not {self.table.name}")
        return self

    @property
    def in_place(self) -> bool:
        """True where tars are indexed where they lie."""
        return self.source == "tars" and isinstance(self.input, Path) and self.out.resolve() == self.input.resolve()

    @property
    def table(self) -> Path:
        """The input of every source but remote tars."""
        return Path(self.input)

    @property
    def image_root(self) -> Path:
        if self.root is not None:
            return self.root
        return self.table if self.source in FOLDER_SOURCES else self.table.parent

    @property
    def rows_per_shard(self) -> int:
        by_default = ROWS_PER_DOWNLOAD if self.source == "urls" else ROWS_PER_TAR
        return self.samples_per_shard or (ROWS_PER_LINK if self.link else by_default)
