"""How near `rebus score` comes to the machine's own limits: the bare encoder, or decoding alone.

Claims: where the encoder is the limit, at least 90% of the images/s of its bare forward pass on batches that lie ready
in memory; where decoding is, at least 85% of decoding alone, which here means what no encoder does without: stored
bytes to its square of pixels, the resize included (which takes longer than the JPEG). Decoding to full size stands
beside it. The baselines run in the same process with as many threads, in turns with ours, a round each; the figures
are medians over rounds, of the ratio within each round. What a second and a third scorer cost, and what torch's
resize saves, is measured the same way.

Random weights: speed does not depend on them. Pictures: synthetic, as JPEG. On a CPU: a tiny CLIP (decoding is the
limit) and CLIP ViT-B/32 (the encoder is). On a GPU also ViT-L/14 and SigLIP SO400M-384, in bf16, compiled.

    python benchmarks/scoring.py [--json FILE] [--check] [--cases tiny b32 l14 so400m] [--rounds 3]
"""

import argparse
import concurrent.futures
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tokenizers
import torch
import transformers

from machine import machine
from rebus.engine import list_shards
from rebus.log import show_table
from rebus.pictures.decode import decode_image
from rebus.scores.config import ScoreRecipe
from rebus.scores.measure import Pass
from rebus.shards.config import ShardsRecipe
from rebus.shards.index import write_index
from rebus.shards.read import iterate
from rebus.shards.run import run as index
from rebus.shards.write import write_shard
from rebus.towers.dual import open_dual

MIN_OF_ENCODER, MIN_OF_DECODING = 0.90, 0.85
WORDS = "a photo of the red old small dog boat house tree on wide green water sky with two people and light".split()  # noqa: SIM905


@dataclass(frozen=True)
class Case:
    """side: of the stored JPEG. limit: what the claim compares with, `encoder` or `decoding`."""

    limit: str
    num_samples: int
    batch_size: int
    side: tuple[int, int]
    vision: dict[str, int]
    text: dict[str, int]
    kind: str = "clip"


TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
WORDS_512 = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
CASES = {
    "tiny": Case("decoding", 2048, 256, (640, 480), {**TINY, "image_size": 64, "patch_size": 32}, TINY),
    "b32": Case("encoder", 128, 32, (512, 384), {**BASE, "image_size": 224, "patch_size": 32}, WORDS_512),
    "l14": Case(
        "encoder", 16384, 256, (512, 384), {**LARGE, "image_size": 224, "patch_size": 14}, {**BASE, "hidden_size": 768}
    ),
    "so400m": Case("encoder", 8192, 128, (512, 384), {**SO400M, "image_size": 384, "patch_size": 14}, SO400M, "siglip"),
}


def write_pool(folder: Path, case: Case) -> Path:
    """Two shards; 64 different pictures, captions of 4 to 16 words."""
    rng = np.random.default_rng(0)
    pictures = [jpeg(rng, case.side) for _ in range(64)]
    per_shard = case.num_samples // 2
    for shard in range(2):
        numbers = range(shard * per_shard, (shard + 1) * per_shard)
        captions = [" ".join(rng.choice(WORDS, rng.integers(4, 17))) for _ in numbers]
        samples = [
            (f"{number:08d}", {"jpg": pictures[number % 64], "txt": caption.encode()})
            for number, caption in zip(numbers, captions, strict=True)
        ]
        write_shard(folder / f"{shard:05d}.tar", samples)
        write_index(folder / f"{shard:05d}.tar")
    index(ShardsRecipe(source="tars", input=folder, out=folder, num_workers=1))
    return folder


