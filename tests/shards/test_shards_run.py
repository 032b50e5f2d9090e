"""The verb: each source, restart after a kill, refusal of what is too bad, and never a lost tar."""

import csv
import json
from pathlib import Path

import pytest
from test_shards_tars import caption, conversation, picture

from rebus.config import check_recipe, load_recipe
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import Manifest, prepare_out, read_manifest
from rebus.records import Image, Text
from rebus.shards import damage
from rebus.shards.config import ShardsRecipe
from rebus.shards.inputs import input_fingerprints
from rebus.shards.members import CLIMBING_PATH
from rebus.shards.read import iterate, read_metadata, read_quarantine
from rebus.shards.run import run
from rebus.shards.write import write_shard

NUM_PAIRS = 23


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 pictures and tables that name them, as CSV, TSV and JSONL."""
    rows = []
    for number in range(NUM_PAIRS):
        (tmp_path / "raw" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / "images" / f"{number}.png").write_bytes(picture((number + 2, 4)))
        rows.append({"file": f"images/{number}.png", "caption": f'number "{number}",\nwith a break', "place": "Ulm"})
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with open(tmp_path / "raw" / f"table{suffix}", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "raw" / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(folder: Path, **changes) -> ShardsRecipe:
    tree = {
        "source": "pairs",
        "input": str(folder / "raw" / "table.jsonl"),
        "out": str(folder / "out"),
        "samples_per_shard": 10,
        "num_workers": 1,
    }
    return check_recipe(ShardsRecipe, tree | changes, "test")


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which tells the time, and the recipe, which tells the folder."""
    left_out = ("manifest.json", "recipe.yaml")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in left_out}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_pairs_of_every_table_form(folder: Path, suffix: str):
    summary = run(recipe(folder, input=str(folder / "raw" / f"table{suffix}")))
    assert (summary.num_samples, summary.num_shards, summary.num_damaged) == (NUM_PAIRS, 3, 0)
    tars = sorted((folder / "out").glob("*.tar"))
    found = [(tar, row, sample) for tar in tars for row, sample in iterate(tar)]
    for number, (tar, row, sample) in enumerate(found):
        image, text = sample.parts
        assert isinstance(image, Image)
        assert (image.width, text) == (number + 2, Text(f'number "{number}",\nwith a break'))
        assert read_metadata(tar, row) == {"file": f"images/{number}.png", "place": "Ulm", "uid": sample.uid}
    assert len({sample.uid for _, _, sample in found}) == NUM_PAIRS
    assert read_manifest(folder / "out", "shards").facts["num_samples"] == NUM_PAIRS


