"""Builds a vision-language model from its config: a tower, a connector, a causal language model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from rebus.errors import ConfigError, DataError
from rebus.model import attention
from rebus.model.adapters import add_lora
from rebus.model.config import ModelConfig
from rebus.model.connector import build_connector
from rebus.model.loss import token_loss
from rebus.model.merge import merge
from rebus.model.native import NativeTower, NativeTowerConfig
from rebus.model.rotary import MultimodalRotary
from rebus.model.tiles import arrange
from rebus.pictures.anyres import tile
from rebus.pictures.config import AnyresConfig, ImageConfig, NativeConfig
from rebus.towers.build import build_tower
from rebus.towers.config import TowerConfig
from rebus.towers.hub import empty_tower


class Pack(Protocol):
    """What a forward pass reads: one object, since FSDP sends every tensor among a module's arguments to the device and
    waits for each. pixels and positions lie there, the rest on the host. Shapes as in `hidden`; names: of the samples.
    """

    @property
    def ids(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def positions(self) -> torch.Tensor: ...
    @property
    def bounds(self) -> torch.Tensor: ...
    @property
    def pixels(self) -> torch.Tensor: ...
    @property
    def slots(self) -> torch.Tensor: ...
    @property
    def grids(self) -> torch.Tensor: ...
    @property
    def names(self) -> Sequence[str]: ...


class VisionLanguageModel(nn.Module):
    """tower: pixels -> features. connector: features -> image tokens. language: a transformers causal LM.

    image: the rule that the pixels come by. It may be exchanged for another of its kind where no weight depends on
    the difference, such as the number of tokens or of pixels.
    trained_tower: the folder of an earlier checkpoint that holds the tower's weights, where `config.tower` names those
    that it was trained from.
    """

    trained_tower: Path | None = None
    tower: Any
    connector: Any
    language: Any

    def __init__(
        self, config: ModelConfig, image: ImageConfig, tower: nn.Module, connector: nn.Module, language: nn.Module
    ) -> None:
        super().__init__()
        self.config, self.image = config, image
        self.tower, self.connector, self.language = tower, connector, language

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        super().train(mode)
        self.tower.train(mode and self.trains_tower)
        return self

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """Whether activations inside blocks of tower and language model are computed again for the backward pass
        (while training): the same numbers, a third more work, memory for one block at a time."""
        parts = (part for part in self.tower.modules() if hasattr(part, "gradient_checkpointing_enable"))
        for part in (self.language, *parts):
            if enabled:
                part.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                part.gradient_checkpointing_disable()
        if isinstance(self.tower, NativeTower):
            self.tower.gradient_checkpointing = enabled

    @property
    def trains_tower(self) -> bool:
        return any(parameter.requires_grad for parameter in self.tower.parameters())

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def head(self) -> nn.Linear:
        """The output layer: hidden [*, H] -> logits [*, V]."""
        return self.language.get_output_embeddings()

    def forward(self, pack: Pack) -> tuple[torch.Tensor, int]:
        """`loss` of a pack."""
        return self.loss(
            *(pack.ids, pack.labels, pack.positions, pack.bounds), *(pack.pixels, pack.slots, pack.grids), pack.names
        )

    def loss(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor,
        bounds: torch.Tensor,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        grids: torch.Tensor,
        keys: Sequence[str] = (),
    ) -> tuple[torch.Tensor, int]:
        """SUM of token losses over the pack and the number of supervised tokens. Shapes as in `hidden`.

        labels: int64 [T], the target predicted at each position, -100 where none.
        """
        states = self.hidden(ids, positions, bounds, pixels, slots, grids, keys)
        return token_loss(states, labels, self.head.weight, self.head.bias)

    def hidden(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        bounds: torch.Tensor,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        grids: torch.Tensor,
        keys: Sequence[str] = (),
    ) -> torch.Tensor:
        """Last hidden states [T, H] of a padding-free pack.

        ids: int64 [T], -1 at image slots. positions: int64 [T], from 0 in each document, or [3, T] for M-RoPE.
        pixels: float32 [R, *row_shape] of the image rule, or features [N, num_tokens, C] that the tower made before.
        On the host: bounds int32 [D + 1]; slots int64 [N, 2] (start, length); grids int64 [N, 3], how each picture's
        rows lie; ids (and labels) best there too. keys [D] name samples in errors. Raises: SlotMismatchError.
        """
        embeddings = self.embed(ids, pixels, slots, grids, bounds, keys)
        output = self.language.get_decoder()(
            inputs_embeds=embeddings.unsqueeze(0),
            position_ids=positions.unsqueeze(-2),  # [1, T] or [3, 1, T]
            use_cache=False,  # with a cache transformers drops per-document masks; ours needs none, and no cache
            documents=attention.documents_of(bounds, device=embeddings.device),
        )
        return output.last_hidden_state[0]

    def embed(
        self,
        ids: torch.Tensor,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        grids: torch.Tensor,
        bounds: torch.Tensor,
        keys: Sequence[str] = (),
    ) -> torch.Tensor:
        """Embeddings [T, H], image tokens in their slots."""
        embeddings = self.language.get_input_embeddings()(ids.clamp_min(0).to(pixels.device, non_blocking=True))
        if len(pixels) == 0 and len(slots) == 0:
            # Every rank walks the same graph: text alone still passes all that learns, with weight zero.
            tokens, _ = self._blank(embeddings)
            return embeddings + 0.0 * tokens.sum().to(embeddings.dtype)
        tokens, lengths = self.image_tokens(pixels, grids)
        return merge(embeddings, ids, tokens, lengths, slots, bounds, keys)

    def image_tokens(self, pixels: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """The tokens of all pictures [M, H], one after another, and how many each has."""
        return self._connect(self.features(pixels, grids), grids)

    def _connect(self, features: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        image = self.image
        if isinstance(image, NativeConfig):
            return self.connector(features), (grids.prod(1) // image.merge_size**2).tolist()
        crops = self.connector(features, image.tokens_per_side)  # [R, n, H]
        if isinstance(image, AnyresConfig):
            return arrange(crops, grids, image, self.connector.image_newline)
        return crops.flatten(0, 1), [crops.shape[1]] * len(crops)

    def features(self, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Pixels -> the tower's features: [R, num_tokens, C], which pass as they are, or [R, C] of native patches."""
        if pixels.ndim == 3:
            return pixels
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_tower):
            return self.tower(pixels, grids) if isinstance(self.image, NativeConfig) else self.tower(pixels)

    def _blank(self, like: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """The tokens of the smallest picture there is, all zeros; a tower that is frozen does not see it."""
        shape: tuple[int, ...] = (self.connector.feature_width,)
        if isinstance(self.image, NativeConfig):
            grid = [1, self.image.merge_size, self.image.merge_size]
            num_rows = self.image.merge_size**2
        else:
            num_rows = tile(1, 1, self.image).num_crops if isinstance(self.image, AnyresConfig) else 1
            grid, shape = [num_rows, 1, 1], (self.tower.num_tokens, *shape)
        grids = torch.tensor([grid])
        if self.trains_tower:
            return self.image_tokens(like.new_zeros(num_rows, *self.image.row_shape), grids)
        return self._connect(like.new_zeros(num_rows, *shape), grids)


def build(config: ModelConfig, image: ImageConfig, *, device: str = "cpu", seed: int = 0) -> VisionLanguageModel:
    """The model with pretrained tower and language model and a fresh connector (and adapters, if `lora` is set).

    seed: fixes what is drawn at random here, whatever was drawn before. Everything is float32. The tower is frozen;
    with LoRA the language model's own weights are too. What else trains is the caller's to say.
    """
    tower: Any = build_tower(config.tower)
    language = load_language(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        connector = build_connector(config, image, tower, language.config.get_text_config().hidden_size)
    model = VisionLanguageModel(config, image, tower, connector, language)
    if config.lora is not None:
        add_lora(model, config.lora, seed)
    return model.to(device)


def load_language(config: ModelConfig) -> Any:
    """The causal language model of a hub folder, float32, with Rebus's attention."""
    import transformers

    if not (config.language / "config.json").is_file():
        raise DataError(
            f"no language model at {config.language}: it holds no config.json. "
            "`rebus import --help` shows how to make one."
        )
    attention.register()
    settings = transformers.AutoConfig.from_pretrained(config.language, local_files_only=True)
    _refuse_unsupported(config, settings)
    transformers.utils.logging.disable_progress_bar()
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        config.language,
        dtype=torch.float32,
        attn_implementation=attention.PACKED,
        local_files_only=True,
        output_loading_info=True,
    )
    language, found = loaded
    if missing := found["missing_keys"]:  # transformers would leave them random
        raise DataError(f"{config.language} lacks {len(missing)} tensors, such as '{min(missing)}'. Fetch it again.")
    return _with_positions(language, config)


def language_from(text: dict[str, Any], config: ModelConfig) -> Any:
    """A causal language model from its hub config as JSON values, its weights not loaded."""
    import transformers

    attention.register()
    settings = transformers.AutoConfig.for_model(**text)
    _refuse_unsupported(config, settings)
    language = transformers.AutoModelForCausalLM.from_config(
        settings, dtype=torch.float32, attn_implementation=attention.PACKED
    )
    return _with_positions(language, config)


def _with_positions(language: Any, config: ModelConfig) -> Any:
    if config.mrope_section is not None:
        plain, num_frequencies = language.model.rotary_emb, sum(config.mrope_section)
        if len(plain.inv_freq) != num_frequencies:
            raise ConfigError(
                f"mrope_section {config.mrope_section} shares out {num_frequencies} frequencies, the heads of "
                f"{config.language} have {len(plain.inv_freq)}."
            )
        language.model.rotary_emb = MultimodalRotary(plain, config.mrope_section)
    return language


def tower_from(config: TowerConfig, vision: dict[str, Any]) -> Any:
    """A vision tower from its hub config as JSON values, its weights not loaded."""
    if config.kind in ("qwen2_vl", "qwen2_5_vl"):
        return NativeTower(NativeTowerConfig.from_hub(vision))
    return empty_tower(config, vision)


def _refuse_unsupported(config: ModelConfig, settings: Any) -> None:
    """What our attention or loss would silently ignore, or what reaches from one document of a pack to the next.

    settings: of transformers. What a layer asks of attention itself, attention refuses when it is asked.
    """
    import transformers

    text = settings.get_text_config().to_dict()
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale"):
        if text.get(name) not in (None, 1.0):
            raise ConfigError(f"{config.language} has {name} = {text[name]}, which Rebus does not compute.")
    if (text.get("rope_parameters") or {}).get("rope_type") == "dynamic":
        raise ConfigError(
            f"{config.language} turns by the longest position of a batch (rope_type dynamic), so one document of a "
            "pack would change the others."
        )
    language: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), None)
    others = set(text.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if language is None or not language._supports_attention_backend or language._is_stateful or others:
        kinds = f" with layers of {', '.join(sorted(others))}" if others else ""
        raise ConfigError(
            f"{config.language} is a {settings.model_type}{kinds}: no causal language model whose attention "
            "transformers lets others compute, so documents of a pack would reach one another. "
            "Take another, such as a Llama, Qwen, Mistral or Phi-3."
        )
