"""Videos whose frames tell their time, for tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from rebus.pictures.decode import decode_image

GREYS_A_SECOND = 25  # the frame at second s is grey 25 s


def write_video(path: Path, num_frames: int, rate: int = 8, start: int = 0, *, corner: bool = False) -> Path:
    """An mp4 of 32 x 48 whose frames tell their time by their grey; start: time stamp of the first, in frames.

    corner: the upper left quarter is white.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.bit_rate, stream.codec_context.qmax = 8_000_000, 2
        for number in range(num_frames):
            grey = np.full((48, 32, 3), number * GREYS_A_SECOND // rate, dtype=np.uint8)
            grey[:24, :16] = 255 if corner else grey[:24, :16]
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = start + number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def told_seconds(data: bytes) -> float:
    return float(np.asarray(decode_image(data)).mean()) / GREYS_A_SECOND
