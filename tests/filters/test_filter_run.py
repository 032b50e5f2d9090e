"""A filter network from its recipe: a planted pool, the folder that comes out, kills at every kind of moment."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rebus.config import load_recipe
from rebus.errors import ConfigError, DataError
from rebus.filters.config import FilterRecipe
from rebus.filters.run import run
from rebus.towers.dual import open_dual
from tiny_samples import TinySample, write_shards

NUMBERS = {"black": 0, "dark": 85, "light": 170, "bright": 255}
LEARNS = ("vision.lr=0.001", "heads.lr=0.01")  # what the colours need: a random tower sees them dimly
SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def colour_picture(red: str, green: str, blue: str, dice: np.random.Generator) -> bytes:
    pixels = np.array([NUMBERS[red], NUMBERS[green], NUMBERS[blue]]) + dice.normal(0, 15, (12, 12, 3))
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pool(folder: Path, num_pairs: int, share_swapped: float, seed: int) -> Path:
    """Pictures of a noisy colour, captions that name its three parts; a share of the captions handed on."""
    dice = np.random.default_rng(seed)
    names = [dice.choice(list(NUMBERS), 3).tolist() for _ in range(num_pairs)]
    captions = [f"red-{red} green-{green} blue-{blue}" for red, green, blue in names]
    circle = dice.permutation(num_pairs)[: round(share_swapped * num_pairs)]
    mixed = np.array(captions)
    mixed[circle] = mixed[np.roll(circle, 1)]
    pictures = [colour_picture(*parts, dice) for parts in names]
    samples = [TinySample(caption, picture) for caption, picture in zip(mixed.tolist(), pictures, strict=True)]
    return write_shards(folder, samples, 64)


def towers(folder: Path) -> None:
    """A random ViT and a random BERT, with a tokenizer of the pool's words."""
    torch.manual_seed(0)
    vision = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **SIZE))
    vision.save_pretrained(folder / "vision")
    words = ["[PAD]", "[CLS]", "[UNK]", *(f"{one}-{light}" for one in ("red", "green", "blue") for light in NUMBERS)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, hidden_dropout_prob=0.0, **SIZE)
    transformers.BertModel(config).save_pretrained(folder / "text")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", unk_token="[UNK]", model_max_length=16
    )
    fast.save_pretrained(folder / "text")


