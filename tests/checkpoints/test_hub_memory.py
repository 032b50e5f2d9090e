"""Streamed loading: the host holds the weights and about one shard, which a loader that reads everything first does
not."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

MEASURE = """
import pathlib, sys, torch, safetensors.torch
from rebus.checkpoints.hub import open_hub
from rebus.model.assemble import fill
import transformers.models.llava.modeling_llava, transformers.models.siglip.modeling_siglip
import transformers.models.llama.modeling_llama

folder, way = pathlib.Path(sys.argv[1]), sys.argv[2]

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = resident("VmRSS")
if way == "whole":
    held = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= {name: tensor.clone() for name, tensor in safetensors.torch.load_file(file).items()}
model, _ = open_hub(folder)
print(resident("VmHWM") - before)
"""
SHARDS = 4


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> tuple[Path, int]:
    """A LLaVA of 115 MB, nearly all of it Llama layers, in four shards, and its bytes."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=320, hidden_size=768, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=310, vision_feature_select_strategy="full"
    )
    with torch.device("meta"):
        shapes = LlavaForConditionalGeneration(config).state_dict()
    folder = tmp_path_factory.mktemp("large")
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((tiny_tokenizer_folder / "tokenizer.json").read_bytes())
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    sizes = {name: 4 * tensor.numel() for name, tensor in shapes.items()}
    ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
    total = sum(sizes.values())
    places = {name: f"model-{(ends[name] - 1) * SHARDS // total}.safetensors" for name in sizes}
    for file in set(places.values()):
        tensors = {name: torch.ones(shapes[name].shape) for name in sizes if places[name] == file}
        safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder, total


def peak(folder: Path, way: str) -> int:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(folder), way], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def test_peak_is_the_weights_and_one_shard(large: tuple[Path, int]):
    folder, weights = large
    shard = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert shard < 0.35 * weights
    allowed = weights + 1.4 * shard  # measured: 5 to 9 MB beside the shard
    assert peak(folder, "streamed") < allowed
    assert peak(folder, "whole") > allowed, "the measure sees a loader that reads everything first"
