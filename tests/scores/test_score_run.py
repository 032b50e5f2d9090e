"""`rebus score` as a whole: one decode for all scorers, tables that stand alone, and what a kill costs."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from rebus import engine
from rebus.errors import ConfigError
from rebus.scores import decode, scorers
from rebus.scores import run as score_run
from rebus.scores.config import ScoreRecipe
from rebus.scores.measure import Pass, Scored
from rebus.scores.run import run
from rebus.selection.config import SelectionRecipe
from rebus.selection.run import run as select
from tiny_samples import TinySample, tiny_picture, write_shards

PER_SHARD = 10
COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture(autouse=True)
def extra_scorers(monkeypatch):
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(Path(__file__).parent / "extra_scorers")])


def make_pool(folder: Path, num_shards: int = 4) -> Path:
    samples = [
        TinySample("word " * (number % 7 + 1), tiny_picture(COLOURS[number % 5], (20 + number, 16)))
        for number in range(num_shards * PER_SHARD)
    ]
    return write_shards(folder, samples, PER_SHARD)


def tables(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/*.parquet"))}


def recipe(tmp_path: Path, pool: Path, out: str = "scores", **changes) -> ScoreRecipe:
    settings = {"scorers": {"image_stats": {}, "text_stats": {"language": False}}, "batch_size": 4, "num_decoders": 2}
    return ScoreRecipe(shards=pool, out=tmp_path / out, **settings | changes)


def test_every_sample_is_scored_once_in_the_shards_order(tmp_path):
    pool = make_pool(tmp_path / "pool")
    out = run(recipe(tmp_path, pool))
    for shard in sorted(pool.glob("*.tar")):
        index = pq.read_table(shard.with_suffix(".index.parquet"))
        for scorer in ("image_stats", "text_stats"):
            table = pq.read_table(out / scorer / f"{shard.stem}.parquet")
            assert table["uid"].to_pylist() == index["uid"].to_pylist()
            assert table["key"].to_pylist() == index["key"].to_pylist()
        widths = pq.read_table(out / "image_stats" / f"{shard.stem}.parquet")["width"]
        assert widths.to_pylist() == index["width"].to_pylist()


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 64}, {"num_decoders": 1}, {"num_workers": 2}])
def test_tables_do_not_depend_on_how_the_work_was_cut(tmp_path, changes):
    pool = make_pool(tmp_path / "pool")
    assert tables(run(recipe(tmp_path, pool))) == tables(run(recipe(tmp_path, pool, "other", **changes)))


def test_a_picture_is_decoded_once_for_all_scorers(tmp_path, monkeypatch):
    pool, seen = make_pool(tmp_path / "pool"), Counter()
    real = decode.decode_image
    monkeypatch.setattr(decode, "decode_image", lambda data: seen.update([data]) or real(data))
    run(recipe(tmp_path, pool, scorers={name: {"scorer": "image_stats"} for name in ("a", "b", "c")}))
    assert sum(seen.values()) == 4 * PER_SHARD


def test_nothing_is_decoded_for_scorers_that_look_at_no_pixel(tmp_path, monkeypatch):
    pool = make_pool(tmp_path / "pool")
    monkeypatch.setattr(decode, "decode_image", lambda data: pytest.fail("decoded"))
    out = run(recipe(tmp_path, pool, scorers={"witness": {"notes": tmp_path / "notes", "pictures": False}}))
    assert pq.read_table(out / "witness" / "00000.parquet")["blind"].to_pylist() == [True] * PER_SHARD


def test_vectors_lie_beside_the_table(tmp_path):
    pool = make_pool(tmp_path / "pool")
    out = run(recipe(tmp_path, pool, scorers={"witness": {"notes": tmp_path / "notes"}}))
    table = pq.read_table(out / "witness" / "00001.parquet")
    vectors = pq.read_table(out / "witness" / "00001.vectors.parquet")
    assert table.column_names == ["uid", "key", "chars", "blind"]
    assert vectors["uid"].to_pylist() == table["uid"].to_pylist()
    found = np.array(vectors["vector"].to_pylist())
    assert found[:, 0].tolist() == table["chars"].to_pylist()
    assert str(vectors.schema.field("vector").type) == "fixed_size_list<element: halffloat>[2]"


def test_another_scorer_leaves_the_tables_of_the_first_alone(tmp_path, capsys):
    pool = make_pool(tmp_path / "pool")
    first = {"witness": {"notes": tmp_path / "notes"}}
    out = run(recipe(tmp_path, pool, scorers=first))
    run(recipe(tmp_path, pool))  # others, in the same folder
    run(recipe(tmp_path, pool, scorers={**first, "image_stats": {}}))
    assert len((tmp_path / "notes").read_text().splitlines()) == 4 * PER_SHARD
    assert capsys.readouterr().err.count("is up to date") == 1
    assert {path.parent.name for path in out.glob("*/*.parquet")} == {"witness", "image_stats", "text_stats"}


def test_other_options_score_anew_and_for_that_scorer_alone(tmp_path):
    pool = make_pool(tmp_path / "pool")
    both = {"image_stats": {}, "witness": {"notes": tmp_path / "notes"}}
    out = run(recipe(tmp_path, pool, scorers=both))
    kept = {path: path.stat().st_ino for path in out.glob("image_stats/*")}
    run(recipe(tmp_path, pool, scorers={**both, "witness": {"notes": tmp_path / "others"}}))
    assert len((tmp_path / "others").read_text().splitlines()) == 4 * PER_SHARD
    assert {path: path.stat().st_ino for path in out.glob("image_stats/*")} == kept


@pytest.mark.parametrize("name", ["../up", "quarantine", ".hidden", ""])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="names a folder"):
        run(recipe(tmp_path, make_pool(tmp_path / "pool", 1), scorers={name: {"scorer": "image_stats"}}))


def test_an_unknown_scorer_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no scorer 'image_stat'.*image_stats.*There are: .*text_stats"):
        run(recipe(tmp_path, make_pool(tmp_path / "pool", 1), scorers={"image_stat": {}}))


@pytest.mark.parametrize("die_after", [4, 13, 22, 40])
def test_killed_at_any_shard_it_goes_on_with_the_next(tmp_path, die_after):
    """Tables that were there stay as they are, no sample of a finished shard is measured again, nothing is missing."""
    pool, notes = make_pool(tmp_path / "pool"), tmp_path / "notes"
    settings = recipe(tmp_path, pool, scorers={"image_stats": {}, "witness": {"notes": notes}})
    calm = tables(run(recipe(tmp_path, pool, "calm", scorers=settings.scorers)))
    notes.unlink()
    file = tmp_path / "score.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))

    def process(limit: int) -> int:
        command = [sys.executable, str(Path(__file__).parent / "score_alone.py"), str(file)]
        environment = {**os.environ, "REBUS_DIE_AFTER": str(limit), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode

    assert process(die_after) == -signal.SIGKILL
    finished = {path: path.stat().st_ino for path in settings.out.glob("witness/0*[0-9].parquet")}
    measured = Counter(notes.read_text().splitlines())
    assert process(0) == 0
    assert {path: path.stat().st_ino for path in finished} == finished
    assert tables(settings.out) == calm
    twice = Counter(notes.read_text().splitlines())
    again = {uid for path in finished for uid in pq.read_table(path)["uid"].to_pylist() if twice[uid] > 1}
    assert sum(measured.values()) >= die_after
    assert not again
    assert len(twice) == 4 * PER_SHARD


def test_a_cluster_that_loses_a_worker_gives_the_same_tables(tmp_path, monkeypatch):
    """A real Ray of two workers on this machine; the one that gets shard 00017 is killed the first time."""
    pool, died, notes = make_pool(tmp_path / "pool", 24), tmp_path / "died", tmp_path / "notes"
    calm = tables(run(recipe(tmp_path, pool, "calm", num_threads=1)))

    class Mortal(Pass):
        def __call__(self, shards: Iterable[Path]) -> Iterator[Scored]:
            for scored in super().__call__(shards):
                with notes.open("a") as file:
                    file.write(f"{scored.shard}\n")
                if scored.shard == "00017.tar" and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield scored

    monkeypatch.setattr(score_run, "Pass", Mortal)
    with engine.on_ray(engine.Cluster("local", num_workers=2)):
        out = run(recipe(tmp_path, pool, "ray", num_threads=1))
    assert died.exists()
    assert sorted(notes.read_text().split()) == [f"{number:05d}.tar" for number in range(24)]  # none of them twice
    assert tables(out) == calm


def test_what_was_selected_by_the_first_scorer_stays_valid_when_a_second_comes(tmp_path, capsys):
    pool = make_pool(tmp_path / "pool")
    out = run(recipe(tmp_path, pool))
    chosen = SelectionRecipe(
        shards=pool,
        scores=out,
        out=tmp_path / "selection",
        rules=[{"name": "wide", "column": "image_stats.width", "keep_fraction": 0.5}],
    )
    select(chosen)
    run(recipe(tmp_path, pool, scorers={"witness": {"notes": tmp_path / "notes"}}))
    capsys.readouterr()
    select(chosen)
    assert "selection is up to date" in capsys.readouterr().err
    run(recipe(tmp_path, pool, scorers={"image_stats": {"scorer": "text_stats", "language": False}}))
    with pytest.raises(ConfigError, match=r"no column 'image_stats.width'"):
        select(chosen)
