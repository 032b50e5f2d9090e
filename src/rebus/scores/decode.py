"""One decode for all scorers: a shard's samples, read in tar order and decoded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rebus.pictures.decode import decode_image
from rebus.records import Damage, Image, Sample, Text
from rebus.shards.read import iterate

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class Decoded:
    """What a scorer sees of a sample. picture is RGB; it and image_bytes are None where the sample has no image."""

    uid: str
    key: str
    text: str
    image_bytes: bytes | None
    picture: "PIL.Image.Image | None"


def decode_shard(tar: Path) -> Iterator[Decoded | Damage]:
    """Yields every sample of a shard decoded, or the damage that its picture hides until it is decoded."""
    for row, sample in iterate(tar):
        try:
            yield _decode(sample)
        except ValueError as error:
            yield Damage(tar.name, sample.key, int(row["offset"]), "undecodable image", str(error))


def _decode(sample: Sample) -> Decoded:
    """The first picture stands for a sample with several."""
    text = " ".join(part.text for part in sample.parts if isinstance(part, Text))
    image: Image | None = sample.images[0] if sample.images else None
    data = image.data if image else None
    return Decoded(sample.uid, sample.key, text, data, decode_image(data) if data is not None else None)
