"""Rows by byte range: the slices are exactly the rows, whatever they hold and wherever a block ends."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebus.errors import DataError
from rebus.shards.damage import BAD_JSON, BAD_UTF8, DamagedSampleError
from rebus.shards.sources.tables import find_pieces, parse_row, read_header, read_piece, scan_rows

SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(st.sampled_from('[]{},:"\\ \n\t/aé中\U0001f600<image>'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
rows_of_json = st.lists(st.dictionaries(texts, values, max_size=4), max_size=6)
spaces = st.text(" \n\t\r", max_size=3)


def slices(path: Path, **options) -> list[bytes]:
    data = path.read_bytes()
    return [data[offset : offset + length] for offset, length in scan_rows(path, **options)]


def parsed(path: Path, **options) -> list:
    header = read_header(path)
    return [parse_row(path, blob, header) for blob in slices(path, **options)]


@SETTINGS
@given(rows_of_json, st.booleans(), spaces, spaces, st.booleans(), st.sampled_from([1, 2, 7, 64, 2**20]))
def test_json_arrays_of_anything(tmp_path: Path, rows, is_ascii, before, after, with_bom, block_bytes):
    path = tmp_path / "rows.json"
    body = f"{before},{after}".join(json.dumps(row, ensure_ascii=is_ascii, indent=len(after) or None) for row in rows)
    text = f"{before}[{after}{body}{after}]{before}"
    path.write_bytes(text.encode("utf-8-sig" if with_bom else "utf-8"))
    assert parsed(path, block_bytes=block_bytes) == rows
    assert list(scan_rows(path, block_bytes=block_bytes)) == list(scan_rows(path))


@SETTINGS
@given(rows_of_json, st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]), st.booleans())
def test_json_lines_of_anything(tmp_path: Path, rows, end, with_bom):
    path = tmp_path / "rows.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    path.write_bytes(text.encode("utf-8-sig" if with_bom else "utf-8"))
    assert parsed(path) == rows


cells = st.text(st.sampled_from('ab,"\n\r\té中 '), min_size=0, max_size=8)


@SETTINGS
@given(
    st.lists(st.tuples(cells, cells, cells), max_size=6),
    st.sampled_from([".csv", ".tsv"]),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_csv_of_anything(tmp_path: Path, rows, suffix, with_bom, end):
    path = tmp_path / f"rows{suffix}"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writerow(["a", "b", "c"])
    writer.writerows(rows)
    path.write_bytes(buffer.getvalue().encode("utf-8-sig" if with_bom else "utf-8"))
    assert parsed(path) == [dict(zip("abc", row, strict=True)) for row in rows]
    path.write_bytes(path.read_bytes() + b"\n\n")  # empty lines are no rows
    assert len(parsed(path)) == len(rows)


@SETTINGS
@given(st.integers(0, 5), st.sampled_from([1, 16, 200, 2**20]), st.sampled_from([",,", '"', "}", "nul", "{", "\\"]))
def test_a_damaged_row_of_an_array_costs_itself_alone(tmp_path: Path, bad, block_bytes, junk):
    turns = [{"from": "human", "value": 'a }, {"id": b'}, {"from": "gpt", "value": "c"}]
    rows = [{"id": str(number), "conversations": turns} for number in range(6)]
    bodies = [json.dumps(row) for row in rows]
    bodies[bad] = bodies[bad].replace('"conversations":', f'"conversations": {junk}', 1)
    path = tmp_path / "rows.json"
    path.write_text("[" + ",\n ".join(bodies) + "]")
    found = parsed(path, block_bytes=block_bytes)
    assert len(found) == 6
    for number, row in enumerate(found):
        if number == bad:
            assert isinstance(row, DamagedSampleError)
            assert row.reason == BAD_JSON
        else:
            assert row == rows[number]


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_a_row_cut_short_in_an_array_costs_itself_alone(tmp_path: Path, block_bytes: int):
    path = tmp_path / "rows.json"
    path.write_text('[{"id": 1, "t": [{"a": 1}, {"a": 2}]}, {"id": 2, "t": [{"a": 1}, {"a, {"id": 3}, {"id": 4,]')
    found = slices(path, block_bytes=block_bytes)
    assert found[1:] == [b'{"id": 2, "t": [{"a": 1}, {"a', b'{"id": 3}', b'{"id": 4,']
    path.write_text('[{"id": 1, "t": [{"a" 1}, {"a": 2}]}, {"id": 2}]')  # no good row before it
    assert slices(path, block_bytes=block_bytes) == [b'{"id": 1, "t": [{"a" 1}, {"a": 2}]}', b'{"id": 2}']


def test_what_a_row_may_not_be(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": "\xff"}, 7, {"a": "\\ud83d"}, {"a": "\t"}, "x", {"a": "\\ud83d\\ude00"}]')
    found = [row if isinstance(row, dict) else row.reason for row in parsed(path, block_bytes=3)]
    assert found == [BAD_UTF8, BAD_JSON, BAD_UTF8, BAD_JSON, BAD_JSON, {"a": "\U0001f600"}]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"a": 1}\n{"a": 2}\n', "One object a line is .jsonl"),
        (b"", "must hold an array"),
        (b'[{"a": 1}, {"a": 2}, {"a": "cut', "cut off: its 31 bytes end within the row at byte 21"),
        (b'[{"a": 1}, {"a": 2}', "cut off"),
        (b'[{"a": 1}] and more', "cut off"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_an_array_without_an_end_says_where(tmp_path: Path, content: bytes, why: str, block_bytes: int):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=why):
        list(scan_rows(path, block_bytes=block_bytes))


def test_an_empty_array_and_other_formats(tmp_path: Path):
    for content in ("[]", " [ \n ] "):
        (tmp_path / "rows.json").write_text(content)
        assert slices(tmp_path / "rows.json", block_bytes=1) == []
    with pytest.raises(DataError, match=r"must end in one of \.csv"):
        scan_rows(tmp_path / "rows.xlsx")
    with pytest.raises(DataError, match="no table"):
        scan_rows(tmp_path / "absent.json")


def test_an_array_larger_than_its_block_is_held_in_part(tmp_path: Path, monkeypatch):
    from rebus.shards.sources import arrays

    path = tmp_path / "rows.json"
    path.write_text("[" + ",".join(json.dumps({"id": number, "t": "x" * 100}) for number in range(3000)) + "]")
    held = []
    real = arrays._Window.refill
    monkeypatch.setattr(
        arrays._Window, "refill", lambda window, place: (real(window, place), held.append(len(window.text)))[0]
    )
    assert len(slices(path, block_bytes=4096)) == 3000
    assert max(held) < 3 * 4096
    assert len(held) > 50


def test_pieces_name_all_rows_once_and_keys_count_through(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("file,caption\n" + "".join(f'{number},"a\nb"\n' for number in range(25)))
    pieces = list(find_pieces(path, 10))
    assert [(piece.number, piece.first_row, piece.num_rows) for piece in pieces] == [
        (0, 0, 10),
        (1, 10, 10),
        (2, 20, 5),
    ]
    found = [pair for piece in pieces for pair in read_piece(piece)]
    assert found == [(f"{number:09d}", {"file": str(number), "caption": "a\nb"}) for number in range(25)]


def test_damage_in_a_csv_is_one_row(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2\n"x"y,3\n4,5,6\n7\n8,"cut')
    found = [row if isinstance(row, dict) else row.reason for row in parsed(path)]
    assert found == [{"a": "1", "b": "2"}, "bad CSV", {"a": "4", "b": "5"}, {"a": "7"}, "bad CSV"]
