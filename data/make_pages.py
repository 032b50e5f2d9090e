"""Makes a few interleaved pages and a multi-image conversation from the set's pictures and our own sentences.

    python data/make_pages.py --input data/emoji/train --out runs/pages

out/pages.jsonl has OBELICS' form (`texts` with null where an image stands, `images`), out/conversations.json LLaVA's
with a list of images; both name files under out/images. `rebus shards` reads them as `pages` and `conversations`.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

from rebus.engine import list_shards
from rebus.fingerprint import write_atomically
from rebus.records import Damage, Image, Text
from rebus.shards.index import judge_groups

SAMPLES_A_PAGE = (1, 2, 3, 4)
OPENING = "A page about {number} pictures."
LEAD_IN = "Number {number} comes next."
CLOSING = "That was {label}."
COMPARISON = "<image>\n<image>\nWhat do these two pictures show?"


def take_samples(source: Path, number: int, out: Path) -> list[tuple[str, str]]:
    """Writes the first pictures of a set. Returns (file under out, label) of each."""
    taken = []
    for group, outcome in islice(judge_groups(list_shards(source)[0]), number):
        if isinstance(outcome, Damage):
            continue
        name = f"images/{group.key}.webp"
        label = next(part.text for part in outcome.sample.parts if isinstance(part, Text)).partition(":")[0]
        image = next(part for part in outcome.sample.parts if isinstance(part, Image))
        write_atomically(out / name, image.data or b"")
        taken.append((name, label))
    return taken


def make_page(samples: list[tuple[str, str]]) -> dict[str, Any]:
    """Text, picture, text, picture ...: parallel lists, one of the two null at each place."""
    texts: list[str | None] = [OPENING.format(number=len(samples))]
    images: list[str | None] = [None]
    for number, (name, label) in enumerate(samples, start=1):
        texts += [LEAD_IN.format(number=number), None, CLOSING.format(label=label)]
        images += [None, name, None]
    return {"texts": texts, "images": images}


def make_conversation(first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    answer = f"The first is {first[1]}, the second is {second[1]}."
    turns = [{"from": "human", "value": COMPARISON}, {"from": "gpt", "value": answer}]
    return {"id": "two-pictures", "image": [first[0], second[0]], "conversations": turns}


def make(source: Path, out: Path) -> None:
    samples = take_samples(source, sum(SAMPLES_A_PAGE), out)
    remaining = iter(samples)
    pages = [make_page(list(islice(remaining, size))) for size in SAMPLES_A_PAGE]
    write_atomically(out / "pages.jsonl", "".join(json.dumps(page, ensure_ascii=False) + "\n" for page in pages))
    conversations = [make_conversation(samples[0], samples[1])]
    write_atomically(out / "conversations.json", json.dumps(conversations, ensure_ascii=False, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of WebDataset tars")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    make(arguments.input, arguments.out)


if __name__ == "__main__":
    main()
