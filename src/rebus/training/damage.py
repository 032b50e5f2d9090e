"""What training met that it could not use: counted over all ranks, listed once, above a share the end of the run."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from rebus.batches.batch import Batch
from rebus.errors import DataError
from rebus.fingerprint import write_atomically
from rebus.mesh import Mesh
from rebus.records import Damage

NUM_BEFORE_JUDGING = 100  # documents: one bad one among the first ten says nothing yet


@dataclass(frozen=True)
class Tally:
    """Documents met so far, over all ranks and epochs: `num_documents` in all, the damaged ones of them by reason."""

    num_documents: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def num_damaged(self) -> int:
        return sum(self.reasons.values())

    @property
    def num_whole(self) -> int:
        return self.num_documents - self.num_damaged

    def plus(self, num_whole: int, damages: Sequence[Damage]) -> "Tally":
        reasons = Counter(self.reasons) + Counter(damage.reason for damage in damages)
        return Tally(self.num_documents + num_whole + len(damages), dict(reasons))


def damages_of(batches: Sequence[Batch], mesh: Mesh) -> list[Damage]:
    """The damaged documents of one step over all ranks, the same on each. A collective."""
    mine = [asdict(damage) for batch in batches for damage in batch.damage]
    return [Damage(**damage) for text in _gather(mine, mesh) for damage in json.loads(text)]


def stop_above(share: float, tally: Tally, quarantine: Path) -> None:
    """Raises: DataError with a table of reasons where more than `share` of the documents met were damaged."""
    if tally.num_documents < NUM_BEFORE_JUDGING or tally.num_damaged <= share * tally.num_documents:
        return
    listed = "\n".join(f"  {number:>8,}  {reason}" for reason, number in Counter(tally.reasons).most_common())
    found = tally.num_damaged / tally.num_documents
    raise DataError(
        f"{tally.num_damaged:,} of the {tally.num_documents:,} documents met so far ({found:.1%}) could not be loaded; "
        f"max_bad_share allows {share:.1%}:\n{listed}\nThey are listed in {quarantine}. Mend the "
        "data (`rebus doctor` finds all of it), or raise `max_bad_share` and run this again: it goes on from its last "
        "state."
    )


@dataclass
class Quarantine:
    """A run's quarantine.jsonl: every damaged document once, however many epochs and resumes meet it."""

    path: Path
    known: set[tuple[str, str]]

    def add(self, damages: Sequence[Damage]) -> None:
        fresh = {(one.shard, one.key): one for one in damages if (one.shard, one.key) not in self.known}
        if fresh:
            self.known.update(fresh)
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(damage)) + "\n" for damage in fresh.values())


def open_quarantine(path: Path) -> Quarantine:
    """Goes on with the list of an earlier start; a last line that a kill cut short is dropped."""
    kept: dict[tuple[str, str], str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            body = json.loads(line)
        except ValueError:
            break
        kept[body["shard"], body["key"]] = line + "\n"
    if path.is_file():
        write_atomically(path, "".join(kept.values()))
    return Quarantine(path, set(kept))


def _gather(body: list, mesh: Mesh) -> list[str]:
    """The body of every rank as JSON, in rank order: as bytes in tensors, since torch would send objects as pickles."""
    text = json.dumps(body)
    if mesh.world == 1:
        return [text]
    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(mesh.world)]
    torch.distributed.all_gather(sizes, torch.tensor([len(mine)]))
    longest = max(int(size) for size in sizes)
    padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(mesh.world)]
    torch.distributed.all_gather(padded, torch.cat([mine, mine.new_zeros(longest - len(mine))]))
    return [bytes(one[: int(size)].tolist()).decode() for one, size in zip(padded, sizes, strict=True)]
