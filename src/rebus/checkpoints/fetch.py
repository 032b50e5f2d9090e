"""Models of the hub on this machine: what its cache holds is used as it is, what is missing is fetched."""

import json
from pathlib import Path

from rebus.errors import DataError, UnreachableError
from rebus.log import say

WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "*.yaml")
WEIGHTS = ("*.safetensors", "*.pt", "*.bin")
"""In this order: a repository that offers one is not asked for the next as well."""


def fetch(hub: str, *, weights: bool = True) -> Path:
    """Folder of the snapshot of `hub` (org/name), from the local cache or from the hub.

    weights: False takes a cached folder with a config alone, and fetches no more than that.
    Raises: UnreachableError or DataError that say what to fetch and where to put it.
    """
    import httpx
    from huggingface_hub import constants, errors, snapshot_download

    cached = _cached(hub, weights)
    if cached is not None:
        return cached
    try:
        patterns = [*WANTED, *(_weights(hub) if weights else ())]
        say(f"fetching {hub} from the hub into {constants.HF_HUB_CACHE}")
        return Path(snapshot_download(hub, allow_patterns=patterns))
    except errors.RepositoryNotFoundError as error:  # a gated one is one of these
        raise DataError(
            f"the hub does not show {hub}: no such name, or it asks you to accept terms first (`hf auth login`). "
            "If you meant a folder here, there is none of this name."
        ) from error
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx.HTTPError) as why:
        raise UnreachableError(_advice(hub, str(why).splitlines()[0] if str(why) else type(why).__name__)) from why


def _cached(hub: str, weights: bool) -> Path | None:
    """The snapshot in the local cache, if it holds what is asked for: a config, or all the weights there are."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(hub, local_files_only=True))
    except errors.IncompleteSnapshotError as error:
        if error.snapshot_path is None:
            return None
        folder = Path(error.snapshot_path)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return folder if (is_whole(folder) if weights else (folder / "config.json").is_file()) else None


def is_whole(folder: Path) -> bool:
    """Whether weights lie here, every shard of them."""
    indices = sorted(folder.glob("*.index.json"))
    if indices:
        shards = set(json.loads(indices[-1].read_text())["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return any(True for pattern in WEIGHTS for _ in folder.rglob(pattern))


def _weights(hub: str) -> list[str]:
    from huggingface_hub import list_repo_files

    files = list_repo_files(hub)
    return [next((p for p in WEIGHTS if any(Path(file).match(p) for file in files)), WEIGHTS[0])]


def _advice(hub: str, reason: str) -> str:
    from huggingface_hub import constants

    return (
        f"{hub} is no folder here, not in the local cache ({constants.HF_HUB_CACHE}), and the hub is not reached: "
        f"{reason}. On a machine that reaches it run `hf download {hub} --local-dir FOLDER`, copy FOLDER here, "
        "and give its path in place of the name."
    )
