"""Builds a vision-language model from its config: a frozen tower, a connector, a causal language model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rebus.errors import ConfigError, DataError
from rebus.model import attention
from rebus.model.config import ModelConfig
from rebus.model.connector import Connector
from rebus.model.loss import token_loss
from rebus.model.merge import merge
from rebus.towers import build_tower


class VisionLanguageModel(nn.Module):
    """tower: pixels -> features, frozen. connector: features -> image tokens. language: a transformers causal LM."""

    tower: Any
    connector: Connector
    language: Any

    def __init__(self, config: ModelConfig, tower: nn.Module, connector: Connector, language: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.tower, self.connector, self.language = tower, connector, language

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        super().train(mode)
        self.tower.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.connector.feature_mean.device

    @property
    def head(self) -> nn.Linear:
        """The output layer: hidden [*, H] -> logits [*, V]."""
        return self.language.get_output_embeddings()

    def forward(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor,
        bounds: torch.Tensor,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        keys: Sequence[str] = (),
    ) -> tuple[torch.Tensor, int]:
        """SUM of token losses over the pack and the number of supervised tokens. Shapes as in `hidden`."""
        states = self.hidden(ids, positions, bounds, pixels, slots, keys)
        return token_loss(states, labels, self.head.weight, self.head.bias)

    def hidden(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        bounds: torch.Tensor,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        keys: Sequence[str] = (),
    ) -> torch.Tensor:
        """Last hidden states [T, H] of a padding-free pack.

        ids: int64 [T], -1 at image slots. positions: int64 [T], from 0 in each document. bounds: int32 [D + 1].
        pixels: float32 [N, 3, H, W], or features [N, num_tokens, C] that the tower made before. slots: int64 [N, 2]
        (start, length). keys [D] name samples in errors. Raises: SlotMismatchError.
        """
        embeddings = self.embed(ids, pixels, slots, bounds, keys)
        output = self.language.get_decoder()(
            inputs_embeds=embeddings.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,  # with a cache transformers drops per-document masks; ours needs none, and no cache
            documents=attention.documents_of(bounds),
        )
        return output.last_hidden_state[0]

    def embed(
        self,
        ids: torch.Tensor,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        bounds: torch.Tensor,
        keys: Sequence[str] = (),
    ) -> torch.Tensor:
        """Embeddings [T, H], image tokens in their slots."""
        embeddings = self.language.get_input_embeddings()(ids.clamp_min(0))
        if len(pixels) == 0 and len(slots) == 0:
            # Every rank walks the same graph: text alone still passes the connector, with weight zero.
            blank = embeddings.new_zeros(1, self.connector.num_features, self.connector.feature_width)
            return embeddings + 0.0 * self.connector(blank).sum().to(embeddings.dtype)
        return merge(embeddings, ids, self.connector(self.features(pixels)), slots, bounds, keys)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [N, 3, H, W] -> features [N, num_tokens, C]; what is features already passes."""
        if pixels.ndim == 3:
            return pixels
        with torch.no_grad():
            return self.tower(pixels)


def build(config: ModelConfig, *, device: str = "cpu", seed: int = 0) -> VisionLanguageModel:
    """The model with pretrained tower and language model and a fresh connector (and adapters, if `lora` is set).

    seed: fixes what is drawn at random here, whatever was drawn before. Everything is float32. The tower is frozen;
    with LoRA the language model's own weights are too. What else trains is the caller's to say.
    """
    tower: Any = build_tower(config.tower)
    language = load_language(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        connector = Connector(config, tower.num_tokens, tower.width, language.config.get_text_config().hidden_size)
        if config.lora is not None:
            add_lora(language, config)
    return VisionLanguageModel(config, tower, connector, language).to(device)


def load_language(config: ModelConfig) -> Any:
    """The causal language model of a hub folder, float32, with Rebus's attention."""
    import transformers

    if not (config.language / "config.json").is_file():
        raise DataError(
            f"no language model at {config.language}: it holds no config.json. "
            "`rebus import --help` shows how to make one."
        )
    attention.register()
    transformers.utils.logging.disable_progress_bar()
    language = transformers.AutoModelForCausalLM.from_pretrained(
        config.language, dtype=torch.float32, attn_implementation=attention.PACKED, local_files_only=True
    )
    _refuse_unsupported(config, language.config.get_text_config().to_dict())
    return language


def _refuse_unsupported(config: ModelConfig, settings: dict) -> None:
    """Settings that our attention or loss would silently ignore."""
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    found = {
        "sliding_window": window,
        "final_logit_softcapping": settings.get("final_logit_softcapping"),
        "attn_logit_softcapping": settings.get("attn_logit_softcapping"),
        "logits_scaling": settings.get("logits_scaling"),
    }
    for name, value in found.items():
        if value is not None:
            raise ConfigError(f"{config.language} has {name} = {value}, which Rebus does not compute.")


def add_lora(language: nn.Module, config: ModelConfig) -> None:
    """Puts adapters on the language model's linear layers, in place, and freezes the rest of it (peft)."""
    import peft

    assert config.lora is not None
    lora = config.lora
    wanted = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    peft.inject_adapter_in_model(wanted, language)


def merge_lora(model: VisionLanguageModel) -> None:
    """Adds the adapters into the weights and takes them off: same outputs, plain modules, no way back."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.language.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.language.set_submodule(name, module.get_base_layer())
    model.config = model.config.model_copy(update={"lora": None})
