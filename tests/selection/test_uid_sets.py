"""Sets of uids against Python's own, the grammar, the forms of files, and the rule that uses them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pools import kept_rows_of, make_view, numbered_uids

from rebus import uids as sets
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import Manifest, write_manifest
from rebus.selection.rules import open_rule
from rebus.selection.uid_files import read_uids
from rebus.selection.uid_sets import evaluate, explain, parse, run
from rebus.uids import order_of, places_of, uids_as_numbers, uids_as_strings, unique

# Few high halves, some that differ in their lowest bits alone: what an order by the upper bits must not trust.
numbers = st.builds(
    lambda high, low: high << 64 | low,
    st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(0, 2**64 - 1),
    st.integers(0, 3) | st.integers(0, 2**64 - 1),
)
lists = st.lists(numbers, max_size=60)


def as_uids(values) -> np.ndarray:
    return np.array([(value >> 64, value & (2**64 - 1)) for value in values], dtype="<u8,<u8")


def as_ints(uids: np.ndarray) -> list[int]:
    return [high << 64 | low for high, low in uids.tolist()]


def as_set(values) -> np.ndarray:
    return as_uids(sorted(set(values)))


@pytest.mark.parametrize("num_at_once", [sets.NUM_AT_ONCE, 3])
@given(left=lists, right=lists)
def test_operations_equal_those_of_python(num_at_once, left, right):
    with pytest.MonkeyPatch.context() as patch:  # pieces of three uids, too
        patch.setattr(sets, "NUM_AT_ONCE", num_at_once)
        _check_operations(left, right)


def _check_operations(left, right):
    a, b = as_set(left), as_set(right)
    assert as_ints(sets.union(a, b)) == sorted(set(left) | set(right))
    assert as_ints(sets.intersection(a, b)) == sorted(set(left) & set(right))
    assert as_ints(sets.minus(a, b)) == sorted(set(left) - set(right))
    assert as_ints(sets.in_one(a, b)) == sorted(set(left) ^ set(right))


@given(lists, lists)
def test_order_and_places_equal_those_of_python(left, right):
    found = as_uids(left)
    assert as_ints(unique(found)) == sorted(set(left))
    assert order_of(found).tolist() == sorted(range(len(left)), key=lambda place: (left[place], place))
    wanted = [left.index(value) if value in left else -1 for value in right]
    places = places_of(as_uids(right), found)
    assert places.tolist() == (list(range(len(left))) if left == right else wanted)  # one order: row by row


def test_many_uids_of_few_high_halves():
    """Long runs of equal upper bits, larger than any that hypothesis draws."""
    rng = np.random.default_rng(0)
    drawn = np.empty(200_000, dtype="<u8,<u8")
    drawn["f0"] = rng.integers(0, 50, len(drawn)).astype(np.uint64) << np.uint64(3)
    drawn["f1"] = rng.integers(0, 5_000, len(drawn))
    left, right = drawn[:120_000], drawn[120_000:]
    assert as_ints(sets.union(unique(left), unique(right))) == sorted(set(as_ints(drawn)))
    assert as_ints(sets.minus(unique(left), unique(right))) == sorted(set(as_ints(left)) - set(as_ints(right)))


@given(st.lists(st.integers(0, 2**128 - 1)))
def test_strings_and_numbers_are_the_same_uids(values):
    strings = [f"{value:032x}" for value in values]
    assert as_ints(uids_as_numbers(strings)) == values
    assert uids_as_strings(as_uids(values)).to_pylist() == strings
    assert as_ints(uids_as_numbers(pa.array(["", *strings]).slice(1))) == values  # a slice starts inside its buffers


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "g" + "0" * 31, "0x" + "0" * 30, "é" + "0" * 31])
def test_what_is_no_uid_is_shown(text):
    with pytest.raises(DataError, match="is no uid"):
        uids_as_numbers(["0" * 32, text])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """a: 1 2 3 4; b: 3 4 5; c: 4 5 6, named twice each and out of order."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", numbered_uids([1, 2, 3, 4]))
    np.save("b-b.npy", numbered_uids([3, 4, 5]))
    (tmp_path / "c c.txt").write_text("\n".join(f"{n:032X}" for n in (6, 5, 4, 4, 5, 6)) + "\n\n")
    return tmp_path


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("a.npy", [1, 2, 3, 4]),
        ("'c c.txt'", [4, 5, 6]),
        ("a.npy|b-b.npy", [1, 2, 3, 4, 5]),
        ("a.npy - b-b.npy", [1, 2]),
        ("a.npy -(b-b.npy)", [1, 2]),
        ("a.npy ^ b-b.npy", [1, 2, 5]),
        ("a.npy & b-b.npy", [3, 4]),
        ('a.npy - b-b.npy & "c c.txt"', [1, 2, 3]),  # & before -
        ('(a.npy - b-b.npy) | "c c.txt"', [1, 2, 4, 5, 6]),
        ('a.npy - b-b.npy | "c c.txt"', [1, 2, 4, 5, 6]),  # left to right
        ('a.npy - (b-b.npy | "c c.txt")', [1, 2]),
        ('a.npy | b-b.npy - "c c.txt" ^ a.npy', [4]),  # ((a | b) - c) ^ a = {1 2 3} ^ {1 2 3 4}
        ("((a.npy))", [1, 2, 3, 4]),
    ],
)
def test_expressions_by_hand(folder, expression, wanted):
    assert as_ints(evaluate(expression)) == wanted


