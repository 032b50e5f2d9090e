"""Makes names and questions about kept samples from their own metadata: a table, LLaVA's JSON, a folder of images.

    python data/questions.py --shards runs/demo/pool --selection runs/demo/selection --out runs/demo/questions

One conversation a sample: its name, then one of yes or no, which of four, tags, group. Only kept samples are asked
about or offered as wrong answers. Each sample has its own dice, seeded by its uid.
"""

import argparse
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.errors import DataError
from rebus.fingerprint import discard, fingerprint, read_manifest, write_atomically
from rebus.log import say, track
from rebus.selection.read import kept_rows
from rebus.shards.assemble import image_names, parse_json
from rebus.shards.read import read_index, read_members

# The wording, all of it. {label} and the like come from a sample's metadata.
# Short, because a small model on two cores pays about 4 ms for every token.
NAMING = "What is this?"
YES_NO = "Is it {label}?"
WHICH = "Which one: {options}?"
TAGS = "Which words go with it?"
GROUP = "What kind of thing is it?"
YES, NO = "Yes", "No"
NUM_OPTIONS = 4
MAX_TAGS = 3
VERSION = 3

MADE = "made.json"


@dataclass(frozen=True)
class Concept:
    """A kept sample: where it lies and what its metadata says."""

    tar: Path
    row: Mapping[str, Any]
    metadata: Mapping[str, Any]

    @property
    def uid(self) -> str:
        return self.row["uid"]

    @property
    def label(self) -> str:
        return self.metadata["label"]


def read_concepts(shards: Path, selection: Path) -> list[Concept]:
    """Kept samples in the order of their uids. Raises: DataError where one has no label."""
    concepts = []
    for name, rows in kept_rows(selection):
        table = read_index(shards / name).to_pylist()
        for number in rows:
            members = read_members(shards / name, table[number])
            metadata = parse_json(members.get("json", b"{}"))
            if not isinstance(metadata.get("label"), str):
                raise DataError(f"{shards / name}, sample '{table[number]['key']}' has no label to ask for.")
            concepts.append(Concept(shards / name, table[number], metadata))
    return sorted(concepts, key=lambda concept: concept.uid)


def ask(concept: Concept, others: list[Concept], seed: int) -> list[dict[str, str]]:
    """The conversation about a concept: its name, then one other question that the dice choose."""
    dice = random.Random(f"{seed}:{concept.uid}")
    naming = _exchange(f"<image>\n{NAMING}", concept.label)
    return [*naming, *_exchange(*dice.choice(_questions(concept, others, dice)))]


def _questions(concept: Concept, others: list[Concept], dice: random.Random) -> list[tuple[str, str]]:
    """Question and answer of every kind that the sample's metadata and the other samples allow."""
    wrong = _wrong_labels(concept, others, dice)
    tags, group = concept.metadata.get("tags") or [], concept.metadata.get("group")
    questions = [(YES_NO.format(label=concept.label), YES)]
    if wrong:
        options = dice.sample([concept.label, *wrong], len(wrong) + 1)
        questions += [
            (YES_NO.format(label=wrong[0]), NO),
            (WHICH.format(options=", ".join(options)), concept.label),
        ]
    if tags:
        questions.append((TAGS, ", ".join(tags[:MAX_TAGS])))
    if group:
        questions.append((GROUP, group))
    return questions


def _exchange(question: str, answer: str) -> tuple[dict[str, str], dict[str, str]]:
    return {"from": "human", "value": question}, {"from": "gpt", "value": answer}


def _wrong_labels(concept: Concept, others: list[Concept], dice: random.Random) -> list[str]:
    """Labels of other kept samples, none twice; fewer where so few are left."""
    labels = sorted({other.label for other in dice.sample(others, min(len(others), 4 * NUM_OPTIONS))} - {concept.label})
    return dice.sample(labels, min(NUM_OPTIONS - 1, len(labels)))


def make_questions(shards: Path, selection: Path, out: Path, seed: int) -> int:
    """Writes out/questions.json, out/names.jsonl and out/images. Returns the number of conversations.

    A name begins with a space: so its first word is the token that it is within a sentence, which a model knows best.
    """
    inputs = [read_manifest(shards, "shards").fingerprint, read_manifest(selection, "selection").fingerprint]
    wanted = fingerprint({"inputs": inputs, "seed": seed, "version": VERSION, "wording": _wording()})
    if (made := _read_made(out)) is not None and made["fingerprint"] == wanted:
        say(f"{out} is up to date")
        return made["num_conversations"]
    concepts = read_concepts(shards, selection)
    building = out.with_name(f".{out.name}.building")
    discard(building)
    records = [
        {
            "id": concept.uid,
            "image": _write_image(concept, building),
            "conversations": ask(concept, concepts, seed),
        }
        for concept in track(concepts, "questions")
    ]
    write_atomically(building / "questions.json", json.dumps(records, ensure_ascii=False, indent=1) + "\n")
    names = [{"file": record["image"], "caption": f" {c.label}"} for record, c in zip(records, concepts, strict=True)]
    write_atomically(building / "names.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in names))
    write_atomically(building / MADE, json.dumps({"fingerprint": wanted, "num_conversations": len(records)}) + "\n")
    discard(out)
    building.rename(out)
    return len(records)


def _wording() -> list[object]:
    return [NAMING, YES_NO, WHICH, TAGS, GROUP, YES, NO, NUM_OPTIONS, MAX_TAGS]


def _read_made(out: Path) -> dict[str, Any] | None:
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / MADE).is_file():
        raise DataError(f"{out} holds files that data/questions.py did not make. Choose another --out.")
    return json.loads((out / MADE).read_text())


def _write_image(concept: Concept, folder: Path) -> str:
    """Copies the first image of a sample. Returns its path inside `folder`."""
    members = read_members(concept.tar, concept.row)
    extension = image_names(members)[0]
    name = f"images/{concept.uid}.{extension.rpartition('.')[2]}"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(members[extension])
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--selection", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    number = make_questions(arguments.shards, arguments.selection, arguments.out, arguments.seed)
    say(f"{arguments.out}: {number} conversations")


if __name__ == "__main__":
    main()
