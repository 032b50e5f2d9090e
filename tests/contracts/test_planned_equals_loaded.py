"""What is planned from sizes alone is what is encoded and decoded, under rules that count by size: limits of one
picture, JPEGs that lie on their side, videos and texts among them. Nothing is lost, nothing comes twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from rebus.batches.collate import Document
from rebus.batches.feed import build_batch, load_document, open_feed
from rebus.config import check_recipe
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import AnyresConfig, ImageConfig, NativeConfig
from rebus.pictures.prepare import layout, prepare, visuals_of
from rebus.records import Image, Sample, Text, Video
from rebus.shards.config import ShardsRecipe
from rebus.shards.read import iterate, iterate_texts
from rebus.shards.run import run as shard
from rebus.show import run as show
from rebus.show.view import SlotView, view_pack
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import UNUSABLE_SIZE, UnusableSample, count_batch, encode
from rebus.tokens.tokenizer import load_tokens
from tiny_pictures import encoded, photo
from tiny_video import write_video

NATIVE = NativeConfig(kind="native", video_min_pixels=784, video_max_pixels=16 * 784, tokens_per_second=2.0)
ANYRES = AnyresConfig(kind="anyres", size=56, patch_size=14, tokens_per_side=4)
RULES = [pytest.param(NATIVE, id="native"), pytest.param(ANYRES, id="anyres")]


def said(*elements: dict) -> dict:
    content = [*elements, {"type": "text", "text": "what is in the photo?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a red square"}]}


ROWS = [
    said({"type": "image", "image": "photo.png"}),
    said({"type": "image", "image": "photo.png", "max_pixels": 8 * 784}),
    said({"type": "image", "image": "photo.png", "resized_height": 56, "resized_width": 168}),
    said({"type": "image", "image": "small.png", "min_pixels": 30 * 784}),
    said({"type": "image", "image": "turned.jpg"}),
    said({"type": "video", "video": "a.mp4"}),
    said({"type": "video", "video": "a.mp4", "nframes": 6, "max_pixels": 4 * 784, "min_pixels": 784}),
    said({"type": "video", "video": ["photo.png", "turned.jpg", "photo.png"], "fps": 1.0}),
    said({"type": "image", "image": "turned.jpg"}, {"type": "video", "video": "a.mp4", "total_pixels": 40 * 784}),
    said(),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (root / "turned.jpg").write_bytes(encoded(photo(200, 90), "JPEG", exif=exif))
    (root / "photo.png").write_bytes(encoded(photo(230, 120)))
    (root / "small.png").write_bytes(encoded(photo(31, 44)))
    write_video(root / "a.mp4", 40)
    (root / "data.json").write_text(json.dumps(ROWS))
    recipe = {"source": "conversations", "input": str(root / "data.json"), "out": str(root / "shards")}
    summary = shard(check_recipe(ShardsRecipe, recipe | {"num_workers": 1}, "test"))
    assert summary.reasons == {}
    return root / "shards"


@pytest.fixture
def plan_of(shards: Path, tmp_path: Path, tiny_tokenizer_folder: Path) -> Callable[..., Path]:
    def make(rule: ImageConfig, **changes: object) -> Path:
        tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, template="chatml", image=rule)
        recipe = PackRecipe(
            **{"shards": [shards], "tokens": tokens, "capacity": 700, "num_workers": 1, "out": tmp_path / "plan"}
            | changes
        )
        assert pack(recipe).unusable == {}
        return recipe.out

    return make


def loaded_and_planned(shards: Path) -> Iterator[tuple[Sample, Sample]]:
    tar = shards / "00000.tar"
    for (_, loaded), (_, planned) in zip(iterate(tar), iterate_texts(tar), strict=True):
        assert isinstance(planned, Sample)
        yield loaded, planned


def test_the_index_knows_upright_sizes(shards: Path):
    for (_, loaded), (_, planned) in zip(
        iterate(shards / "00000.tar"), iterate_texts(shards / "00000.tar"), strict=True
    ):
        assert isinstance(planned, Sample)
        sizes = [(image.width, image.height, image.limits) for image in loaded.images]
        assert [(image.width, image.height, image.limits) for image in planned.images] == sizes
    turned = [image for _, one in iterate(shards / "00000.tar") for image in one.images if image.width == 90]
    assert [(image.width, image.height) for image in turned] == [(90, 200)] * 3


def test_what_an_element_asks_of_the_resize_reaches_the_layout(shards: Path):
    counts = [
        [layout(visual, NATIVE).num_tokens for part in planned.parts for visual in visuals_of(part, NATIVE)]
        for _, planned in loaded_and_planned(shards)
    ]
    assert counts[:5] == [[32], [6], [12], [35], [21]]
    assert counts[5:] == [[5 * 2], [3 * 2], [2 * 10], [21, 5 * 2], []]


def test_linked_pictures_are_planned_upright_and_within_their_limits(shards: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name in ("turned.jpg", "photo.png", "small.png"):
        (tmp_path / "in" / name).write_bytes((shards.parent / name).read_bytes())
    lines = "".join(json.dumps(row) + "\n" for row in ROWS[:5])
    (tmp_path / "in" / "data.jsonl").write_text(lines)
    recipe = {"source": "conversations", "input": str(tmp_path / "in" / "data.jsonl"), "out": str(tmp_path / "linked")}
    shard(check_recipe(ShardsRecipe, recipe | {"num_workers": 1, "link": True}, "test"))
    counted = []
    link = tmp_path / "linked" / "00000.link"
    for (_, loaded), (_, planned) in zip(iterate(link), iterate_texts(link), strict=True):
        assert isinstance(planned, Sample)
        assert [layout(one, NATIVE) for one in planned.images] == [layout(one, NATIVE) for one in loaded.images]
        counted += [layout(one, NATIVE).num_tokens for one in planned.images]
    assert counted == [32, 6, 12, 35, 21]


@pytest.mark.parametrize("rule", RULES)
def test_layouts_by_the_index_are_those_of_the_pixels(shards: Path, rule: ImageConfig):
    for (_, loaded), (_, planned) in zip(
        iterate(shards / "00000.tar"), iterate_texts(shards / "00000.tar"), strict=True
    ):
        assert isinstance(planned, Sample)
        for part, known in zip(loaded.parts, planned.parts, strict=True):
            for visual, size in zip(visuals_of(part, rule), visuals_of(known, rule), strict=True):
                found, prepared = layout(size, rule), prepare(visual, rule)
                assert found == layout(visual, rule)
                assert found.grid == prepared.grid
                num_rows = found.num_patches if isinstance(rule, NativeConfig) else found.grid[0]
                assert prepared.rows.shape == (num_rows, *rule.row_shape)


@pytest.mark.parametrize("rule", RULES)
def test_every_document_arrives_as_planned(plan_of: Callable[..., Path], rule: ImageConfig):
    feed = open_feed(plan_of(rule))
    keys: list[str] = []
    for number in range(feed.num_packs):
        references = feed.plan.documents(number)
        documents = [load_document(feed, reference) for reference in references]
        assert all(isinstance(one, Document) for one in documents), documents
        for reference, one in zip(references, documents, strict=True):
            assert one.encoded.num_tokens == reference.num_tokens
        batch = build_batch(feed, (number,))
        assert batch.damage == ()
        assert batch.num_tokens == sum(reference.num_tokens for reference in references) <= 700
        assert int((batch.ids < 0).sum()) == int(batch.slots[:, 1].sum())
        grids = batch.grids.numpy()
        assert len(batch.pixels) == (grids.prod(axis=1) if rule is NATIVE else grids[:, 0]).sum()
        keys += batch.keys
    assert len(set(keys)) == len(keys) == len(ROWS)


def test_a_limit_of_patches_bounds_the_tower_s_work(plan_of: Callable[..., Path]):
    feed = open_feed(plan_of(NATIVE, max_patches_per_pack=400))
    patches = [int(build_batch(feed, (number,)).grids.prod(dim=1).sum()) for number in range(feed.num_packs)]
    assert max(patches) <= 400
    whole = open_feed(feed.plan.folder)
    assert sum(len(whole.plan.documents(number)) for number in range(whole.num_packs)) == len(ROWS)
    assert sum(patches) > 400


@pytest.mark.parametrize(("rule", "num_slots", "num_videos"), [(NATIVE, 10, 4), (ANYRES, 6 + 10 + 6 + 3 + 10, 0)])
def test_a_pack_with_videos_and_tiles_can_be_looked_at(
    plan_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture, rule, num_slots: int, num_videos: int
):
    folder = plan_of(rule, capacity=2000)
    feed = open_feed(folder)
    views = [view_pack(feed, number) for number in range(feed.num_packs)]
    pieces = [piece for view in views for document in view.documents for piece in document.pieces]
    slots = [piece for piece in pieces if isinstance(piece, SlotView)]
    videos = [slot for slot in slots if slot.num_frames]
    assert (len(slots), len(videos)) == (num_slots, num_videos)
    assert sorted(slot.num_frames for slot in videos) == ([3, 6, 10, 10] if num_videos else [])
    for number in range(feed.num_packs):
        show(folder, pack=number)
        show(folder, pack=number, html=tmp_path / f"{number}.html")
    shown = capsys.readouterr().out
    assert ("video of 6 frames, 32 x 48: " in shown) == bool(num_videos)
    assert "image 90 x 200: " in shown
    pages = "".join((tmp_path / f"{number}.html").read_text() for number in range(feed.num_packs))
    assert pages.count('src="data:image/webp;base64,') == num_slots
    assert "left out" not in pages


@pytest.mark.parametrize("rule", RULES)
def test_a_picture_of_unknown_size_is_one_sample_lost(tiny_tokenizer_folder: Path, rule: ImageConfig):
    tokens = load_tokens(TokensConfig(tokenizer=tiny_tokenizer_folder, image=rule))
    visual = Video((Image(0, 0),), (0.0,)) if rule is NATIVE else Image(0, 0)
    bad = Sample("bad", "0" * 32, "s", (visual, Text("a photo")))
    good = Sample("good", "1" * 32, "s", (Image(60, 40), Text("a photo")))
    with pytest.raises(UnusableSample, match="must be known"):
        encode(bad, tokens)
    counted = count_batch([bad, good], tokens)
    assert isinstance(counted[0], UnusableSample)
    assert counted[0].reason == UNUSABLE_SIZE
    assert not isinstance(counted[1], UnusableSample)
    assert np.array_equal(counted[1].num_tokens, encode(good, tokens).num_tokens)
