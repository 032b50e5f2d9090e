"""`rebus train` with adapters over 4-bit weights, and on from its checkpoint."""

import json

import torch

from forked_ranks import train
from rebus.checkpoints.load import load_model
from rebus.model.quantised import quantised_parameters
from tiny_way import TinyWay


def test_a_run_over_four_bits_goes_on(tiny_way: TinyWay):
    settings = {"packs_per_step": 1, "steps": 3, "save_every": 10}
    lora = {"rank": 2, "alpha": 4, "quantise": "nf4"}
    first = tiny_way.recipe("first", precision="bf16", lora=lora, **settings)
    onward = {"model": None, "init": str(tiny_way.folder / "first"), "lora": None, "precision": "fp32"}
    train([first, tiny_way.recipe("second", **onward, **settings)])
    one, two = (load_model(tiny_way.folder / name)[0] for name in ("first", "second"))
    assert len(quantised_parameters(one)) == len(quantised_parameters(two)) > 0
    learned = {name: tensor for name, tensor in two.state_dict().items() if ".lora_B" in name}
    assert all(tensor.any() and not torch.equal(tensor, one.state_dict()[name]) for name, tensor in learned.items())
    settings = json.loads((tiny_way.folder / "second/model.json").read_text())["model"]["lora"]
    assert settings["quantise"] == "nf4"
