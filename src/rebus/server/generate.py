"""`rebus generate`: one question about pictures and videos, a file of them, or a benchmark of one."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rebus.errors import ConfigError
from rebus.log import output, write_pieces
from rebus.model.decode_sampling import Sampling
from rebus.server import benchmark
from rebus.server.batch import Batch, answer_file, show_tally
from rebus.server.engine import Engine, Request
from rebus.server.load import load


@dataclass(frozen=True)
class Asked:
    """What the command line says beside the model and its sampling. video: options of every video."""

    question: str | None = None
    images: Sequence[str] = ()
    videos: Sequence[str] = ()
    system: str | None = None
    video: dict[str, Any] = field(default_factory=dict)
    batch: Path | None = None
    out: Path | None = None
    num_rows: int = 8
    as_json: bool = False
    num_runs: int | None = None


def run(model: str, asked: Asked, sampling: Sampling, loading: dict[str, Any]) -> int:
    """Answers; returns the exit status, 1 where a line of a batch was bad. loading: options of `rebus.load`.

    Raises: ConfigError, DataError, StrangerError.
    """
    _check(asked)
    engine = load(model, **loading)
    if asked.batch is not None:
        return _run_batch(engine, asked, sampling)
    videos = [(one, asked.video) for one in asked.videos]
    request = engine.request(asked.question or "", asked.images, videos, system=asked.system, sampling=sampling)
    if asked.num_runs is not None:
        _run_benchmark(engine, asked, request)
    else:
        _run_one(engine, asked, request)
    return 0


def _check(asked: Asked) -> None:
    if asked.batch is not None and (asked.question is not None or asked.images or asked.videos or asked.num_runs):
        raise ConfigError("--batch brings its own questions, pictures and videos; leave the others out.")
    if (asked.batch is None) != (asked.out is None):
        raise ConfigError("--batch FILE.jsonl and --out FILE.jsonl go together.")
    if asked.batch is None and not asked.question and not asked.images and not asked.videos:
        raise ConfigError("nothing is asked: give --question, --image, --video or --batch.")


def _run_one(engine: Engine, asked: Asked, request: Request) -> None:
    if asked.as_json:
        ((_, answer),) = engine.answer([request])
        if isinstance(answer, Exception):
            raise answer
        _print_json(asdict(answer))
        return
    write_pieces(engine.pieces(request))


def _run_batch(engine: Engine, asked: Asked, sampling: Sampling) -> int:
    assert asked.batch is not None
    assert asked.out is not None
    batch = Batch(asked.batch, asked.out, sampling, asked.system, asked.video, asked.num_rows)
    start = time.perf_counter()
    tally = answer_file(engine, batch)
    seconds = time.perf_counter() - start
    if asked.as_json:
        _print_json({**asdict(tally), "seconds": seconds})
    else:
        show_tally(tally, batch, seconds)
    return 1 if tally.bad else 0


def _run_benchmark(engine: Engine, asked: Asked, request: Request) -> None:
    assert asked.num_runs is not None
    figures = benchmark.measure(engine, request, asked.num_runs)
    if asked.as_json:
        _print_json(figures)
    else:
        benchmark.show(figures)


def _print_json(value: dict[str, Any]) -> None:
    output.print(json.dumps(value, ensure_ascii=False), highlight=False, markup=False, soft_wrap=True)