def test_killed_anywhere_and_run_again_ends_with_the_same_bytes(folder: Path, monkeypatch):
    run(recipe(folder))
    wanted = contents(folder / "out")
    assert len(wanted) == 9
    from rebus.shards import convert

    real = convert.write_index
    for stop_at in range(3):
        out = folder / f"killed{stop_at}"
        calls = []

        def killed(tar, earlier=None, calls=calls, stop_at=stop_at):
            calls.append(tar)
            if len(calls) > stop_at:
                raise KeyboardInterrupt
            real(tar, earlier)

        monkeypatch.setattr(convert, "write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(folder, out=str(out)))
        assert not (out / "manifest.json").exists()
        (out / ".00002.tar.4711.tmp").write_bytes(b"half")  # what SIGKILL leaves
        done = sorted(out.glob("*.quarantine.jsonl"))
        stamps = {path: path.stat().st_mtime_ns for path in done}
        assert len(done) == stop_at
        monkeypatch.setattr(convert, "write_index", real)
        run(recipe(folder, out=str(out)))
        assert contents(out) == wanted
        assert {path: path.stat().st_mtime_ns for path in done} == stamps  # finished shards are not done again


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("lost", ["00001.tar", "00001.index.parquet", "00001.quarantine.jsonl"])
def test_an_output_that_was_lost_is_made_again_and_no_other(folder: Path, lost: str, finished: bool):
    run(recipe(folder))
    out = folder / "out"
    wanted, manifest = contents(out), read_manifest(out, "shards")
    stamp = (out / "00000.tar").stat().st_mtime_ns
    (out / lost).unlink()
    if not finished:
        (out / "manifest.json").unlink()
        (out / ".building").write_text(manifest.fingerprint)
    run(recipe(folder))
    assert contents(out) == wanted
    assert (out / "00000.tar").stat().st_mtime_ns == stamp
    assert read_manifest(out, "shards") == manifest


def test_an_index_that_was_lost_in_place_is_made_again(tars: Path):
    run(tars_recipe(tars, tars))
    wanted = contents(tars)
    index = tars / "00001.index.parquet"
    index.write_bytes(b"damaged")
    with pytest.raises(DataError, match="Delete it and run"):
        run(tars_recipe(tars, tars))
    index.unlink()
    run(tars_recipe(tars, tars))
    assert contents(tars) == wanted


def test_workers_change_no_byte(folder: Path):
    run(recipe(folder))
    run(recipe(folder, out=str(folder / "two"), num_workers=2))
    assert contents(folder / "two") == contents(folder / "out")


def test_up_to_date_is_left_alone_and_other_settings_build_anew(folder: Path):
    run(recipe(folder))
    stamp = (folder / "out" / "00000.tar").stat().st_mtime_ns
    assert run(recipe(folder)).num_samples == NUM_PAIRS
    assert (folder / "out" / "00000.tar").stat().st_mtime_ns == stamp
    assert run(recipe(folder, samples_per_shard=12)).num_shards == 2
    assert sorted(path.name for path in (folder / "out").glob("*.tar")) == ["00000.tar", "00001.tar"]


def test_bad_records_are_named_and_cost_themselves_alone(folder: Path):
    (folder / "secret.png").write_bytes(picture())
    good = [f'{{"file": "images/{number}.png", "caption": "c{number}"}}' for number in range(5)]
    bad = [
        ('{"file": "images/absent.png", "caption": "c"}', damage.MISSING_IMAGE),
        ('{"file": "../secret.png", "caption": "c"}', CLIMBING_PATH),
        ('{"file": "images/../../secret.png", "caption": "c"}', CLIMBING_PATH),
        ('{"file": "images/1.png", "caption": "  "}', damage.EMPTY_CAPTION),
        ('{"file": "images/1.png"}', damage.MISSING_CAPTION),
        ('{"file": "images/1.png", "caption": "\\ud83d"}', damage.BAD_UTF8),
        ('{"file": "images/1.png", "caption', damage.BAD_JSON),
        ('{"file": 7, "caption": "c"}', damage.BAD_JSON),
    ]
    table = folder / "raw" / "bad.jsonl"
    table.write_text("\n".join([*good, *(line for line, _ in bad), good[0]]))
    with pytest.raises(DataError, match=r"8 of 14 samples \(57.1%\)"):
        run(recipe(folder, input=str(table)))
    assert not (folder / "out" / "manifest.json").exists()
    summary = run(recipe(folder, input=str(table), max_bad_share=0.6))
    assert (summary.num_samples, summary.num_damaged) == (6, 8)
    damages = [d for number in range(2) for d in read_quarantine(folder / "out" / f"{number:05d}.tar")]
    assert [d.reason for d in damages] == [reason for _, reason in bad]
    assert [d.key for d in damages] == [f"{number:09d}" for number in range(5, 13)]
    with pytest.raises(DataError, match="max_bad_share"):  # up to date, and still too bad for the stricter recipe
        run(recipe(folder, input=str(table)))


def test_csv_with_bytes_that_are_no_utf8(folder: Path):
    table = folder / "raw" / "latin.csv"
    table.write_bytes(b"file,caption\nimages/0.png,caf\xe9\nimages/1.png,tea\n")
    assert run(recipe(folder, input=str(table), max_bad_share=0.5)).reasons == {damage.BAD_UTF8: 1}


def test_a_table_without_the_columns_says_which_it_has(folder: Path):
    table = folder / "raw" / "other.csv"
    table.write_text("file,captoin\nimages/0.png,tea\n")
    with pytest.raises(DataError, match=r"no column 'caption': its columns are file, captoin \(did you mean"):
        run(recipe(folder, input=str(table)))


def test_conversations_with_one_two_and_no_image(folder: Path):
    def turns(question: str) -> list[dict]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]

    rows = [
        {"id": "one", "image": "images/0.png", "conversations": turns("<image>\nIs it?")},
        {"id": "two", "image": ["images/1.png", "images/2.png"], "conversations": turns("<image><image>Both?")},
        {"id": "none", "conversations": turns("Is it?")},
        {"id": "chat", "images": ["images/3.png"], "messages": [
            {"role": "user", "content": "<image>Is it?"}, {"role": "assistant", "content": "Yes."}]},
        {"id": "bad", "image": "images/4.png", "conversations": turns("no placeholder")},
    ]  # fmt: skip
    table = folder / "raw" / "chat.json"
    table.write_text(json.dumps(rows))
    summary = run(recipe(folder, source="conversations", input=str(table), max_bad_share=0.2))
    assert summary.reasons == {damage.PLACEHOLDER_MISMATCH: 1}
    found = list(iterate(folder / "out" / "00000.tar"))
    assert [row["image_sizes"] for row, _ in found] == [[2, 4], [3, 4, 4, 4], [], [5, 4]]
    assert [row["kind"] for row, _ in found] == ["conversation"] * 4
    tar = folder / "out" / "00000.tar"
    assert [read_metadata(tar, row)["id"] for row, _ in found] == ["one", "two", "none", "chat"]


