"""A pack in the terminal: its documents token by token, then how full it is."""

from rich.text import Text

from rebus.log import output, printable
from rebus.show.terminal import thumbnail
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
    output.print(Text(printable(f"{number}  {document.caption}"), "bold cyan"))
    if document.damage:
        output.print(Text(f"left out: {document.damage}", "red"))
    line = Text()
    for index, piece in enumerate(document.pieces):
        if isinstance(piece, SlotView):
            output.print(thumbnail(piece.data))
            line.append(f"[{piece.about}: {piece.num_tokens} positions]", "magenta")
        else:
            line.append_text(_token(piece, SHADES[index % 2]))
    output.print(line)


def _token(piece: TokenView, shade: str) -> Text:
    """Line breaks inside a token are shown, then broken at."""
    text = "⏎\n".join(printable(line) for line in piece.text.expandtabs(4).split("\n"))
    return Text(text, f"{TRAINED if piece.trained else CONTEXT} {shade}") + Text(f"[{piece.id}]", "grey50")
