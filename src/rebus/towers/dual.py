"""Dual encoders: a picture and a text become unit vectors of one space (CLIP, SigLIP, DFN's networks, your own)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rebus.errors import ConfigError, DataError
from rebus.fingerprint import MANIFEST, file_fingerprint, fingerprint
from rebus.towers.dual_pictures import PictureRule, rule_of_open_clip, rule_of_processor
from rebus.towers.dual_texts import TextRule, Texts, longest_text, open_tokenizer
from rebus.towers.open_clip import clip_config, is_open_clip, open_clip_settings, read_open_clip

if TYPE_CHECKING:
    import torch

DType = Literal["auto", "float32", "bfloat16", "float16"]

FAMILIES = ("clip", "siglip", "vision-text-dual-encoder", "altclip", "chinese_clip")
"""model_type of config.json. SigLIP 2's models of one fixed size call themselves siglip."""

READ = (".safetensors", ".json", ".txt", ".model")
"""Files that may shape what the model says: weights, configurations, vocabularies."""


class DualEncoder:
    """image_rule: how pictures become pixels. text_rule: how texts become tokens. width: D of the embeddings.

    logit_scale, logit_bias: what its training multiplied similarities by (exponential taken) and added to them.
    """

    def __init__(self, model: Any, image_rule: PictureRule, text_rule: TextRule, *, is_compiled: bool = False) -> None:
        """model: of transformers, in eval mode, on its device. is_compiled: batches are filled up to the largest seen,
        and texts to 16, 32, 64 ... tokens, so that few shapes occur; each is compiled when it first does."""
        import torch

        self.model, self.image_rule, self.text_rule, self.is_compiled = model, image_rule, text_rule, is_compiled
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        colours = torch.tensor([image_rule.fixed.mean, image_rule.fixed.std], device=self.device)  # [2, 3]
        self._mean, self._std = colours[:, :, None, None]  # each [3, 1, 1]
        self._image, self._text = self._image_features, self._text_features
        if is_compiled:
            self._image = torch.compile(self._image, dynamic=False)
            self._text = torch.compile(self._text, dynamic=False)
        self._num_rows = 0
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = 0.0 if bias is None else float(bias.detach())
        self.width = self._probed_width()

    def normalised(self, squares: "torch.Tensor") -> "torch.Tensor":
        """uint8 [B, S, S, 3] on any device -> pixels [B, 3, S, S] as `image` takes them."""
        pixels = squares.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()  # as bytes: a fourth
        return pixels.float().sub_(self._mean).div_(self._std).to(self.dtype)

    def image(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Pixels [B, 3, S, S], normalised -> unit vectors float32 [B, D]."""
        return self._image(self._filled(pixels))[: len(pixels)]

    def text(self, ids: "torch.Tensor", mask: "torch.Tensor | None" = None) -> "torch.Tensor":
        """Tokens int64 [B, L] and, where the text rule masks, mask int64 [B, L] -> unit vectors float32 [B, D]."""
        filled = None if mask is None else self._filled(mask)
        return self._text(self._filled(ids), filled)[: len(ids)]

    def texts(self, texts: Sequence[str]) -> "torch.Tensor":
        """Unit vectors float32 [len(texts), D], on the device."""
        import torch

        groups = list(self.text_rule.groups(texts, one=self.is_compiled))
        if len(groups) == 1:
            return self._group(groups[0])
        vectors = torch.empty(len(texts), self.width, device=self.device)
        for group in groups:
            vectors[self._moved(group.rows)] = self._group(group)
        return vectors

    def _group(self, group: Texts) -> "torch.Tensor":
        return self.text(self._moved(group.ids), None if group.mask is None else self._moved(group.mask))

    def _moved(self, values: Any) -> "torch.Tensor":
        import torch

        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":  # from pinned memory the copy runs while the caller goes on
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _filled(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Compiled for one number of rows: fewer are filled up with copies of the last."""
        import torch

        if not self.is_compiled:
            return rows
        self._num_rows = max(self._num_rows, len(rows))
        filling = rows[-1:].expand(self._num_rows - len(rows), *rows.shape[1:])
        return torch.cat([rows, filling]).contiguous() if len(filling) else rows

    def _image_features(self, pixels: "torch.Tensor") -> "torch.Tensor":
        return _unit(self.model.get_image_features(pixel_values=pixels))

    def _text_features(self, ids: "torch.Tensor", mask: "torch.Tensor | None") -> "torch.Tensor":
        return _unit(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    def _probed_width(self) -> int:
        """One blank picture and one short text through both towers: what does not fit together shows here."""
        import torch

        side = self.image_rule.side
        with torch.inference_mode():
            try:
                image = self._image_features(torch.zeros(1, 3, side, side, device=self.device, dtype=self.dtype))
                group = next(self.text_rule.groups(["a"]))
                mask = None if group.mask is None else self._moved(group.mask)
                text = self._text_features(self._moved(group.ids), mask)
            except (ValueError, RuntimeError, AttributeError) as error:
                raise ConfigError(
                    f"the model does not take what its processor makes ({side} pixels): {error}"
                ) from error
        if image.shape != text.shape:
            raise ConfigError(f"the image tower makes {image.shape[-1]} numbers, the text tower {text.shape[-1]}.")
        return int(image.shape[-1])


def open_dual(folder: Path, dtype: DType = "auto", device: str = "auto", *, compile: bool = False) -> DualEncoder:
    """The dual encoder of a hub folder (CLIP, SigLIP, SigLIP 2 of one size, vision-text-dual-encoder, AltCLIP, Chinese
    CLIP) or of a folder in OpenCLIP's format. Only safetensors are read, and no code of the folder is run.

    dtype: of the weights; auto: bfloat16 on a GPU that has it, else float32. device: auto takes a GPU if there is one.
    Raises: DataError where files or tensors are missing; ConfigError where the model is none of these.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    is_brief = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    kind: Any = getattr(torch, dtype if dtype != "auto" else "bfloat16" if is_brief else "float32")
    opened = _open_clip(folder, kind) if is_open_clip(folder) else _transformers(folder, kind)
    model, image_rule, text_rule = opened
    model = model.eval().requires_grad_(False).to(device)
    return DualEncoder(model, image_rule, text_rule, is_compiled=compile)


def dual_fingerprint(folder: Path) -> str:
    """Of the names and bytes of the files that shape what the model says."""
    files = sorted(path for path in folder.glob("*") if path.suffix in READ and path.name != MANIFEST)
    if not files:
        raise DataError(f"no model at {folder}: it holds no safetensors and no config.json.")
    return fingerprint({path.name: file_fingerprint(path) for path in files})


def _open_clip(folder: Path, dtype: "torch.dtype") -> tuple[Any, PictureRule, TextRule]:
    import transformers

    settings = open_clip_settings(folder)
    config = clip_config(settings["model_cfg"], folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise DataError(
            f"{folder} has no tokenizer. OpenCLIP's own is that of openai/clip-vit-base-patch32: copy tokenizer.json "
            "(or vocab.json and merges.txt) of that model into the folder."
        )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    ends = tokenizer.eos_token_id, config.text_config.eos_token_id
    if ends[0] != ends[1]:
        raise ConfigError(f"{folder}: its tokenizer ends texts with {ends[0]}, the model reads them at {ends[1]}.")
    text_rule = TextRule(tokenizer, config.text_config.max_position_embeddings, model_type="clip_text_model")
    side = config.vision_config.image_size
    image_rule = rule_of_open_clip(side, settings.get("preprocess_cfg") or {}, folder)
    return read_open_clip(folder, config, dtype), image_rule, text_rule


def _transformers(folder: Path, dtype: "torch.dtype") -> tuple[Any, PictureRule, TextRule]:
    import transformers

    _refuse_unreadable(folder)
    image_rule, tokenizer = rule_of_processor(folder), open_tokenizer(folder)
    model, info = transformers.AutoModel.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise DataError(f"{folder} lacks {len(missing)} tensors of its model, such as '{missing[0]}'. Fetch it again.")
    settings = model.config.text_config
    length = longest_text(tokenizer, model.text_model, settings)
    return model, image_rule, TextRule(tokenizer, length, model_type=settings.model_type)


def _refuse_unreadable(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise DataError(f"no model at {folder}: it holds no config.json (and no open_clip_config.json).")
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type == "siglip2":
        raise ConfigError(
            f"{folder}: this SigLIP 2 sees every picture in its own shape (NaFlex). Take one of a fixed size, whose "
            "config.json says siglip."
        )
    if model_type not in FAMILIES:
        raise ConfigError(f"{folder} holds a {model_type}, no dual encoder that is known: {', '.join(FAMILIES)}.")
    if not any(folder.glob("model*.safetensors")):
        raise DataError(
            f"{folder} holds no model.safetensors. Weights as .bin or .pt can carry code: `rebus import FILE OUT` "
            f"makes OUT/model.safetensors of them; move that to {folder}."
        )


def _unit(features: Any) -> "torch.Tensor":
    """What get_*_features returns (since transformers 5 an output whose pooler_output is projected) -> unit float32."""
    import torch

    vectors = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(vectors.float().flatten(1), dim=-1)
