"""`rebus show`: look at samples, scores, packs or a run. What a folder is, its manifest says, never its name."""

import json
from pathlib import Path

from rebus.doctor.examine import SHARDS, TABLES
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import MANIFEST, write_atomically
from rebus.log import say

GOES_WITH = {
    "--sample": ("shard",),
    "--at": ("shard", "table"),
    "--pack": ("plan",),
    "--shards": ("scores",),
    "--html": ("shard", "plan", "scores"),
}
"""Option -> what it can be given for."""


def run(
    path: Path,
    *,
    sample: str | None = None,
    at: int | None = None,
    pack: int | None = None,
    shards: Path | None = None,
    html: Path | None = None,
) -> None:
    """Prints what there is at `path`: a shard, a table, or the folder of any artifact; or writes a page of it.

    sample: a key or a number, of a shard. at: the byte at which something in a shard or table begins. pack: a pack's
    number, of a plan. shards: the folder that scores are of, where their recipe no longer says. html: the page.
    Raises: DataError where there is nothing to show, ConfigError for an option that does not go with what it is.
    """
    kind = _kind_of(path)
    options = {"--sample": sample, "--at": at, "--pack": pack, "--shards": shards, "--html": html}
    for name, value in options.items():
        if value is not None and kind not in GOES_WITH[name]:
            raise ConfigError(f"{name} goes with a {' or '.join(GOES_WITH[name])}, but this is a {kind}.")
    if kind in ("shard", "table"):
        _show_samples(path, sample, at, html)
    elif kind == "scores":
        _show_scores(path, shards, html)
    elif kind == "plan":
        _show_plan(path, pack, html)
    else:
        from rebus.show.artifact import print_artifact

        print_artifact(path)


def _kind_of(path: Path) -> str:
    if path.is_file() and path.suffix in SHARDS:
        return "shard"
    if path.is_file() and path.suffix.lower() in TABLES:
        return "table"
    manifest = path / MANIFEST
    if not manifest.is_file():
        if (path / "metrics.jsonl").is_file():
            return "unfinished run"
        raise DataError(
            f"{path} is no artifact of Rebus: it has no {MANIFEST}. Show a shard (.tar) or a stage's `out`."
        )
    return json.loads(manifest.read_text())["kind"]


def _show_samples(path: Path, sample: str | None, at: int | None, html: Path | None) -> None:
    from rebus.show.damaged import print_at
    from rebus.show.gallery import render_gallery
    from rebus.show.shard import print_sample, print_shard

    if at is not None:
        print_at(path, at)
    elif path.suffix not in SHARDS:
        raise ConfigError(f"{path} is a table: `rebus doctor {path}` looks for damage, --at BYTE shows a row.")
    elif html is not None:
        _write(html, render_gallery(path))
    elif sample is not None:
        print_sample(path, sample)
    else:
        print_shard(path)


def _show_scores(path: Path, shards: Path | None, html: Path | None) -> None:
    from rebus.show.scores import open_scores, print_scores
    from rebus.show.scores_page import render_scores

    scores = open_scores(path, shards)
    if html is None:
        print_scores(scores)
    else:
        _write(html, render_scores(scores))


def _show_plan(path: Path, pack: int | None, html: Path | None) -> None:
    from rebus.batches.feed import open_feed
    from rebus.show.pack import print_pack
    from rebus.show.page import NUM_PACKS, render_page
    from rebus.show.plan import print_plan
    from rebus.show.view import view_pack

    feed = open_feed(path)
    if html is not None:
        packs = range(min(NUM_PACKS, feed.num_packs)) if pack is None else [pack]
        _write(html, render_page(feed.plan, [view_pack(feed, number) for number in packs], whole=pack is None))
    elif pack is not None:
        print_pack(view_pack(feed, pack))
    else:
        print_plan(feed.plan)


def _write(path: Path, page: str) -> None:
    write_atomically(path, page)
    say(f"wrote {path}, {len(page.encode()) / 1e6:.1f} MB")
