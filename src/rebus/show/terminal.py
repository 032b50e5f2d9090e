"""Documents and pictures in a terminal."""

from rich.text import Text

from rebus.log import output
from rebus.pictures import decode_image
from rebus.show.view import DocumentView, PackView, SlotView, TokenView

BAR_WIDTH = 50
SHADES = ("on grey11", "on grey19")
TRAINED, CONTEXT = "bold green underline", "grey62"


def print_pack(pack: PackView) -> None:
    """All documents of a pack, then how full it is."""
    for number, document in enumerate(pack.documents):
        output.print()
        print_document(number, document)
    output.print()
    full = round(BAR_WIDTH * pack.num_tokens / pack.capacity)
    output.print(Text("█" * full, "green") + Text("░" * (BAR_WIDTH - full), "grey50"))
    output.print(pack.caption, highlight=False)
    output.print(Text("trained on", TRAINED) + Text("   context only", CONTEXT) + Text("   [id] after each token"))


def print_document(number: int, document: DocumentView) -> None:
    """Pictures, then the tokens with their ids; what is trained on is green and underlined."""
    head = f"{number}  {document.key}  {document.num_tokens} tokens, {document.num_trained} trained on"
    output.print(Text(head, "bold cyan"))
    if document.damage:
        output.print(Text(f"left out: {document.damage}", "red"))
    line = Text()
    for index, piece in enumerate(document.pieces):
        if isinstance(piece, SlotView):
            output.print(thumbnail(piece.data))
            line.append(f"[image {piece.width} x {piece.height}: {piece.num_tokens} positions]", "magenta")
        else:
            line.append_text(_token(piece, SHADES[index % 2]))
    output.print(line)


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


def _token(piece: TokenView, shade: str) -> Text:
    """Line breaks inside a token are shown, then broken at."""
    shown = piece.text.replace("\n", "⏎\n")
    return Text(shown, f"{TRAINED if piece.trained else CONTEXT} {shade}") + Text(f"[{piece.id}]", "grey50")


def _colour(pixel: object) -> str:
    assert isinstance(pixel, tuple)
    return "#{:02x}{:02x}{:02x}".format(*pixel[:3])
