"""Names of timm's vision transformers in transformers' words: Prismatic trains on timm's, Rebus on transformers'."""

import re

import torch

from rebus.checkpoints.layouts.stored import Named

SHARED = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm_pre": "pre_layrnorm",
    "norm": "post_layernorm",
    "blocks": "encoder.layers",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
}
"""CLIP's and SigLIP's."""

DINO = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "blocks": "encoder.layer",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
}

WORDS = {"clip": SHARED, "siglip": SHARED, "dino": DINO}
"""Kind of tower, as Prismatic names its featurizers -> timm's word -> transformers'."""

UNUSED = ("attn_pool", "head", "fc_norm")
"""What stands behind the last block."""


def to_transformers(kind: str, name: str, tensor: torch.Tensor) -> list[Named]:
    """One tensor of timm's ViT (name without prefix) as transformers' model of this kind has it: qkv is three there.

    kind: clip, siglip or dino (DINOv2 with registers). Nothing for what stands behind the last block.
    """
    words = WORDS[kind]
    if name.split(".")[0] in UNUSED:
        return []
    if name in ("cls_token", "reg_token", "pos_embed"):
        return _special(kind, name, tensor)
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
    if block is None:
        part, _, leaf = name.rpartition(".")
        return [(f"{words.get(part, part)}.{leaf}", tensor)]
    number, part, leaf = block.groups()
    start = f"{words['blocks']}.{number}."
    if part == "attn.qkv":
        return [(f"{start}{words[axis]}.{leaf}", piece) for axis, piece in zip("qkv", tensor.chunk(3), strict=True)]
    if part in ("ls1", "ls2"):
        return [(f"{start}layer_scale{part[-1]}.lambda1", tensor)]
    return [(f"{start}{words.get(part, part)}.{leaf}", tensor)]


def _special(kind: str, name: str, tensor: torch.Tensor) -> list[Named]:
    """Tokens and positions. timm has added DINOv2's position of the class token to the token itself and keeps none."""
    if kind == "dino":
        if name != "pos_embed":
            return [(DINO[name], tensor)]
        return [("embeddings.position_embeddings", torch.cat([torch.zeros_like(tensor[:, :1]), tensor], 1))]
    if name == "cls_token":
        return [("embeddings.class_embedding", tensor.flatten())]
    return [("embeddings.position_embedding.weight", tensor[0])]
