"""How near a picture and its text lie to each other in the space of a dual encoder: CLIP, SigLIP, DFN's networks, or
one that you trained (Radford et al. 2021, Zhai et al. 2023, Fang et al. 2023).

Columns: similarity, the cosine (-1..1) of image and text embedding; one a head, what that probe makes of the image
embedding; with keep_embeddings the vectors image and text, float16 [D], of length one. NaN where a sample has no
picture or an empty text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from rebus.config import Config
from rebus.errors import ConfigError
from rebus.fingerprint import file_fingerprint
from rebus.scores.decode import Decoded
from rebus.scores.scorer import Opened
from rebus.towers.dual import DType, DualEncoder, dual_fingerprint, open_dual
from rebus.towers.dual_pictures import PictureRule
from rebus.towers.probes import Probe, load_probe

if TYPE_CHECKING:
    import torch

OWN = ("similarity", "image", "text", "uid", "key")

Looked = tuple[np.ndarray | None, str | None]
"""Pixels uint8 [S, S, 3], and the text as the model is to read it."""


class Options(Config):
    """model: a folder of a dual encoder, of transformers or of OpenCLIP (see rebus.towers.dual). dtype: of weights and
    sums; auto: bfloat16 on a GPU, float32 without. device: auto takes a GPU if there is one. compile: the towers by
    torch.compile, worth its minute where a GPU scores millions. keep_embeddings: the vectors too, for near-duplicates
    and concept balancing. heads: column -> safetensors file of a probe (see rebus.towers.probes) on the image
    embedding. text_template: what the model reads in place of the text, which stands for {}. resize: `pillow`, to the
    bit what published scores were made with; `torch` takes a third to a quarter of its time, and its pixels differ by
    one level of 255 in some percent of the values: where pictures cannot be made ready as fast as the model looks.
    """

    model: Path
    dtype: DType = "auto"
    device: str = "auto"
    compile: bool = False
    keep_embeddings: bool = False
    heads: dict[str, Path] = Field(default_factory=dict)
    text_template: str | None = None
    resize: Literal["pillow", "torch"] = "pillow"

    @model_validator(mode="after")
    def _plain(self) -> "Options":
        for name in self.heads:
            if name in OWN or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"a head names a column: '{name}' cannot be one (a-z, 0-9, _; not {', '.join(OWN)})")
        if self.text_template is not None and self.text_template.count("{}") != 1:
            raise ValueError("text_template needs {} once, where the text goes: 'a photo of {}'")
        return self


def inputs(options: Options) -> dict[str, str]:
    heads = {f"heads.{name}": file_fingerprint(path) for name, path in sorted(options.heads.items())}
    return {"model": dual_fingerprint(options.model), **heads}


def open_scorer(options: Options) -> Opened:
    """Raises: DataError or ConfigError where the model or a probe cannot be read, or they do not fit together."""
    encoder = open_dual(options.model, options.dtype, options.device, compile=options.compile)
    device = str(encoder.device)
    heads = {name: load_probe(path, encoder.width, device) for name, path in options.heads.items()}
    rule = replace(encoder.image_rule, by_torch=options.resize == "torch")
    if rule.by_torch and rule.resample not in (2, 3):
        raise ConfigError(f"{options.model} resizes by neither a bilinear nor a bicubic filter: take resize: pillow.")
    look = partial(_look, rule, options.text_template)
    measure = _Pairs(encoder, heads, keep_embeddings=options.keep_embeddings)
    return Opened(look, measure, takes_all_cores=encoder.device.type == "cpu")


def _look(rule: PictureRule, template: str | None, item: Decoded) -> Looked:
    pixels = rule.square(item.picture) if item.picture is not None else None
    if not item.text.strip():
        return pixels, None
    return pixels, item.text if template is None else template.replace("{}", item.text)


class _Pairs:
    """Measures batches. On a GPU it lays pixels into one of two pinned buffers, so that filling the next batch does
    not wait for the copy of this one; nothing waits for the GPU's results."""

    def __init__(self, encoder: DualEncoder, heads: dict[str, Probe], *, keep_embeddings: bool) -> None:
        self.encoder, self.heads, self.keep_embeddings = encoder, heads, keep_embeddings
        self._buffers: list[Any] = [None, None]  # (pinned uint8 [N, S, S, 3], event behind its last copy)

    def __call__(self, rows: list[Looked]) -> "dict[str, torch.Tensor]":
        import torch

        with torch.inference_mode():
            image = self._scattered([pixels for pixels, _ in rows], self._images)
            text = self._scattered([words for _, words in rows], self.encoder.texts)
            columns = {"similarity": (image * text).sum(-1)}
            columns |= {name: probe(image) for name, probe in self.heads.items()}
            if self.keep_embeddings:
                columns |= {"image": image.half(), "text": text.half()}
            return columns

    def _scattered(self, values: list[Any], encode: "Callable[[list[Any]], torch.Tensor]") -> "torch.Tensor":
        """Embeddings float32 [len(values), D]; NaN where there is no value."""
        import torch

        present = [row for row, value in enumerate(values) if value is not None]
        if len(present) == len(values):
            return encode(values)
        vectors = torch.full((len(values), self.encoder.width), torch.nan, device=self.encoder.device)
        if present:
            vectors[torch.tensor(present, device=self.encoder.device)] = encode([values[row] for row in present])
        return vectors

    def _images(self, squares: Sequence[np.ndarray]) -> "torch.Tensor":
        import torch

        if self.encoder.device.type != "cuda":
            return self.encoder.image(self.encoder.normalised(torch.from_numpy(np.stack(squares))))
        host, copied = self._free_buffer(len(squares), squares[0].shape)
        np.stack(squares, out=host[: len(squares)].numpy())
        pixels = self.encoder.normalised(host[: len(squares)])
        copied.record()
        self._buffers.append((host, copied))
        return self.encoder.image(pixels)

    def _free_buffer(self, num_rows: int, shape: tuple[int, ...]) -> Any:
        """The buffer that was filled longest ago, its copy done; a new one where it is too small or there is none."""
        import torch

        held = self._buffers.pop(0)
        if held is None or len(held[0]) < num_rows:
            return torch.empty((num_rows, *shape), dtype=torch.uint8, pin_memory=True), torch.cuda.Event()
        held[1].synchronize()
        return held
