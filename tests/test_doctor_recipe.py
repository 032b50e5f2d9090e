"""Whatever `rebus shards` reads the doctor examines: by its suffix or content, behind a URL, or as a recipe says."""

import base64
import io
import json
import pickle
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from rebus import doctor
from rebus.doctor.examine import Findings, examine
from rebus.doctor.recipe import find_recipe
from rebus.errors import ConfigError, DataError
from rebus.shards import damage
from rebus.shards.write import write_shard
from s3_server import S3Server
from test_doctor import picture

TURNS = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "noise"}]


def look(path: str | Path, **given) -> Findings:
    return examine(find_recipe(path, **{"num_workers": 1, **given}))


def found(findings: Findings) -> list[tuple[str, str]]:
    return [(one.key, one.reason) for one in findings.damaged]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A folder of two files: three rows, of which one lacks its text and one its picture's end; and half a file."""
    rows = [
        {"images": [{"bytes": picture(), "path": "a"}], "texts": [{"user": "what?", "assistant": "noise"}]},
        {"images": [{"bytes": picture(), "path": "b"}], "texts": None},
        {"images": [{"bytes": picture(700), "path": "c"}], "texts": [{"user": "what?", "assistant": "noise"}]},
    ]
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    (folder / "1.parquet").write_bytes((folder / "0.parquet").read_bytes()[:2000])
    return tmp_path / "hub"


def test_parquet(parquet: Path, capsys):
    wanted = [("000000001", damage.MISSING_CAPTION), ("000000002", damage.UNDECODABLE_IMAGE)]
    assert found(look(parquet / "data" / "0.parquet")) == wanted
    before = files(parquet)
    whole = look(parquet)
    assert found(whole) == [*wanted, ("1_parquet", damage.BAD_PARQUET)]
    assert whole.num_good == 1
    assert {one.pointer for one in whole.damaged} == {""}, "`rebus show` opens no parquet"
    assert doctor.run(str(parquet), workers=1) == 1
    shown = capsys.readouterr().out
    assert f"{parquet / 'data' / '0.parquet'}, 000000002  # undecodable image" in shown
    assert "rebus show" not in shown
    assert files(parquet) == before


def json_pack(*pictures: bytes) -> str:
    infos = [{"image_base64": base64.b64encode(data).decode()} for data in pictures]
    documents = [{"image_info": [info, None], "texts": [None, "noise"]} for info in infos]
    return json.dumps({"data": documents, "lengths": [150] * len(documents)})


def test_packs_in_json(tmp_path: Path):
    (tmp_path / "packs").mkdir()
    pack = tmp_path / "packs" / "0a_packed.json"
    pack.write_text(json_pack(picture(), picture(700)))
    (tmp_path / "packs" / "0b_packed.json").write_text("{")
    (broken,) = look(pack).damaged
    assert (broken.key, broken.reason, broken.pointer) == ("0a-001", damage.UNDECODABLE_IMAGE, "")
    whole = look(tmp_path / "packs")
    assert found(whole) == [("0a-001", damage.UNDECODABLE_IMAGE), ("0b", damage.BAD_JSON)]
    assert {one.pointer for one in whole.damaged} == {""}