def test_pages_become_documents(folder: Path):
    table = folder / "raw" / "pages.jsonl"
    page = {"texts": ["a", None, "b", None], "images": [None, "images/0.png", None, "images/5.png"]}
    table.write_text(json.dumps(page) + "\n")
    run(recipe(folder, source="pages", input=str(table)))
    ((row, sample),) = iterate(folder / "out" / "00000.tar")
    assert row["kind"] == "page"
    assert [part.text if isinstance(part, Text) else part.width for part in sample.parts] == ["a", 2, "b", 7]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in range(3):
        samples = [(f"{number}{name}", caption(name)) for name in "abcdef"]
        write_shard(tmp_path / "tars" / f"{number:05d}.tar", samples)
    (tmp_path / "tars" / "stats.json").write_text("{}")
    return tmp_path / "tars"


def tars_recipe(tars: Path, out: Path) -> ShardsRecipe:
    return check_recipe(ShardsRecipe, {"source": "tars", "input": str(tars), "out": str(out), "num_workers": 1}, "test")


def test_tars_are_indexed_in_place_and_never_touched(tars: Path):
    before = contents(tars)
    assert run(tars_recipe(tars, tars)).num_samples == 18
    after = contents(tars)
    assert {name: after[name] for name in before} == before
    assert len(after) == 4 + 3 * 2
    # The index of tars that changed is made anew, and only the index.
    write_shard(tars / "00001.tar", [("only", caption())])
    changed = (tars / "00001.tar").read_bytes()
    assert run(tars_recipe(tars, tars)).num_samples == 13
    assert (tars / "00001.tar").read_bytes() == changed
    assert contents(tars)["stats.json"] == b"{}"


def test_no_stage_may_empty_a_folder_of_indexed_tars(folder: Path, tars: Path, monkeypatch):
    from rebus.shards import run as module

    monkeypatch.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tars_recipe(tars, tars))
    wanted = {name: data for name, data in contents(tars).items() if name.endswith(".tar")}
    with pytest.raises(DataError, match="did not make"):
        run(recipe(folder, out=str(tars)))
    monkeypatch.undo()
    run(tars_recipe(tars, tars))
    with pytest.raises(DataError, match="Choose another"):
        run(recipe(folder, out=str(tars)))
    with pytest.raises(DataError, match="holds shards"):
        prepare_out(tars, Manifest("scores", {}))
    assert {name: data for name, data in contents(tars).items() if name.endswith(".tar")} == wanted


