"""The parts of a filter network: losses, the two towers made from known weights, the folded head, the area."""

import numpy as np
import pytest
import torch
import transformers
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.siglip.modeling_siglip import SiglipModel
from transformers.models.vision_text_dual_encoder.modeling_vision_text_dual_encoder import image_text_contrastive_loss

from rebus.filters.auc import auc, auc_with_interval, planted_circle
from rebus.filters.lite0 import efficientnet
from rebus.filters.loss import sigmoid_loss, softmax_loss
from rebus.filters.side import Side
from rebus.filters.word_vectors import POOLER_GAIN, word_vectors
from rebus.towers.build import build_tower
from rebus.towers.config import TowerConfig


def test_softmax_loss_is_transformers_clip_loss():
    logits = 5 * torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    assert softmax_loss(logits) == pytest.approx(float(image_text_contrastive_loss(logits)), rel=1e-6)


def test_sigmoid_loss_is_transformers_siglip_loss():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**sizes, "vocab_size": 30, "max_position_embeddings": 8},
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
    )
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    ids, pixels = torch.randint(3, 30, (5, 8)), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        model.logit_bias.fill_(-3.0)
        output = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    assert sigmoid_loss(output.logits_per_image.T) == pytest.approx(float(output.loss), rel=1e-5)


def test_lite0_in_transformers_equals_our_tower(tmp_path):
    torch.manual_seed(0)
    network = EfficientNet.from_name("efficientnet-lite0", image_size=64)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as trained ones: not of mean 0 and variance 1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    ours = build_tower(TowerConfig(kind="efficientnet_lite0", weights=tmp_path / "model.safetensors", image_size=64))
    theirs = efficientnet(network.state_dict(), 64)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled, expected = theirs(pixel_values=pixels).pooler_output, ours(pixels).mean(dim=1)
    assert expected.std() > 1e-3
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def language_folder(folder, num_words=12, width=8):
    words = {f"w{number}": number for number in range(num_words)}
    tokenizer = Tokenizer(models.WordLevel({**words, "[UNK]": num_words}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    table = torch.randn(num_words + 1, width, generator=torch.Generator().manual_seed(1))
    save_file({"model.embed_tokens.weight": table}, folder / "model.safetensors")
    return table


def test_word_vectors_average(tmp_path):
    table = language_folder(tmp_path / "language")
    model, tokenizer = word_vectors(tmp_path / "language", None, 16)
    texts = ["w1 w2 w3", "w7"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output / POOLER_GAIN
    centred = torch.nn.functional.layer_norm(table - table.mean(0), (8,))
    expected = torch.stack([centred[[1, 2, 3]].mean(0), centred[7]])
    torch.testing.assert_close(pooled, torch.nn.functional.layer_norm(expected, (8,)), rtol=1e-3, atol=1e-3)


def test_narrower_word_vectors_keep_the_main_axes(tmp_path):
    table = language_folder(tmp_path / "language")
    model, _ = word_vectors(tmp_path / "language", 3, 16)
    kept = model.embeddings.word_embeddings.weight[: len(table)]
    values = torch.linalg.svdvals(table - table.mean(0))
    torch.testing.assert_close(torch.linalg.svdvals(kept), values[:3])


def test_folded_head_does_the_same():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(20, 6, generator=generator) + 3
    weight = torch.nn.Parameter(torch.randn(4, 6, generator=generator))
    side = Side(lambda rows: features[torch.from_numpy(rows)], None, weight)
    side.standardise(features)
    trained = side.embed(np.arange(20), generator)
    plain = torch.nn.functional.normalize(features @ side.folded().T, dim=-1)
    torch.testing.assert_close(trained, plain, rtol=1e-4, atol=1e-5)


def test_auc_counts_pairs():
    dice = np.random.default_rng(0)
    right, wrong = dice.integers(0, 6, 30).astype(float), dice.integers(0, 5, 20).astype(float)
    wins = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
    assert auc(right, wrong) == pytest.approx(wins)
    area = auc_with_interval(right, wrong, seed=0)
    assert area.low < area.value < area.high


def test_circle_gives_no_one_its_own():
    order, is_wrong = planted_circle([f"text {number}" for number in range(21)], seed=3)
    assert sorted(order) == list(range(21))
    assert is_wrong.sum() == 10
    _, is_wrong = planted_circle(["same"] * 20, seed=3)
    assert not is_wrong.any()