def test_pickled_packs_want_their_tokenizer(tmp_path: Path, tiny_tokenizer_folder: Path):
    dot = PIL.Image.open(io.BytesIO(picture()))
    dot.load()
    whole = {"image_tensors": [dot.convert("RGB")], "input_ids": torch.tensor([-200, 50, 51]), "lengths": [146]}
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "00.pkl").write_bytes(pickle.dumps(whole))
    (tmp_path / "packs" / "01.pkl").write_bytes(pickle.dumps({**whole, "lengths": [7]}))
    with pytest.raises(DataError, match="set `tokenizer`"):
        look(tmp_path / "packs")
    seen = look(tmp_path / "packs", tokenizer=tiny_tokenizer_folder)
    assert (seen.num_good, found(seen)) == (1, [("01", damage.BAD_PACK)])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two tables with pictures, and the list that names them."""
    (tmp_path / "raw" / "pictures").mkdir(parents=True)
    (tmp_path / "raw" / "pictures" / "good.jpg").write_bytes(picture())
    (tmp_path / "raw" / "pictures" / "half.jpg").write_bytes(picture(700))
    rows = [{"image": name, "conversations": TURNS} for name in ("good.jpg", "half.jpg", "gone.jpg")]
    (tmp_path / "raw" / "first.json").write_text(json.dumps(rows))
    (tmp_path / "raw" / "second.jsonl").write_text(json.dumps(rows[0]) + "\n{\n")
    entries = {
        "one": {"annotation": "first.json", "repeat_time": 2, "root": "pictures"},
        "two": {"file_name": "second.jsonl", "root": "pictures"},
    }
    (tmp_path / "raw" / "list.json").write_text(json.dumps(entries))
    return tmp_path / "raw"


def test_a_list_of_data_sets(raw: Path):
    whole = look(raw / "list.json")
    assert [(Path(one.shard).name, one.reason) for one in whole.damaged] == [
        ("first.json", damage.UNDECODABLE_IMAGE),
        ("first.json", damage.MISSING_IMAGE),
        ("second.jsonl", damage.BAD_JSON),
    ]
    assert whole.num_good == 2
    assert whole.damaged[2].pointer.startswith(f"rebus show {raw / 'second.jsonl'} --at ")


def recipe(raw: Path, **changes) -> Path:
    tree = {"source": "conversations", "input": str(raw / "first.json"), "out": str(raw.parent / "out")}
    path = raw.parent / "shards.yaml"
    path.write_text(yaml.safe_dump(tree | {"root": str(raw / "pictures"), "num_workers": 1} | changes))
    return path


def test_a_recipe_is_examined_and_nothing_written(raw: Path, capsys):
    path = recipe(raw)
    before = files(raw.parent)
    assert [one.reason for one in look(path).damaged] == [damage.UNDECODABLE_IMAGE, damage.MISSING_IMAGE]
    assert look(path) == look(raw / "first.json", root=raw / "pictures"), "as if the table had been given"
    assert [one.reason for one in look(path, root=raw).damaged] == [damage.MISSING_IMAGE] * 3, "options go first"
    assert files(raw.parent) == before
    with pytest.raises(DataError, match="no folder at"):
        look(path, root=raw / "absent")
    with pytest.raises(ConfigError, match=r"shards\.yaml cannot be used"):
        look(path, tokenizer=raw)


def test_a_recipe_that_opens_no_picture_says_that_none_was(raw: Path, capsys):
    path = recipe(raw, link=True, check_images=False)
    assert doctor.run(str(path), workers=1) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "all 3 samples are good" in shown
    assert "no picture was opened" in shown
    assert doctor.run(str(recipe(raw, link=True)), workers=1) == 1
    assert "no picture was opened" not in " ".join(capsys.readouterr().err.split())


def test_linked_rows_take_no_video_and_converted_ones_do(raw: Path):
    chat = [
        {"role": "user", "content": [{"type": "video", "video": ["good.jpg", "good.jpg"]}]},
        {"role": "assistant", "content": "noise"},
    ]
    (raw / "video.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    changes = {"input": str(raw / "video.jsonl")}
    assert look(recipe(raw, **changes)).damaged == ()
    assert found(look(recipe(raw, link=True, **changes))) == [("000000000", damage.LINKED_VIDEO)]


def tar(folder: Path) -> Path:
    members = {"jpg": picture(), "txt": b"noise", "json": b"{}"}
    samples = [("a", members), ("b", {**members, "jpg": picture(700)}), ("c", {"txt": b"alone"})]
    write_shard(folder / "00000.tar", samples)
    return folder / "00000.tar"


def test_tars_behind_a_url_are_what_they_are_on_disk(s3: S3Server, tmp_path: Path, capsys):
    local = tar(tmp_path)
    url = s3.put("pool/00000.tar", local.read_bytes())
    s3.put("pool/00001.tar", local.read_bytes()[:1000])
    s3.put("pool/notes.txt", b"no shard")
    wanted = look(local)
    s3.requests()
    one = look(url)
    assert not any("list-type" in path for _, path, _ in s3.requests()), "one tar is not looked for in a listing"
    assert (one.num_good, found(one)) == (wanted.num_good, found(wanted))
    assert [(seen.shard, seen.offset, seen.pointer) for seen in one.damaged] == [
        (url, seen.offset, "") for seen in wanted.damaged
    ]
    s3.requests()
    assert doctor.run("s3://bucket/pool", workers=1, json_out=tmp_path / "found.json") == 1
    assert {method for method, _, _ in s3.requests()} <= {"GET", "HEAD"}, "nothing is written"
    body = json.loads((tmp_path / "found.json").read_text())
    assert [one["shard"] for one in body["damaged"]] == [url, url, "s3://bucket/pool/00001.tar"]
    assert f"{url}, b, byte " in capsys.readouterr().out


def test_a_url_without_tars_and_one_that_is_a_table_are_refused(s3: S3Server):
    s3.put("other/rows.jsonl", b"{}")
    with pytest.raises(DataError, match=r"holds no \.tar"):
        look("s3://bucket/other")
    with pytest.raises(DataError, match=r"s3://bucket/other/absent\.tar cannot be read"):
        look("s3://bucket/other/absent.tar")


def test_a_recipe_of_tars_takes_a_folder_or_a_url(s3: S3Server, tmp_path: Path):
    local = tar(tmp_path / "pool")
    s3.put("pool/00000.tar", local.read_bytes())
    for place in (str(local.parent), "s3://bucket/pool"):
        path = recipe(tmp_path / "raw", source="tars", input=place, root=None, link=True)
        assert found(look(path)) == [("b", damage.UNDECODABLE_IMAGE), ("c", damage.MISSING_IMAGE)]


def test_what_is_nothing_known_is_refused_with_what_is(tmp_path: Path):
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.json").write_text('{"image": "a.jpg"}')
    for name, words in {"words.txt": "is nothing that", "empty": "holds nothing that", "absent": "nothing at"}.items():
        with pytest.raises(DataError, match=f"{words}.*Known are shards"):
            look(tmp_path / name)
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no record"):
        look(recipe(tmp_path, input=str(tmp_path / "none.jsonl"), root=None))
    with pytest.raises(DataError, match="must hold an array"):
        look(tmp_path / "one.json")
    with pytest.raises(ConfigError, match="`root` belongs to sources"):
        look(tar(tmp_path), root=tmp_path)