def test_copied_tars_have_the_same_index_and_fingerprint(tars: Path, tmp_path: Path):
    run(tars_recipe(tars, tmp_path / "copy"))
    run(tars_recipe(tars, tars))
    copied = contents(tmp_path / "copy")
    assert copied == {name: data for name, data in contents(tars).items() if name != "stats.json"}
    prints = {read_manifest(place, "shards").fingerprint for place in (tars, tmp_path / "copy")}
    assert len(prints) == 1


def test_tars_stay_where_they_are_behind_links(tars: Path, tmp_path: Path):
    before = contents(tars)
    tree = {"source": "tars", "input": str(tars), "out": str(tmp_path / "links"), "link": True, "num_workers": 1}
    assert run(check_recipe(ShardsRecipe, tree, "test")).num_samples == 18
    assert contents(tars) == before
    run(tars_recipe(tars, tmp_path / "copy"))
    links = sorted((tmp_path / "links").glob("*.link"))
    assert len(links) == 3
    assert not list((tmp_path / "links").glob("*.tar"))
    for link in links:
        copied = [(row, sample.parts) for row, sample in iterate((tmp_path / "copy" / link.name).with_suffix(".tar"))]
        assert [(row, sample.parts) for row, sample in iterate(link)] == copied
    # Links and copies of the same tars are no stand-in for each other.
    run(check_recipe(ShardsRecipe, tree | {"link": False}, "test"))
    assert sorted(path.suffix for path in (tmp_path / "links").iterdir()).count(".tar") == 3
    assert not list((tmp_path / "links").glob("*.link"))


def test_what_is_odd_is_counted_and_shown(folder: Path, capsys):
    import io

    import PIL.Image

    for number in (3, 4):
        buffer = io.BytesIO()
        PIL.Image.new("CMYK", (8, 8)).save(buffer, "JPEG")
        (folder / "raw" / "images" / f"{number}.png").write_bytes(buffer.getvalue())
    with open(folder / "raw" / "table.jsonl", "a") as file:
        file.write('{"file": "images/absent.png", "caption": "c"}\n')
    summary = run(recipe(folder))
    assert (summary.notes, summary.reasons) == ({damage.CMYK: 2}, {damage.MISSING_IMAGE: 1})
    shown = capsys.readouterr().out
    for wanted in ("usable samples", "23", "shards", "noted: CMYK", "damaged: missing image"):
        assert wanted in shown
    assert read_manifest(folder / "out", "shards").facts["notes"] == {damage.CMYK: 2}


def test_tars_and_conversations_mix_in_one_shard(tmp_path: Path):
    turns = [("human", "<image>?"), ("gpt", "Yes.")]
    write_shard(tmp_path / "in" / "00000.tar", [("a", caption()), ("b", conversation(turns))])
    run(tars_recipe(tmp_path / "in", tmp_path / "out"))
    assert [row["kind"] for row, _ in iterate(tmp_path / "out" / "00000.tar")] == ["caption", "conversation"]


def test_a_recipe_with_a_wrong_key_names_the_right_one(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("source: pairs\ninput: a.csv\nout: b\nsample_per_shard: 3\n")
    with pytest.raises(ConfigError, match="did you mean 'samples_per_shard'"):
        load_recipe(ShardsRecipe, tmp_path / "r.yaml")


@pytest.mark.parametrize("source", ["hub", "open_qwen2vl"])
def test_a_folder_that_changed_in_bytes_alone_is_another_input(tmp_path: Path, source: str):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a").write_bytes(b"one")
    tree = {"source": source, "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    found = check_recipe(ShardsRecipe, tree, "test")
    before = input_fingerprints(found)
    (tmp_path / "in" / "deep" / "a").write_bytes(b"two")
    assert input_fingerprints(found) != before
    (tmp_path / "in" / "deep" / "a").write_bytes(b"one")
    assert input_fingerprints(found) == before
