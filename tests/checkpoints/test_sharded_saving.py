"""Sharded over real ranks a model is filled, row by row, and saved, tensor by tensor, as one process does both."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from forked_ranks import CONTEXT, DEADLINE_SECONDS, places
from rebus.checkpoints.load import load_model
from rebus.checkpoints.save import save_model
from rebus.checkpoints.skeleton import Skeleton, open_skeleton
from rebus.errors import DataError
from rebus.fingerprint import read_manifest
from rebus.model.assemble import fill, parameters_on_meta
from rebus.model.config import LoraConfig, ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.towers.config import TowerConfig
from tiny_models import IMAGE, save_tiny_llama

TOKENS = {"template": "plain"}
SHAPES = ((2,), (1, 2), (2, 1))
"""Of meshes: all share one copy; hybrid with one group; every rank holds all."""


def on_ranks(work: Callable[..., None], *arguments: Any, log: Path) -> None:
    """Calls `work` in two processes joined by gloo. Raises: AssertionError with what they said where one fails."""
    processes = [CONTEXT.Process(target=_joined, args=(place, log, work, *arguments)) for place in places(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0], log.read_text()


def _joined(place: dict[str, str], log: Path, work: Callable[..., None], *arguments: Any) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(place)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    work(*arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def shard(model: nn.Module, shape: tuple[int, ...], ignored: set[nn.Parameter] | None = None) -> None:
    names = ("shard",) if len(shape) == 1 else ("replicate", "shard")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("layers"):
            for block in module:
                fully_shard(block, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)


class Odd(nn.Module):
    """Rows that two ranks cannot share: seven, three and one, tied and bare, beside a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.second.weight = self.first.weight
        self.third, self.last = nn.Linear(3, 3), nn.Linear(3, 1)
        self.register_buffer("scale", torch.zeros(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.second(self.third(self.first(ids))) * self.last(self.first(ids)) * self.scale.sum()


def odd_rows() -> None:
    torch.manual_seed(1)
    values: dict[str, torch.Tensor] = {name: torch.randn(tensor.shape) for name, tensor in Odd().state_dict().items()}
    whole = Odd()
    fill(whole, values.items(), origin="here")
    rank = torch.distributed.get_rank()
    for shape in SHAPES:
        with parameters_on_meta():
            model = Odd()
        model.last.weight.requires_grad_(False)
        shard(model, shape)
        with pytest.raises(DataError, match=r"lacks 1 tensors, such as 'third.bias'"):
            fill(model, ((name, t) for name, t in values.items() if name != "third.bias"), origin="here")
        fill(model, values.items(), origin="here")
        for name, parameter in model.named_parameters(remove_duplicate=False):
            assert isinstance(parameter, DTensor), name
            assert parameter.requires_grad == (name != "last.weight")
            assert torch.equal(parameter.full_tensor(), whole.get_parameter(name)), name
        assert torch.equal(model.scale, values["scale"])
        rows = model.last.weight.to_local().shape[0]
        assert rows == (1 if shape == (2, 1) else 1 - rank), "the last rank holds none of a single row"
        wanted = whole(torch.tensor([6, 0]))
        assert torch.equal(model(torch.tensor([6, 0])), wanted), "the ranks gather equally many rows"


def vision_language(home: Path, *, tied: bool) -> ModelConfig:
    """A SigLIP and a Llama of 97 words, which two ranks cannot halve."""
    torch.manual_seed(4)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.SiglipVisionConfig(image_size=32, patch_size=8, **vision)
    transformers.SiglipVisionModel(config).save_pretrained(home / "tower")
    save_tiny_llama(home / "language")
    if not tied:
        text = transformers.LlamaConfig.from_pretrained(home / "language", tie_word_embeddings=False)
        transformers.LlamaForCausalLM(text).save_pretrained(home / "language")
    tower = TowerConfig(kind="transformers", weights=home / "tower", image_size=32)
    return ModelConfig(tower=tower, language=home / "language")


def trained(model: VisionLanguageModel, parts: tuple[str, ...]) -> VisionLanguageModel:
    """As if those parts had been trained and the others were frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
        if parameter.requires_grad:
            parameter.data += 0.25 * (1 + parameter.data)
    return model


@dataclass(frozen=True)
class Case:
    """One start, what of it trains, and the folder that it is saved in."""

    config: ModelConfig
    parts: tuple[str, ...]
    out: Path
    lora: LoraConfig | None = None
    dtype: torch.dtype | None = None
    file_bytes: int = 5_000_000_000

    def start(self) -> Skeleton:
        return open_skeleton(None, self.config, image=IMAGE, seed=3, lora=self.lora)

    def save(self, model: VisionLanguageModel, out: Path) -> None:
        save_model(trained(model, self.parts), TOKENS, out, dtype=self.dtype, file_bytes=self.file_bytes)


def fill_and_save(cases: list[Case]) -> None:
    for number, case in enumerate(cases):
        start = case.start()
        for name, parameter in start.model.named_parameters():
            parameter.requires_grad_(any(part in name for part in case.parts))
        frozen = set() if start.model.trains_tower else set(start.model.tower.parameters())
        shard(start.model, SHAPES[number % len(SHAPES)], frozen)
        fill(start.model, start.tensors(), origin=start.origin)
        assert any(isinstance(parameter, DTensor) for parameter in start.model.parameters())
        case.save(start.model, case.out)


def cases_of(folder: Path) -> list[Case]:
    tied = vision_language(folder / "tied", tied=True)
    untied = vision_language(folder / "untied", tied=False)
    lora = LoraConfig(rank=3)
    return [
        Case(tied, ("language", "connector"), folder / "0", file_bytes=40_000),
        Case(untied, ("language", "tower", "connector"), folder / "1"),
        Case(untied, ("language.model.layers.1", "tower"), folder / "2", dtype=torch.bfloat16),
        Case(tied, ("lora_", "connector"), folder / "3", lora=lora),
    ]


def test_ranks_fill_and_save_as_one(tmp_path: Path):
    on_ranks(odd_rows, log=tmp_path / "odd.log")
    cases = cases_of(tmp_path)
    on_ranks(fill_and_save, cases, log=tmp_path / "log")
    for case in cases:
        start, alone = case.start(), case.out / "alone"
        fill(start.model, start.tensors(), origin=start.origin)
        case.save(start.model, alone)
        assert read_manifest(alone, "checkpoint").made_by["weights"] == weights_of(case.out)
        found = {name: (case.out / name).read_bytes() for name in files_under(case.out) if "alone" not in name}
        wanted = {name: (alone / name).read_bytes() for name in files_under(alone)}
        assert set(found) == set(wanted)
        assert [name for name in found if "json" not in name and found[name] != wanted[name]] == []
        loaded, _ = load_model(case.out)
        for name, tensor in start.model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor.to(case.dtype or tensor.dtype).float()), name


def weights_of(folder: Path) -> dict[str, str]:
    return read_manifest(folder, "checkpoint").made_by["weights"]


def files_under(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix]
