"""What there is to see of a document: its tokens one by one, what is trained on, what fills its image slots."""

from collections.abc import Iterator
from dataclasses import dataclass

from rebus.batches.feed import Feed, load_document
from rebus.packs.plan import Reference
from rebus.records import Damage
from rebus.tokens.encode import Encoded
from rebus.tokens.tokenizer import Tokens


@dataclass(frozen=True)
class TokenView:
    """One token. trained: some position learns to predict it."""

    id: int
    text: str
    trained: bool


@dataclass(frozen=True)
class SlotView:
    """One image and how many positions it takes."""

    num_tokens: int
    width: int
    height: int
    data: bytes


Piece = TokenView | SlotView


@dataclass(frozen=True)
class DocumentView:
    """A document of a pack, in order. damage: why it cannot be trained on; empty if it can."""

    key: str
    num_tokens: int
    pieces: tuple[Piece, ...]
    damage: str = ""

    @property
    def num_trained(self) -> int:
        return sum(isinstance(piece, TokenView) and piece.trained for piece in self.pieces)


@dataclass(frozen=True)
class PackView:
    """A pack of a plan."""

    number: int
    num_packs: int
    capacity: int
    documents: tuple[DocumentView, ...]

    @property
    def num_tokens(self) -> int:
        return sum(document.num_tokens for document in self.documents)

    @property
    def caption(self) -> str:
        images = sum(isinstance(piece, SlotView) for document in self.documents for piece in document.pieces)
        return (
            f"pack {self.number} of {self.num_packs}: {self.num_tokens:,} of {self.capacity:,} positions "
            f"({self.num_tokens / self.capacity:.1%}), {len(self.documents)} documents, {images} images, "
            f"{sum(document.num_trained for document in self.documents):,} tokens trained on"
        )


def view_pack(feed: Feed, pack: int) -> PackView:
    """Reads and encodes the documents of a pack, exactly as training does. Raises DataError for no such pack."""
    documents = tuple(_view_document(feed, reference) for reference in feed.plan.documents(pack))
    return PackView(pack, feed.num_packs, feed.plan.capacity, documents)


def _view_document(feed: Feed, reference: Reference) -> DocumentView:
    loaded = load_document(feed, reference)
    if isinstance(loaded, Damage):
        return DocumentView(loaded.key, reference.num_tokens, (), f"{loaded.reason}: {loaded.detail}")
    return DocumentView(loaded.key, loaded.encoded.num_tokens, tuple(_pieces(loaded.encoded, feed.tokens)))


def _pieces(encoded: Encoded, tokens: Tokens) -> Iterator[Piece]:
    slots = dict(
        zip(encoded.image_starts.tolist(), zip(encoded.image_lengths, encoded.images, strict=True), strict=True)
    )
    for position, number in enumerate(encoded.ids.tolist()):
        if position in slots:
            length, image = slots[position]
            yield SlotView(int(length), image.width, image.height, image.data or b"")
        elif number >= 0:
            text = tokens.tokenizer.decode([number], skip_special_tokens=False)
            yield TokenView(number, text, bool(encoded.trainable[position]) and position > 0)
