"""A whole tiny way: shards of one-colour pictures, a random Llama that knows the tiny tokenizer, a plan, a recipe."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.tokens.config import TokensConfig
from tiny_models import save_tiny_llama
from tiny_samples import TinySample, tiny_picture, write_shards


@pytest.fixture(scope="session")
def speaking_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    """A hub folder: a random Llama of two layers, and the tokenizer that its vocabulary fits."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("speaking"), vocabulary=300)
    shutil.copy(tiny_tokenizer_folder / "tokenizer.json", folder)
    return folder


@dataclass(frozen=True)
class TinyWay:
    """A plan and what a training recipe needs beside it."""

    folder: Path
    plan: Path
    language: Path

    def recipe(self, name: str, **changes: object) -> Path:
        """Writes a training recipe whose run lands in `folder/name`; returns its path."""
        tree = {
            "out": str(self.folder / name),
            "plan": str(self.plan),
            "model": {
                "tower": {"kind": "tiny", "image_size": 32},
                "language": str(self.language),
            },
            "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
            "trains": {"connector": {"lr": 1e-2}, "lora": {"lr": 1e-2, "weight_decay": 0.1}},
            "steps": 12,
            "packs_per_step": 2,
            "save_every": 3,
            "num_threads": 1,
            **changes,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path


@pytest.fixture
def tiny_way(tmp_path: Path, tiny_shards: Callable[..., Path], speaking_folder: Path) -> TinyWay:
    tokens = TokensConfig(tokenizer=speaking_folder, image=FixedConfig(size=32, tokens_per_side=2))
    pack(PackRecipe(shards=[tiny_shards(40)], tokens=tokens, capacity=96, out=tmp_path / "plan"))
    return TinyWay(tmp_path, tmp_path / "plan", speaking_folder)


def talk(answer: str) -> TinySample:
    """A conversation without a picture."""
    return TinySample(messages=({"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}))


@pytest.fixture(scope="module")
def module_way(tmp_path_factory: pytest.TempPathFactory, speaking_folder: Path) -> TinyWay:
    """The same for tests that share their runs."""
    folder = tmp_path_factory.mktemp("way")
    colours = ["red", "green", "blue", "white", "black"]
    texts = [f"a photo of {'the ' * (i % 7)}{colours[i % 5]} square" for i in range(40)]
    samples = [TinySample(text, tiny_picture(colours[i % 5])) if i % 4 else talk(text) for i, text in enumerate(texts)]
    tokens = TokensConfig(tokenizer=speaking_folder, image=FixedConfig(size=32, tokens_per_side=2))
    shards = write_shards(folder / "shards", samples)
    pack(PackRecipe(shards=[shards], tokens=tokens, capacity=96, out=folder / "plan", num_workers=1))
    return TinyWay(folder, folder / "plan", speaking_folder)
