"""What the doctor found, by reason for the eye and one by one for a program."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rebus.config import Place
from rebus.doctor.examine import Finding, Findings, opens_pictures
from rebus.fingerprint import write_atomically
from rebus.log import output, printable, say, show_table
from rebus.shards import damage, index, members
from rebus.shards.config import ShardsRecipe

MAX_SHOWN = 50  # damaged samples in full; the count by reason covers all

LEFT_OUT = {
    damage.UNDECODABLE_IMAGE: ("found by scores and training",),
    damage.BOMB: ("never decoded",),
    damage.TINY_PICTURE: ("it shows nothing",),
    index.DUPLICATE_KEY: ("the first of the key is used",),
    index.UNREADABLE_TAR: ("the whole file",),
    members.TRUNCATED_TAR: ("what lies before is used",),
    members.DAMAGED_TAR: ("what follows is used",),
    members.CLIMBING_PATH: ("written nowhere",),
    members.LINK: ("never followed",),
}
"""What there is to say of a damaged sample beyond that it is left out."""

KEPT = {
    damage.CMYK: "converted to RGB",
    damage.SIXTEEN_BIT: "scaled to 8 bits",
    damage.ANIMATED: "the first frame is used",
    damage.NO_JSON: "its uid is a hash",
    damage.WRONG_EXTENSION: "read as what it is",
    damage.EXIF_ROTATED: "turned upright",
    damage.ANSWER_FIRST: "what nobody asked for is left out",
}
"""What happens to a sample that is odd and used."""


def print_findings(recipe: ShardsRecipe, path: Place, findings: Findings, json_out: Path | None) -> None:
    """The table by reason, then where each damaged sample is."""
    total = findings.num_samples
    reasons = Counter(one.reason for one in findings.damaged).most_common()
    fates = [(name, number, "; ".join(["left out", *LEFT_OUT.get(name, ())])) for name, number in reasons]
    fates += [(name, number, f"kept; {KEPT[name]}") for name, number in findings.odd.most_common()]
    rows = [(name, f"{number:,}", _share(number, total), fate) for name, number, fate in fates]
    usable = ("usable", f"{findings.num_good:,}", _share(findings.num_good, total), "")
    show_table(f"samples: {path}", ["", "number", "share", "what happens to it"], [usable, *rows])
    for one in findings.damaged[:MAX_SHOWN]:
        output.print(_line(one), markup=False, highlight=False, soft_wrap=True)
    if len(findings.damaged) > MAX_SHOWN:
        where = json_out or "--json FILE"
        say(f"and {len(findings.damaged) - MAX_SHOWN:,} more, all in {where}")
    if findings.damaged:
        say(f"{len(findings.damaged):,} of {total:,} samples are damaged; every stage leaves them out by itself.")
    else:
        odd = ", the odd ones among them too" if findings.odd else ""
        say(f"all {findings.num_good:,} samples are good{odd}")
    if not opens_pictures(recipe):
        say("no picture was opened, since the recipe says `check_images: false`: missing and broken ones are not found")


def _line(one: Finding) -> str:
    """The command that shows it, or where there is none its place; then what is wrong."""
    place = f", byte {one.offset}" if one.offset >= 0 else ""
    where = one.pointer or printable(f"{one.shard}, {one.key or 'no key'}{place}")
    return f"{where}  # {printable(f'{one.reason}: {one.detail}' if one.detail else one.reason)}"


def write_findings(target: Path, path: Place, findings: Findings) -> None:
    """Every damaged sample, and of each oddity the first of every shard, with the command that shows it, if any."""
    body = {
        "data": str(path),
        "num_samples": findings.num_samples,
        "num_good": findings.num_good,
        "num_damaged": len(findings.damaged),
        "reasons": dict(Counter(one.reason for one in findings.damaged).most_common()),
        "odd": dict(findings.odd.most_common()),
        "damaged": [asdict(one) for one in findings.damaged],
        "noted": [asdict(one) for one in findings.noted],
    }
    write_atomically(target, json.dumps(body, indent=1) + "\n")


def _share(number: int, total: int) -> str:
    return f"{number / total:.1%}" if total else "-"
