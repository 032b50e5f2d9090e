"""Open-Qwen2VL's packs, written here the way its packers write them, become the samples that went in."""

import base64
import io
import json
import pickle
from pathlib import Path

import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rebus.errors import DataError
from rebus.records import Text
from rebus.shards import damage
from rebus.shards.assemble import Assembled, assemble
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import DamagedSampleError
from rebus.shards.read import iterate
from rebus.shards.run import run
from rebus.shards.sources import open_qwen2vl
from rebus.shards.sources.open_qwen2vl import IMAGE_ID, find_pieces, is_pack, read_piece

SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|endofchunk|>", "<s>", "<|pad|>"]


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a red dot, a blue dot and one more\n"] * 4, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


TOKENIZER = train_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    TOKENIZER.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path / "tokenizer"


def colour(width: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (width, 8), (width, 100, 7))


def carried(width: int) -> dict:
    buffer = io.BytesIO()
    colour(width).save(buffer, "JPEG")
    return {"image_base64": base64.b64encode(buffer.getvalue()).decode()}


def encode(document: list[str | int]) -> list[int]:
    """A picture (its width) is one id and a line break; a text of a page ends with a mark, a caption's does not."""
    is_caption = len(document) == 2 and isinstance(document[0], int)
    ids = [TOKENIZER.token_to_id("<s>")]
    for part in document:
        if isinstance(part, int):
            ids += [IMAGE_ID, *TOKENIZER.encode("\n").ids]
        else:
            ids += TOKENIZER.encode(part).ids + ([] if is_caption else [TOKENIZER.token_to_id("<|endofchunk|>")])
    return [*ids, TOKENIZER.token_to_id("<|im_end|>")]


def pack(documents: list[list[str | int]], padding: str = "<|pad|>", protocol: int = 4, **changed) -> bytes:
    encoded = [encode(document) for document in documents]
    ids = [number for document in encoded for number in document]
    lengths = [len(document) + 143 * document.count(IMAGE_ID) for document in encoded]
    pictures = [colour(part) for document in documents for part in document if isinstance(part, int)]
    ids += [TOKENIZER.token_to_id(padding)] * 9
    content = {"image_tensors": pictures, "input_ids": torch.tensor(ids), "lengths": lengths, **changed}
    return pickle.dumps(content, protocol)


def records(path: Path, tokenizer: Path | None = None, rows: int = 1000) -> list:
    return [row for piece in find_pieces(path, rows) for row in read_piece(piece, tokenizer)]


def assembled(path: Path, tokenizer: Path | None = None) -> list[Assembled]:
    return [assemble(key, "s", open_qwen2vl.build(record, path)) for key, record in records(path, tokenizer)]


def shown(found: Assembled) -> list:
    return [part.text if isinstance(part, Text) else part.width for part in found.sample.parts]


DOCUMENTS = [
    [11, "a red dot"],
    [12, "Größe: 3,\n\na blue dot"],
    ["Before.", 13, "between", 14, 15, "after <s"],
    ["t", 16],
]


