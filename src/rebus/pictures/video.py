"""Videos become frames: chosen as Qwen2-VL chooses them, decoded one at a time with PyAV (extra `video`).

Shards keep the frames as JPEG; inference keeps them as they are, at the size of the image rule where it is given.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.errors import DataError
from rebus.pictures import native
from rebus.pictures.config import NativeConfig
from rebus.records import Image, Role, Video

if TYPE_CHECKING:
    import PIL.Image

FPS = 2.0
MIN_FRAMES, MAX_FRAMES = 4, 768
FRAME_FACTOR = 2  # Qwen2-VL looks at frames in pairs

FORMATS = "mov,mp4,3gp,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,obu,flv,ogg,asf,nut,gif,apng,rm,dv,mxf"
"""Containers that are opened. FFmpeg knows playlists too, which name other files and hosts: not for foreign bytes."""

Source = Path | str | bytes
Options = Mapping[str, Any]


class OptionError(ValueError):
    """What was asked of a video makes no sense; the video itself may be well."""


@dataclass(frozen=True)
class Choice:
    """places: of the frames to take among those that there are. fps: how many that is of a second; 0: not known."""

    places: tuple[int, ...]
    fps: float


@dataclass(frozen=True)
class Taken:
    """pictures: the chosen frames, RGB and upright, each decoded when it is asked for. seconds: their times after the
    first frame of the video. fps: frames a second of it."""

    pictures: "Iterator[PIL.Image.Image]"
    seconds: tuple[float, ...]
    fps: float


def read_video(
    source: Source, options: Options | None = None, config: NativeConfig | None = None, role: Role = "user"
) -> Video:
    """The frames of a video file, or of its bytes, lossless (BMP).

    options: what `take` and `native.limits_of` read, named as in qwen-vl-utils. config: frames are resized by this rule
    as they are decoded, to the very pixels that it would make of them later, so that its total of pixels bounds the
    memory; None keeps them as they are, 6 MB each at 1080p. Raises: as `take` does.
    """
    options = options or {}
    limits = native.limits_of(options)
    taken = take(source, options)
    num_frames = len(taken.seconds)
    frames = tuple(_frame(picture, num_frames, limits, config, role) for picture in taken.pictures)
    return Video(frames, taken.seconds, role, taken.fps)


def video_of(frames: Sequence[Image], options: Options | None = None, role: Role = "user") -> Video:
    """A video from its frames, all of which are taken, `fps` of them a second. Raises: ValueError for none."""
    if not frames:
        raise ValueError("a list of no frames")
    limits, (seconds, fps) = native.limits_of(options or {}), listed_seconds(len(frames), options or {})
    return Video(tuple(replace(frame, role=role, limits=limits) for frame in frames), seconds, role, fps)


def take(source: Source, options: Options) -> Taken:
    """Chooses frames by the times of a video's packets, and decodes it up to the last one, one frame at a time.

    options: `nframes`, or `fps` with `min_frames` and `max_frames`; `video_start` and `video_end` in seconds.
    Raises: ValueError where no frame can be read, its subclass OptionError for options that make no sense, both while
    the pictures are taken too; DataError where PyAV is missing.
    """
    with _readable(source):
        times = _frame_times(source)
    choice = choose([seconds for _, seconds in times], options)
    wanted = [times[place] for place in choice.places]
    pictures = _decode(source, [stamp for stamp, _ in wanted])
    return Taken(pictures, tuple(round(seconds, 3) for _, seconds in wanted), choice.fps)


def choose(times: Sequence[float], options: Options) -> Choice:
    """Which of the frames at `times` (seconds, ascending) to take: evenly spaced, an even number of them.

    qwen-vl-utils 0.0.14, smart_nframes. A video of one frame gives it twice. Raises: ValueError, OptionError.
    """
    if options.get("nframes") is not None and options.get("fps") is not None:
        raise OptionError("both `nframes` and `fps` are given; one of them decides")
    start, end = _number(options, "video_start", 0.0), _number(options, "video_end", math.inf)
    inside = [place for place, time in enumerate(times) if start <= time <= end]
    if not inside:
        raise ValueError(f"no frame between {start} and {end} s")
    total = len(inside)  # a frame lasts as long as any
    duration = (times[inside[-1]] - times[inside[0]]) * total / (total - 1) if total > 1 else 0.0
    if options.get("nframes") is not None:
        num_frames = round(_number(options, "nframes") / FRAME_FACTOR) * FRAME_FACTOR
        if not FRAME_FACTOR <= num_frames <= total:
            raise ValueError(
                f"{options['nframes']} frames wanted of {total}; ask for {FRAME_FACTOR} or more, up to all"
            )
    else:
        num_frames = _frames_at(total, duration, options)
    places = tuple(inside[round(index * (total - 1) / (num_frames - 1))] for index in range(num_frames))
    return Choice(places, round(num_frames / duration, 6) if duration else 0.0)


def _frames_at(total: int, duration: float, options: Options) -> int:
    least = math.ceil(_number(options, "min_frames", MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
    most = min(_number(options, "max_frames", MAX_FRAMES), total) // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(duration * _number(options, "fps", FPS), least), most, total)
    return max(int(wanted // FRAME_FACTOR) * FRAME_FACTOR, FRAME_FACTOR)


def listed_seconds(num_frames: int, options: Options) -> tuple[tuple[float, ...], float]:
    """(times, frames a second) of frames that are listed and not decoded."""
    fps = _number(options, "fps", FPS)
    return tuple(round(index / fps, 3) for index in range(num_frames)), fps


def _number(options: Options, name: str, default: float | None = None) -> float:
    value = options[name] if options.get(name) is not None else default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not is_number or not (value > 0 or (name == "video_start" and value == 0)):
        raise OptionError(f"{name} = {value!r}; a positive number is wanted")
    return float(value)


def _open(source: Source) -> Any:
    import av

    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    return av.open(file, container_options={"format_whitelist": FORMATS})


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    """FFmpeg's errors as ValueError with the name of the video."""
    try:
        import av
    except ImportError as error:
        raise DataError("videos need PyAV: `pip install 'rebus[video]'`.") from error
    try:
        yield
    except av.FFmpegError as error:  # its words name the file again, and a number that says nothing
        raise ValueError(f"{_named(source)}: {error.strerror or error}") from error
    except (OSError, IndexError, ValueError) as error:
        raise ValueError(f"{_named(source)}: {error}") from error


