"""Videos become frames once, when a shard is written: chosen as Qwen2-VL chooses them, stored as JPEG."""

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rebus.errors import DataError
from rebus.shards.damage import BAD_JSON, UNREADABLE_VIDEO, DamagedSampleError
from rebus.shards.sources.files import find_file, read_image

FPS = 2.0
MIN_FRAMES, MAX_FRAMES = 4, 768
FRAME_FACTOR = 2  # Qwen2-VL looks at frames in pairs
JPEG_QUALITY = 90

Frames = tuple[list[tuple[str, bytes]], list[float]]
"""(extension, bytes) of each frame, and its time in the video in seconds."""


def read_video(root: Path, element: Mapping[str, Any]) -> Frames:
    """The frames that a chat element {"type": "video", "video": file or list of frames, options} asks for.

    Options as in qwen-vl-utils: nframes, or fps with min_frames and max_frames; video_start, video_end in seconds.
    Frames that are listed are all taken, `fps` a second. Raises: DamagedSampleError.
    """
    video = element.get("video")
    if isinstance(video, list):
        if not video:
            raise DamagedSampleError(UNREADABLE_VIDEO, "a list of no frames")
        fps = _number(element, "fps", FPS)
        return [read_image(root, name) for name in video], [round(index / fps, 3) for index in range(len(video))]
    return decode_frames(find_file(root, video), element)


def choose_times(times: list[float], options: Mapping[str, Any]) -> list[int]:
    """Places of the frames to take from those at `times` (seconds, ascending): evenly spaced, an even number.

    qwen-vl-utils 0.0.14, smart_nframes. A video of one frame gives it twice. Raises: DamagedSampleError.
    """
    start, end = _number(options, "video_start", 0.0), _number(options, "video_end", math.inf)
    inside = [place for place, time in enumerate(times) if start <= time <= end]
    if not inside:
        raise DamagedSampleError(UNREADABLE_VIDEO, f"no frame between {start} and {end} s")
    total = len(inside)
    if options.get("nframes") is not None:
        wanted = round(_number(options, "nframes") / FRAME_FACTOR) * FRAME_FACTOR
        if not FRAME_FACTOR <= wanted <= total:
            raise DamagedSampleError(UNREADABLE_VIDEO, f"{wanted} frames wanted of {total}")
    else:
        wanted = _frames_at(total, times[inside[-1]] - times[inside[0]], options)
    return [inside[round(index * (total - 1) / (wanted - 1))] for index in range(wanted)]


def _frames_at(total: int, duration: float, options: Mapping[str, Any]) -> int:
    """Frames for `fps`, of `total` whose first and last are `duration` seconds apart; a frame lasts as long as any."""
    least = math.ceil(_number(options, "min_frames", MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
    most = min(_number(options, "max_frames", MAX_FRAMES), total) // FRAME_FACTOR * FRAME_FACTOR
    seconds = duration * total / (total - 1) if total > 1 else 0.0
    wanted = min(max(seconds * _number(options, "fps", FPS), least), most, total)
    return max(int(wanted // FRAME_FACTOR) * FRAME_FACTOR, FRAME_FACTOR)


def _number(options: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = options[name] if options.get(name) is not None else default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not is_number or not (value > 0 or (name == "video_start" and value == 0)):
        raise DamagedSampleError(BAD_JSON, f"{name} = {value!r}; a positive number is wanted")
    return float(value)


def decode_frames(path: Path, options: Mapping[str, Any]) -> Frames:
    """Two passes over the file: one over its packets for the times, one that decodes up to the last frame wanted.

    No more than one decoded frame is held. Raises: DamagedSampleError; DataError where PyAV is missing.
    """
    try:
        import av
    except ImportError as error:
        raise DataError("videos need PyAV: `pip install 'rebus[video]'`.") from error
    try:
        times = _frame_times(av, path)
        places = choose_times([time for _, time in times], options)
        wanted = [times[place] for place in places]
        pictures = list(_decode(av, path, [stamp for stamp, _ in wanted]))
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise DamagedSampleError(UNREADABLE_VIDEO, f"{path}: {error}") from error
    if len(pictures) < len(wanted):
        raise DamagedSampleError(UNREADABLE_VIDEO, f"{path}: {len(pictures)} frames of {len(wanted)} can be decoded")
    return [("jpg", picture) for picture in pictures], [round(time, 3) for _, time in wanted]


def _frame_times(av: Any, path: Path) -> list[tuple[int, float]]:
    """(time stamp, seconds after the first frame) of every frame, in the order in which they are shown."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise DamagedSampleError(UNREADABLE_VIDEO, f"{path} holds no video")
        stream = container.streams.video[0]
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
        if not stamps:
            raise DamagedSampleError(UNREADABLE_VIDEO, f"{path} has no frame with a time stamp")
        return [(stamp, float((stamp - stamps[0]) * stream.time_base)) for stamp in stamps]


def _decode(av: Any, path: Path, stamps: list[int]) -> Iterator[bytes]:
    """JPEGs of the frames at `stamps` (ascending); where one cannot be decoded, the next that can stands for it."""
    taken = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts < stamps[taken]:
                continue
            picture = _as_jpeg(frame)
            while taken < len(stamps) and stamps[taken] <= frame.pts:
                yield picture
                taken += 1
            if taken == len(stamps):
                return


def _as_jpeg(frame: Any) -> bytes:
    buffer = io.BytesIO()
    frame.to_image().save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