@pytest.mark.parametrize("padding", ["<|pad|>", "<|endoftext|>"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles(protocol: int, padding: str, folder: Path):
    path = folder.parent / "00ab.pkl"
    path.write_bytes(pack(DOCUMENTS, padding, protocol))
    found = assembled(path, folder)
    assert [shown(one) for one in found] == DOCUMENTS
    assert [one.kind for one in found] == ["caption", "caption", "page", "page"]
    assert [one.sample.key for one in found] == ["00ab-000", "00ab-001", "00ab-002", "00ab-003"]
    for one in found:
        for image in one.sample.images:
            stored = PIL.Image.open(io.BytesIO(image.data or b""))
            assert stored.format == "PNG"
            assert stored.tobytes() == colour(image.width).tobytes(), "pixels are what they were"


def test_json_packs(tmp_path: Path):
    uid = "0123456789abcdef" * 2
    caption = {"image_info": [carried(11), None], "texts": [None, "a red dot"], "key": "7", "uid": uid, "length": 151}
    page = {
        "image_info": [None, carried(12), None],
        "texts": ["one", None, "two"],
        "key": "8",
        "length": 150,
        "url": "u",
    }
    path = tmp_path / "1" / "00cd_packed.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"data": [caption, page], "lengths": [151, 150]}))
    first, second = assembled(tmp_path)
    assert (first.kind, shown(first), first.sample.uid) == ("caption", [11, "a red dot"], uid)
    assert (second.kind, shown(second)) == ("page", ["one", 12, "two"])
    assert [first.sample.key, second.sample.key] == ["00cd-000", "00cd-001"]
    (_, record), _ = records(path)
    members = open_qwen2vl.build(record, tmp_path)
    assert members["jpg"] == base64.b64decode(carried(11)["image_base64"]), "not encoded once more"
    assert json.loads(members["json"]) == {"key": "7", "uid": uid}


def test_a_document_of_a_json_pack_is_damaged_alone(tmp_path: Path):
    good = {"image_info": [carried(11), None], "texts": [None, "a dot"]}
    bad = [
        ({**good, "image_info": [{"image_base64": "@"}, None]}, damage.BAD_BASE64),
        ({**good, "image_info": [None, None]}, damage.MISSING_IMAGE),
        ({**good, "texts": None}, damage.BAD_JSON),
        ({**good, "texts": [None, 5]}, damage.BAD_JSON),
        ({**good, "texts": [None, "a <image>"]}, damage.PLACEHOLDER_IN_CAPTION),
        ({"texts": [None, "a"], "images": ["http://a", None]}, damage.BAD_PACK),
    ]
    for document, reason in bad:
        with pytest.raises(DamagedSampleError) as caught:
            assemble("k", "s", open_qwen2vl.build(document, tmp_path))
        assert caught.value.reason == reason
    (tmp_path / "a_packed.json").write_text(
        json.dumps({"data": [7, good, {"texts": ["\ud83d"]}], "lengths": [1, 2, 3]})
    )
    first, (_, second), third = records(tmp_path)
    assert (first[1].reason, second, third[1].reason) == (damage.BAD_JSON, good, damage.BAD_UTF8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", damage.BAD_JSON),
        (b"\xff", damage.BAD_JSON),
        (b"[" * 100_000, damage.BAD_JSON),
        (b"[]", damage.BAD_PACK),
        (b'{"data": []}', damage.BAD_PACK),
        (b'{"data": 5, "lengths": []}', damage.BAD_PACK),
        (b'{"data": [{}], "lengths": []}', damage.BAD_PACK),
    ],
)
def test_a_damaged_json_pack_is_named(content: bytes, reason: str, tmp_path: Path):
    (tmp_path / "x.y_packed.json").write_bytes(content)
    ((key, error),) = records(tmp_path)
    assert key == "x_y"
    assert error.reason == reason
    assert "x.y_packed.json" in error.detail


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lengths": [5]}, "ends nowhere"),
        ({"lengths": [10**6]}, "ends nowhere"),
        ({"lengths": [2**80]}, "whole numbers above 0"),
        ({"lengths": [-1]}, "whole numbers above 0"),
        ({"lengths": "no"}, "lengths"),
        ({"lengths": []}, "behind the last document"),
        ({"image_tensors": []}, "4 places for 0 pictures"),
        ({"image_tensors": [1, 2, 3, 4]}, "no list of pictures"),
        ({"input_ids": [1, 2]}, "input_ids"),
        ({"input_ids": torch.zeros(2, 2, dtype=torch.int64)}, "input_ids"),
        ({"input_ids": torch.tensor([-7, 1])}, "no tokenizer has"),
    ],
)
def test_a_damaged_pickle_is_named_and_costs_no_other(changed: dict, named: str, folder: Path):
    documents = [*DOCUMENTS[:2], [13, 14, "x"]]
    (folder.parent / "a.pkl").write_bytes(pack(documents, **changed))
    (folder.parent / "b.pkl").write_bytes(pack(documents))
    (key, error), *good = records(folder.parent, folder)
    assert key == "a"
    assert error.reason == damage.BAD_PACK
    assert named in error.detail
    assert "a.pkl" in error.detail
    assert [key for key, _ in good] == ["b-000", "b-001", "b-002"]


