"""Videos become frames: which ones, at what times, at which size, and what is wrong with the others."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.pictures import native, video
from rebus.pictures.config import NativeConfig
from rebus.pictures.prepare import layout, prepare
from rebus.pictures.video import OptionError, choose, read_video, take, video_of
from rebus.records import Image, Video
from tiny_video import told_seconds, write_video


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
    video = read_video(tmp_path / "a.mp4", options)
    assert len(video.frames) == len(video.seconds) == num_frames
    assert (video.seconds[0], video.seconds[-1]) == (first, last)
    for frame, second in zip(video.frames, video.seconds, strict=True):
        assert (frame.width, frame.height) == (32, 48)
        assert told_seconds(frame.data) == pytest.approx(second, abs=0.1)
    steps = np.diff(video.seconds)
    assert steps.max() - steps.min() <= 1 / 8 + 1e-3


def test_times_count_from_the_first_frame(tmp_path: Path):
    write_video(tmp_path / "late.mp4", 16, start=40)
    assert read_video(tmp_path / "late.mp4", {"nframes": 2}).seconds == (0.0, 1.875)


@given(st.integers(1, 3000), st.floats(1, 60), st.floats(0.1, 30), st.integers(1, 20), st.integers(2, 100))
def test_any_choice_is_even_bounded_and_in_order(total: int, rate: float, fps: float, least: int, most: int):
    times = [number / rate for number in range(total)]
    places = choose(times, {"fps": fps, "min_frames": least, "max_frames": most}).places
    assert len(places) % 2 == 0
    assert 2 <= len(places) <= max(2, most)
    assert list(places) == sorted(places)
    assert (places[0], places[-1]) == (0, total - 1)
    if total > 1:
        assert len(set(places)) == len(places)


def test_frames_are_decoded_one_by_one_and_a_lost_one_does_not_shift_the_others(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 80)
    shown: list[int] = []
    real = video._upright
    monkeypatch.setattr(video, "_upright", lambda frame: (shown.append(frame.pts), real(frame))[1])
    stamps = [stamp for stamp, _ in video._frame_times(path)]
    step = stamps[1] - stamps[0]
    wanted = [stamps[10] - step // 2, stamps[10], stamps[40]]  # no frame has the first of these times
    pictures = video._decode(path, wanted)
    assert shown == []
    first, second = next(pictures), next(pictures)
    assert first is second
    assert shown == [stamps[10]]
    assert next(pictures) is not first
    assert shown == [stamps[10], stamps[40]]


def test_bytes_are_read_as_a_file_is(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", 20)
    assert read_video(path.read_bytes(), {"fps": 4}) == read_video(str(path), {"fps": 4})


@pytest.mark.parametrize(
    ("options", "fps"), [({}, 2.0), ({"nframes": 6}, 0.6), ({"fps": 1}, 1.0), ({"fps": 3}, 3.0), ({"fps": 100}, 8.0)]
)
def test_the_rate_is_frames_over_duration_as_qwen_counts_it(tmp_path: Path, options: dict, fps: float):
    """Not over the span from the first to the last of them, which is a frame shorter: 9.875 s of 10."""
    found = read_video(write_video(tmp_path / "a.mp4", 80), options)
    assert found.fps == fps
    assert layout(found, NativeConfig(kind="native")).seconds == pytest.approx(2 / fps, abs=1e-6)
    told = Video(found.frames, found.seconds)
    span = 9.875 / (len(found.frames) - 1)
    assert native.seconds_per_step(told, NativeConfig(kind="native")) == pytest.approx(2 * span, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_pixels": 20 * 784}, {"total_pixels": 60 * 784, "min_pixels": 4 * 784}, {"min_pixels": 200 * 784}],
)
def test_frames_at_the_rule_s_size_give_the_pixels_that_it_would_make_of_them(tmp_path: Path, options: dict):
    path, config = write_video(tmp_path / "a.mp4", 40), NativeConfig(kind="native")
    whole, small = read_video(path, options), read_video(path, options, config)
    assert (whole.frames[0].width, whole.frames[0].height) == (32, 48)
    assert whole.frames[0].limits == tuple(sorted(options.items(), key=lambda one: native.LIMITS.index(one[0])))
    assert layout(whole, config) == layout(small, config)
    height, width = native.resized(whole, config)
    assert PIL.Image.open(io.BytesIO(small.frames[-1].data)).size == (width, height)
    assert np.array_equal(prepare(whole, config).rows, prepare(small, config).rows)


def test_a_size_that_no_picture_may_have_is_left_to_the_rule(tmp_path: Path):
    path, config = write_video(tmp_path / "a.mp4", 40), NativeConfig(kind="native", max_pixels=4 * 784)
    whole, small = read_video(path), read_video(path, {}, config)
    assert small == whole
    assert layout(small, config).num_tokens > 4 * len(small.frames) // 2


def test_frames_that_are_listed_are_all_taken():
    frames = [Image(40, 30, b"x"), Image(40, 30, b"y"), Image(40, 30, b"z")]
    found = video_of(frames, {"max_pixels": 784})
    assert (found.seconds, found.fps, found.role) == ((0.0, 0.5, 1.0), 2.0, "user")
    assert [frame.limits for frame in found.frames] == [(("max_pixels", 784),)] * 3
    assert video_of(frames, {"fps": 4}).seconds == (0.0, 0.25, 0.5)
    with pytest.raises(ValueError, match="no frames"):
        video_of([])


MATRIX = {  # of a track's header: 16.16 fixed point, how a stored picture is turned clockwise for display
    90: (0, 1 << 16, 0, (-1 << 16), 0, 0),
    180: ((-1 << 16), 0, 0, 0, (-1 << 16), 0),
    270: (0, (-1 << 16), 0, 1 << 16, 0, 0),
}


@pytest.mark.parametrize("clockwise", MATRIX)
def test_a_video_that_lies_is_turned_upright(tmp_path: Path, clockwise: int):
    path = write_video(tmp_path / "a.mp4", 4, corner=True)
    lying = np.asarray(next(take(path, {}).pictures))
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: times, ids, layer, volume precede the matrix
    data[start : start + 24] = b"".join(value.to_bytes(4, "big", signed=True) for value in MATRIX[clockwise])
    upright = np.asarray(next(take(bytes(data), {}).pictures))
    assert np.array_equal(upright, np.rot90(lying, -clockwise // 90))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"nframes": 200}, "200 frames wanted of 20"),
        ({"video_start": 100}, "no frame between"),
        ({"fps": 0}, "fps = 0"),
        ({"fps": 2, "nframes": 4}, "both"),
        ({"max_pixels": 1.5}, "max_pixels = 1.5"),
        ({"min_pixels": float("nan")}, "min_pixels = nan"),
    ],
)
def test_what_cannot_be_asked_of_a_video(tmp_path: Path, options: dict, error: str):
    path = write_video(tmp_path / "a.mp4", 20)
    with pytest.raises(ValueError, match=error):
        read_video(path, options)


def test_what_is_no_video_says_so(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", 20)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"no video at all", b""):
        with pytest.raises(ValueError, match="bytes: "):
            read_video(data)
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(ValueError, match=r"list\.txt: "):  # FFmpeg would follow it to any file
        read_video(tmp_path / "list.txt")
    with pytest.raises(ValueError, match="absent"):
        read_video(tmp_path / "absent.mp4")
    with pytest.raises(OptionError):
        choose([0.0, 1.0], {"fps": True})


@pytest.mark.parametrize(
    ("seconds", "total", "num_frames", "num_tokens"),
    [(10, 24576, 20, 7200), (60, 24576, 120, 23_400), (60, 115_200, 120, 43_200), (384, 24576, 768, 46_080),
     (384, 115_200, 768, 105_984), (1000, 24576, 768, 46_080)],
)  # fmt: skip
def test_720p_takes_the_tokens_that_qwen_vl_utils_gives_it(seconds: int, total: int, num_frames: int, num_tokens: int):
    """30 frames a second; at 384 s the least size of a frame breaks the cap of 24,576, as it does there."""
    times = [number / 30 for number in range(30 * seconds)]
    chosen = choose(times, {})
    assert len(chosen.places) == num_frames
    whole = Video((Image(1280, 720),) * num_frames, tuple(times[place] for place in chosen.places), "user", chosen.fps)
    config = NativeConfig(kind="native", video_total_pixels=total * 784)
    assert layout(whole, config).num_tokens == num_tokens
    asked = Video((Image(1280, 720, None, "user", (("total_pixels", total * 784),)),) * num_frames, whole.seconds)
    assert layout(asked, NativeConfig(kind="native")).num_tokens == num_tokens
