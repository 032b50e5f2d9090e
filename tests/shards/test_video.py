"""Videos become frames when a shard is written: which ones, at what times, and what is wrong with the others."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_shards_tars import picture

from rebus.config import check_recipe
from rebus.pictures.decode import decode_image
from rebus.records import Text, Video
from rebus.shards import damage
from rebus.shards.assemble import assemble
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import DamagedSampleError
from rebus.shards.read import iterate, iterate_texts
from rebus.shards.run import run
from rebus.shards.sources.conversations import build
from rebus.shards.sources.video import choose_times, read_video

GREYS_A_SECOND = 25  # the frame at second s is grey 25 s


def write_video(path: Path, num_frames: int, rate: int = 8, start: int = 0) -> Path:
    """An mp4 whose frames tell their time by their grey; start: time stamp of the first, in frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.bit_rate, stream.codec_context.qmax = 8_000_000, 2
        for number in range(num_frames):
            grey = np.full((48, 32, 3), number * GREYS_A_SECOND // rate, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = start + number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def told_seconds(data: bytes) -> float:
    return float(np.asarray(decode_image(data)).mean()) / GREYS_A_SECOND


@pytest.mark.parametrize(
    ("options", "num_frames", "first", "last"),
    [
        ({}, 20, 0.0, 9.875),  # 80 frames at 8 a second are 10 s, at 2 a second 20
        ({"fps": 1}, 10, 0.0, 9.875),
        ({"nframes": 6}, 6, 0.0, 9.875),
        ({"nframes": 5}, 4, 0.0, 9.875),  # rounded to a multiple of 2, to even ones at the half
        ({"fps": 0.1}, 4, 0.0, 9.875),
        ({"fps": 0.1, "min_frames": 7}, 8, 0.0, 9.875),
        ({"max_frames": 12}, 12, 0.0, 9.875),
        ({"fps": 100}, 80, 0.0, 9.875),
        ({"video_start": 2.0, "video_end": 6.0}, 8, 2.0, 6.0),
        ({"video_start": 8, "nframes": 2}, 2, 8.0, 9.875),
    ],
)
def test_frames_are_chosen_and_decoded_at_their_times(tmp_path: Path, options, num_frames, first, last):
    write_video(tmp_path / "a.mp4", 80)
    frames, seconds = read_video(tmp_path, {"video": "a.mp4", **options})
    assert len(frames) == len(seconds) == num_frames
    assert (seconds[0], seconds[-1]) == (first, last)
    for (extension, data), second in zip(frames, seconds, strict=True):
        assert extension == "jpg"
        assert told_seconds(data) == pytest.approx(second, abs=0.1)
    steps = np.diff(seconds)
    assert steps.max() - steps.min() <= 1 / 8 + 1e-3


def test_times_count_from_the_first_frame(tmp_path: Path):
    write_video(tmp_path / "late.mp4", 16, start=40)
    _, seconds = read_video(tmp_path, {"video": "late.mp4", "nframes": 2})
    assert seconds == [0.0, 1.875]


@given(st.integers(1, 3000), st.floats(1, 60), st.floats(0.1, 30), st.integers(1, 20), st.integers(2, 100))
def test_any_choice_is_even_bounded_and_in_order(total: int, rate: float, fps: float, least: int, most: int):
    times = [number / rate for number in range(total)]
    places = choose_times(times, {"fps": fps, "min_frames": least, "max_frames": most})
    assert len(places) % 2 == 0
    assert 2 <= len(places) <= max(2, most)
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, total - 1)
    if total > 1:
        assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"nframes": 200}, damage.UNREADABLE_VIDEO),
        ({"video_start": 100}, damage.UNREADABLE_VIDEO),
        ({"fps": 0}, damage.BAD_JSON),
        ({"fps": "2"}, damage.BAD_JSON),
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


def test_only_wanted_frames_are_kept_and_a_lost_one_does_not_shift_the_others(tmp_path: Path, monkeypatch):
    write_video(tmp_path / "a.mp4", 80)
    from rebus.shards.sources import video

    shown: list[int] = []
    real = video._as_jpeg
    monkeypatch.setattr(video, "_as_jpeg", lambda frame: (shown.append(frame.pts), real(frame))[1])
    stamps = [stamp for stamp, _ in video._frame_times(av, tmp_path / "a.mp4")]
    step = stamps[1] - stamps[0]
    wanted = [stamps[10] - step // 2, stamps[10], stamps[40]]  # no frame has the first of these times
    pictures = list(video._decode(av, tmp_path / "a.mp4", wanted))
    assert shown == [stamps[10], stamps[40]]
    assert pictures[0] == pictures[1] != pictures[2]


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
    }
    first, still, second, question, _ = assemble("k", "s", members).sample.parts
    assert isinstance(first, Video)
    assert isinstance(second, Video)
    assert (first.role, len(first.frames), first.frames[0].width) == ("user", 4, 32)
    assert first.frames[0].limits == (("max_pixels", 12544), ("total_pixels", 100352))
    assert still.width == 9
    assert [frame.width for frame in second.frames] == [3, 4, 5]
    assert second.seconds == (0.0, 1.0, 2.0)
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
    assert [frame.data for frame in planned.parts[0].frames] == [None] * 4


@pytest.mark.parametrize(
    "element",
    [{}, {"num_frames": 2}, {"seconds": [0.0]}, {"num_frames": 1, "seconds": ["x"]}, {"num_frames": 0, "seconds": []}],
)
def test_a_stored_video_without_its_times_is_damage(element: dict):
    with pytest.raises(DamagedSampleError) as caught:
        assemble("k", "s", {"json": json.dumps(turns({"type": "video", **element})).encode()})
    assert caught.value.reason == damage.BAD_JSON
