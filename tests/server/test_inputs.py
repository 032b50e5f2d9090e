"""Whatever a picture is handed in as, it is the same picture; what is none is named."""

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from rebus.errors import DataError
from rebus.pictures.config import FixedConfig, NativeConfig
from rebus.pictures.decode import decode_image
from rebus.records import Image, Text, Video
from rebus.server import inputs
from rebus.server.inputs import image_of, parts_of, video_of

RULE = NativeConfig(kind="native")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    path.write_bytes(png())
    return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server of the folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, directory=str(tmp_path), **options)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def seen(image: Image) -> np.ndarray:
    assert image.data is not None
    decoded = np.asarray(decode_image(image.data))
    assert (image.height, image.width) == decoded.shape[:2]
    return decoded


def test_every_way_in_gives_the_same_pixels(picture: Path, web: str):
    data = "data:image/png;base64," + base64.b64encode(png()).decode()
    pil = PIL.Image.open(picture)
    for source in (picture, str(picture), picture.as_uri(), f"{web}/a%20picture.png", data, png(), pil, PIXELS):
        np.testing.assert_array_equal(seen(image_of(source)), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pil_pictures_of_all_modes_keep_their_pixels(mode: str):
    """As those of a file in a format that keeps the mode."""
    original = PIL.Image.fromarray(PIXELS).convert("L" if mode[0] in "IF" else "RGB").convert(mode)
    buffer = io.BytesIO()
    original.save(buffer, "TIFF" if mode in ("CMYK", "I", "F") else "PNG")
    np.testing.assert_array_equal(seen(image_of(original)), np.asarray(decode_image(buffer.getvalue())))


def test_a_picture_that_lies_on_its_side_is_turned_either_way():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif)
    upright = np.rot90(PIXELS, -1)
    np.testing.assert_array_equal(seen(image_of(buffer.getvalue())), upright)
    np.testing.assert_array_equal(seen(image_of(PIL.Image.open(io.BytesIO(buffer.getvalue())))), upright)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", r"no file at nowhere\.png"),
        (b"hello", r"5 bytes: not a readable picture: 5 bytes that begin as none\. PNG"),
        (Path("/"), "a folder is at /"),
        ("A" * 5000, r"no file at A+\.\.\. \(5,000 characters\)"),
        (PIXELS[:0], "is no picture"),
        ("data:image/png;base64,?!", "cannot be read"),
        ("data:image/png,abc", "does not begin as data:"),
        (PIXELS.astype(np.float32) / 255, r"array of float32 \[12, 20, 3\] is no picture: uint8"),
        (PIXELS.transpose(2, 0, 1), r"\[3, 12, 20\] is no picture"),
        (17, "a int is no picture"),
        ("http://127.0.0.1:1/x.png", r"127\.0\.0\.1:1/x\.png cannot be read"),
    ],
)
def test_what_is_no_picture_is_named(source: object, message: str):
    with pytest.raises(DataError, match=message):
        image_of(source)


def test_what_is_behind_a_url_is_bounded(picture: Path, web: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inputs, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(DataError, match="is larger than"):
        image_of(f"{web}/a%20picture.png")


def test_messages_become_parts_in_order(picture: Path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "First"},
                {"type": "image", "image": str(picture), "max_pixels": 1000},
                {"type": "image_url", "image_url": {"url": picture.as_uri()}},
                {"type": "video", "video": [PIXELS, PIXELS], "fps": 4},
                {"type": "text", "text": "then?"},
            ],
        },
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Sure?"},
    ]
    parts = parts_of(messages, RULE)
    assert [type(part) for part in parts] == [Text, Text, Image, Image, Video, Text, Text, Text]
    assert [part.role for part in parts] == ["system", *["user"] * 5, "assistant", "user"]
    assert parts[2].limits == (("max_pixels", 1000),)
    assert parts[4].seconds == (0.0, 0.25)


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([], "no message"),
        ([{"role": "robot", "content": "x"}], "message 0 has no `role`"),
        ([{"role": "user"}], "message 0 has no `content`"),
        ([{"role": "user", "content": [{"type": "sound", "sound": "x"}]}], "message 0, content 0: .*'sound'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content 0"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the last message"),
    ],
)
def test_wrong_messages_are_named(messages: list, wrong: str):
    with pytest.raises(DataError, match=wrong):
        parts_of(messages, RULE)


def write_video(path: Path, num_frames: int = 20) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 12, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_videos_come_as_files_bytes_and_frames(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4")
    whole = video_of(path, {"num_frames": 4}, RULE)
    assert whole == video_of(path.read_bytes(), {"nframes": 4}, RULE)
    assert len(whole.frames) == 4
    assert len(video_of(path, {"fps": 4, "video_end": 1.0}, FixedConfig()).frames) == 4
    assert len(video_of([PIXELS] * 3, {"fps": 1}, RULE).frames) == 3
    for wrong, message in (
        (tmp_path / "none.mp4", "no file"),
        (b"no video", "cannot be used as a video"),
        ([], "no fr"),
    ):
        with pytest.raises(DataError, match=message):
            video_of(wrong, None, RULE)
    with pytest.raises(DataError, match="cannot be used as a video"):
        video_of(path, {"fps": -1}, RULE)
