"""What benchmarks/training.py trains: documents of seeded words, made into plans by Rebus' own stages, and random
weights of a language model's shape. Nothing is fetched."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from rebus.model.config import ModelConfig
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.shards.config import ShardsRecipe
from rebus.shards.run import run as make_shards
from rebus.tokens.config import TokensConfig
from rebus.towers.config import TowerConfig
from rebus.training.config import TrainRecipe

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PROSE = (
    "the a of in on and with red blue small large old wooden round picture shows man woman child dog street table tree "
    "house water sky left right two three several stands sits holds looks near behind under before sign number word "
    "chart line value highest lowest answer because therefore what which where how many colour kind does is are there"
)
WORDS = PROSE.split()
SIDE, PATCH = 12, 14
NUM_PICTURES = 8
"""Different ones: what a frozen tower makes of them is computed before the first step and read from a cache."""


@dataclass(frozen=True)
class Shape:
    """Of the language model, as its hub config names it, and of the pictures' features."""

    text: dict[str, Any]
    feature_width: int


SMOLLM2 = Shape(
    {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    },
    1152,
)
"""SmolLM2-135M and the width of SigLIP-SO400M."""
TINY = Shape(
    {**SMOLLM2.text, "vocab_size": 512, "hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 2}, 32
)


def write_captions(folder: Path, num_documents: int, rng: np.random.Generator) -> ShardsRecipe:
    """A picture and an alt text: log-normal, 27 words in the median (benchmarks/binning.py's captions)."""
    rows = [
        {"file": f"{number % NUM_PICTURES}.png", "caption": words(rng, int(rng.lognormal(3.3, 0.6)), 3, 500)}
        for number in range(num_documents)
    ]
    return _shards("pairs", folder, rows)


def write_conversations(folder: Path, num_documents: int, rng: np.random.Generator) -> ShardsRecipe:
    """One to three turns of 50 to 1,400 words in all, 200 in the median; two thirds are answers, every other has a
    picture."""
    rows = [conversation(number, rng) for number in range(num_documents)]
    return _shards("conversations", folder, rows)


def conversation(number: int, rng: np.random.Generator) -> dict[str, Any]:
    num_words, num_turns = min(max(int(rng.lognormal(5.3, 0.9)), 50), 1400), int(rng.integers(1, 4))
    turns = []
    for turn in range(num_turns):
        asked, said = num_words // (3 * num_turns), 2 * num_words // (3 * num_turns)
        picture = "<image>\n" if turn == 0 and number % 2 else ""
        turns += [
            {"from": "human", "value": picture + words(rng, asked, 3, 500)},
            {"from": "gpt", "value": words(rng, said, 5, 1000)},
        ]
    row = {"id": str(number), "conversations": turns}
    return {**row, "image": f"{number % NUM_PICTURES}.png"} if number % 2 else row


def words(rng: np.random.Generator, number: int, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS, min(max(number, least), most)))


def _shards(source: str, folder: Path, rows: list[dict[str, Any]]) -> ShardsRecipe:
    folder.mkdir(parents=True)
    for number in range(NUM_PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(noise).resize((200, 150)).save(buffer, "PNG")
        (folder / f"{number}.png").write_bytes(buffer.getvalue())
    table = folder / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ShardsRecipe(source=source, input=table, out=folder / "shards", num_workers=1)  # type: ignore[arg-type]


WRITERS = {"captions": write_captions, "conversations": write_conversations}


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE that knows every word of the documents as one token."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROSE] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_weights(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """Hub folders of a language model with a tokenizer, and of a small tower with features as wide as the shape has."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    language, tower = folder / "language", folder / "tower"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape.text)).save_pretrained(language)
    make_tokenizer(language)
    vision = transformers.SiglipVisionConfig(
        hidden_size=shape.feature_width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=shape.feature_width // 16,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
    )
    transformers.SiglipVisionModel(vision).save_pretrained(tower)
    return language, tower


def make_recipe(
    folder: Path, weights: tuple[Path, Path], distribution: str, capacity: int, num_documents: int
) -> TrainRecipe:
    """A plan of so many documents of a distribution, and what `rebus train` needs beside it."""
    language, tower = weights
    rng = np.random.default_rng(0)
    shards = WRITERS[distribution](folder / distribution, num_documents, rng)
    make_shards(shards)
    tokens = TokensConfig(
        tokenizer=language,
        template="plain" if distribution == "captions" else "chatml",
        image=FixedConfig(size=SIDE * PATCH, tokens_per_side=SIDE, patch_size=PATCH),
        max_tokens=capacity,
    )
    plan = folder / f"{distribution}-plan"
    pack(PackRecipe(shards=[shards.out], tokens=tokens, capacity=capacity, out=plan, num_workers=1))
    return TrainRecipe(
        out=folder / f"{distribution}-run",
        plan=plan,
        model=ModelConfig(
            tower=TowerConfig(kind="transformers", weights=tower, image_size=SIDE * PATCH), language=language
        ),
        trains={"connector": {"lr": 1e-4}, "language": {"lr": 1e-5, "weight_decay": 0.1}},  # type: ignore[dict-item]
        steps=1000,
        feature_cache=folder / "features",
        save_every=1000,
    )
