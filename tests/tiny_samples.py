"""WebDataset shards of one-colour pictures, written without Rebus's own writer: an independent check of its readers."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet

from rebus.fingerprint import Manifest, folder_fingerprint, write_manifest
from rebus.records import content_uid
from rebus.shards.index import SCHEMA


@dataclass(frozen=True)
class TinySample:
    """One sample of a test shard. `image` None makes it text-only; `messages` makes it a conversation."""

    caption: str = ""
    image: bytes | None = None
    messages: tuple[dict, ...] = ()


def tiny_picture(colour: str = "red", size: tuple[int, int] = (16, 12)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, samples: Sequence[TinySample], samples_per_shard: int = 16) -> Path:
    """Writes samples as a finished shards artifact: tars, indexes, quarantines, manifest. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), samples_per_shard)
    for number, start in enumerate(starts):
        _write_shard(folder / f"{number:05d}.tar", samples[start : start + samples_per_shard], start)
    facts = {"num_samples": len(samples), "num_shards": len(starts), "num_damaged": 0}
    write_manifest(folder, Manifest("shards", {"tiny": folder_fingerprint(folder)}, {}, facts))
    return folder


def _write_shard(path: Path, samples: Sequence[TinySample], first: int) -> None:
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples, start=first):
            rows.append(_write_sample(tar, f"{number:09d}", sample))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), path.with_suffix(".index.parquet"))
    path.with_suffix(".quarantine.jsonl").write_text("")


def _write_sample(tar: tarfile.TarFile, key: str, sample: TinySample) -> dict:
    uid = content_uid(key.encode(), sample.caption.encode())
    metadata: dict = {"key": key, "uid": uid}
    members = {"png": sample.image} if sample.image is not None else {}
    if sample.messages:
        metadata["messages"] = list(sample.messages)
    else:
        members["txt"] = sample.caption.encode()
    members["json"] = json.dumps(metadata).encode()
    offset, end, text_offset = tar.offset, 0, 0
    for extension, content in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(content)
        text_offset = tar.offset if extension in ("txt", "json") and not text_offset else text_offset
        tar.addfile(info, io.BytesIO(content))
        end = tar.offset - (-len(content) % 512)
    width, height = PIL.Image.open(io.BytesIO(sample.image)).size if sample.image is not None else (0, 0)
    return {
        "key": key,
        "uid": uid,
        "kind": "conversation" if sample.messages else "caption",
        "offset": offset,
        "length": end - offset,
        "width": width,
        "height": height,
        "num_images": int(sample.image is not None),
        "text_chars": len(sample.caption),
        "image_sizes": [width, height] if sample.image is not None else [],
        "text_offset": text_offset or offset,
        "text_length": end - (text_offset or offset),
        "notes": "",
    }
