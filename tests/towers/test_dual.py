"""Dual encoders give transformers' own numbers, from every family's folder, and say why they refuse one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny_duals
from rebus.errors import ConfigError, DataError
from rebus.pictures.config import FixedConfig
from rebus.towers.dual import DualEncoder, dual_fingerprint, open_dual
from rebus.towers.dual_pictures import PictureRule, rule_of_processor
from rebus.towers.dual_texts import TextRule
from tiny_pictures import photo


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in tiny_duals.MAKERS.items()}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def squares(encoder: DualEncoder) -> torch.Tensor:
    return torch.from_numpy(np.stack([encoder.image_rule.square(picture) for picture in tiny_duals.pictures()]))


def similarity(encoder: DualEncoder) -> torch.Tensor:
    with torch.inference_mode():
        return encoder.image(encoder.normalised(squares(encoder))) @ encoder.texts(tiny_duals.TEXTS).T


@pytest.mark.parametrize("name", tiny_duals.MAKERS)
def test_similarity_is_that_of_transformers(folders: dict[str, Path], name: str):
    theirs = tiny_duals.their_similarity(folders[name])
    assert theirs.std() > 1e-3
    torch.testing.assert_close(similarity(open_dual(folders[name])), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", tiny_duals.MAKERS)
def test_embeddings_are_unit_vectors_and_alone_as_in_a_batch(folders: dict[str, Path], name: str):
    encoder = open_dual(folders[name])
    with torch.inference_mode():
        images = encoder.image(encoder.normalised(squares(encoder)))
        alone = [encoder.image(encoder.normalised(one[None])) for one in squares(encoder)]
        texts, each = encoder.texts(tiny_duals.TEXTS), [encoder.texts([text]) for text in tiny_duals.TEXTS]
    torch.testing.assert_close(torch.cat(alone), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(each), texts, atol=1e-6, rtol=0)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(len(images)))
    assert images.shape[1] == texts.shape[1] == encoder.width


def test_scale_and_bias_are_the_models(folders: dict[str, Path]):
    model = transformers.SiglipModel.from_pretrained(folders["siglip"])
    encoder = open_dual(folders["siglip"])
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert encoder.logit_bias == pytest.approx(model.logit_bias.item())


def test_brief_weights_stay_near(folders: dict[str, Path]):
    brief = open_dual(folders["clip"], "bfloat16")
    assert brief.dtype == torch.bfloat16
    found = similarity(brief)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, similarity(open_dual(folders["clip"])), atol=0.02, rtol=0)


PROCESSORS: dict[str, Any] = {
    "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "clip_larger": transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 38}, crop_size={"height": 32, "width": 32}
    ),
    "siglip": transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    "vit": transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "deit": transformers.DeiTImageProcessorPil(size={"height": 48, "width": 48}, crop_size={"height": 33, "width": 33}),
    "efficientnet": transformers.EfficientNetImageProcessorPil(
        size={"height": 32, "width": 32}, rescale_offset=True, rescale_factor=1 / 127.5
    ),
    "plain": transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(70, 41), (33, 90), (20, 31), (64, 64), (300, 37)])
def test_pixels_are_those_of_the_processor(tmp_path: Path, name: str, size: tuple[int, int]):
    PROCESSORS[name].save_pretrained(tmp_path)
    rule = rule_of_processor(tmp_path)
    picture = photo(*size)
    theirs = PROCESSORS[name](images=[picture], return_tensors="np").pixel_values[0]
    ours = (rule.square(picture) - np.array(rule.fixed.mean)) / np.array(rule.fixed.std)
    np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs, atol=1e-5)


def test_old_and_nested_processor_settings_are_read(tmp_path: Path):
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    nested = tmp_path / "nested"
    nested.mkdir()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    (nested / "processor_config.json").write_text(json.dumps({"image_processor": old}))
    assert rule_of_processor(tmp_path) == rule_of_processor(nested)
    assert (rule_of_processor(nested).side, rule_of_processor(nested).fixed.resize) == (32, "crop")


@given(
    st.lists(st.text("abc ", max_size=60), min_size=1, max_size=20), st.booleans(), st.sampled_from(["left", "right"])
)
def test_groups_hold_every_text_once(texts: list[str], one: bool, side: str):
    tokenizer = tiny_duals.bert_tokenizer()
    tokenizer.padding_side = side
    for model_type in ("bert", "clip_text_model", "siglip_text_model"):
        rule = TextRule(tokenizer, 40, model_type=model_type)
        groups = list(rule.groups(texts, one=one))
        assert sorted(row for group in groups for row in group.rows) == list(range(len(texts)))
        assert len(groups) == 1 or not (one or rule.fills_up)
        expected = tokenizer(texts, truncation=True, max_length=40)["input_ids"]
        for group in groups:
            for place, row in enumerate(group.rows):
                kept = group.ids[place] if group.mask is None else group.ids[place][group.mask[place] == 1]
                is_left = rule.fills_up and side == "left"
                whole = kept[-len(expected[row]) :] if is_left else kept[: len(expected[row])]
                assert whole.tolist() == expected[row]
                assert (group.mask is None) == (model_type != "bert")
        assert all(group.ids.shape[1] == 40 for group in groups if rule.fills_up)


def test_compiled_towers_see_few_shapes(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    plain = open_dual(folders["bert_vit"])
    seen: list[tuple[int, ...]] = []

    def recorded(function: Callable, *, dynamic: bool) -> Callable:
        assert not dynamic

        def run(inputs: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(inputs.shape))
            assert inputs.is_contiguous()  # other strides are compiled anew
            return function(inputs, *rest)

        return run

    monkeypatch.setattr(torch, "compile", recorded)
    encoder = open_dual(folders["bert_vit"], compile=True)
    pixels = encoder.normalised(squares(encoder))
    with torch.inference_mode():
        for num_rows in (6, 2, 5):
            torch.testing.assert_close(encoder.image(pixels[:num_rows]), plain.image(pixels[:num_rows]))
            texts = tiny_duals.TEXTS[:num_rows]
            torch.testing.assert_close(encoder.texts(texts), plain.texts(texts), atol=1e-6, rtol=0)
        short = encoder.texts(["a", "fox"])
    torch.testing.assert_close(short, plain.texts(["a", "fox"]), atol=1e-6, rtol=0)
    assert set(seen) == {(6, 3, 32, 32), (6, 40), (6, 16)}


def test_sentencepiece_is_not_needed_where_tokenizer_json_lies(copied: Callable[[str], Path]):
    folder = copied("siglip")
    expected = open_dual(folder).text_rule.ids(tiny_duals.TEXTS)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert open_dual(folder).text_rule.ids(tiny_duals.TEXTS) == expected
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer"):
        open_dual(folder)


def test_no_tensor_is_made_up(copied: Callable[[str], Path]):
    folder = copied("clip")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 tensors of its model, such as 'visual_projection\.weight'"):
        open_dual(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"model_type": "siglip2"}, "NaFlex"), ({"model_type": "bert"}, "holds a bert, no dual encoder")],
)
def test_other_models_are_refused(copied: Callable[[str], Path], settings: dict[str, Any], words: str):
    folder = copied("clip")
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=words):
        open_dual(folder)


def test_weights_that_can_carry_code_are_refused(copied: Callable[[str], Path]):
    folder = copied("clip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="rebus import"):
        open_dual(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "'Qwen2VLImageProcessor' is not known"),
        ({"image_processor_type": "CLIPImageProcessor", "do_resize": False}, "resizes nothing"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "no square"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}}, "no square"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 48}}, "48 pixels"),
    ],
)
def test_processors_that_no_rule_says_are_refused(copied: Callable[[str], Path], settings: dict[str, Any], words: str):
    folder = copied("clip")
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=words):
        open_dual(folder)


def test_the_fingerprint_is_of_what_the_model_reads(copied: Callable[[str], Path]):
    folder = copied("clip")
    before = dual_fingerprint(folder)
    (folder / "README.md").write_text("a model")
    assert dual_fingerprint(folder) == before
    (folder / "preprocessor_config.json").write_text("{}")
    assert dual_fingerprint(folder) != before
    with pytest.raises(DataError, match="no model at"):
        dual_fingerprint(folder / "nowhere")


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(512, 384), (90, 400), (40, 31), (224, 224), (2000, 9)])
def test_torch_resizes_as_pillow_but_for_roundings(resize, resample, size):
    rule = PictureRule(FixedConfig(size=64, resize=resize, reduced_jpeg=False), 64, resample)
    picture = photo(*size, seed=3)
    exact, quick = rule.square(picture), replace(rule, by_torch=True).square(picture)
    assert quick.shape == exact.shape == (64, 64, 3)
    apart = np.abs(exact.astype(int) - quick.astype(int))
    assert apart.max() <= 2
    assert (apart > 0).mean() < 0.06
