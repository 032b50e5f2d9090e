"""Documents that are longer than a pack, cut between their parts. No image and no text is ever parted.

A page becomes several documents, each as long as fits. A conversation keeps its beginning: what comes later cannot be
understood without it.
"""

from dataclasses import dataclass, replace

from rebus.packs.plan import TO_THE_END
from rebus.records import Sample
from rebus.tokens.encode import TOO_LONG, Count, UnusableSample, count_batch
from rebus.tokens.tokenizer import Tokens

UNLIMITED = 2**31 - 1
LONGER_THAN_A_PACK = "longer than a pack"


@dataclass(frozen=True)
class Limits:
    """What one document, and one pack, may hold. None: any number."""

    num_tokens: int
    num_images: int | None = None
    num_patches: int | None = None

    def hold(self, counted: Count) -> bool:
        return (
            counted.num_tokens <= self.num_tokens
            and (self.num_images is None or counted.num_images <= self.num_images)
            and (self.num_patches is None or counted.num_patches <= self.num_patches)
        )


@dataclass(frozen=True)
class Piece:
    """One document of a plan: parts[first_part:end_part] of a sample."""

    counted: Count
    first_part: int = 0
    end_part: int = TO_THE_END


@dataclass(frozen=True)
class Cut:
    """pieces: in order. num_dropped: tokens of the sample that are in none of them."""

    pieces: tuple[Piece, ...]
    num_dropped: int = 0


def cut_sample(sample: Sample, tokens: Tokens, limits: Limits) -> Cut:
    """Cuts a sample that is beyond the limits.

    Raises: UnusableSample "too long" where one part (of a conversation: its first exchange) is already beyond them.
    """
    tokens = replace(tokens, config=tokens.config.model_copy(update={"max_tokens": UNLIMITED}))
    if any(part.role for part in sample.parts):
        return _cut_conversation(sample, tokens, limits)
    return _cut_page(sample, tokens, limits)


def _cut_page(sample: Sample, tokens: Tokens, limits: Limits) -> Cut:
    """Greedy: each piece takes parts while they fit. Parts are counted alone to guess how many; texts that join
    into one can come out longer or shorter, so each piece is then counted as a whole."""
    alone = count_batch([replace(sample, parts=(part,)) for part in sample.parts], tokens)
    pieces: list[Piece] = []
    first = 0
    while first < len(sample.parts):
        end = first + 1
        total = _or_nothing(alone[first])
        while end < len(sample.parts) and limits.hold(grown := _add(total, _or_nothing(alone[end]), tokens)):
            total, end = grown, end + 1
        while not limits.hold(counted := _count_piece(sample, first, end, tokens)):
            end -= 1
            if end == first:
                raise _one_part_too_long(first, counted, limits)
        while end < len(sample.parts) and limits.hold(grown := _count_piece(sample, first, end + 1, tokens)):
            counted, end = grown, end + 1
        pieces.append(Piece(counted, first, end))
        first = end
    return Cut(tuple(pieces))


def _or_nothing(counted: Count | UnusableSample) -> Count:
    return counted if isinstance(counted, Count) else Count(0, 0, 0, 0)


def _add(total: Count, part: Count, tokens: Tokens) -> Count:
    """Both counts hold the tokens that open and close a document; together they need them once."""
    frame = 2 if tokens.config.start_of_text is not None else 1
    return Count(
        total.num_tokens + max(0, part.num_tokens - frame),
        total.num_images + part.num_images,
        total.num_image_tokens + part.num_image_tokens,
        total.num_patches + part.num_patches,
    )


def _cut_conversation(sample: Sample, tokens: Tokens, limits: Limits) -> Cut:
    """The longest beginning of whole exchanges that fits, found by halving: more turns are never fewer tokens."""
    whole = _count_piece(sample, 0, len(sample.parts), tokens)
    ends = _exchange_ends(sample)
    low, high = 0, len(ends)  # so many exchanges fit; so many do not
    kept: Piece | None = None
    while low < high:
        middle = (low + high + 1) // 2
        counted = _count_piece(sample, 0, ends[middle - 1], tokens)
        if limits.hold(counted):
            low, kept = middle, Piece(counted, 0, ends[middle - 1])
        else:
            high = middle - 1
    if kept is None:
        raise UnusableSample(TOO_LONG, f"{_about(whole)}, and its first exchange does not fit; {_allowed(limits)}")
    return Cut((kept,), whole.num_tokens - kept.counted.num_tokens)


def _exchange_ends(sample: Sample) -> list[int]:
    """Where the assistant has finished speaking: the number of parts up to there."""
    roles = [part.role for part in sample.parts]
    return [
        place
        for place in range(1, len(roles) + 1)
        if roles[place - 1] == "assistant" and (place == len(roles) or roles[place] != "assistant")
    ]


def _count_piece(sample: Sample, first: int, end: int, tokens: Tokens) -> Count:
    counted = count_batch([replace(sample, parts=sample.parts[first:end])], tokens)[0]
    if isinstance(counted, UnusableSample):
        raise counted
    return counted


def _one_part_too_long(part: int, counted: Count, limits: Limits) -> UnusableSample:
    return UnusableSample(TOO_LONG, f"part {part} alone: {_about(counted)}; {_allowed(limits)}")


def _about(counted: Count) -> str:
    return f"{counted.num_tokens} tokens, {counted.num_images} images, {counted.num_patches} patches"


def _allowed(limits: Limits) -> str:
    names = (("tokens", limits.num_tokens), ("images", limits.num_images), ("patches", limits.num_patches))
    return "allowed are " + ", ".join(f"{number} {name}" for name, number in names if number is not None)


def longer_than_a_pack(counted: Count, limits: Limits) -> UnusableSample:
    """Why a sample is refused where none is cut."""
    return UnusableSample(LONGER_THAN_A_PACK, f"{_about(counted)}; {_allowed(limits)}")
