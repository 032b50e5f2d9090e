"""The log of answers survives whatever a killed process leaves behind."""

from pathlib import Path

import pytest

from rebus.evals.answers import AnswerLog, ChoiceAnswer, Draw, NamingAnswer

DRAW = Draw(("a", "b"), (-1.0000000000000002, -2.5), (0.1, 1 / 3), "b")
ANSWERS = [
    ChoiceAnswer("0" * 32, "k0", "b", "right", "0" * 32, (DRAW,)),
    ChoiceAnswer("0" * 32, "k0", "b", "none", "", (DRAW, DRAW)),
    NamingAnswer(
        "1" * 32,
        "k1",
        "a pear",
        "eine\u2028Birne \u0085 \U0001f350",
        False,
        0.0,
    ),
]


def write(path: Path) -> None:
    with AnswerLog(path, "made") as log:
        for answer in ANSWERS:
            log.append(answer)


def read(path: Path, fingerprint: str = "made") -> list:
    with AnswerLog(path, fingerprint) as log:
        return [*log.choices.values(), *log.names.values()]


def test_answers_come_back_to_the_bit(tmp_path: Path):
    write(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl") == ANSWERS


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_a_cut_line_is_dropped_and_written_again(tmp_path: Path, cut: int):
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(read(path)) == (2 if cut < 10_000 else 0)
    write(path)
    assert path.read_bytes() == whole


def test_an_answer_is_kept_once(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    write(path)
    assert path.read_bytes() == whole


def test_answers_of_another_evaluation_do_not_count(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write(path)
    assert read(path, "other") == []
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"[1]\n", b"{}\n", b'{"fingerprint": "made", "task": "choice"}\n', b"\xff\n"])
def test_from_a_damaged_line_on_nothing_counts(tmp_path: Path, line: bytes):
    path = tmp_path / "a.jsonl"
    write(path)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, line, *rest]))
    assert read(path) == ANSWERS[:1]