@pytest.mark.parametrize(
    ("expression", "place", "message"),
    [
        ("", 0, "a file or"),
        ("a.npy |", 7, "a file or"),
        ("a.npy b.npy", 6, "an operator"),
        ("a.npy -b.npy", 6, "between spaces"),
        ("(a.npy", 6, r"\) was expected"),
        ("a.npy)", 5, "an operator"),
        ("a.npy | 'b", 7, "quotation mark"),
        ("| a.npy", 0, "a file or"),
    ],
)
def test_expressions_that_mean_nothing_show_the_place(expression, place, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(expression)
    assert str(caught.value).endswith(f"  {' ' * place}^")


def test_every_form_of_file(folder):
    wanted = numbered_uids([7, 1, 7])
    wanted["f0"] = [9, 2**64 - 1, 9]
    np.save("headed.npy", wanted)
    (folder / "raw.npy").write_bytes(wanted.tobytes())
    np.save("big.npy", wanted.astype([("f0", ">u8"), ("f1", ">u8")]))
    strings = [f"{value:032x}" for value in as_ints(wanted)]
    (folder / "lines.txt").write_text("\r\n".join(f" {line} " for line in strings))
    pq.write_table(pa.table({"uid": strings, "text": ["", "", ""]}), "table.parquet")
    for name in ("headed.npy", "raw.npy", "big.npy", "lines.txt", "table.parquet"):
        assert read_uids(folder / name).tolist() == wanted.tolist(), name
    (folder / "nothing.txt").write_text("")
    assert len(read_uids(folder / "nothing.txt")) == 0
    (folder / "selection").mkdir()
    np.save("selection/uids.npy", numbered_uids([4, 6]))
    write_manifest(folder / "selection", Manifest("selection", {}))
    assert as_ints(evaluate("a.npy & selection")) == [4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"\x00" * 17, "17 bytes are no whole number"),
        ("x.npy", np.zeros(3), r"holds float64 of shape \(3,\)"),
        ("x.npy", np.array([None]), "no .npy of uids"),
        ("x.txt", b"12\n", "'12' is no uid"),
        ("x.parquet", pa.table({"key": ["a"]}), "no column uid; it has key"),
        ("x.parquet", b"PAR", "no parquet"),
        ("x.csv", b"", "no file of uids that Rebus reads"),
    ],
)
def test_files_that_hold_no_uids(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_uids(path)


def test_the_verb_writes_what_datacomp_reads_and_counts(folder, capsys):
    found = run("a.npy | 'c c.txt'", folder / "out.npy")
    raw = (folder / "out.npy").read_bytes()
    header = 10 + int.from_bytes(raw[8:10], "little")
    assert "('f0', '<u8'), ('f1', '<u8')" in raw[10:header].decode()
    array = np.memmap(folder / "out.npy", dtype="u8,u8", mode="r", offset=header)
    assert array.tolist() == [(0, number) for number in (1, 2, 3, 4, 5, 6)]
    assert [(one.num_uids, one.num_repeats) for one in found.operands] == [(4, 0), (3, 3)]
    assert "c c.txt" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"ends in \.npy"):
        run("a.npy", folder / "out.txt")


def test_a_missing_file_is_named(folder):
    with pytest.raises(DataError, match=r"no file of uids at d\.npy"):
        explain("a.npy | d.npy")


def test_the_rule_keeps_what_is_inside_and_counts_what_is_not_there(folder):
    view = make_view(5, uids=[9, 3, 1, 3, 8])
    view.pool.row[0] = -1  # no sample: what the pool's index left out has no uid
    for keep, wanted in (("inside", [1, 2, 3]), ("outside", [0, 4])):
        rule = open_rule("r", "uids", {"uids": "a.npy - 'c c.txt'", "keep": keep})
        answer = rule.module.apply(rule.options, view)
        assert kept_rows_of(answer) == wanted
        assert answer.counts == {"uids in the set": 3, "of them not in the pool": 1}
    before = rule.module.inputs(rule.options)
    assert set(before) == {"a.npy", "c c.txt"}
    np.save("a.npy", numbered_uids([1, 2]))
    assert rule.module.inputs(rule.options) != before
