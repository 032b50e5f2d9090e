"""A small pool for `rebus reshard`, and a reader of what it writes that knows the published form alone."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from rebus.config import check_recipe
from rebus.selection.resharding.config import ReshardRecipe
from rebus.selection.resharding.run import ReshardSummary, run
from rebus.shards.config import ShardsRecipe
from rebus.shards.run import run as run_shards
from rebus.shards.write import write_shard

NUM_SHARDS, A_SHARD = 3, 7
UIDS = [f"{7 * number:016x}{(number * 2**40 + 3) % 2**64:016x}" for number in range(NUM_SHARDS * A_SHARD)]


def picture(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def members(number: int, metadata: dict | None) -> dict[str, bytes]:
    found = {"png": picture(number), "txt": f"caption {number}".encode()}
    return found if metadata is None else {**found, "json": json.dumps(metadata).encode()}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Three shards of seven captions with the uids of UIDS."""
    folder = tmp_path / "pool"
    for shard in range(NUM_SHARDS):
        numbers = range(shard * A_SHARD, (shard + 1) * A_SHARD)
        named = [(f"{n:09d}", members(n, {"uid": UIDS[n], "key": f"{n:09d}"})) for n in numbers]
        write_shard(folder / f"{shard:05d}.tar", named)
    run_shards(check_recipe(ShardsRecipe, {"source": "tars", "input": folder, "out": folder, "num_workers": 1}, "test"))
    return folder


def reshard(pool: Path | str, out: Path, **changes: object) -> ReshardSummary:
    tree = {"input": pool, "out": out, "num_workers": 1, "shard_size": 4, **changes}
    return run(check_recipe(ReshardRecipe, tree, "test"))


def write_subset(path: Path, uids: list[str], *, header: bool = True) -> Path:
    """By the published form: pairs of unsigned 64-bit numbers, little-endian, sorted."""
    pairs = sorted((int(uid[:16], 16), int(uid[16:], 16)) for uid in uids)
    array = np.array(pairs, dtype="u8,u8")
    np.save(path, array) if header else path.write_bytes(array.tobytes())
    return path


def read_tars(folder: Path, pattern: str = "*.tar") -> dict[str, list[tuple[str, dict[str, bytes]]]]:
    """tar -> its samples (key, extension -> content), by Python's tarfile and WebDataset's rule for keys."""
    found: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
    for path in sorted(folder.glob(pattern)):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
        found[path.name] = list(samples.items())
    return found


def keys(folder: Path) -> list[str]:
    return [key for samples in read_tars(folder).values() for key, _ in samples]
