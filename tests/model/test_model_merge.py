"""Image tokens land in their own slots; every disagreement is an error that names numbers and sample."""

from pathlib import Path

import pytest
import torch

from rebus.errors import ConfigError, SlotMismatchError
from rebus.model.assemble import fill
from rebus.model.config import ModelConfig
from rebus.model.connector import Connector, build_connector, pool
from rebus.model.families import VisionLanguageModel, build, tower_from
from rebus.model.merge import merge
from rebus.pictures.config import FixedConfig, ImageConfig, NativeConfig
from rebus.towers.config import TowerConfig
from tiny_families import MAKERS, arguments, batch_of, documents_of
from tiny_models import pack, random_document

BOUNDS = torch.tensor([0, 6, 12])
IDS = torch.tensor([3, -1, -1, 4, 5, 6, 7, 8, -1, -1, 9, 9])
SLOTS = torch.tensor([[1, 2], [8, 2]])


def test_image_i_goes_to_slot_i():
    images = torch.arange(12.0).reshape(2, 2, 3) + 100
    embeddings = torch.zeros(12, 3)
    merged = merge(embeddings, IDS, images.flatten(0, 1), [2, 2], SLOTS.flip(0), BOUNDS)
    assert torch.equal(merged[8:10], images[0])
    assert torch.equal(merged[1:3], images[1])
    assert merged[IDS >= 0].abs().sum() == 0
    assert embeddings.abs().sum() == 0


@pytest.mark.parametrize(
    ("ids", "slots", "num_images", "message"),
    [
        (IDS, SLOTS[:1], 2, r"1 image slots but 2 images"),
        (IDS, SLOTS[:1], 1, r"ids mark 4 image places, the slots 2"),
        (
            IDS,
            torch.tensor([[1, 2], [7, 2]]),
            2,
            r"slots 4, of which 3 agree; the first .* token 7 in sample 'b'",
        ),
        (IDS, torch.tensor([[1, 2], [8, 3]]), 2, r"token 8 in sample 'b' is 3 long, but the model makes 2"),
    ],
)
def test_disagreements(ids: torch.Tensor, slots: torch.Tensor, num_images: int, message: str):
    with pytest.raises(SlotMismatchError, match=message):
        merge(torch.zeros(12, 3), ids, torch.zeros(num_images * 2, 3), [2] * num_images, slots, BOUNDS, ("a", "b"))


def test_text_alone_still_passes_the_connector(model: VisionLanguageModel):
    """Contract 11: its gradients are zero, not None, and it changes nothing."""
    torch.manual_seed(0)
    batch = pack([random_document(9), random_document(14)])
    model.loss(**batch)[0].backward()
    gradients = [parameter.grad for parameter in model.connector.parameters()]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    arguments = (batch["pixels"], batch["slots"], batch["grids"], batch["bounds"])
    assert torch.equal(model.embed(batch["ids"], *arguments), model.language.get_input_embeddings()(batch["ids"]))


def test_features_equal_pixels(model: VisionLanguageModel):
    torch.manual_seed(0)
    batch = pack([random_document(20, [3]), random_document(14, [1, 8])])
    from_pixels, _ = model.loss(**batch)
    from_features, _ = model.loss(**{**batch, "pixels": model.tower(batch["pixels"])})
    assert torch.equal(from_pixels, from_features)


def test_pooling_is_the_mean_of_its_quarter(model: VisionLanguageModel):
    features = torch.randn(2, 16, 16)
    quarter = features.reshape(2, 4, 4, 16)[:, 2:, :2].mean((1, 2))  # lower left
    torch.testing.assert_close(pool(features, 2)[:, 2], quarter)


def test_statistics_put_channels_on_one_scale(model: VisionLanguageModel):
    features = torch.randn(50, 16, 16) * torch.logspace(-1, 1, 16) + 5
    model.connector.set_statistics(features.mean((0, 1)), features.std((0, 1)))
    inner = (features - model.connector.feature_mean) / model.connector.feature_std
    torch.testing.assert_close(inner.std((0, 1)), torch.ones(16), rtol=1e-3, atol=1e-3)


def test_a_dead_channel_stays_finite(model: VisionLanguageModel):
    model.connector.set_statistics(torch.zeros(16), torch.ones(16).index_fill(0, torch.tensor([3]), 0.0))
    assert torch.isfinite(model.connector(torch.randn(1, 16, 16), 2)).all()


@pytest.mark.parametrize(("name", "linears"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp4x_gelu", 4)])
def test_connectors_by_name(model_config: ModelConfig, name: str, linears: int):
    connector = Connector(model_config.model_copy(update={"connector": name}), 16, 32, has_newline=False)
    assert sum(isinstance(module, torch.nn.Linear) for module in connector.mlp) == linears


def test_a_grid_too_small_is_refused(model_config: ModelConfig):
    with pytest.raises(ConfigError, match="tokens_per_side is 5, but the tower's grid is 4 x 4"):
        build(model_config, FixedConfig(size=32, tokens_per_side=5))


def test_one_connector_serves_any_number_of_tokens(model: VisionLanguageModel):
    """144 in pre-training, 729 in fine-tuning: here 4 and 16, with the same weights."""
    features = torch.randn(1, 16, 16)
    few, many = (model.connector(pool(features, side), side) for side in (2, 4))
    assert (few.shape[1], many.shape[1]) == (4, 16)
    torch.testing.assert_close(model.connector(features, 2), few)


@pytest.mark.parametrize(
    ("config", "image", "message"),
    [
        ({}, FixedConfig(size=64, tokens_per_side=2), "squares of 64 pixels, the tower sees 32"),
        (
            {"mrope_section": (1, 1, 2)},
            FixedConfig(size=32, tokens_per_side=2),
            r"one position a token, .* \(1, 1, 2\)",
        ),
        ({"connector": "qwen2_merger"}, NativeConfig(kind="native"), "three positions a token, .* None"),
    ],
)
def test_parts_that_do_not_fit_are_refused(model_config: ModelConfig, config: dict, image: ImageConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        build(model_config.model_copy(update=config), image)


def test_patches_of_another_tower_are_refused():
    tower = TowerConfig(kind="qwen2_vl", weights=Path("folder"))
    section = (1, 1, 2)
    config = ModelConfig(tower=tower, connector="qwen2_merger", language=Path("folder"), mrope_section=section)
    native = tower_from(tower, {"model_type": "qwen2_vl", "depth": 1, "embed_dim": 32, "num_heads": 2})
    with pytest.raises(ConfigError, match=r"patches of 1536 values .*takes 1176 values"):
        build_connector(config, NativeConfig(kind="native", patch_size=16), native, 32)


@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_is_near_float32(name: str, tiny_tokenizer_folder: Path):
    """As a checkpoint is loaded: weights in half precision, the connector's statistics not, pixels in float32."""
    family = MAKERS[name]()
    model, batch = family.ours, batch_of(documents_of(family, tiny_tokenizer_folder), family.image)
    whole, _ = model.loss(**arguments(batch))
    fill(model, [*model.state_dict().items()], origin=name, dtype=torch.bfloat16)
    half, _ = model.loss(**arguments(batch))
    half.backward()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0)