def test_a_pickle_that_would_run_something(folder: Path):
    marker = folder.parent / "ran"
    (folder.parent / "a.pkl").write_bytes(b"cposix\nsystem\n(X" + bytes([6, 0, 0, 0]) + b"touch " + b"tR.")
    ((_, error),) = records(folder.parent, folder)
    assert error.reason == damage.BAD_PACK
    assert "posix.system" in error.detail
    assert not marker.exists()


def test_a_pickle_needs_its_tokenizer(folder: Path, tmp_path: Path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pack(DOCUMENTS))
    with pytest.raises(DataError, match="set `tokenizer` to the folder"):
        records(path)
    with pytest.raises(DataError, match="no tokenizer at"):
        records(path, tmp_path / "none")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer"):
        records(path, tmp_path / "bad")


def test_pieces_are_groups_of_packs(tmp_path: Path):
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / f"p{number}_packed.json").write_text('{"data": [], "lengths": []}')
    (tmp_path / "0_stats.json").write_text('{"len": []}')
    pieces = list(find_pieces(tmp_path, 48))
    assert [piece.number for piece in pieces] == [0, 1, 2]
    names = [Path(file).name for piece in pieces for file in piece.files]
    assert names == [f"p{number}_packed.json" for number in range(5)]
    assert [len(piece.files) for piece in find_pieces(tmp_path, 1)] == [1] * 5
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "0_stats.json"):
        with pytest.raises(DataError, match="no pack of Open-Qwen2VL"):
            list(find_pieces(nothing, 10))


def test_what_is_a_pack(tmp_path: Path):
    assert not is_pack(tmp_path)
    (tmp_path / "deep").mkdir()
    for name, wanted in (("a_stats.json", False), ("a.json", False), ("a_packed.json", True), ("b.pkl", True)):
        path = tmp_path / "deep" / name
        path.write_text("")
        assert is_pack(path) == wanted
        assert is_pack(tmp_path) == wanted
        path.unlink()
    assert not is_pack(tmp_path / "none")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1).filter(lambda one: bool(one.strip()))


@given(st.lists(st.lists(TEXTS | st.integers(2, 9), min_size=1, max_size=5), min_size=1, max_size=4))
def test_any_documents_come_back(tmp_path_factory: pytest.TempPathFactory, documents: list):
    """Texts and pictures in order; what follows a picture may lose one line break of its own, and no more."""
    folder = tmp_path_factory.mktemp("packs")
    TOKENIZER.save(str(folder / "tokenizer.json"))
    (folder / "a.pkl").write_bytes(pack(documents))
    found = [record for _, record in records(folder / "a.pkl", folder)]
    texts = [[None if isinstance(part, int) else part for part in document] for document in documents]
    assert [record["texts"] for record in found] == texts
    assert [len(record["images"]) for record in found] == [one.count(None) for one in texts]


def test_the_verb(folder: Path, tmp_path: Path):
    """Packs of both kinds through `rebus shards`, in two processes; a .pkl without its tokenizer stops it."""
    packs = tmp_path / "packs"
    packs.mkdir()
    (packs / "a.pkl").write_bytes(pack(DOCUMENTS))
    (packs / "b.pkl").write_bytes(pack(DOCUMENTS, lengths=[3]))
    caption = {"image_info": [carried(11), None], "texts": [None, "a red dot"], "key": "7", "length": 151}
    (packs / "c_packed.json").write_text(json.dumps({"data": [caption], "lengths": [151]}))
    body = {"source": "open_qwen2vl", "input": packs, "out": tmp_path / "out", "samples_per_shard": 1}
    body |= {"num_workers": 2, "max_bad_share": 0.5}
    with pytest.raises(DataError, match="set `tokenizer`"):
        run(ShardsRecipe(**body))
    summary = run(ShardsRecipe(**body, tokenizer=folder))
    assert (summary.num_samples, summary.reasons) == (5, {damage.BAD_PACK: 1})
    keys = [sample.key for tar in sorted((tmp_path / "out").glob("*.tar")) for _, sample in iterate(tar)]
    assert keys == ["a-000", "a-001", "a-002", "a-003", "c-000"]
