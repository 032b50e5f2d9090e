"""Packs of Open-Qwen2VL become samples again: `<uuid>_packed.json`, and `<uuid>.pkl` without running it.

A json pack keeps the documents as they were, pictures as base64. A pickle keeps token ids, -200 where a picture
stands, and decoded pictures: its documents are cut out by `lengths`, and the tokenizer that packed decodes its text.
"""

import io
import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rebus.errors import DataError
from rebus.shards.assemble import uid_of
from rebus.shards.damage import BAD_JSON, BAD_PACK, BAD_UTF8, DamagedSampleError
from rebus.shards.pages import embedded_images, without_pictures
from rebus.shards.sources.files import read_images
from rebus.shards.sources.pieces import Piece
from rebus.shards.sources.tables import Row
from rebus.shards.unpickle import Picture, read_pickle

JSON_SUFFIX, PICKLE_SUFFIX = "_packed.json", ".pkl"
SAMPLES_PER_PACK = 24  # captions in 4096 positions; counting them would read every pack
IMAGE_ID = -200
MAX_NUMBER = 2**31  # of ids and of positions
IMAGE_POSITIONS = 144  # a picture is one id in the file and so many positions in `lengths`
BREAK = "<|endofchunk|>"  # after every text of an interleaved page
DOCUMENT_TOKENS = ("<s>", "<|im_end|>")
PADDING = ("<|pad|>", "<|endoftext|>")


def is_pack(path: Path) -> bool:
    """True for a file named like a pack, and for a folder with one at any depth."""
    return _is_pack_file(path) if path.is_file() else any(map(_is_pack_file, path.rglob("*")))


def _is_pack_file(path: Path) -> bool:
    return path.name.endswith((JSON_SUFFIX, PICKLE_SUFFIX)) and path.is_file()


