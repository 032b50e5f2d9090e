"""What the pictures of evaluation sets are, in the terms in which a pool is compared with them."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.fingerprint import MANIFEST, fingerprint, refuse_stranger, write_atomically
from rebus.log import say, track
from rebus.pictures.decode import decode_image
from rebus.scores.content import content_hash
from rebus.scores.perceptual import perceptual_hash
from rebus.scores.tables import SCORER
from rebus.selection.clusters import known_rows, unit_rows
from rebus.shards.inputs import files_fingerprint
from rebus.shards.read import iterate

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMAT = 1  # of the hashes in a cache: count it up when the same picture gets another


@dataclass(frozen=True)
class Hashed:
    """names: Arrow strings [m], where each picture lies. hashes: uint64 [m]. A mirrored picture has its own row."""

    names: pa.Array
    hashes: NDArray[np.uint64]


def eval_fingerprint(folder: Path) -> str:
    """Of the artifact, or of the files' names, sizes and spots of their bytes. Raises: DataError."""
    if not folder.is_dir():
        raise DataError(f"no folder of evaluation pictures at {folder}. Name a folder of shards or of pictures.")
    manifest = folder / MANIFEST
    if manifest.is_file():
        return str(json.loads(manifest.read_text())["fingerprint"])
    return files_fingerprint(folder)


def hash_evals(folders: list[Path], *, exact: bool, flips: bool, cache: Path | None) -> Hashed:
    """Hashes of all pictures of some sets. exact: of their bytes; else perceptual, with flips those of the mirrored
    pictures too. What cannot be decoded is counted and passed over: it is compared with nothing."""
    tables = [_hash_cached(folder, exact, flips, cache) for folder in folders]
    table = pa.concat_tables(tables).combine_chunks()
    names, hashes = table["name"].combine_chunks(), table["hash"].to_numpy()
    return Hashed(names.chunk(0) if isinstance(names, pa.ChunkedArray) else names, hashes)


def _hash_cached(folder: Path, exact: bool, flips: bool, cache: Path | None) -> pa.Table:
    made_by = {"format": FORMAT, "set": eval_fingerprint(folder), "exact": exact, "flips": flips and not exact}
    path = cache / f"{fingerprint(made_by)}.parquet" if cache is not None else None
    if path is not None and path.is_file():
        return pq.read_table(path)
    table = _hash_folder(folder, exact, flips)
    if path is not None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomically(path, buffer.getvalue())
    return table


def _hash_folder(folder: Path, exact: bool, flips: bool) -> pa.Table:
    names: list[str] = []
    hashes: list[int] = []
    num_broken = 0
    for name, data in track(_pictures(folder), f"looking at {folder.name}"):
        try:
            found = [content_hash(data)] if exact else _looks(data, flips)
        except ValueError:
            num_broken += 1
            continue
        names += [name] * len(found)
        hashes += found
    if not names:
        raise DataError(f"{folder} holds no readable picture: neither shards with pictures nor files {SUFFIXES}.")
    if num_broken:
        say(f"{folder}: {num_broken:,} pictures cannot be decoded; nothing is compared with them")
    return pa.table({"name": pa.array(names, pa.string()), "hash": pa.array(hashes, pa.uint64())})


def _looks(data: bytes, flips: bool) -> list[int]:
    """As the scorer image_stats looks at a picture. A mirrored one is nearly, but not exactly, half of its bits
    inverted: hashed, not derived. Raises: ValueError."""
    import PIL.Image

    grey = decode_image(data).convert("L")
    mirrored = [perceptual_hash(grey.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT))] if flips else []
    return [perceptual_hash(grey), *mirrored]


def _pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every picture of every sample, or of every file."""
    if any(folder.glob("*.tar")) or any(folder.glob("*.link")):
        for shard in list_shards(folder):
            for _, sample in iterate(shard):
                for number, image in enumerate(sample.images):
                    yield f"{folder.name}/{shard.name}/{sample.key}#{number}", image.data or b""
        return
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield f"{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def eval_vectors(folders: list[Path], pool_scores: Path, scorer: str, column: str) -> tuple[pa.Array, NDArray]:
    """(names [m], unit vectors [m, D]) of scores folders. Raises: StrangerError where another scorer made them."""
    names, vectors = [], []
    for folder in folders:
        _refuse_other_scorer(folder, pool_scores, scorer)
        for path in sorted((folder / scorer).glob("*.vectors.parquet")):
            table = pq.read_table(path, columns=["uid", column]).drop_null()
            stem = path.name.removesuffix(".vectors.parquet")
            names += [f"{folder.name}/{stem}/{uid}" for uid in table["uid"].to_pylist()]
            size = table[column].type.list_size
            flat = np.concatenate([chunk.flatten().to_numpy() for chunk in table[column].chunks] or [np.empty(0)])
            vectors.append(flat.reshape(-1, size).astype(np.float32))
    if not names:
        raise DataError(f"no vectors {scorer}.{column} in {', '.join(map(str, folders))}: score them so.")
    found = np.concatenate(vectors)
    whole = known_rows(found)
    return pa.array(names, pa.string()).filter(pa.array(whole)), unit_rows(found[whole])


def _refuse_other_scorer(folder: Path, pool_scores: Path, scorer: str) -> None:
    """Vectors of two models lie in two spaces; their cosines say nothing."""
    found, wanted = (_made_by(scores, scorer) for scores in (folder, pool_scores))
    remedy = f"Score the evaluation set with the options that `{scorer}` has in {pool_scores}."
    refuse_stranger(folder, {f"scorer {scorer}": wanted}, {f"scorer {scorer}": found}, remedy)


def _made_by(scores: Path, scorer: str) -> str:
    path = scores / scorer / SCORER
    if not path.is_file():
        raise DataError(f"{scores} has no scorer '{scorer}'. `by: embedding` needs scores folders of evaluation sets.")
    return str(json.loads(path.read_text())["fingerprint"])
