"""From a hub folder through `rebus train` and `rebus export` into plain transformers: the same logits at the end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from rebus.checkpoints.load import load_model
from rebus.cli import main
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.tokens.config import TokensConfig
from tiny_hub import close, inputs_of, logits, save_family, theirs_logits


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def recipe(folder: Path, hub: Path, shards: Path, parts: tuple[str, ...]) -> Path:
    tokens = TokensConfig(tokenizer=hub, image=load_model(hub, template="plain")[0].image, max_tokens=400)
    pack(PackRecipe(shards=[shards], tokens=tokens, capacity=400, out=folder / "plan"))
    places = {"out": str(folder / "run"), "plan": str(folder / "plan"), "init": str(hub)}
    length = {"steps": 2, "num_threads": 1, "num_workers": 0}
    lora = {"lora": {"rank": 2}} if "lora" in parts else {}
    text = yaml.safe_dump({**places, **length, **lora, "trains": {part: {"lr": 1e-2} for part in parts}})
    (folder / "train.yaml").write_text(text)
    return folder / "train.yaml"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen2_vl", ("connector", "lora")),
        ("llava_siglip", ("connector", "language")),
        ("llava_next", ("tower", "connector", "language")),
        ("qwen2_5_vl", ("tower", "connector", "language")),
    ],
)
def test_trained_weights_reach_transformers(
    name: str, parts: tuple[str, ...], tmp_path: Path, tiny_tokenizer_folder: Path, tiny_shards: Callable[..., Path]
):
    hub = save_family(name, tmp_path / "hub", tiny_tokenizer_folder, chat_template=None)  # the plan says how turns look
    run("train", recipe(tmp_path, hub, tiny_shards(8), parts))
    model, tokens = load_model(tmp_path / "run")
    inputs = inputs_of(model.image)
    wanted = logits(model, inputs)
    assert not torch.allclose(wanted, logits(load_model(hub, template="plain")[0], inputs), atol=1e-3), "it learnt"
    assert tokens["template"] == "plain"
    run("export", tmp_path / "run", tmp_path / "out")
    other = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    found = theirs_logits(other, inputs_of(model.image, other.config.image_token_id))
    close(found[:, : wanted.shape[1]], wanted, 2e-5)
