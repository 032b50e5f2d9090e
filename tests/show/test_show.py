"""`rebus show`: it decides by what a folder says it is, and shows what training sees."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planted import plant
from rebus.batches.feed import open_feed
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.fingerprint import Manifest, write_manifest
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.scores.config import ScoreRecipe
from rebus.scores.run import run as score
from rebus.show import run
from rebus.show.page import DARK, INK, LIGHT, _piece, render_page
from rebus.show.plan import summarise
from rebus.show.scores import bin_counts, open_scores
from rebus.show.view import SlotView, TokenView, view_pack
from rebus.tokens.config import FixedConfig, TokensConfig
from tiny_samples import TinySample, tiny_picture, write_shards


@pytest.fixture
def plan(tmp_path: Path, tiny_tokenizer_folder: Path) -> Path:
    turns = ({"role": "user", "content": "what is <b>?"}, {"role": "assistant", "content": "a photo\nof red"})
    samples = [TinySample(f"a photo {number}", tiny_picture()) for number in range(6)] + [TinySample(messages=turns)]
    shards = write_shards(tmp_path / "shards", samples)
    tokens = TokensConfig(
        tokenizer=tiny_tokenizer_folder, template="chatml", image=FixedConfig(size=8, tokens_per_side=2)
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
    assert page.count("<article ") == 7
    assert page.count('<a class="c') == 7
    assert "<script" not in page
    assert page.count('src="data:image/webp;base64,') == 6
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "is &lt;b" in re.sub(r"</?[bi]( [^>]*)?>", "", page)
    assert "pack 0 of 1" in page


def test_damaged_documents_are_shown_as_left_out(plan: Path):
    feed = open_feed(plan)
    for tar in set(feed.plan.shards):
        data = bytearray(tar.read_bytes())
        data[data.index(b"IDAT") + 6] ^= 0xFF
        tar.write_bytes(data)
    view = view_pack(feed, 0)
    page = render_page(feed.plan, [view])
    assert page.count("left out: undecodable image") == 1
    left_out = next(document for document in view.documents if document.damage)
    whole = [document for document in view.documents if not document.damage]
    assert view.num_tokens == sum(document.num_tokens for document in whole)
    assert [document.start for document in whole] == [
        sum(document.num_tokens for document in whole[:number]) for number in range(len(whole))
    ], "what is left out takes no place"
    assert page.count('<a class="c') == len(view.documents) - 1
    assert left_out.num_trained == 0


def test_pack_in_the_terminal(plan: Path, capsys: pytest.CaptureFixture):
    run(plan, pack=0)
    shown = capsys.readouterr().out
    assert "pack 0 of 1" in shown
    assert "(a picture; this terminal has no colours)" in shown
    assert "trained on" in shown
    assert "<|im_end|>[2]" in shown
    with pytest.raises(DataError, match="no pack 7"):
        run(plan, pack=7)


def test_plan_without_a_pack_is_summed_up(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run(plan)
    shown = capsys.readouterr().out
    assert "documents by length in tokens" in shown
    summary = summarise(open_feed(plan).plan)
    rows = dict(summary.rows)
    assert rows["documents"] == "7"
    assert rows["images"] == "6"
    assert rows["attention"] == "within documents"
    assert sum(number for _, number in summary.lengths) == 7
    assert sum(number for _, number in summary.fills) == 1
    run(plan, html=tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert "cost of a pack" in page
    assert page.count("<article ") == 7


def pack_of(texts: list[str], folder: Path, tokenizer: Path, **changes: object) -> Path:
    """A plan of one page of these texts with a picture between each two of them."""
    from rebus.shards.config import ShardsRecipe
    from rebus.shards.run import run as index
    from rebus.shards.write import write_shard

    parts = [part for text in texts for part in (text, None)][:-1]
    pictures = {f"{number}.png": tiny_picture() for number in range(len(texts) - 1)}
    (folder / "in").mkdir()
    page = {**pictures, "json": json.dumps({"texts": parts}).encode()}
    write_shard(folder / "in" / "00000.tar", [("page", page)])
    index(ShardsRecipe(source="tars", input=folder / "in", out=folder / "pages", num_workers=1))
    tokens = TokensConfig(tokenizer=tokenizer, image=FixedConfig(size=8, tokens_per_side=2))
    recipe = PackRecipe(shards=[folder / "pages"], tokens=tokens, out=folder / "plan", num_workers=1, **changes)
    pack(recipe)
    return recipe.out


def test_pictures_stand_where_they_stand_in_the_text(tmp_path: Path, tiny_tokenizer_folder: Path):
    plan = pack_of(["before", "after"], tmp_path, tiny_tokenizer_folder, capacity=64)
    page = render_page(open_feed(plan).plan, [view_pack(open_feed(plan), 0)])
    words = re.sub(r"<small>.*?</small>", "", page[page.index("<article") :])
    words = re.sub(r"<img[^>]*>", "[picture]", words)
    assert "before[picture]after" in re.sub(r"<[^>]*>", "", words)
    view = view_pack(open_feed(plan), 0)
    slot = next(piece for piece in view.documents[0].pieces if isinstance(piece, SlotView))
    assert f"{slot.position} to {slot.position + 3}" in page


def test_cut_documents_and_attention_across_them_are_marked(tmp_path: Path, tiny_tokenizer_folder: Path):
    texts = ["a photo of a red square on the table"] * 6
    plan = pack_of(texts, tmp_path, tiny_tokenizer_folder, capacity=64, oversize="cut", cross_document=True)
    feed = open_feed(plan)
    page = render_page(feed.plan, [view_pack(feed, number) for number in range(feed.num_packs)], whole=True)
    assert page.count(' cut" id=') == feed.plan.table.num_rows > 1
    assert "cut: part 0 to part" in page
    assert page.count("attention and positions run through the pack") == feed.num_packs
    assert dict(summarise(feed.plan).rows)["pieces of cut documents"] == str(feed.plan.table.num_rows)


@pytest.mark.parametrize("across", [False, True])
def test_what_opens_a_document_is_trained_on_where_one_precedes_it(plan: Path, tmp_path: Path, across: bool):
    feed = open_feed(plan)
    tokens = feed.plan.tokens.model_copy(update={"start_of_text": "<|im_start|>"})
    out = tmp_path / "opened"
    shards = [plan.parent / "shards"]
    pack(PackRecipe(shards=shards, tokens=tokens, capacity=256, cross_document=across, out=out, num_workers=1))
    view = view_pack(open_feed(out), 0)
    opened = [one.pieces[0] for one in view.documents if isinstance(one.pieces[1], SlotView)]
    assert len(opened) == 6
    assert [piece.trained for piece in opened] == [across and piece.position > 0 for piece in opened]


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("scheme", "colours", "paper"), [("light", LIGHT, "#fdfdfb"), ("dark", DARK, "#161616")])
def test_text_can_be_read_on_every_colour(scheme: str, colours: tuple, paper: str):
    for line, tint in colours:
        assert all(contrast(ink, tint) >= 4.5 for ink in INK[scheme]), f"text on {tint}"
        assert contrast(line, tint) >= 3, "borders and underlines (WCAG 1.4.11)"
        assert contrast(line, paper) >= 3, "the bar"


def test_a_character_of_several_tokens_is_shown_once(tmp_path: Path, tiny_tokenizer_folder: Path):
    plan = pack_of(["日本", "x"], tmp_path, tiny_tokenizer_folder, capacity=64)
    view = view_pack(open_feed(plan), 0)
    texts = [piece.text for piece in view.documents[0].pieces if isinstance(piece, TokenView)]
    assert [text for text in texts if text][:2] == ["日", "本"]
    assert texts[:3] == ["", "", "日"]


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
    with pytest.raises(ConfigError, match="--at goes with a shard or table, but this is a plan"):
        run(plan, at=0)
    with pytest.raises(ConfigError, match="--pack goes with a plan, but this is a shards"):
        run(plan.parent / "shards", pack=0)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="is no artifact of Rebus"):
        run(tmp_path / "nothing")


def test_gallery_of_a_shard(plan: Path, tmp_path: Path):
    tar = plan.parent / "shards" / "00000.tar"
    run(tar, html=tmp_path / "shard.html")
    page = (tmp_path / "shard.html").read_text()
    assert page.count("<article>") == 7
    assert page.count('src="data:image/webp;base64,') == 6
    assert "what is &lt;b&gt;?" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_shard_that_was_never_indexed_is_shown_with_its_damage(tmp_path: Path, capsys: pytest.CaptureFixture):
    tar = plant(tmp_path / "pool") / "00000.tar"
    run(tar)
    shown = capsys.readouterr()
    assert "--sample bomb  # decompression bomb: 40000 x 40000" in shown.out
    assert "17 damaged" in shown.err
    run(tar, sample="textual")
    shown = capsys.readouterr().out
    assert "textual  damaged: unreadable image header" in shown
    assert "textual.jpg  21 bytes at byte" in shown
    assert "74 68 69 73 20 69 73 20 6e 6f 74" in shown, "its first bytes"
    run(tar, html=tmp_path / "pool.html")
    page = (tmp_path / "pool.html").read_text()
    assert page.count('<td class="bad">') == 17
    assert page.count('<span class="note">') == 5
    with pytest.raises(DataError, match="nothing begins at byte"):
        run(tar, at=10**9)
    run(tar, at=513)
    assert "damaged tar header" in capsys.readouterr().out


def test_terminal_commands_in_data_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture):
    shards = write_shards(tmp_path / "shards", [TinySample("a \x1b[2J b\nc", tiny_picture())])
    run(shards / "00000.tar", sample="0")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "a \ufffd[2J b\nc" in shown


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    colours = ["red", "green", "blue", "white"]
    texts = [f"a {'very ' * number}long text" for number in range(8)]
    samples = [TinySample(text, tiny_picture(colours[n % 4])) for n, text in enumerate(texts)]
    shards = write_shards(tmp_path / "shards", samples, samples_per_shard=5)
    score(ScoreRecipe(shards=shards, out=tmp_path / "scores", scorers={"text_stats": {}, "image_stats": {}}))
    return tmp_path / "scores"


def test_scores_show_their_shape_and_their_ends(scores: Path, capsys: pytest.CaptureFixture):
    run(scores)
    shown = " ".join(capsys.readouterr().out.split())
    assert "8 samples of" in shown
    column = next(one for one in open_scores(scores).columns() if one.title == "text_stats.num_words")
    assert column.quantiles[0::2] == (3.0, 6.5, 10.0)
    assert [(one.shard, one.key) for one in column.lowest] == [("00000", f"00000000{n}") for n in (0, 1, 2)]
    assert [(one.shard, one.key) for one in column.highest] == [("00001", f"00000000{n}") for n in (7, 6, 5)]
    assert "lowest 3 000000000 (00000), 4 000000001 (00000)" in shown
    counts, edges = bin_counts(column.values, 24)
    assert counts.tolist() == [1] * 8
    assert edges[0] == 2.5


def test_missing_scores_are_counted_and_not_ranked(scores: Path):
    path = scores / "text_stats" / "00000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("num_words")
    values = [None, float("nan"), *table["num_words"].to_pylist()[2:]]
    pq.write_table(table.set_column(place, "num_words", pa.array(values, pa.float32())), path)
    column = next(one for one in open_scores(scores).columns() if one.title == "text_stats.num_words")
    assert (column.num_rows, column.num_missing) == (8, 2)
    assert column.lowest[0].key == "000000002"


def test_page_of_scores_has_the_pictures_at_both_ends(scores: Path, tmp_path: Path):
    run(scores, html=tmp_path / "scores.html")
    page = (tmp_path / "scores.html").read_text()
    assert page.count('<svg class="plot"') == page.count("<section>") >= 2
    assert "a very very very very very very very long text" in page
    assert 'src="data:image/webp;base64,' in page
    (tmp_path / "shards").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="Point --shards at the folder"):
        run(scores, html=tmp_path / "scores.html")
    run(scores, shards=tmp_path / "moved", html=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text().count("<img") == page.count("<img")
    strangers = write_shards(tmp_path / "strangers", [TinySample("else", tiny_picture())])
    with pytest.raises(StrangerError, match="was made of"):
        run(scores, shards=strangers, html=tmp_path / "scores.html")


def test_a_video_is_told_from_a_picture_without_pointing_at_it():
    assert "<small>video, 6 frames<br>12 tokens" in _piece(SlotView(0, 12, 8, 8, b"", num_frames=6), 0)
    assert "<small>12 tokens" in _piece(SlotView(0, 12, 8, 8, b""), 0)
