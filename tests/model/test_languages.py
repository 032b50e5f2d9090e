"""Language models by their classes: packed they are what transformers computes of each document alone, and what would
mix documents or lose a factor is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rebus.errors import ConfigError
from rebus.model.attention import documents_of
from rebus.model.config import ModelConfig
from rebus.model.families import language_from
from rebus.towers.config import TowerConfig
from tiny_models import document_positions

CONFIG = ModelConfig(tower=TowerConfig(kind="tiny", image_size=32), language=Path("folder"))
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # far from zero: attention must matter
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LANGUAGES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA_3}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 8}),
    ("phi3", {"sliding_window": 20}),  # as long as the longest document: it hides nothing
    ("smollm3", {"num_hidden_layers": 4}),  # the fourth layer turns no position
]
BOUNDS = torch.tensor([0, 13, 20, 40, 41])


def made(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return language_from({"model_type": name, **TINY, **settings}, CONFIG).eval()


@torch.no_grad()
def packed_logits(language: Any, ids: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    states = language.get_decoder()(
        inputs_embeds=language.get_input_embeddings()(ids)[None],
        position_ids=document_positions(bounds)[None],
        use_cache=False,
        documents=documents_of(bounds),
    )
    return language.get_output_embeddings()(states.last_hidden_state[0])


@pytest.mark.parametrize(("name", "settings"), LANGUAGES)
def test_packed_is_each_alone_by_transformers(name: str, settings: dict[str, Any]):
    language = made(name, **settings)
    ids = torch.randint(3, 97, (int(BOUNDS[-1]),))
    ours = packed_logits(language, ids, BOUNDS)
    language.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = [language(input_ids=document[None]).logits[0] for document in ids.split(BOUNDS.diff().tolist())]
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-5, atol=2e-5)
    assert ours.std() > 0.1


def test_a_document_longer_than_the_sliding_window_is_refused():
    language = made("phi3", sliding_window=19)
    ids = torch.randint(3, 97, (int(BOUNDS[-1]),))
    with pytest.raises(ConfigError, match=r"window of 19 tokens, .*; a document has 20"):
        packed_logits(language, ids, BOUNDS)


def test_behind_a_cache_too():
    language = made("mistral", sliding_window=4)
    embeddings = torch.randn(1, 5, 32)
    with pytest.raises(ConfigError, match="window of 4 tokens"):
        language.get_decoder()(inputs_embeds=embeddings, use_cache=False, behind_cache=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bloom", "a bloom: no causal language model whose attention"),
        ("mamba", "a mamba: no causal"),
        ("cohere", "logit_scale = 0.0625"),
        ("gemma2", "final_logit_softcapping = 30.0"),
    ],
)
def test_what_would_be_lost_or_mixed_is_refused(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        made(name)


def test_a_model_that_swallows_keywords_is_refused():
    """Nemotron's layers hand none on: its documents would see one another without a word."""
    language = made("nemotron")
    with pytest.raises(ConfigError, match="not told where documents end"):
        packed_logits(language, torch.randint(3, 97, (41,)), BOUNDS)


def test_a_rope_that_depends_on_the_longest_document_is_refused():
    with pytest.raises(ConfigError, match="rope_type dynamic"):
        made("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})


def test_frequencies_that_do_not_share_out_are_refused():
    with pytest.raises(ConfigError, match=r"mrope_section \(1, 1, 1\) shares out 3 frequencies, .* have 4"):
        language_from({"model_type": "qwen2", **TINY}, CONFIG.model_copy(update={"mrope_section": (1, 1, 1)}))
