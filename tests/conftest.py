"""Tiny real things for tests: a byte-level BPE tokenizer and WebDataset shards in the formats that stages exchange."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest

from rebus.fingerprint import Manifest, folder_fingerprint, write_manifest
from rebus.records import content_uid
from tiny_models import save_tiny_llama
from tiny_way import speaking_folder, tiny_way

__all__ = ["speaking_folder", "tiny_way"]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer.json of a byte-level BPE of 300 tokens; ids 0, 1, 2 are SPECIAL."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a photo of a red square on the table, what is in the photo?"] * 4, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@dataclass(frozen=True)
class TinySample:
    """One sample of a test shard. `image` None makes it text-only; `messages` makes it a conversation."""

    caption: str = ""
    image: bytes | None = None
    messages: tuple[dict, ...] = ()


def tiny_picture(colour: str = "red", size: tuple[int, int] = (16, 12)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, samples: Sequence[TinySample], samples_per_shard: int = 16) -> Path:
    """Writes samples as a finished shards artifact: tars, indexes, quarantines, manifest. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), samples_per_shard)
    for number, start in enumerate(starts):
        _write_shard(folder / f"{number:05d}.tar", samples[start : start + samples_per_shard], start)
    facts = {"num_samples": len(samples), "num_shards": len(starts), "num_damaged": 0}
    write_manifest(folder, Manifest("shards", {"tiny": folder_fingerprint(folder)}, {}, facts))
    return folder


@pytest.fixture
def tiny_shards(tmp_path: Path) -> Callable[..., Path]:
    """`tiny_shards(num_samples=40, captions=None)` -> a finished shards folder of captioned one-colour pictures."""

    def build(num_samples: int = 40, captions: Sequence[str] | None = None) -> Path:
        colours = ["red", "green", "blue", "white", "black"]
        texts = captions or [f"a photo of {'the ' * (i % 7)}{colours[i % 5]} square" for i in range(num_samples)]
        samples = [TinySample(text, tiny_picture(colours[i % 5])) for i, text in enumerate(texts)]
        return write_shards(tmp_path / "shards", samples)

    return build


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    """A checkpoint of a random Llama with a tiny tower: chatml, 2 x 2 tokens a picture, 256 tokens at most."""
    from rebus.checkpoints.save import save_model
    from rebus.model.config import ModelConfig
    from rebus.model.families import build
    from rebus.pictures import ImageConfig
    from rebus.tokens.config import TokensConfig
    from rebus.towers import TowerConfig

    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_llama(folder / "language", vocabulary=300)
    tower = TowerConfig(kind="tiny", image_size=32)
    model = build(ModelConfig(tower=tower, tokens_per_side=2, language=folder / "language"))
    image = ImageConfig(size=32, tokens_per_side=2)
    tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, template="chatml", image=image, max_tokens=256)
    save_model(model.requires_grad_(False), tokens.model_dump(mode="json"), folder / "model")
    return folder / "model"


def _write_shard(path: Path, samples: Sequence[TinySample], first: int) -> None:
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples, start=first):
            rows.append(_write_sample(tar, f"{number:09d}", sample))
    schema = pa.schema(
        [("key", pa.string()), ("uid", pa.string()), ("kind", pa.string()), ("offset", pa.int64())]
        + [("length", pa.int64())]
        + [(name, pa.int32()) for name in ("width", "height", "num_images", "text_chars")]
    )
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema), path.with_suffix(".index.parquet"))
    path.with_suffix(".quarantine.jsonl").write_text("")


def _write_sample(tar: tarfile.TarFile, key: str, sample: TinySample) -> dict:
    uid = content_uid(key.encode(), sample.caption.encode())
    metadata: dict = {"key": key, "uid": uid}
    members = {"png": sample.image} if sample.image is not None else {}
    if sample.messages:
        metadata["messages"] = list(sample.messages)
    else:
        members["txt"] = sample.caption.encode()
    members["json"] = json.dumps(metadata).encode()
    offset, end = tar.offset, 0
    for extension, content in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        end = tar.offset - (-len(content) % 512)
    width, height = PIL.Image.open(io.BytesIO(sample.image)).size if sample.image is not None else (0, 0)
    return {
        "key": key,
        "uid": uid,
        "kind": "conversation" if sample.messages else "caption",
        "offset": offset,
        "length": end - offset,
        "width": width,
        "height": height,
        "num_images": int(sample.image is not None),
        "text_chars": len(sample.caption),
    }
