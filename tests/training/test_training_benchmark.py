"""benchmarks/training.py compares what is comparable: every contestant computes the loss of the same documents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rebus.batches.feed import build_batch, open_feed
from rebus.checkpoints.load import load_model
from tiny_families import arguments
from tiny_way import TinyWay

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

from training import full_loss, pad  # noqa: E402
from training_rivals import padded, rows_of, within  # noqa: E402


def test_padding_and_full_logits_change_no_loss(tiny_way: TinyWay, tiny_checkpoint: Path, monkeypatch):
    feed = open_feed(tiny_way.plan)
    batch = build_batch(feed, (0,)).to("cpu")
    model, _ = load_model(tiny_checkpoint, image=feed.plan.tokens.image, template=feed.plan.tokens.template)
    wanted, num_supervised = model.loss(**arguments(batch))
    wide = pad(batch, range(batch.num_documents))
    assert wide.num_tokens > batch.num_tokens, "or nothing is padded"
    loss, count = model.loss(**arguments(wide))
    torch.testing.assert_close(loss, wanted)
    assert count == num_supervised
    monkeypatch.setattr("rebus.model.families.token_loss", full_loss)
    torch.testing.assert_close(model.loss(**arguments(batch))[0], wanted)


def test_rows_hold_the_documents_of_a_pack(tiny_way: TinyWay):
    batch = build_batch(open_feed(tiny_way.plan), (0,)).to("cpu")
    rows = rows_of(batch, 299)
    assert sum(len(row["input_ids"]) for row in rows) == batch.num_tokens
    assert sum(len(row["pixel_values"]) for row in rows) == batch.num_images
    assert sum(int((row["labels"][1:] != -100).sum()) for row in rows) == batch.num_supervised
    for row in rows:
        is_target = row["labels"] != -100
        assert torch.equal(row["labels"][is_target], row["input_ids"][is_target])
    together = padded(rows)
    assert together["input_ids"].shape == (len(rows), max(len(row["input_ids"]) for row in rows))


@pytest.mark.parametrize("lengths", [[5, 3, 9, 1, 1, 1, 4], [10, 10], [1]])
def test_capped_batches_hold_every_document_once(lengths: list[int]):
    batches = within(lengths, 10)
    assert [one for batch in batches for one in batch] == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[one] for one in batch) <= 10 for batch in batches)


def test_it_runs_in_a_tiny_shape(tmp_path: Path):
    command = [sys.executable, str(FOLDER / "training.py"), "--quick", "--rounds", "1", "--capacity", "512"]
    command += ["--distributions", "captions", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [result] = json.loads((tmp_path / "figures.json").read_text())["results"]
    padding = {row["contestant"]: row["padding"] for row in result["contestants"]}
    assert len(padding) == 8
    assert padding["rebus train"] == 0 < padding["ours, padded batches"] == padding["(a) padded, plain loop"]
    assert all(row["tokens_per_second"] > 0 for row in result["contestants"])
