"""Pictures, bars and the text of strangers in a terminal."""

from collections.abc import Sequence

from rich.text import Text

from rebus.log import output, printable
from rebus.pictures.decode import decode_image

BLOCKS = " ▁▂▃▄▅▆▇█"


def thumbnail(data: bytes, columns: int = 16) -> Text:
    """A picture as half blocks: two pixels a character, `columns` characters wide; or why it cannot be decoded."""
    if output.color_system is None:
        return Text("(a picture; this terminal has no colours)", "grey62")
    try:
        picture = decode_image(data)
    except ValueError as error:
        return Text(str(error), "red")
    rows = max(1, round(columns * picture.height / picture.width / 2))
    pixels = picture.resize((columns, 2 * rows)).load()
    assert pixels is not None
    text = Text()
    for row in range(rows):
        for column in range(columns):
            text.append("▀", f"{_colour(pixels[column, 2 * row])} on {_colour(pixels[column, 2 * row + 1])}")
        text.append("\n" if row + 1 < rows else "")
    return text


def shown(text: str) -> str:
    """Text of strangers with its line breaks, but nothing else that could command a terminal."""
    return "\n".join(printable(line) for line in text.expandtabs().splitlines())


def sparkline(heights: Sequence[float]) -> str:
    """A histogram in one line; the smallest bar that is not empty can still be seen."""
    peak = max(heights, default=0) or 1
    return "".join(BLOCKS[0 if height <= 0 else max(1, round(8 * height / peak))] for height in heights)


def _colour(pixel: object) -> str:
    assert isinstance(pixel, tuple)
    return "#{:02x}{:02x}{:02x}".format(*pixel[:3])
