"""Videos become frames when a shard is written: which ones, at what times, and what is wrong with the others."""

import json
from pathlib import Path

import pytest
from test_shards_tars import picture

from rebus.config import check_recipe
from rebus.records import Text, Video
from rebus.shards import damage
from rebus.shards.assemble import assemble
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import DamagedSampleError
from rebus.shards.read import iterate, iterate_texts
from rebus.shards.run import run
from rebus.shards.sources.conversations import build
from rebus.shards.sources.video import read_video
from tiny_video import told_seconds, write_video


def test_frames_are_stored_as_jpeg_with_their_times(tmp_path: Path):
    write_video(tmp_path / "a.mp4", 80)
    frames = read_video(tmp_path, {"video": "a.mp4", "nframes": 6})
    seconds = frames.times["seconds"]
    assert (frames.times["num_frames"], frames.times["fps"], len(seconds)) == (6, 0.6, 6)
    for (extension, data), second in zip(frames.pictures, seconds, strict=True):
        assert extension == "jpg"
        assert told_seconds(data) == pytest.approx(second, abs=0.1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"nframes": 200}, damage.UNREADABLE_VIDEO),
        ({"video_start": 100}, damage.UNREADABLE_VIDEO),
        ({"fps": 0}, damage.BAD_JSON),
        ({"fps": "2"}, damage.BAD_JSON),
        ({"fps": 2, "nframes": 4}, damage.BAD_JSON),
        ({"video": "absent.mp4"}, damage.MISSING_IMAGE),
        ({"video": "text.mp4"}, damage.UNREADABLE_VIDEO),
        ({"video": "cut.mp4"}, damage.UNREADABLE_VIDEO),
        ({"video": []}, damage.UNREADABLE_VIDEO),
        ({"video": None}, damage.BAD_JSON),
        ({"video": "http://example.org/a.mp4"}, damage.REMOTE_FILE),
    ],
)
def test_videos_that_cannot_be_used_say_why(tmp_path: Path, options: dict, reason: str):
    whole = write_video(tmp_path / "a.mp4", 20).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(DamagedSampleError) as caught:
        read_video(tmp_path, {"video": "a.mp4", **options})
    assert caught.value.reason == reason


def turns(*elements: dict) -> dict:
    content = [*elements, {"type": "text", "text": "What happens?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "It pales."}]}


def test_a_conversation_keeps_frames_and_forgets_the_file(tmp_path: Path):
    write_video(tmp_path / "a.mp4", 16)
    (tmp_path / "still.png").write_bytes(picture((9, 5)))
    for number in range(3):
        (tmp_path / f"f{number}.png").write_bytes(picture((3 + number, 4)))
    listed = [f"f{number}.png" for number in range(3)]
    record = turns(
        {"type": "video", "video": "a.mp4", "max_pixels": 12544, "total_pixels": 100352},
        {"type": "image", "image": "still.png"},
        {"type": "video", "video": listed, "fps": 1.0},
    )
    members = build(record, tmp_path)
    assert sorted(members) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.png", "5.png", "6.png", "7.png", "json"]
    stored = json.loads(members["json"])["messages"][0]["content"]
    assert stored[0] == {
        "type": "video",
        "max_pixels": 12544,
        "total_pixels": 100352,
        "num_frames": 4,
        "seconds": [0.0, 0.625, 1.25, 1.875],
        "fps": 2.0,
    }
    first, still, second, question, _ = assemble("k", "s", members).sample.parts
    assert isinstance(first, Video)
    assert isinstance(second, Video)
    assert (first.role, len(first.frames), first.frames[0].width) == ("user", 4, 32)
    assert first.frames[0].limits == (("max_pixels", 12544), ("total_pixels", 100352))
    assert still.width == 9
    assert [frame.width for frame in second.frames] == [3, 4, 5]
    assert (first.fps, second.fps, second.seconds) == (2.0, 1.0, (0.0, 1.0, 2.0))
    assert question == Text("What happens?", "user")


def test_shards_of_videos_are_read_back_without_the_videos(tmp_path: Path):
    write_video(tmp_path / "raw_a.mp4", 16)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw_a.mp4").rename(tmp_path / "raw" / "a.mp4")
    rows = [turns({"type": "video", "video": "a.mp4"}), turns({"type": "video", "video": "b.mp4"})]
    (tmp_path / "raw" / "data.json").write_text(json.dumps(rows))
    tree = {"source": "conversations", "input": str(tmp_path / "raw" / "data.json"), "out": str(tmp_path / "out")}
    summary = run(check_recipe(ShardsRecipe, tree | {"num_workers": 1, "max_bad_share": 0.5}, "test"))
    assert summary.reasons == {damage.MISSING_IMAGE: 1}
    ((row, sample),) = iterate(tmp_path / "out" / "00000.tar")
    assert (row["num_images"], row["image_sizes"]) == (4, [32, 48] * 4)
    assert isinstance(sample.parts[0], Video)
    ((_, planned),) = iterate_texts(tmp_path / "out" / "00000.tar")
    assert planned.parts[0].seconds == sample.parts[0].seconds
    assert planned.parts[0].fps == sample.parts[0].fps == 2.0
    assert [frame.data for frame in planned.parts[0].frames] == [None] * 4


@pytest.mark.parametrize(
    "element",
    [
        {},
        {"num_frames": 2},
        {"seconds": [0.0]},
        {"num_frames": 1, "seconds": ["x"]},
        {"num_frames": 0, "seconds": []},
        {"num_frames": 1, "seconds": [0.0], "fps": "2"},
    ],
)
def test_a_stored_video_without_its_times_is_damage(element: dict):
    with pytest.raises(DamagedSampleError) as caught:
        assemble("k", "s", {"json": json.dumps(turns({"type": "video", **element})).encode()})
    assert caught.value.reason == damage.BAD_JSON
