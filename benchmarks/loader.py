"""What the loader costs beyond the pictures, and what a plan costs beside packs that copy them.

Claims: per core, batches come at 85% at least of the speed at which Pillow decodes and resizes the same files, in the
same run; plan and index take a thousandth at most of the bytes that Open-Qwen2VL's pickled packs take of the same
samples.

    python benchmarks/loader.py [--pictures 2000] [--repeats 5] [--tokenizer FOLDER] [--json FILE] [--check]

Pictures are seeded JPEGs of 500 x 375 (ImageNet's usual size), smooth noise, grain and shapes at quality 90; captions
are as long as alt texts. `bare` reads each file and has Pillow decode it at the scale that the target allows and resize
it, nothing else. The loader reads tars by the index, encodes text, decodes, resizes, lays out packs. Speed is images
per second of CPU time, of all threads together, so other programs on the machine disturb it little; kinds alternate,
and the median of the repeats counts.
"""

import argparse
import base64
import io
import json
import math
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from machine import machine
from rebus.batches.feed import Feed, build_batch, open_feed
from rebus.batches.loader import iterate_batches
from rebus.log import show_table
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.records import Text
from rebus.shards.config import ShardsRecipe
from rebus.shards.read import iterate
from rebus.shards.run import run as index
from rebus.shards.write import write_shard
from rebus.tokens.config import TokensConfig

SIZES = (224, 384)
WORKERS = (0, 1, 2)
WIDTH, HEIGHT, QUALITY = 500, 375, 90
PER_SHARD = 500
CAPACITY = 4096
LEAST_SHARE, MOST_BYTES = 0.85, 1 / 1000
KEPT_SIDE = 384  # Open-Qwen2VL's packer shrinks pictures whose shorter side is longer
PROSE = (
    "the a of in on with and new old red blue white black wooden small large vintage photo image picture stock free "
    "home garden kitchen street city beach mountain woman man child dog cat car house table design print poster canvas "
    "summer winter wedding birthday party best price sale buy online how to make easy recipe ideas for your room 2020"
)
WORDS = PROSE.split()


