"""`rebus show`: it decides by what a folder says it is, and shows what training sees."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rebus.batches.feed import open_feed
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import Manifest, write_manifest
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.show import run
from rebus.show.page import render_page
from rebus.show.view import SlotView, TokenView, view_pack
from rebus.tokens.config import ImageConfig, TokensConfig
from tiny_samples import TinySample, tiny_picture, write_shards


@pytest.fixture
def plan(tmp_path: Path, tiny_tokenizer_folder: Path) -> Path:
    turns = ({"role": "user", "content": "what is <b>?"}, {"role": "assistant", "content": "a photo\nof red"})
    samples = [TinySample(f"a photo {number}", tiny_picture()) for number in range(6)] + [TinySample(messages=turns)]
    shards = write_shards(tmp_path / "shards", samples)
    tokens = TokensConfig(
        tokenizer=tiny_tokenizer_folder, template="chatml", image=ImageConfig(size=8, tokens_per_side=2)
    )
    # A folder name that says something else: names decide nothing.
    recipe = PackRecipe(shards=[shards], tokens=tokens, capacity=256, out=tmp_path / "runs_shards.tar", num_workers=1)
    pack(recipe)
    return recipe.out


def test_a_view_holds_every_token_once(plan: Path):
    feed = open_feed(plan)
    view = view_pack(feed, 0)
    assert view.num_tokens == sum(reference.num_tokens for reference in feed.plan.documents(0))
    for document in view.documents:
        assert document.num_tokens == sum(
            1 if isinstance(piece, TokenView) else piece.num_tokens for piece in document.pieces
        )
    conversation = next(document for document in view.documents if not isinstance(document.pieces[0], SlotView))
    trained = "".join(piece.text for piece in conversation.pieces if isinstance(piece, TokenView) and piece.trained)
    assert trained == "a photo\nof red<|im_end|>"


def test_page_is_whole_and_fetches_nothing(plan: Path, tmp_path: Path):
    run(plan, pack=0, html=tmp_path / "pack.html")
    page = (tmp_path / "pack.html").read_text()
    assert page.count("<article>") == 7
    assert page.count('src="data:image/webp;base64,') == 6
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<b>" not in page
    assert "pack 0 of 1" in page


def test_damaged_documents_are_shown_as_left_out(plan: Path):
    feed = open_feed(plan)
    for tar in set(feed.plan.shards):
        data = bytearray(tar.read_bytes())
        data[data.index(b"IDAT") + 6] ^= 0xFF
        tar.write_bytes(data)
    page = render_page(view_pack(feed, 0), "plan")
    assert page.count("left out: undecodable image") == 1


def test_pack_in_the_terminal(plan: Path, capsys: pytest.CaptureFixture):
    run(plan, pack=0)
    shown = capsys.readouterr().out
    assert "pack 0 of 1" in shown
    assert "(a picture; this terminal has no colours)" in shown
    assert "trained on" in shown
    assert "<|im_end|>[2]" in shown
    with pytest.raises(DataError, match="no pack 7"):
        run(plan, pack=7)


def test_shard_and_its_samples(plan: Path, capsys: pytest.CaptureFixture):
    tar = plan.parent / "shards" / "00000.tar"
    run(tar)
    assert "7 samples" in " ".join(capsys.readouterr().out.split())
    run(tar, sample="6")
    by_number = capsys.readouterr().out
    assert "user: what is <b>?" in by_number
    run(tar, sample="000000006")
    assert capsys.readouterr().out == by_number
    with pytest.raises(DataError, match=r"none is called '00000000x' \(did you mean '00000000"):
        run(tar, sample="00000000x")


def test_run_shows_its_recipe_and_last_step(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "recipe.yaml").write_text("optimizer:\n  lr: 0.25\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 3.5 - n}) + "\n" for n in range(3)))
    run(tmp_path)
    assert "2" in capsys.readouterr().out
    write_manifest(tmp_path, Manifest("checkpoint", {}, {}, {"steps": 3}))
    run(tmp_path)
    shown = capsys.readouterr().out
    assert re.search(r"optimizer\.lr\W+0\.25", shown)
    assert re.search(r"loss\W+1\.5", shown)
    assert re.search(r"kind\W+checkpoint", shown)


def test_options_that_do_not_fit_are_refused(plan: Path, tmp_path: Path, tiny_shards: Callable[..., Path]):
    with pytest.raises(ConfigError, match="--sample goes with a shard, but this is a plan"):
        run(plan, sample="0")
    with pytest.raises(ConfigError, match="--pack goes with a plan, but this is a shards"):
        run(plan.parent / "shards", pack=0)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="is no artifact of Rebus"):
        run(tmp_path / "nothing")
