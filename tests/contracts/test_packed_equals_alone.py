"""Contract 2: logits, loss and gradients of documents in a pack equal those of the same documents run one by one."""

import pytest
import torch
import transformers

from rebus.model.families import VisionLanguageModel
from tiny_models import Document, language_folder, model, model_config, pack, random_document

__all__ = ["language_folder", "model", "model_config"]

CLIP = transformers.CLIPVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
BACKENDS = ["rebus_packed", "rebus_reference"]


@pytest.fixture
def documents() -> list[Document]:
    """Lengths across buckets, a document of one token, two images in one document, one text-only."""
    torch.manual_seed(7)
    shapes = [(12, [2]), (1, []), (40, [0, 20]), (5, [1]), (17, []), (70, [30]), (33, [5])]
    return [random_document(length, starts) for length, starts in shapes]


def logits_of(model: VisionLanguageModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.head(model.hidden(**{name: value for name, value in batch.items() if name != "labels"}))


def gradients_of(model: VisionLanguageModel, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Gradients of the sum of losses over all batches, by parameter name; the tower has none."""
    model.zero_grad()
    for batch in batches:
        model.loss(**batch)[0].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits(model: VisionLanguageModel, documents: list[Document], backend: str):
    model.language.set_attn_implementation(backend)
    packed = logits_of(model, pack(documents))
    alone = torch.cat([logits_of(model, pack([document])) for document in documents])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_alone_equals_plain_transformers(model: VisionLanguageModel, documents: list[Document]):
    """The anchor: `alone` itself is what transformers computes with its own attention on the same embeddings."""
    batch = pack([documents[2]])
    ours = logits_of(model, batch)
    embeddings = model.embed(batch["ids"], batch["pixels"], batch["slots"], batch["grids"], batch["bounds"])
    model.language.set_attn_implementation("eager")
    theirs = model.language(inputs_embeds=embeddings[None], use_cache=False).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradients(model: VisionLanguageModel, documents: list[Document], backend: str):
    model.language.set_attn_implementation(backend)
    loss, count = model.loss(**pack(documents))
    parts = [model.loss(**pack([document])) for document in documents]
    assert count == sum(number for _, number in parts) > 0
    torch.testing.assert_close(loss, torch.stack([part for part, _ in parts]).sum(), rtol=1e-5, atol=1e-5)

    packed = gradients_of(model, [pack(documents)])
    alone = gradients_of(model, [pack([document]) for document in documents])
    assert packed.keys() == alone.keys()
    assert {name.split(".")[0] for name in packed} == {"connector", "language"}
    for name, gradient in packed.items():
        scale = alone[name].abs().max().clamp_min(1e-3)
        torch.testing.assert_close(gradient / scale, alone[name] / scale, rtol=1e-5, atol=1e-5, msg=name)


def test_contamination_would_show(model: VisionLanguageModel, documents: list[Document]):
    """One causal mask over the whole pack, positions unchanged, is far outside the tolerance: the tests can fail."""
    batch = pack(documents)
    crossed = {**batch, "bounds": torch.tensor([0, len(batch["ids"])], dtype=torch.int32)}
    assert (logits_of(model, batch) - logits_of(model, crossed)).abs().max() > 0.1


def test_gradient_checkpointing_changes_nothing(model: VisionLanguageModel, documents: list[Document]):
    model.train()
    plain = gradients_of(model, [pack(documents)])
    model.language.gradient_checkpointing_enable()
    again = gradients_of(model, [pack(documents)])
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, again[name], rtol=1e-5, atol=1e-5, msg=name)


def test_checkpointing_reaches_every_part_of_a_fused_tower(model: VisionLanguageModel):
    blocks = [torch.nn.ModuleDict({"model": transformers.CLIPVisionModel(CLIP)}) for _ in range(2)]
    model.tower = torch.nn.ModuleList(blocks)
    for enabled in (True, False):
        model.checkpoint_activations(enabled)
        assert [part["model"].is_gradient_checkpointing for part in blocks] == [enabled, enabled]
        assert model.language.is_gradient_checkpointing == enabled