def find_pieces(input: Path, rows_per_piece: int) -> Iterator[Piece]:
    """Yields groups of packs with about so many samples; num_rows and first_row count packs.

    input: one pack, or a folder with packs at any depth. Raises: DataError where there is none.
    """
    packs = [input] if input.is_file() else sorted(path for path in input.rglob("*") if _is_pack_file(path))
    if not packs or not _is_pack_file(packs[0]):
        raise DataError(f"{input}: no pack of Open-Qwen2VL (*{JSON_SUFFIX} or *{PICKLE_SUFFIX}) is there.")
    following, first = iter(packs), 0
    groups = iter(lambda: tuple(map(str, islice(following, max(1, rows_per_piece // SAMPLES_PER_PACK)))), ())
    for number, files in enumerate(groups):
        yield Piece(number, str(input), first, len(files), files=files)
        first += len(files)


def read_piece(piece: Piece, tokenizer: Path | None = None) -> Iterator[tuple[str, Row]]:
    """Yields (key, record) of every document: the pack's name and the document's number. A damaged pack is one damage.

    tokenizer: the folder of the tokenizer that packed, with its tokenizer.json. Raises: DataError where a .pkl needs
    it and it is None.
    """
    for file in map(Path, piece.files):
        stem = file.name.removesuffix(PICKLE_SUFFIX).removesuffix(JSON_SUFFIX).replace(".", "_")
        try:
            records = read_pickled(file, tokenizer) if file.name.endswith(PICKLE_SUFFIX) else read_json(file)
        except DamagedSampleError as error:
            yield stem, error
            continue
        for number, record in enumerate(records):
            yield f"{stem}-{number:03d}", record


def read_json(file: Path) -> list[Row]:
    """The documents of a json pack. Raises: DamagedSampleError where the pack is none."""
    try:
        pack = json.loads(file.read_bytes())
        data, lengths = pack["data"], pack["lengths"]
    except (ValueError, RecursionError, OSError) as error:
        raise DamagedSampleError(BAD_JSON, f"{file}: {error}") from error
    except (KeyError, TypeError) as error:
        raise DamagedSampleError(BAD_PACK, f"{file} lacks the lists `data` and `lengths`") from error
    _match(file, data, lengths)
    return [_check(document) for document in data]


def _check(document: Any) -> Row:
    if not isinstance(document, dict):
        return DamagedSampleError(BAD_JSON, f"a document is a {type(document).__name__}, not an object")
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return DamagedSampleError(BAD_UTF8, str(error))
    return document


def _match(file: Path, documents: Any, lengths: Any) -> None:
    if not isinstance(documents, list) or not isinstance(lengths, list):
        raise DamagedSampleError(BAD_PACK, f"{file}: `data` and `lengths` are no lists")
    if len(documents) != len(lengths):
        raise DamagedSampleError(BAD_PACK, f"{file}: {len(documents)} documents and {len(lengths)} lengths")


def read_pickled(file: Path, tokenizer: Path | None) -> list[Row]:
    """The documents of a pickled pack. Raises: DamagedSampleError where the pack is none."""
    if tokenizer is None:
        raise DataError(
            f"{file} holds token ids, no text: set `tokenizer` to the folder of the tokenizer that packed it (with its "
            "tokenizer.json, `<s>` and `<|endofchunk|>` added)."
        )
    names = load_tokenizer(tokenizer)
    try:
        pack = read_pickle(file)
    except DataError as error:
        raise DamagedSampleError(BAD_PACK, str(error)) from error
    ids, lengths, pictures = _fields(file, pack)
    encoded = [_as_png(file, picture) for picture in pictures]
    documents = cut_documents(file, ids, lengths, len(pictures), _padding_ids(names))
    following = iter(encoded)
    return [_record(names, document, following) for document in documents]


@lru_cache(maxsize=2)
def load_tokenizer(folder: Path) -> Any:
    """Raises: DataError."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}. Set `tokenizer` to the folder of the tokenizer that packed.")
    try:
        return Tokenizer.from_buffer(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is no tokenizer: {error}.") from error


def _fields(file: Path, pack: Any) -> tuple[np.ndarray, list[int], list[Picture]]:
    """(ids [positions], expanded lengths of the documents, pictures). Raises: DamagedSampleError."""
    if not isinstance(pack, dict):
        raise DamagedSampleError(BAD_PACK, f"{file} holds a {type(pack).__name__}, not a dict")
    ids, lengths, pictures = (pack.get(name) for name in ("input_ids", "lengths", "image_tensors"))
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind != "i":
        raise DamagedSampleError(BAD_PACK, f"{file}: `input_ids` is no row of whole numbers")
    if ((ids < 0) & (ids != IMAGE_ID)).any() or (ids >= MAX_NUMBER).any():
        raise DamagedSampleError(BAD_PACK, f"{file}: `input_ids` has numbers that no tokenizer has")
    if not isinstance(lengths, list) or not all(isinstance(one, int) and 0 < one < MAX_NUMBER for one in lengths):
        raise DamagedSampleError(BAD_PACK, f"{file}: `lengths` is no list of whole numbers above 0")
    if not isinstance(pictures, list) or not all(isinstance(one, Picture) and one.mode for one in pictures):
        raise DamagedSampleError(BAD_PACK, f"{file}: `image_tensors` is no list of pictures")
    return ids, lengths, pictures


def cut_documents(
    file: Path, ids: np.ndarray, lengths: list[int], num_pictures: int, padding: set[int]
) -> list[np.ndarray]:
    """The ids of each document. Raises: DamagedSampleError where ids, lengths and pictures do not agree."""
    num_slots = int((ids == IMAGE_ID).sum())
    if num_slots != num_pictures:
        raise DamagedSampleError(BAD_PACK, f"{file}: {num_slots} places for {num_pictures} pictures")
    ends = np.cumsum(np.where(ids == IMAGE_ID, IMAGE_POSITIONS, 1))  # expanded, behind each id
    bounds = [0]
    for number, wanted in enumerate(np.cumsum(np.array(lengths, dtype=np.float64))):
        end = int(np.searchsorted(ends, wanted)) + 1
        if end <= bounds[-1] or end > len(ids) or ends[end - 1] != wanted:
            raise DamagedSampleError(BAD_PACK, f"{file}: document {number} of {lengths[number]} positions ends nowhere")
        bounds.append(end)
    rest = set(ids[bounds[-1] :].tolist())
    if not rest <= padding:
        raise DamagedSampleError(BAD_PACK, f"{file}: {len(ids) - bounds[-1]} ids behind the last document, not padding")
    return [ids[start:end] for start, end in pairwise(bounds)]


def _padding_ids(tokenizer: Any) -> set[int]:
    return {number for name in PADDING if (number := tokenizer.token_to_id(name)) is not None}


def _record(tokenizer: Any, ids: np.ndarray, pictures: Iterator[bytes]) -> dict[str, Any]:
    """texts, null where a picture stands, and the pictures as PNG."""
    dropped = {tokenizer.token_to_id(name) for name in DOCUMENT_TOKENS}
    ends = tokenizer.token_to_id(BREAK)
    runs: list[list[int] | None] = [[]]
    for number in ids.tolist():
        if number == IMAGE_ID:
            runs += [None, []]
        elif number == ends:
            runs.append([])
        elif number not in dropped and (run := runs[-1]) is not None:
            run.append(number)
    texts: list[str | None] = []
    for place, run in enumerate(runs):
        text = None if run is None else tokenizer.decode(run, skip_special_tokens=False)
        if text is not None and place and runs[place - 1] is None:
            text = text.removeprefix("\n")  # the packer's own, behind every picture
        if text != "":
            texts.append(text)
    return {"texts": texts, "images": [next(pictures) for text in texts if text is None]}


def _as_png(file: Path, picture: Picture) -> bytes:
    import PIL.Image

    buffer = io.BytesIO()
    try:
        PIL.Image.frombytes(picture.mode, picture.size, picture.data).save(buffer, "PNG", compress_level=1)
    except (ValueError, OSError) as error:
        raise DamagedSampleError(BAD_PACK, f"{file}: a picture cannot be kept: {error}") from error
    return buffer.getvalue()


def build(record: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Members of one document: one picture and then one text are a caption, anything else is a page.

    Raises: DamagedSampleError.
    """
    texts = record.get("texts")
    if not isinstance(texts, list):
        raise DamagedSampleError(BAD_JSON, "a document has the list `texts`")
    pictures = embedded_images(record) or [picture for picture in record.get("images", []) if picture]
    if not all(isinstance(picture, bytes) for picture in pictures):
        raise DamagedSampleError(BAD_PACK, "a document's pictures are not in the pack")
    members = read_images(root, pictures)
    metadata = {name: value for name, value in without_pictures(record).items() if name not in ("images", "length")}
    if len(texts) == 2 and texts[0] is None and isinstance(texts[1], str) and len(pictures) == 1:
        members["txt"] = texts[1].encode()
        del metadata["texts"]
        metadata.pop("image_info", None)
    uid = uid_of(record, {**members, "json": json.dumps(metadata).encode()})
    return {**members, "json": json.dumps({**metadata, "uid": uid}, ensure_ascii=False).encode()}