def jpeg(rng: np.random.Generator, side: tuple[int, int]) -> bytes:
    """Smooth colours with grain: as many bytes a pixel as a photo has at quality 90."""
    small = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(side, PIL.Image.BICUBIC)
    grain = rng.normal(0, 6, (side[1], side[0], 3))
    buffer = io.BytesIO()
    PIL.Image.fromarray((np.asarray(small) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_model(folder: Path, case: Case) -> Path:
    """Random weights in the hub's layout, with a tokenizer that knows the captions' words, as CLIP's does."""
    merges = word_merges()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    units = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {unit: number for number, unit in enumerate([*units, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=64)
    words = {**case.text, "vocab_size": 49408, "max_position_embeddings": 77 if case.kind == "clip" else 64}
    square = {"height": case.vision["image_size"], "width": case.vision["image_size"]}
    torch.manual_seed(0)
    if case.kind == "clip":
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = transformers.CLIPConfig(text_config={**words, **ends}, vision_config=case.vision, projection_dim=512)
        model: Any = transformers.CLIPModel(config)
        processor: Any = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": case.vision["image_size"]}, crop_size=square
        )
    else:
        words["projection_size"] = case.vision["hidden_size"]
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=case.vision))
        processor = transformers.SiglipImageProcessorPil(size=square)
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return folder


def word_merges() -> list[tuple[str, str]]:
    """Byte pairs that make one token of each word."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(letters)):
            merges["".join(letters[:end]), letters[end]] = None
    return list(merges)


@dataclass(frozen=True)
class Bench:
    """A case made ready: its pool, its model, settings of the scorer."""

    case: Case
    pool: Path
    options: dict[str, Any]
    folder: Path

    def score(self, scorers: dict[str, Any]) -> float:
        """Images/s of one pass by these scorers, tables written, models already loaded."""
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            recipe = ScoreRecipe(
                shards=self.pool, out=Path(out), scorers=scorers, batch_size=self.case.batch_size, max_bad_share=1
            )
            started = time.perf_counter()
            num_samples = sum(one.num_samples for one in Pass(recipe, tuple(scorers))(list_shards(self.pool)))
            return num_samples / (time.perf_counter() - started)

    def encode(self) -> Callable[[], float]:
        """Images/s of the two towers alone, on batches as the scorer measures them, ready where the model is."""
        encoder = open_dual(
            self.options["model"], self.options["dtype"], self.options["device"], compile=self.options["compile"]
        )
        pixels, texts = self._ready(encoder)

        def forward() -> float:
            started = time.perf_counter()
            with torch.inference_mode():
                for start in range(0, len(texts), self.case.batch_size):
                    part = slice(start, start + self.case.batch_size)
                    kept = (encoder.image(pixels[part]) * encoder.texts(texts[part])).sum(-1)
            kept.cpu()
            return len(texts) / (time.perf_counter() - started)

        return forward

    def _ready(self, encoder: Any) -> tuple[torch.Tensor, list[str]]:
        """Eight batches: enough to time, little enough to lie on a GPU."""
        num = min(self.case.num_samples, 8 * self.case.batch_size)
        samples = [sample for shard in list_shards(self.pool) for _, sample in iterate(shard)][:num]
        squares = [encoder.image_rule.square(decode_image(sample.images[0].data or b"")) for sample in samples]
        pixels = torch.cat([encoder.normalised(torch.from_numpy(square[None].copy())) for square in squares])
        return pixels, [sample.parts[-1].text for sample in samples]  # type: ignore[union-attr]

    def decode(self, *, resizes: bool) -> Callable[[], float]:
        """Images/s of decoding, to the encoder's square or to full size, on as many threads as scoring decodes with,
        from bytes in memory."""
        rule = open_dual(self.options["model"], "float32", "cpu").image_rule

        def one(data: bytes) -> int:
            picture = decode_image(data)
            return rule.square(picture).size if resizes else picture.width

        data = [sample.images[0].data or b"" for shard in list_shards(self.pool) for _, sample in iterate(shard)]
        num_threads = ScoreRecipe(shards=self.pool, out=self.pool, scorers={"a": {}}).num_decoders

        def decode() -> float:
            started = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(num_threads) as threads:
                sum(threads.map(one, data))
            return len(data) / (time.perf_counter() - started)

        return decode


def measure(name: str, num_rounds: int, folder: Path, device: str) -> dict[str, Any]:
    """Every contender once a round, in turns."""
    case = CASES[name]
    is_gpu = device == "cuda"
    options = {"model": write_model(folder / "model", case), "dtype": "bfloat16" if is_gpu else "float32"}
    options |= {"device": device, "compile": is_gpu}
    bench = Bench(case, write_pool(folder / "pool", case), options, folder)
    dual = {"dual_encoder": {**options, "model": str(options["model"])}}
    statistics_too = {**dual, "image_stats": {}}
    contenders: dict[str, Callable[[], float]] = {
        "the encoder alone": bench.encode(),
        "decoding alone": bench.decode(resizes=True),
        "rebus score: dual_encoder": lambda: bench.score(dual),
        "and image_stats": lambda: bench.score(statistics_too),
        "and text_stats": lambda: bench.score({**statistics_too, "text_stats": {}}),
    }
    if case.limit == "decoding":
        quick = {"dual_encoder": {**dual["dual_encoder"], "resize": "torch"}}
        contenders["dual_encoder, resize: torch"] = lambda: bench.score(quick)
        contenders["decoding to full size"] = bench.decode(resizes=False)
    for contender in contenders.values():  # what is loaded or compiled once
        contender()
    rounds = [{label: contender() for label, contender in contenders.items()} for _ in range(num_rounds)]
    limit = "the encoder alone" if case.limit == "encoder" else "decoding alone"
    ours = "rebus score: dual_encoder"
    speeds = {label: statistics.median(each[label] for each in rounds) for label in contenders}
    shares = {label: statistics.median(each[label] / each[limit] for each in rounds) for label in contenders}
    return {"limit": limit, "images_per_s": speeds, "share_of_limit": shares, "ours": shares[ours], "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a claim is missed")
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = arguments.cases or (list(CASES) if device == "cuda" else ["tiny", "b32"])
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, arguments.rounds, Path(folder), device)
    if arguments.json:
        body = {"machine": machine(device), "torch_threads": torch.get_num_threads(), "cases": results}
        arguments.json.write_text(json.dumps(body, indent=2) + "\n")
    rows = [
        [name, label, f"{found['images_per_s'][label]:,.1f}", f"{found['share_of_limit'][label]:.0%}"]
        for name, found in results.items()
        for label in found["images_per_s"]
    ]
    show_table(f"scoring on {machine(device)}", ["case", "", "images/s", "of the limit"], rows)
    floor = {"the encoder alone": MIN_OF_ENCODER, "decoding alone": MIN_OF_DECODING}
    missed = [name for name, found in results.items() if found["ours"] < floor[found["limit"]]]
    if arguments.check and missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
