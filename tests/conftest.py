"""Tiny real things for tests: a byte-level BPE tokenizer and WebDataset shards in the formats that stages exchange."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from s3_server import s3, s3_process
from tiny_models import save_tiny_llama
from tiny_samples import TinySample, tiny_picture, write_shards
from tiny_way import module_way, speaking_folder, tiny_way

__all__ = ["module_way", "s3", "s3_process", "speaking_folder", "tiny_way"]

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
    from rebus.pictures.config import FixedConfig
    from rebus.tokens.config import TokensConfig
    from rebus.towers.config import TowerConfig

    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_llama(folder / "language", vocabulary=300)
    tower, image = TowerConfig(kind="tiny", image_size=32), FixedConfig(size=32, tokens_per_side=2)
    model = build(ModelConfig(tower=tower, language=folder / "language"), image)
    tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, template="chatml", image=image, max_tokens=256)
    save_model(model.requires_grad_(False), tokens.model_dump(mode="json"), folder / "model")
    return folder / "model"