def make_picture(rng: np.random.Generator) -> bytes:
    """A photo-like JPEG: three octaves of smooth noise, camera grain, a few shapes. About 60 kB."""
    layers = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cell, weight in ((150, 0.6), (40, 0.3), (10, 0.1)):
        coarse = rng.integers(0, 256, (HEIGHT // cell + 2, WIDTH // cell + 2, 3), dtype=np.uint8)
        smooth = PIL.Image.fromarray(coarse).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)
        layers += weight * np.asarray(smooth, np.float32)
    layers += rng.normal(0, 4, (HEIGHT, WIDTH, 1)).astype(np.float32)
    picture = PIL.Image.fromarray(layers.clip(0, 255).astype(np.uint8))
    draw = PIL.ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
        box = (left, top, left + int(rng.integers(20, 150)), top + int(rng.integers(20, 150)))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def make_caption(rng: np.random.Generator) -> str:
    """Words of an alt text: log-normal, median 9."""
    return " ".join(rng.choice(WORDS, int(rng.lognormal(2.2, 0.6).__ceil__())))


def make_data(folder: Path, num_pictures: int) -> None:
    """`folder`/files: the pictures; `folder`/shards: the same as finished shards in img2dataset's layout."""
    rng = np.random.default_rng(0)
    (folder / "files").mkdir()
    for start in range(0, num_pictures, PER_SHARD):
        samples = []
        for number in range(start, min(start + PER_SHARD, num_pictures)):
            key, jpeg, caption = f"{number:09d}", make_picture(rng), make_caption(rng)
            (folder / "files" / f"{key}.jpg").write_bytes(jpeg)
            about = {
                "uid": rng.bytes(16).hex(),
                "url": f"https://example.com/{key}.jpg",
                "caption": caption,
                "key": key,
            }
            about |= {"width": WIDTH, "height": HEIGHT, "status": "success", "sha256": rng.bytes(32).hex()}
            samples.append((key, {"jpg": jpeg, "txt": caption.encode(), "json": json.dumps(about).encode()}))
        write_shard(folder / "shards" / f"{start // PER_SHARD:05d}.tar", samples)
    index(ShardsRecipe(source="tars", input=folder / "shards", out=folder / "shards", num_workers=1))


def make_tokenizer(folder: Path) -> Path:
    """A byte-level BPE trained on captions, where no tokenizer was given."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    rng = np.random.default_rng(1)
    tokenizer.train_from_iterator((make_caption(rng) for _ in range(5000)), trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_feed(folder: Path, size: int, tokenizer: Path) -> Feed:
    image = FixedConfig(size=size, tokens_per_side=12)
    tokens = TokensConfig(tokenizer=tokenizer, image=image)
    out = folder / f"plan{size}"
    pack(PackRecipe(shards=[folder / "shards"], tokens=tokens, capacity=CAPACITY, out=out, num_workers=1))
    return open_feed(out)


def decode_bare(paths: list[Path], size: int) -> int:
    """What any loader must do, in Pillow's own calls."""
    for path in paths:
        picture = PIL.Image.open(io.BytesIO(path.read_bytes()))
        scale = size / max(picture.size)
        target = tuple(math.floor(side * scale + 0.5) for side in picture.size)
        reduction = max(1, max(picture.size) // size)
        drafted = picture.draft(None, (picture.width // reduction, picture.height // reduction))
        np.asarray(picture.resize(target, PIL.Image.Resampling.BICUBIC, box=drafted[1] if drafted else None))
    return len(paths)


def load(feed: Feed, num_workers: int) -> int:
    """An epoch through the loader. Returns the number of pictures."""
    batches = iterate_batches(feed, range(feed.num_packs), packs_per_step=1, seed=0, num_workers=num_workers)
    return sum(batch.num_images for _, group in batches for batch in group)


def measure(function: Callable[[], int]) -> tuple[float, float]:
    """Images per second of CPU time, and of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    num_images = function()
    return num_images / (time.process_time() - cpu), num_images / (time.perf_counter() - wall)


def measure_speed(folder: Path, feeds: dict[int, Feed], repeats: int) -> list[dict]:
    """One row a size and kind: median speeds, and the share of bare decoding's per core, of the same repeat."""
    paths = sorted((folder / "files").iterdir())
    rows = []
    for size, feed in feeds.items():
        kinds: dict[str, Callable[[], int]] = {"bare": lambda size=size: decode_bare(paths, size)}
        for number in WORKERS:
            kinds[f"loader, {number} workers"] = lambda feed=feed, number=number: load(feed, number)
        for function in kinds.values():
            function()  # once before it counts: imports, indexes, the page cache
        found = [{kind: measure(function) for kind, function in kinds.items()} for _ in range(repeats)]
        for kind in kinds:
            per_core, per_second = (statistics.median(one[kind][i] for one in found) for i in range(2))
            share = statistics.median(one[kind][0] / one["bare"][0] for one in found)
            row = {"size": size, "kind": kind, "images_per_core_second": per_core, "images_per_second": per_second}
            rows.append({**row, "share_of_bare": share})
    return rows


def packs_of_originals(feed: Feed, folder: Path) -> Iterator[list[tuple[str, bytes, np.ndarray]]]:
    """The documents of every pack as (caption, JPEG, ids)."""
    samples = {s.key: s for tar in sorted((folder / "shards").glob("*.tar")) for _, s in iterate(tar)}
    for number in range(feed.num_packs):
        batch = build_batch(feed, (number,))
        bounds = batch.bounds.tolist()
        ids = [batch.ids[start:end].numpy() for start, end in pairwise(bounds)]
        documents = [samples[key] for key in batch.keys]
        texts = [" ".join(part.text for part in one.parts if isinstance(part, Text)) for one in documents]
        yield list(zip(texts, [one.images[0].data or b"" for one in documents], ids, strict=True))


def as_pickle(documents: list[tuple[str, bytes, np.ndarray]]) -> bytes:
    """Open-Qwen2VL's packed pickle: pictures as PIL RGB, ids with one placeholder an image, expanded lengths."""
    pictures = [PIL.Image.open(io.BytesIO(jpeg)).convert("RGB") for _, jpeg, _ in documents]
    for picture in pictures:
        if min(picture.size) > KEPT_SIDE:
            raise NotImplementedError("the packer would shrink this picture; its rule is not part of this script")
    ids = torch.from_numpy(
        np.concatenate([one[np.append(True, ~((one[1:] == -1) & (one[:-1] == -1)))] for _, _, one in documents])
    )
    return pickle.dumps({"image_tensors": pictures, "input_ids": ids, "lengths": [len(one) for _, _, one in documents]})


def as_json(documents: list[tuple[str, bytes, np.ndarray]]) -> bytes:
    """Open-Qwen2VL's _packed.json: pictures once more as JPEG, at Pillow's default quality, in base64."""
    rows = []
    for number, (text, jpeg, ids) in enumerate(documents):
        buffer = io.BytesIO()
        PIL.Image.open(io.BytesIO(jpeg)).convert("RGB").save(buffer, "JPEG")
        image = {"image_base64": base64.b64encode(buffer.getvalue()).decode()}
        rows.append(
            {"image_info": [image], "texts": [text], "key": f"{number:09d}", "uid": "0" * 32, "length": len(ids)}
        )
    return json.dumps({"data": rows, "lengths": [len(ids) for _, _, ids in documents]}).encode()


def measure_bytes(folder: Path, feed: Feed) -> list[dict]:
    """Bytes on disk a sample; the data itself, which all of them are made of, is none of them."""
    sums = {"pickles": 0, "json packs": 0, "plan": 0, "index": 0, "shards, for comparison": 0}
    num_samples = feed.plan.table.num_rows
    for documents in packs_of_originals(feed, folder):
        sums["pickles"] += len(as_pickle(documents))
        sums["json packs"] += len(as_json(documents))
    sums["plan"] = sum(path.stat().st_size for path in feed.plan.folder.iterdir() if path.is_file())
    shards = folder / "shards"
    sums["index"] = sum(path.stat().st_size for path in shards.iterdir() if path.suffix != ".tar")
    sums["shards, for comparison"] = sum(path.stat().st_size for path in shards.glob("*.tar"))
    sums["plan + index"] = sums["plan"] + sums["index"]
    return [{"kind": kind, "bytes_per_sample": number / num_samples} for kind, number in sums.items()]


def failures(speeds: list[dict], sizes: list[dict]) -> list[str]:
    """What misses the claims."""
    found = [
        f"{row['size']} px, {row['kind']}: {row['share_of_bare']:.1%} of bare decoding, the claim is {LEAST_SHARE:.0%}"
        for row in speeds
        if row["kind"] in ("loader, 0 workers", "loader, 1 workers") and row["share_of_bare"] < LEAST_SHARE
    ]
    each = {row["kind"]: row["bytes_per_sample"] for row in sizes}
    if each["plan + index"] > MOST_BYTES * each["pickles"]:
        found.append(f"plan and index take 1/{each['pickles'] / each['plan + index']:.0f} of the pickles")
    return found


def show(speeds: list[dict], sizes: list[dict]) -> None:
    names = ("images_per_core_second", "images_per_second")
    rows = [[r["size"], r["kind"], *(round(r[name]) for name in names), f"{r['share_of_bare']:.1%}"] for r in speeds]
    show_table("Images/s", ["pixels", "", "per core", "by the clock", "of bare, per core"], rows)
    each = {row["kind"]: row["bytes_per_sample"] for row in sizes}
    rows = [[kind, f"{number:,.0f}", f"1/{each['pickles'] / number:,.0f}"] for kind, number in each.items()]
    show_table("Bytes a sample", ["", "bytes", "of the pickles"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/demo/weights/smollm2"))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the figures miss the claims")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, arguments.pictures)
        given = (arguments.tokenizer / "tokenizer.json").is_file()
        tokenizer = arguments.tokenizer if given else make_tokenizer(folder / "tokenizer")
        feeds = {size: make_feed(folder, size, tokenizer) for size in SIZES}
        speeds, sizes = measure_speed(folder, feeds, arguments.repeats), measure_bytes(folder, feeds[SIZES[-1]])
    show(speeds, sizes)
    if arguments.json:
        figures = {"machine": machine(), "pictures": arguments.pictures, "speed": speeds, "bytes": sizes}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    missed = failures(speeds, sizes) if arguments.check else []
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
