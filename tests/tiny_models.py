"""A tiny random Llama with a tiny tower, and random documents to pack. conftest files import the fixtures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel, build
from rebus.pictures.config import FixedConfig
from rebus.towers.config import TowerConfig

VOCABULARY = 97
TOKENS_PER_IMAGE = 4
IMAGE = FixedConfig(size=32, tokens_per_side=2)


def save_tiny_llama(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """A hub folder of a random Llama with two layers and grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # far from zero: attention must matter, or no test of it could fail
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def model_config(language_folder: Path) -> ModelConfig:
    tower = TowerConfig(kind="tiny", image_size=32)
    return ModelConfig(tower=tower, language=language_folder)


@pytest.fixture
def model(model_config: ModelConfig) -> VisionLanguageModel:
    return build(model_config, IMAGE).eval()


@dataclass(frozen=True)
class Document:
    """ids int64 [T], labels int64 [T], pixels [n, 3, 32, 32], starts of its image slots."""

    ids: torch.Tensor
    labels: torch.Tensor
    pixels: torch.Tensor
    starts: tuple[int, ...] = ()


def random_document(length: int, starts: Sequence[int] = ()) -> Document:
    """`length` random tokens, an image slot at each of `starts`, about half of the targets supervised."""
    ids = torch.randint(0, VOCABULARY, (length,))
    for start in starts:
        ids[start : start + TOKENS_PER_IMAGE] = -1
    targets = ids.roll(-1)
    counts = (targets >= 0) & (torch.rand(length) < 0.5)
    counts[-1] = False
    return Document(ids, torch.where(counts, targets, -100), torch.randn(len(starts), 3, 32, 32), tuple(starts))


def document_positions(bounds: torch.Tensor) -> torch.Tensor:
    """bounds [D + 1] -> positions int64 [T], restarting at 0 with each document."""
    bounds = bounds.long()
    starts = torch.repeat_interleave(bounds[:-1], bounds.diff())
    return torch.arange(int(bounds[-1]), device=bounds.device) - starts


def pack(documents: Sequence[Document]) -> dict[str, torch.Tensor]:
    """The arguments of the model's forward for these documents, end to end."""
    bounds = torch.tensor([0, *(len(document.ids) for document in documents)]).cumsum(0).int()
    slots = [
        (int(offset) + start, TOKENS_PER_IMAGE)
        for offset, document in zip(bounds, documents, strict=False)
        for start in document.starts
    ]
    return {
        "ids": torch.cat([document.ids for document in documents]),
        "labels": torch.cat([document.labels for document in documents]),
        "positions": document_positions(bounds),
        "bounds": bounds,
        "pixels": torch.cat([document.pixels for document in documents]),
        "slots": torch.tensor(slots, dtype=torch.int64).reshape(-1, 2),
        "grids": torch.tensor([[1, 32, 32]] * len(slots), dtype=torch.int64).reshape(-1, 3),
    }
