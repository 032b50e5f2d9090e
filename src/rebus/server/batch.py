"""Many questions from a file of JSON lines, answered into another: line by line, and again from where it stopped."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rebus.errors import DataError, RebusError
from rebus.log import console, progress_bar, say, show_table
from rebus.model.decode_sampling import Sampling
from rebus.server.answer import Answer
from rebus.server.engine import Engine, Request
from rebus.storage import is_remote

BEGINNING = b'{"id": '
"""Of every line of answers."""
FIELDS = ("id", "question", "messages", "image", "images", "video", "videos", "system")


@dataclass
class Tally:
    """What became of the lines of one run. bad: (line, reason)."""

    num_lines: int = 0
    num_before: int = 0
    num_answered: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """source: lines of FIELDS. out: lines {"id", "text", ...}; ids that it has are not asked again. video: options of
    every video. Relative paths are looked for beside `source`."""

    source: Path
    out: Path
    sampling: Sampling
    system: str | None
    video: Mapping[str, Any]
    num_rows: int


def answer_file(engine: Engine, batch: Batch) -> Tally:
    """Answers what is not answered yet. A line that cannot be used costs itself: it is counted, named and left out of
    `out`, so that a later run tries it again. Raises: DataError where the file cannot be read."""
    if not batch.source.is_file():
        raise DataError(f"no batch file at {batch.source}.")
    if batch.out.exists() and batch.out.samefile(batch.source):
        raise DataError(f"{batch.out} holds the questions. Name another file with --out.")
    done, tally = finished_ids(batch.out), Tally()
    numbers: list[tuple[int, str]] = []
    with progress_bar() as bar, open(batch.out, "a", encoding="utf-8") as out:
        task = bar.add_task("answering", total=_count_lines(batch.source), note="")
        for place, answer in engine.answer(_requests(engine, batch, done, tally, numbers), batch.num_rows):
            number, name = numbers[place]
            if isinstance(answer, RebusError):
                tally.bad.append((number, str(answer)))
                console.print(f"line {number}: {answer}", style="red", highlight=False, markup=False)
            else:
                _write(out, name, answer, tally)
            finished = tally.num_before + tally.num_answered + len(tally.bad)
            bar.update(task, completed=finished, note=f"{len(tally.bad)} bad" if tally.bad else "")
    return tally


def _requests(
    engine: Engine, batch: Batch, done: set[str], tally: Tally, numbers: list[tuple[int, str]]
) -> Iterator[Request | RebusError]:
    """The lines that are not done; `numbers` gets line and id of each. Only those being answered are in memory."""
    seen: set[str] = set()
    with open(batch.source, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            tally.num_lines += 1
            name, request = str(number), None
            try:
                row = _row(line)
                name = str(row.get("id", number))
                if name in seen:
                    raise DataError(f"the id '{name}' stands on an earlier line too.")
                seen.add(name)
                if name in done:
                    tally.num_before += 1
                    continue
                request = _request(engine, row, batch)
            except RebusError as error:
                numbers.append((number, name))
                yield error
                continue
            numbers.append((number, name))
            yield request


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # half of a surrogate pair is JSON, but no text
        raise DataError(f"no JSON: {error}.") from error
    if not isinstance(row, dict) or not isinstance(row.get("id", ""), str | int):
        raise DataError("no JSON object with a text or number as `id`.")
    if unknown := sorted(set(row) - set(FIELDS)):
        raise DataError(f"'{unknown[0]}' is not known; a line has {', '.join(FIELDS)}.")
    if ("question" in row) == ("messages" in row):
        raise DataError("a line has either a `question` or `messages`.")
    for name in ("question", "system"):
        if not isinstance(row.get(name, ""), str):
            raise DataError(f"`{name}` is no text but {json.dumps(row[name])[:80]}.")
    return row


def _request(engine: Engine, row: dict[str, Any], batch: Batch) -> Request:
    folder = batch.source.parent
    if "messages" in row:
        if not isinstance(row["messages"], list):
            raise DataError("`messages` is no list.")
        return engine.request(_placed(row["messages"], folder), sampling=batch.sampling)
    images = [_beside(one, folder) for one in _listed(row, "image")]
    videos = [(_beside(one, folder), batch.video) for one in _listed(row, "video")]
    system = row.get("system", batch.system)
    return engine.request(row["question"], images, videos, system=system, sampling=batch.sampling)


def _listed(row: dict[str, Any], name: str) -> list[Any]:
    given = [row[name]] if row.get(name) is not None else []
    more = row.get(f"{name}s") or []
    if not isinstance(more, list):
        raise DataError(f"`{name}s` is no list.")
    return [*given, *more]


def _beside(source: Any, folder: Path) -> Any:
    """Relative paths are the batch file's, not those of where the command runs."""
    if isinstance(source, list):
        return [_beside(one, folder) for one in source]
    if not isinstance(source, str) or is_remote(source) or source.startswith("data:"):
        return source
    return str(folder / Path(source).expanduser())


def _placed(messages: list[Any], folder: Path) -> list[Any]:
    def element(one: Any) -> Any:
        if not isinstance(one, dict):
            return one
        return {key: _beside(value, folder) if key in ("image", "video") else value for key, value in one.items()}

    return [
        {**one, "content": [element(part) for part in one["content"]]}
        if isinstance(one, dict) and isinstance(one.get("content"), list)
        else one
        for one in messages
    ]


def finished_ids(out: Path) -> set[str]:
    """The ids that `out` answers. A line that a killed run left half written is cut off."""
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    half = content[len(whole) :]
    try:
        if not (half.startswith(BEGINNING) or BEGINNING.startswith(half)):
            raise ValueError("its last line is nothing that a killed run left")
        rows = [json.loads(line) for line in whole.splitlines() if line.strip()]
        if any("text" not in row for row in rows):
            raise ValueError("a line of it has no `text`")
        ids = {str(row["id"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out} is not a file of answers ({error}). Name another with --out.") from error
    if half:
        with open(out, "r+b") as file:
            file.truncate(len(whole))
    return ids


def _write(out: TextIO, name: str, answer: Answer, tally: Tally) -> None:
    row = {
        "id": name,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_new_tokens": answer.num_new_tokens,
        "seconds": round(answer.seconds, 4),
    }
    out.write(json.dumps(row, ensure_ascii=False) + "\n")
    out.flush()
    tally.num_answered += 1
    tally.num_prompt_tokens += answer.num_prompt_tokens
    tally.num_new_tokens += answer.num_new_tokens


def _count_lines(path: Path) -> int:
    with open(path, "rb") as lines:
        return sum(1 for line in lines if line.strip())


def show_tally(tally: Tally, batch: Batch, seconds: float) -> None:
    """The closing table."""
    rows: list[tuple[str, object]] = [
        ("lines", tally.num_lines),
        ("answered before", tally.num_before),
        ("answered now", tally.num_answered),
        ("bad", len(tally.bad)),
        ("prompt tokens", tally.num_prompt_tokens),
        ("new tokens", tally.num_new_tokens),
        ("new tokens a second", f"{tally.num_new_tokens / max(seconds, 1e-9):,.1f}"),
        ("seconds", f"{seconds:,.1f}"),
    ]
    show_table(f"Answers in {batch.out}", ("", "number"), rows)
    if tally.bad:
        say("bad lines are not in the file: mend them and run the same command again.")