@pytest.fixture
def recipe(tmp_path) -> Path:
    towers(tmp_path)
    pool(tmp_path / "pool", 320, 0.2, seed=1)
    pool(tmp_path / "heldout", 96, 0.0, seed=2)
    settings = {
        "kind": "dual_encoder",
        "out": str(tmp_path / "filter"),
        "trusted": {"shards": str(tmp_path / "pool")},
        "heldout": {"shards": str(tmp_path / "heldout")},
        "vision": {"weights": str(tmp_path / "vision")},
        "text": {"weights": str(tmp_path / "text")},
        "image": {"size": 8, "resize": "squash"},
        "heads": {"dim": 16, "lr": 0.003},
        "epochs": 30,
        "batch_size": 64,
        "auc_seeds": [0, 1],
        "device": "cpu",
        "num_threads": 1,
    }
    (tmp_path / "filter.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "filter.yaml"


def load(path: Path, *overrides: str) -> FilterRecipe:
    return load_recipe(FilterRecipe, path, list(overrides))


def facts(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())["facts"]


def test_planted_colours_are_told_apart(recipe, capsys):
    out = run(load(recipe, *LEARNS))
    assert facts(out)["auc"] > 0.95
    assert {row["seed"] for row in json.loads((out / "mismatches.json").read_text())} == {0, 1}
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 150
    assert losses[-1] < losses[0] - 1
    run(load(recipe, *LEARNS))
    assert "is up to date" in capsys.readouterr().err


def test_plain_transformers_reads_the_folder(recipe):
    """Without Rebus: AutoModel, AutoTokenizer, the image processor; the same similarities as our own reader."""
    out = run(load(recipe, "epochs=1", "heads.dropout=0.3"))
    model = transformers.AutoModel.from_pretrained(out).eval()
    assert type(model).__name__ == "VisionTextDualEncoderModel"
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    processor = transformers.SiglipImageProcessorPil.from_pretrained(out)
    picture = PIL.Image.open(io.BytesIO(colour_picture("dark", "light", "black", np.random.default_rng(0))))
    texts = ["red-dark green-light blue-black", "blue-bright"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        pixels = processor(picture, return_tensors="pt").pixel_values
        theirs = model(**inputs, pixel_values=pixels).logits_per_image[0] / model.logit_scale.exp()
        ours = open_dual(out, "float32", "cpu")
        square = torch.from_numpy(ours.image_rule.square(picture).copy())[None]
        similarity = (ours.image(ours.normalised(square)) @ ours.texts(texts).T)[0]
    assert abs(theirs[0] - theirs[1]) > 1e-3
    torch.testing.assert_close(similarity, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_killed_and_run_again_gives_the_same_bits(recipe, tmp_path, frozen):
    """kill -9 once a state is there; the network, its loss curve and its areas are those of an unbroken run."""
    towers = ["heads.dropout=0.3", "epochs=40"] if frozen else ["vision.lr=0.001", "text.lr=0.001", "epochs=3"]
    overrides = [*towers, "save_every=3", "auc_seeds=[0]"]
    whole = run(load(recipe, *overrides, f"out={tmp_path / 'whole'}"))
    broken = tmp_path / "broken"
    killed_behind_a_state(recipe, broken, overrides)
    run(load(recipe, *overrides, f"out={broken}"))
    for name in ("model.safetensors", "metrics.jsonl", "mismatches.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert not (broken / "state.safetensors").exists()


def killed_behind_a_state(recipe: Path, out: Path, overrides: list[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from rebus.config import load_recipe; "
        "from rebus.filters.config import FilterRecipe; from rebus.filters.run import run; "
        "run(load_recipe(FilterRecipe, Path(sys.argv[1]), sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, str(recipe), *overrides, f"out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "state.safetensors").exists():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()


def test_goes_on_from_a_whole_dual_encoder(recipe, tmp_path):
    """`start`: the folder of one run is the beginning of another, with the other loss and its own towers' rates."""
    first = run(load(recipe, "epochs=10"))
    tree = yaml.safe_load(recipe.read_text())
    for name in ("vision", "text", "image"):
        tree.pop(name)
    tree |= {"start": str(first), "out": str(tmp_path / "second"), "loss": "sigmoid", "epochs": 2}
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(tree))
    second = run(load(tmp_path / "second.yaml", "towers.vision_lr=0.001"))
    weights = [transformers.AutoModel.from_pretrained(folder).state_dict() for folder in (first, second)]
    changed = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert any(name.startswith("vision_model.") for name in changed)
    assert "visual_projection.weight" in changed
    assert not any(name.startswith("text_model.") for name in changed)


def test_heldout_share_is_never_trained_on(recipe):
    tree = yaml.safe_load(recipe.read_text())
    tree.pop("heldout")
    recipe.write_text(yaml.safe_dump(tree))
    out = run(load(recipe, "epochs=1", "heldout_share=0.25"))
    assert (facts(out)["num_pairs"], facts(out)["num_heldout"]) == (240, 80)


def test_texts_from_json_fields(recipe):
    out = run(load(recipe, "epochs=1", "texts=[caption, 'a picture called {key}']"))
    assert facts(out)["num_pairs"] == 320


def test_what_is_wrong_is_said(recipe):
    with pytest.raises(ConfigError, match="squash or crop"):
        load(recipe, "image.resize=letterbox")
    with pytest.raises(ConfigError, match="fields of the sample's json"):
        load(recipe, "texts=[label]")
    with pytest.raises(ConfigError, match="`start` alone"):
        load(recipe, "start=somewhere")
    with pytest.raises(DataError, match="320 of 320 samples"):
        run(load(recipe, "texts=['{label}']"))
    with pytest.raises(ConfigError, match="no weights at"):
        run(load(recipe, "text.weights=nowhere", "text.kind=word_vectors"))
