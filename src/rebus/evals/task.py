"""What is asked. Which wrong candidates and which wrong picture an item gets follows from the seed and the item's uid
alone, whatever the order in which items are read.
"""

import hashlib
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.records import Image
from rebus.shards.read import iterate, read_metadata


@dataclass(frozen=True)
class Item:
    """A held-out picture and what it shows."""

    uid: str
    key: str
    label: str
    image: Image


@dataclass(frozen=True)
class Question:
    """One item as it is asked. draws: candidates of each draw, the item's own label among them, in a seeded random
    order: of candidates with equal scores the first is chosen. wrong: the picture of the wrong-image control.
    """

    item: Item
    wrong: Item
    draws: tuple[tuple[str, ...], ...]

    @property
    def candidates(self) -> set[str]:
        return {label for draw in self.draws for label in draw}


def read_items(folder: Path) -> list[Item]:
    """The pictures of a shards folder, in uid order.

    Raises: DataError where a sample has no `label` in its json or no picture, or two samples have one uid.
    """
    items = [
        _item(shard, row, sample.images, read_metadata(shard, row).get("label"))
        for shard in list_shards(folder)
        for row, sample in iterate(shard)
    ]
    uid, num_same = Counter(item.uid for item in items).most_common(1)[0] if items else ("", 0)
    if num_same > 1:
        raise DataError(f"{folder}: {num_same} samples have the uid {uid}. Write the shards again without doubles.")
    return sorted(items, key=lambda item: item.uid)


def _item(shard: Path, row: dict, images: tuple[Image, ...], label: object) -> Item:
    if not isinstance(label, str) or not label.strip() or len(images) != 1:
        found = f"{len(images)} pictures and the label {label!r}"
        raise DataError(
            f"{shard}, sample '{row['key']}' has {found}. Evaluation needs one picture, and `label` in the json."
        )
    return Item(row["uid"], row["key"], label, images[0])


def ask(items: Sequence[Item], *, num_choices: int, num_draws: int, seed: int) -> list[Question]:
    """Every item as a question, in a seeded order of which any beginning is a fair subset.

    Raises: DataError where the labels are too few, or one label has more than half of the items.
    """
    labels = sorted({item.label for item in items})
    if len(labels) < num_choices:
        raise DataError(f"{len(labels)} different labels, {num_choices} choices are wanted. Lower choice.num_choices.")
    wrong = wrong_pictures(items, seed)

    def draws(item: Item) -> tuple[tuple[str, ...], ...]:
        return tuple(draw_candidates(item, labels, num_choices, seed, draw) for draw in range(num_draws))

    questions = [Question(item, wrong[item.uid], draws(item)) for item in items]
    return sorted(questions, key=lambda question: seeded(seed, "order", question.item.uid))


def draw_candidates(item: Item, labels: Sequence[str], num_choices: int, seed: int, draw: int) -> tuple[str, ...]:
    """The item's label and num_choices - 1 others, all different, in random order. labels: sorted, no doubles."""
    own = bisect_left(labels, item.label)
    chance = random.Random(seeded(seed, f"candidates {draw}", item.uid))
    others = chance.sample(range(len(labels) - 1), num_choices - 1)  # skips `own`: from there on, one further
    candidates = [item.label, *(labels[number + (number >= own)] for number in others)]
    chance.shuffle(candidates)
    return tuple(candidates)


def wrong_pictures(items: Sequence[Item], seed: int) -> dict[str, Item]:
    """uid -> another item, each used once, never one with the same label (a derangement).

    In a seeded order with equal labels side by side, everyone gets the picture that stands as many places further as
    the commonest label has items.
    """
    ring = sorted(items, key=lambda item: (seeded(seed, "label", item.label), seeded(seed, "wrong", item.uid)))
    label, shift = Counter(item.label for item in items).most_common(1)[0]
    if len(ring) < 2 * shift:
        raise DataError(
            f"{shift} of {len(ring)} pictures are labelled '{label}': too many to give each a picture of something "
            "else. Evaluate on shards in which no label has more than half of the pictures."
        )
    return {item.uid: ring[(place + shift) % len(ring)] for place, item in enumerate(ring)}


def reference_pictures(items: Sequence[Item], num_references: int, seed: int) -> list[str]:
    """uids of the pictures that stand for pictures in general: the first of a seeded order of all."""
    return sorted((item.uid for item in items), key=lambda uid: seeded(seed, "reference", uid))[:num_references]


def seeded(seed: int, purpose: str, name: str) -> int:
    """A number that looks random and follows from its arguments."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