def _named(source: Source) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def _frame_times(source: Source) -> list[tuple[int, float]]:
    """(time stamp, seconds after the first frame) of every frame, in the order in which they are shown."""
    with _open(source) as container:
        if not container.streams.video:
            raise ValueError("there is no video in it")
        stream = container.streams.video[0]
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
        if not stamps:
            raise ValueError("it has no frame with a time stamp")
        return [(stamp, float((stamp - stamps[0]) * stream.time_base)) for stamp in stamps]


def _decode(source: Source, stamps: Sequence[int]) -> "Iterator[PIL.Image.Image]":
    """The frames at `stamps` (ascending); where one cannot be decoded, the next that can stands for it."""
    taken = 0
    with _readable(source), _open(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts < stamps[taken]:
                continue
            picture = _upright(frame)
            while taken < len(stamps) and stamps[taken] <= frame.pts:
                yield picture
                taken += 1
            if taken == len(stamps):
                return
        raise ValueError(f"{taken} frames of {len(stamps)} can be decoded")


def _upright(frame: Any) -> "PIL.Image.Image":
    """RGB, turned as the stream says: telephones write upright videos lying down."""
    import PIL.Image

    picture: PIL.Image.Image = frame.to_image()
    turns = {90: "ROTATE_90", 180: "ROTATE_180", 270: "ROTATE_270"}  # counter-clockwise, as PyAV counts
    name = turns.get(round(frame.rotation) % 360)
    return picture.transpose(PIL.Image.Transpose[name]) if name else picture


def _frame(
    picture: "PIL.Image.Image",
    num_frames: int,
    limits: native.Limits,
    config: NativeConfig | None,
    role: Role,
) -> Image:
    image = Image(*picture.size, None, role, limits)
    if config is not None:
        height, width = native.resized(Video((image,) * num_frames, ()), config)
        fixed = Image(width, height, None, role, (("resized_height", height), ("resized_width", width)))
        if native.resized(fixed, config) == (height, width):  # else what was chosen for frames is no size of a picture
            image, picture = fixed, native.resize(picture, height, width)
    buffer = io.BytesIO()
    picture.save(buffer, "BMP")
    return replace(image, data=buffer.getvalue())
