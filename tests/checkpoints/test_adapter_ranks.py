"""QLoRA over real ranks: FSDP2 shares out what learns, every rank holds the weights of few bits, and forward pass,
gradients and checkpoint are those of one process."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from test_sharded_saving import on_ranks
from torch.distributed.tensor import DTensor

from rebus.checkpoints.save import save_model
from rebus.checkpoints.skeleton import open_skeleton
from rebus.mesh import Mesh
from rebus.model.assemble import fill
from rebus.model.config import LoraConfig
from rebus.model.families import VisionLanguageModel
from rebus.model.quantised import is_quantised, quantised_parameters
from rebus.training.config import ParallelConfig, TrainsConfig
from rebus.training.parallel import shard
from rebus.training.parts import freeze_all_but
from tiny_hub import inputs_of, save_family

TOKENS = {"template": "plain"}


def gradients(hub: Path, *, ranks: bool) -> tuple[VisionLanguageModel, dict[str, Any]]:
    start = open_skeleton(hub, None, image=None, seed=4, lora=LoraConfig(rank=2, quantise="nf4"))
    model = start.model
    assert all(parameter.is_meta for parameter in quantised_parameters(model))
    trainable = freeze_all_but(model, {"lora": TrainsConfig(lr=1.0), "connector": TrainsConfig(lr=1.0)})
    if ranks:
        shard(model, ParallelConfig(), Mesh(torch.distributed.get_rank(), 2), "cpu", torch.float32)
    fill(model, start.tensors(), origin=start.origin)
    model.train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.01)
    inputs: Any = inputs_of(model.image).ours
    loss, _ = model(SimpleNamespace(**inputs, labels=inputs["ids"].clamp_min(0), names=()))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if name in trainable}
    return model, {"loss": loss.detach(), **found}


def two_ranks(hub: Path, out: Path) -> None:
    wanted_model, wanted = gradients(hub, ranks=False)
    model, found = gradients(hub, ranks=True)
    held = {name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    assert set(found) - {"loss"} <= held
    layers = [(name, layer) for name, layer in model.named_modules() if is_quantised(layer)]
    assert len(layers) == 14
    for name, layer in layers:
        assert torch.equal(layer.weight, wanted_model.get_submodule(name).weight), name
    torch.testing.assert_close(found.pop("loss"), wanted.pop("loss"), rtol=1e-5, atol=1e-5)
    for name, gradient in wanted.items():
        summed = found[name].full_tensor() / 2  # both ranks saw the same batch
        torch.testing.assert_close(summed, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)
    save_model(model, TOKENS, out / "sharded")
    if torch.distributed.get_rank() == 0:
        save_model(wanted_model, TOKENS, out / "alone")


def test_quantised_over_two_ranks(tmp_path: Path, tiny_tokenizer_folder: Path):
    hub = save_family("qwen2_vl", tmp_path / "hub", tiny_tokenizer_folder)
    on_ranks(two_ranks, hub, tmp_path, log=tmp_path / "log")
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "connector.safetensors"):
        assert (tmp_path / "sharded" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
