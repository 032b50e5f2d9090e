"""The scorer: the cosine that transformers gives for each pair, whatever the batch, with probes and embeddings."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny_duals
from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.scores.decode import Decoded
from rebus.scores.scorer import open_named
from rebus.scores.scorers import dual_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in tiny_duals.MAKERS.items()}


def decoded(text: str, picture: Any) -> Decoded:
    return Decoded("0" * 32, "key", text, None, picture)


def pairs() -> list[Decoded]:
    return [decoded(*pair) for pair in zip(tiny_duals.TEXTS, tiny_duals.pictures(), strict=True)]


def measured(samples: list[Decoded], batch_size: int = 6, **options: Any) -> dict[str, np.ndarray]:
    opened = dual_encoder.open_scorer(dual_encoder.Options(**options))
    with ThreadPoolExecutor(2) as threads:  # as decoding threads do
        rows = list(threads.map(opened.look, samples))
    parts = [opened.measure(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def probe(path: Path, width: int, **metadata: str) -> torch.nn.Linear:
    layer = torch.nn.Linear(width, 1)
    save_file(dict(layer.state_dict()), path, metadata or None)
    return layer


@pytest.mark.parametrize("name", tiny_duals.MAKERS)
def test_each_pair_has_the_cosine_that_transformers_gives(folders: dict[str, Path], name: str):
    found = measured(pairs(), model=folders[name])
    assert list(found) == ["similarity"]
    assert found["similarity"].dtype == np.float32
    theirs = tiny_duals.their_similarity(folders[name]).diagonal()
    np.testing.assert_allclose(found["similarity"], theirs, atol=1e-5)


@pytest.mark.parametrize(("name", "batch_size"), [("clip", 1), ("siglip", 4), ("bert_vit", 4)])
def test_the_batch_changes_no_score(folders: dict[str, Path], name: str, batch_size: int):
    whole = measured(pairs(), model=folders[name])["similarity"]
    np.testing.assert_allclose(measured(pairs(), batch_size, model=folders[name])["similarity"], whole, atol=1e-6)


def test_what_is_missing_has_no_score(folders: dict[str, Path], tmp_path: Path):
    whole = pairs()
    samples = [decoded(" \n", whole[0].picture), whole[1], decoded(whole[2].text, None), decoded("", None)]
    probe(tmp_path / "p.safetensors", 20)
    settings = {"model": folders["clip"], "keep_embeddings": True, "heads": {"aesthetic": tmp_path / "p.safetensors"}}
    expected = measured(whole, **settings)
    for batch_size in (1, 4):
        found = measured(samples, batch_size, **settings)
        assert np.isnan(found["similarity"]).tolist() == [True, False, True, True]
        assert np.isnan(found["aesthetic"]).tolist() == [False, False, True, True]
        assert np.isnan(found["image"]).any(1).tolist() == [False, False, True, True]
        assert np.isnan(found["text"]).any(1).tolist() == [True, False, False, True]
        np.testing.assert_allclose(found["similarity"][1], expected["similarity"][1], atol=1e-6)
        np.testing.assert_allclose(found["text"][2], expected["text"][2], atol=1e-3)


def test_embeddings_and_probes_are_of_the_same_vectors(folders: dict[str, Path], tmp_path: Path):
    layer = probe(tmp_path / "p.safetensors", 20, output="sigmoid")
    found = measured(
        pairs(), 4, model=folders["clip"], keep_embeddings=True, heads={"nsfw": tmp_path / "p.safetensors"}
    )
    assert sorted(found) == ["image", "nsfw", "similarity", "text"]
    assert found["image"].shape == found["text"].shape == (6, 20)
    assert found["image"].dtype == np.float16
    np.testing.assert_allclose((found["image"] * found["text"]).sum(1), found["similarity"], atol=2e-3)
    with torch.inference_mode():
        expected = torch.sigmoid(layer(torch.from_numpy(found["image"]).float()))[:, 0].numpy()
    np.testing.assert_allclose(found["nsfw"], expected, atol=1e-3)


def test_the_template_is_what_the_model_reads(folders: dict[str, Path]):
    whole = [decoded(f"a photo of {item.text}", item.picture) for item in pairs()]
    found = measured(pairs(), model=folders["clip"], text_template="a photo of {}")["similarity"]
    np.testing.assert_array_equal(found, measured(whole, model=folders["clip"])["similarity"])
    assert not np.allclose(found, measured(pairs(), model=folders["clip"])["similarity"], atol=1e-4)


def test_inputs_name_weights_and_probes(folders: dict[str, Path], tmp_path: Path):
    probe(tmp_path / "p.safetensors", 20)
    options = dual_encoder.Options(model=folders["clip"], heads={"nsfw": tmp_path / "p.safetensors"})
    before = dual_encoder.inputs(options)
    assert sorted(before) == ["heads.nsfw", "model"]
    probe(tmp_path / "p.safetensors", 20)
    after = dual_encoder.inputs(options)
    assert after["model"] == before["model"]
    assert after["heads.nsfw"] != before["heads.nsfw"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"heads": {"image": "p.safetensors"}}, "'image' cannot be one"),
        ({"heads": {"No good": "p.safetensors"}}, "'No good' cannot be one"),
        ({"text_template": "a photo"}, "needs {} once"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_options_that_cannot_be(entry: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        check_recipe(dual_encoder.Options, {"model": "m", **entry}, "recipe")


def test_a_recipe_finds_it_under_any_name(folders: dict[str, Path]):
    scorer = open_named("clip_b32", {"scorer": "dual_encoder", "model": str(folders["clip"])})
    opened = scorer.open()
    rows = [opened.look(item) for item in pairs()]
    assert opened.pictures
    assert len(opened.measure(rows)["similarity"]) == 6
