"""What there is to see of a document: its tokens one by one, what is trained on, what fills its image slots."""

from collections.abc import Iterator
from dataclasses import dataclass

from rebus.batches.feed import Feed, load_document
from rebus.packs.plan import TO_THE_END, Reference
from rebus.pictures.prepare import Visual
from rebus.records import Damage, Video
from rebus.tokens.encode import Encoded
from rebus.tokens.tokenizer import Tokens

MAX_BYTES = 4  # of a character in UTF-8: a byte-level vocabulary may need as many tokens


@dataclass(frozen=True)
class TokenView:
    """One token. position: in its pack, left-out documents not counted. text: empty where a character needs more
    tokens. trained: some position learns to predict it."""

    id: int
    position: int
    text: str
    trained: bool


@dataclass(frozen=True)
class SlotView:
    """One image and the positions of the pack that it takes: `num_tokens` from `position` on.

    num_frames: of a whole video, whose first frame the other fields are of; 0 for a picture.
    """

    position: int
    num_tokens: int
    width: int
    height: int
    data: bytes
    num_frames: int = 0

    @property
    def about(self) -> str:
        """What it is and how large, in words."""
        kind = f"video of {self.num_frames} frames," if self.num_frames else "image"
        return f"{kind} {self.width} x {self.height}"


Piece = TokenView | SlotView


@dataclass(frozen=True)
class DocumentView:
    """A document of a pack, in order. start: its first position in the pack. source: its shard and row there.

    parts: which of its sample's parts these are, where the plan cut it; else empty. damage: why it cannot be trained
    on; empty if it can.
    """

    key: str
    source: str
    start: int
    num_tokens: int
    pieces: tuple[Piece, ...]
    parts: str = ""
    damage: str = ""

    @property
    def caption(self) -> str:
        place = f"places {self.start:,} to {self.start + self.num_tokens - 1:,}" if not self.damage else self.source
        cut = f", {self.parts}" if self.parts else ""
        return f"{self.key}  {place}: {self.num_tokens:,} tokens, {self.num_trained:,} trained on{cut}"

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
    cost: float
    cross_document: bool = False

    @property
    def num_tokens(self) -> int:
        """Positions that are filled; documents that are left out fill none."""
        return sum(document.num_tokens for document in self.documents if not document.damage)

    @property
    def caption(self) -> str:
        documents = sum(not document.damage for document in self.documents)
        slots = [one for document in self.documents for one in document.pieces if isinstance(one, SlotView)]
        videos = sum(slot.num_frames > 0 for slot in slots)
        images = len(slots) - videos
        visuals = f"{images} image{'s'[: images != 1]}, " + (f"{videos} video{'s'[: videos != 1]}, " if videos else "")
        return (
            f"pack {self.number} of {self.num_packs}: {self.num_tokens:,} of {self.capacity:,} positions "
            f"({self.num_tokens / self.capacity:.1%}), {documents} document{'s'[: documents != 1]}, "
            f"{visuals}{sum(document.num_trained for document in self.documents):,} tokens trained on"
        )


def view_pack(feed: Feed, pack: int) -> PackView:
    """Reads and encodes the documents of a pack, exactly as training does. Raises DataError for no such pack."""
    references = feed.plan.documents(pack)
    documents: list[DocumentView] = []
    start = 0
    for reference in references:
        documents.append(_view_document(feed, reference, start))
        start += 0 if documents[-1].damage else documents[-1].num_tokens
    cost = float(feed.plan.costs[pack])
    return PackView(pack, feed.num_packs, feed.plan.capacity, tuple(documents), cost, feed.plan.cross_document)


def _view_document(feed: Feed, reference: Reference, start: int) -> DocumentView:
    source = f"{reference.shard.name}, row {reference.row}"
    is_whole = reference.first_part == 0 and reference.end_part == TO_THE_END
    end = "the end" if reference.end_part == TO_THE_END else f"part {reference.end_part - 1}"
    parts = "" if is_whole else f"cut: part {reference.first_part} to {end} of its sample"
    loaded = load_document(feed, reference)
    if isinstance(loaded, Damage):
        damage = f"{loaded.reason}: {loaded.detail}"
        return DocumentView(loaded.key, source, start, reference.num_tokens, (), parts, damage)
    pieces = tuple(_pieces(loaded.encoded, feed.tokens, start, preceded=feed.plan.cross_document and start > 0))
    return DocumentView(loaded.key, source, start, loaded.encoded.num_tokens, pieces, parts)


def _pieces(encoded: Encoded, tokens: Tokens, start: int, *, preceded: bool) -> Iterator[Piece]:
    """preceded: whether the document before it learns to predict its first token."""
    places = zip(encoded.image_starts.tolist(), encoded.image_lengths.tolist(), encoded.images, strict=True)
    slots = {first: _slot(start + first, length, visual) for first, length, visual in places}
    waiting: list[int] = []  # tokens of a character that is not whole yet
    for position, number in enumerate(encoded.ids.tolist()):
        if position in slots:
            waiting = []
            yield slots[position]
        elif number >= 0:
            waiting = [*waiting[-3:], number]
            text = tokens.tokenizer.decode(waiting, skip_special_tokens=False)
            is_whole = not text.endswith("\ufffd") or len(waiting) == MAX_BYTES
            trained = bool(encoded.trainable[position]) and (position > 0 or preceded)
            yield TokenView(number, start + position, text if is_whole else "", trained)
            waiting = [] if is_whole else waiting


def _slot(position: int, num_tokens: int, visual: Visual) -> SlotView:
    num_frames, image = (len(visual.frames), visual.frames[0]) if isinstance(visual, Video) else (0, visual)
    return SlotView(position, num_tokens, image.width, image.height, image.data or b"", num_frames)
