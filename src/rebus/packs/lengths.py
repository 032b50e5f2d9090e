"""How long each kept sample is in tokens: one pass over a shard's text, no pixel decoded, a table a shard."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebus.errors import DataError
from rebus.fingerprint import fingerprint, write_atomically
from rebus.records import Damage
from rebus.selection.read import kept_rows
from rebus.shards.read import read_index, read_sample
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import UnusableSample, count
from rebus.tokens.tokenizer import Tokens, load_tokens

SCHEMA = pa.schema(
    [("row", pa.int32()), ("key", pa.string()), ("offset", pa.int64()), ("uid", pa.string())]
    + [(name, pa.int32()) for name in ("num_tokens", "num_images", "num_image_tokens")]
)


def count_shard(tar: Path, *, tokens: TokensConfig, selected: bool, out: Path) -> Path:
    """Writes `length_table(out, tar)` with a row a usable sample, and beside it the unusable ones (.jsonl).

    selected: count only the rows that `write_kept_rows` wrote for this shard.

    Returns the table's path at once where both exist: the stage goes on where it was stopped.
    """
    table_path = length_table(out, tar)
    if not table_path.is_file():
        index = read_index(tar).to_pylist()
        kept = np.load(_rows_path(out, tar)).tolist() if selected else range(len(index))
        rows, damages = _count_rows(tar, load_tokens(tokens), [(number, index[number]) for number in kept])
        write_atomically(table_path.with_suffix(".jsonl"), "".join(damage_line(one) + "\n" for one in damages))
        temporary = table_path.with_name(f".{table_path.name}.{os.getpid()}.tmp")
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
        os.replace(temporary, table_path)
    return table_path


def length_table(out: Path, tar: Path) -> Path:
    """Where the lengths of a shard go; shards of two folders may share a name, so the folder is hashed into it."""
    return out / f"{tar.stem}-{fingerprint(str(tar.parent))[:8]}.parquet"


def damage_line(damage: Damage) -> str:
    return json.dumps(asdict(damage), ensure_ascii=False)


def write_kept_rows(selection: Path, out: Path, tars: Sequence[Path]) -> None:
    """Parts a selection by shard, once, so that no worker has to read the whole of it."""
    rows = dict(kept_rows(selection))
    for tar in tars:
        temporary = out / f".{tar.stem}.{os.getpid()}.npy"
        np.save(temporary, np.array(rows.get(tar.name, []), dtype=np.int32))
        os.replace(temporary, _rows_path(out, tar))


def _rows_path(out: Path, tar: Path) -> Path:
    return length_table(out, tar).with_suffix(".npy")


def _count_rows(tar: Path, tokens: Tokens, places: Sequence[tuple[int, dict]]) -> tuple[list[dict], list[Damage]]:
    rows: list[dict] = []
    damages: list[Damage] = []
    for number, place in places:
        try:
            lengths = count(read_sample(tar, place), tokens)
        except UnusableSample as error:
            damages.append(Damage(tar.name, place["key"], place["offset"], error.reason, error.detail))
        except DataError as error:
            damages.append(Damage(tar.name, place["key"], place["offset"], "unreadable", str(error)))
        else:
            names = {name: place[name] for name in ("key", "offset", "uid")}
            rows.append({"row": number, **names, **asdict(lengths)})
    return rows, damages
