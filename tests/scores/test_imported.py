"""Scores of others joined by uid: in DataComp's and MLM-Filter's forms and in plain tables, against dictionaries."""

import json
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rebus.errors import ConfigError, DataError
from rebus.scores.decode import Decoded
from rebus.scores.hygiene import RULES
from rebus.scores.scorer import open_named
from rebus.scores.scorers import image_stats, imported, text_stats
from rebus.scores.tables_in import Rows, _convert
from rebus.scores.uid_join import join_rows
from rebus.uids import uids_as_numbers

WIDTH = 6


def uid(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


def measure(uids: list[str], batch_size: int = 3, **options: Any) -> dict[str, np.ndarray]:
    opened = imported.open_scorer(imported.Options(**options))
    assert not opened.pictures
    looked = [opened.look(Decoded(one, "key", "", None, None)) for one in uids]
    parts = [opened.measure(looked[start : start + batch_size]) for start in range(0, len(looked), batch_size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_parquet(path: Path, numbers: list[int], **columns: list) -> None:
    pq.write_table(pa.table({"uid": [uid(number) for number in numbers], **columns}), path)


@pytest.fixture
def datacomp(tmp_path: Path) -> Path:
    """Two stems of DataComp's metadata: sample n has clip score n / 100 and embeddings full of n (image) and -n."""
    folder = tmp_path / "metadata"
    folder.mkdir()
    for stem, numbers in (("aa", range(10)), ("bb", range(10, 25))):
        score = [number / 100 for number in numbers]
        width = [100 * number for number in numbers]
        write_parquet(folder / f"{stem}.parquet", list(numbers), clip_l14_similarity_score=score, original_width=width)
        vectors = np.repeat(np.array(numbers, dtype=np.float16)[:, None], WIDTH, axis=1)
        np.savez(folder / f"{stem}.npz", l14_img=vectors, l14_txt=-vectors, b32_img=vectors[:, :2])
    return folder


def test_datacomp_metadata_joins_by_uid_in_any_order(datacomp: Path):
    numbers = [24, 3, 99, 0, 10, 9, 3]  # 99 is in no table
    columns = {"clip": "clip_l14_similarity_score", "width": "original_width"}
    found = measure([uid(n) for n in numbers], files=datacomp, columns=columns, vectors={"image": "l14_img"})
    assert found["in_table"].tolist() == [True, True, False, True, True, True, True]
    expected = np.array([np.nan if n == 99 else n for n in numbers])
    np.testing.assert_array_equal(found["clip"], (expected / 100).astype(np.float32))
    np.testing.assert_array_equal(found["width"], (expected * 100).astype(np.float32))
    assert found["image"].dtype == np.float16
    np.testing.assert_array_equal(found["image"], np.repeat(expected[:, None], WIDTH, axis=1))


def test_a_batch_of_strangers_has_vectors_of_the_same_form(datacomp: Path):
    found = measure([uid(77), uid(78)], files=datacomp, vectors={"text": "l14_txt"})
    assert found["text"].shape == (2, WIDTH)
    assert found["text"].dtype == np.float16
    assert np.isnan(found["text"]).all()


def test_compressed_arrays_are_read_too(datacomp: Path):
    for stem in ("aa", "bb"):
        with np.load(datacomp / f"{stem}.npz") as archive:
            arrays = dict(archive)
        np.savez_compressed(datacomp / f"{stem}.npz", **arrays)
    found = measure([uid(n) for n in (24, 1, 11)], files=datacomp, vectors={"image": "l14_img"})
    assert found["image"][:, 0].tolist() == [24, 1, 11]


def test_storage_behind_a_url_gives_the_same(datacomp: Path):
    memory = fsspec.filesystem("memory")
    memory.put(f"{datacomp}/", "/pool/metadata/", recursive=True)
    options = {"columns": {"clip": "clip_l14_similarity_score"}, "vectors": {"image": "l14_img"}}
    uids = [uid(n) for n in (0, 12, 24, 80)]
    here = measure(uids, files=datacomp, **options)
    for place in ("memory://pool/metadata", "memory://pool/metadata/*.parquet"):
        there = measure(uids, files=place, **options)
        for name, values in here.items():
            np.testing.assert_array_equal(values, there[name])
    remote = imported.Options(files="memory://pool/metadata", **options)
    before = imported.inputs(remote)
    memory.pipe("/pool/metadata/bb.npz", b"shorter")
    assert imported.inputs(remote) != before


ANSWERS = {
    "85": 85,
    " 85,;\nbecause the dog": 85,
    "+7": 7,
    "-3": -3,
    "100": 100,
    "0\n": 0,
    "85\r\nwhy": 85,
    "Score: 85": None,
    "85/100": None,
    "85.5": None,
    "\n85": None,
    "": None,
    "I cannot": None,
    "8 5": None,
}


def test_raw_answers_are_parsed_as_the_original_filter_does(tmp_path: Path, capsys):
    texts = [*ANSWERS, None, "90"]
    status = ["success"] * (len(texts) - 1) + ["failed_to_download"]
    path = tmp_path / "00000000_semantic_understanding.parquet"
    write_parquet(path, list(range(len(texts))), semantic_understanding_score=texts, status=status)
    theirs = "semantic_understanding_score"
    columns = {"su": {"column": theirs, "read": "integer_text"}, "su_raw": {"column": theirs, "read": "text"}}
    files, uids = tmp_path / "*_semantic_understanding.parquet", [uid(n) for n in range(len(texts))]
    found = measure(uids, files=files, columns=columns, only={"status": "success"})
    expected = [*(np.nan if value is None else value for value in ANSWERS.values()), np.nan, np.nan]
    np.testing.assert_array_equal(found["su"], expected)
    assert found["su_raw"].tolist() == [*ANSWERS, None, None]
    assert found["in_table"].tolist() == [True] * (len(texts) - 1) + [False]
    said = " ".join(capsys.readouterr().err.split())
    assert "16 rows of 1 tables, 15 uids; 1 left out by `only`; 8 without a value of su" in said


@given(st.text(alphabet="0123456789 ,;+-.\n\tax", max_size=12))
def test_integers_of_any_text_follow_the_rule(text: str):
    line = text.split("\n")[0].strip(" \t\r,;")
    try:
        expected = int(line) if len(line.lstrip("+-")) <= 9 else np.nan
    except ValueError:
        expected = np.nan
    np.testing.assert_array_equal(_convert(pa.array([text]), "integer_text", "x"), [expected])


def test_plain_tables_of_every_format_say_the_same(tmp_path: Path):
    table = pa.table(
        {
            "id": [uid(n) for n in range(4)],
            "score": [0.5, None, 1e-3, 3.0],
            "label": ["good, bad", None, 'a "b"\nc', "d"],
            "unused": [[1], [2], [3], [4]],
        }
    )
    flat = table.drop_columns(["unused"])
    pq.write_table(table, tmp_path / "a.parquet")
    pa.csv.write_csv(flat, tmp_path / "a.csv")
    pa.csv.write_csv(flat, tmp_path / "a.tsv", pa.csv.WriteOptions(delimiter="\t"))
    rows = [json.dumps({name: value for name, value in row.items() if value is not None}) for row in table.to_pylist()]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    columns = {"score": "score", "label": {"column": "label", "read": "text"}}
    for suffix in ("parquet", "csv", "tsv", "jsonl"):
        found = measure([uid(n) for n in (3, 2, 1, 9)], files=tmp_path / f"a.{suffix}", uid="id", columns=columns)
        np.testing.assert_array_equal(found["score"], np.array([3, 1e-3, np.nan, np.nan], np.float32), suffix)
        assert found["label"].tolist() == ["d", 'a "b"\nc', None, None], suffix


def test_a_uid_with_two_values_is_refused_or_counted(tmp_path: Path, capsys):
    write_parquet(tmp_path / "a.parquet", [1, 2, 3], score=[0.1, 0.2, None])
    write_parquet(tmp_path / "b.parquet", [3, 2, 1], score=[None, 0.2, 0.9])
    with pytest.raises(DataError, match=rf"uid {uid(1)} has two values of 'score': 0\.1\d* in .*a\.parquet and 0\.8"):
        measure([uid(1)], files=tmp_path, columns={"score": "score"})
    found = measure([uid(1), uid(2), uid(3)], files=tmp_path, columns={"score": "score"}, repeated="first")
    np.testing.assert_array_equal(found["score"], np.array([0.1, 0.2, np.nan], np.float32))
    said = " ".join(capsys.readouterr().err.split())
    assert "3 uids; 3 with a uid seen before; 1 of these with other values, of which the first counts" in said


def test_texts_that_differ_are_two_values_as_well(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [1, 1, 2, 2], label=["x", "x", None, "y"])
    with pytest.raises(DataError, match=f"uid {uid(2)} has two values of 'label': None"):
        measure([uid(1)], files=tmp_path, columns={"label": {"column": "label", "read": "text"}})


halves = st.integers(0, 2) | st.integers(2**64 - 2, 2**64 - 1)
pairs = st.tuples(halves, halves).map(lambda pair: f"{pair[0]:016x}{pair[1]:016x}")


@given(st.lists(st.lists(st.tuples(pairs, st.integers(0, 3)), max_size=12), min_size=1, max_size=3), st.lists(pairs))
def test_the_join_is_a_dictionary_of_first_rows(tables: list, asked: list[str]):
    """Halves of few values: equal high halves, equal low ones, the ends of the range."""
    first: dict[str, int] = {}
    rows = []
    for table in tables:
        for name, value in table:
            first.setdefault(name, value)
        values = np.array([value for _, value in table], dtype=np.float32)
        uids = uids_as_numbers([name for name, _ in table])
        rows.append(Rows(uids, np.arange(len(table)), {"x": values}, len(table), 0, 0))
    names = [str(number) for number in range(len(rows))]
    if not first:
        with pytest.raises(DataError, match="none has a uid"):
            join_rows(rows, names, "first")
        return
    joined = join_rows(rows, names, "first")
    asked = asked + list(first)
    places = joined.find(asked)
    assert [place >= 0 for place in places] == [name in first for name in asked]
    assert [joined.columns["x"][place] for place in places if place >= 0] == [first[a] for a in asked if a in first]


def test_rows_without_a_uid_join_nothing(tmp_path: Path):
    pq.write_table(pa.table({"uid": [uid(1), None], "score": [1.0, 2.0]}), tmp_path / "a.parquet")
    assert measure([uid(1), uid(2)], files=tmp_path, columns={"score": "score"})["in_table"].tolist() == [True, False]


def test_tables_without_a_row_add_nothing(tmp_path: Path):
    pq.write_table(
        pa.table({"uid": pa.array([], pa.string()), "is_good": pa.array([], pa.bool_())}), tmp_path / "a.parquet"
    )
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.csv").write_text("uid,is_good\n")
    with pytest.raises(DataError, match=r"no row of .* counts"):
        measure([uid(1)], files=tmp_path, columns={"good": "is_good"})
    write_parquet(tmp_path / "d.parquet", [1, 2, 3], is_good=[True, False, None])
    found = measure([uid(3), uid(2), uid(1)], files=tmp_path, columns={"good": "is_good"})
    np.testing.assert_array_equal(found["good"], [np.nan, 0, 1])


def test_errors_say_what_is_wrong_and_where(datacomp: Path, tmp_path: Path):
    def refuse(match: str, files: Path, **options: Any) -> None:
        with pytest.raises(DataError, match=match):
            measure([uid(1)], files=files, **options)

    score = {"clip": "clip_l14_similarity_score"}
    refuse("no table at .*metadata/x", datacomp / "x*.parquet", columns=score)
    refuse("gone.parquet cannot be read", datacomp / "gone.parquet", columns=score)
    refuse("no column 'clip_l14_similarity' .did you mean 'clip_l14_", datacomp, columns={"x": "clip_l14_similarity"})
    refuse("aa.npz has no array 'l14_image' .did you mean 'l14_img'", datacomp, vectors={"x": "l14_image"})
    write_parquet(tmp_path / "t.parquet", [1], label=["often"])
    label = {"x": "label"}
    refuse("t.parquet: column 'label' holds what is no number.*read: text", tmp_path / "t.parquet", columns=label)
    refuse("'often' is no uid: 32 hexadecimal", tmp_path / "t.parquet", uid="label", columns={}, vectors={"x": "y"})
    refuse("t.npz cannot be read", tmp_path / "t.parquet", vectors={"x": "l14_img"})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not at all")
    refuse("broken.parquet cannot be read as a table", tmp_path / "broken.parquet", columns=score)
    np.savez(datacomp / "aa.npz", l14_img=np.zeros((9, WIDTH), np.float16))
    refuse("aa.npz holds 9 vectors of 6, but its table has 10 rows", datacomp, vectors={"x": "l14_img"})
    np.savez(datacomp / "aa.npz", l14_img=np.array([["a", None]], dtype=object))
    refuse(r"'l14_img' is object \[1, 2\]; vectors are floats", datacomp, vectors={"x": "l14_img"})


def test_options_that_cannot_be_meant_are_refused():
    for options, words in [
        ({}, "nothing is imported"),
        ({"columns": {"uid": "uid"}}, "'uid' is the name of a column that every table has"),
        ({"columns": {"x": "a"}, "vectors": {"x": "b"}}, "'x' is among `columns` and among `vectors`"),
    ]:
        with pytest.raises(ConfigError, match=words):
            open_named("mine", {"scorer": "imported", "files": "a.csv", **options})


def test_other_bytes_are_another_input(datacomp: Path):
    options = imported.Options(files=datacomp, columns={"x": "original_width"})
    before = imported.inputs(options)
    assert imported.inputs(options) == before
    write_parquet(datacomp / "bb.parquet", [1], original_width=[5], clip_l14_similarity_score=[0.5])
    assert imported.inputs(options) != before


PAGE = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text()
EXAMPLES = [
    (name, entry)
    for block in re.findall(r"^```yaml\n(scorers:\n.*?)^```", PAGE, re.M | re.S)
    for name, entry in yaml.safe_load(block)["scorers"].items()
]


@pytest.mark.parametrize(("name", "entry"), EXAMPLES)
def test_examples_in_the_docs_are_accepted(name: str, entry: dict[str, Any]):
    assert open_named(name, entry).name == name


def test_the_docs_name_every_column_and_every_rule():
    for column in (*image_stats.COLUMNS, *text_stats.NUMBERS, *text_stats.LANGUAGE, *text_stats.HYGIENE, *RULES):
        assert f"`{column}`" in PAGE, column
