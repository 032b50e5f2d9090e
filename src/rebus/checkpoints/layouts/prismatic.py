"""Runs of Prismatic and the released Open-Qwen2VL: a `.pt` of nested state dicts beside the run's config.json or
config.yaml. Read by torch's weights-only reader, never written. What a run did not train is not in its file: the
tower's weights, or the language model's, then come from a hub folder.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from rebus.checkpoints import names
from rebus.checkpoints.layouts.folder import read_json
from rebus.checkpoints.layouts.settings import Composition, plain
from rebus.checkpoints.layouts.stored import Named, load_tensors, stored_tensors, tower_tensors
from rebus.checkpoints.layouts.timm_names import to_transformers
from rebus.errors import ConfigError, DataError
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import FixedConfig, ResizeName
from rebus.towers.hub import vision_settings

RESIZE: dict[str, ResizeName] = {"resize-naive": "squash", "resize-crop": "crop", "letterbox": "pad"}
KINDS = {"clip_vision_model": "clip", "siglip_vision_model": "siglip", "dinov2_with_registers": "dino"}
ADDED_TOKENS = ("<|endofchunk|>", "<s>")
"""What the released weights' tokenizer has beyond Qwen2.5's; rows of the embeddings stood ready for them."""

CHAT_TEMPLATE = """\
{{- '<s>' }}
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role != 'assistant' %}{{- '<|im_start|>' + message.role + '\\n' }}{% endif %}
{%- if message.content is string %}{{- message.content }}
{%- else %}
{%- for part in message.content %}{{- '<image>' if part.type == 'image' else part.text }}{% endfor %}
{%- endif %}
{{- '<|im_end|>' + ('assistant\\n' if message.role == 'user' else '\\n') }}
{%- endfor %}
"""
"""Turns as the released weights were trained on them, quirks included (see the template prismatic_qwen2), for folders
that others read: without it they would write Qwen's own."""

POOLED = 144
"""Tokens a picture of the plain `avgpool`."""


def recognises(source: Path) -> bool:
    """source: a run's folder, or a `.pt` in it."""
    try:
        model = _config(source)
    except DataError:
        return False
    return {"vision_backbone_id", "llm_backbone_id", "arch_specifier"} <= set(model)


def run_folder(source: Path) -> Path:
    """The folder of the run's config: a `.pt` lies beside it, or in `checkpoints/` below."""
    folders = [source] if source.is_dir() else [source.parent, source.parent.parent]
    found = [f for f in folders if (f / "config.json").is_file() or (f / "config.yaml").is_file()]
    if not found:
        raise DataError(f"{source}: no config.json or config.yaml of a Prismatic run beside it. Copy it there.")
    return found[0]


def _config(source: Path) -> dict[str, Any]:
    """The `model` section of the run's config."""
    folder = run_folder(source)
    body = read_json(folder / "config.json")
    if not isinstance(body.get("model"), dict) and (folder / "config.yaml").is_file():
        try:
            body = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise DataError(f"{folder / 'config.yaml'} is not YAML: {error}. Copy it again.") from error
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, dict) else {}


def weights_file(source: Path) -> Path:
    """The `.pt`: `source` itself, `latest-checkpoint.pt`, or the only one there is."""
    if source.is_file():
        return source
    found = sorted([*source.glob("*.pt"), *source.glob("checkpoints/*.pt")])
    latest = [path for path in found if path.name == "latest-checkpoint.pt"] or found
    if len(latest) != 1:
        listed = ", ".join(path.relative_to(source).as_posix() for path in found) or "none"
        raise DataError(f"{source} holds {len(found)} .pt files ({listed}): name the one you mean.")
    return latest[0]


def _state(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Part -> its tensors, mapped from the file."""
    loaded = load_tensors(path)
    model = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("projector"), dict):
        raise DataError(f"{path} is no Prismatic checkpoint: it holds no `model` with a `projector` in it.")
    wrapped = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
    return {part: {wrapped.sub("", name): t for name, t in tensors.items()} for part, tensors in model.items()}


def read(
    source: Path, *, template: str | None = None, tower: Sequence[Path] = (), language: Path | None = None
) -> Composition:
    """tower, language: hub folders in place of those that the ids in the config stand for; a fused tower needs two.

    Raises: ConfigError for an id or an architecture that is none of Prismatic's; DataError where weights are missing.
    """
    config, state = _config(source), _state(weights_file(source))
    towers = names.vision(config["vision_backbone_id"])
    known = names.language(config["llm_backbone_id"])
    connector, pooled = architecture(config["arch_specifier"])
    image = _image(config, towers, pooled)
    has_tower = "vision_backbone" in state
    homes = [source] * len(towers) if has_tower else list(tower) or [names.resolve(part.hub) for part in towers]
    tower_config = names.tower_config(config["vision_backbone_id"], homes)
    configs = [_vision(part, home, has_tower) for part, home in zip(towers, homes, strict=True)]
    vision = {"parts": configs} if len(towers) > 1 else configs[0]
    home = language or names.resolve(known.hub, weights="llm_backbone" not in state)
    text, length = _text(home, state), int(config.get("llm_max_length") or 4096)
    if (text.get("sliding_window") or 0) >= length:
        text["sliding_window"] = None  # Mistral's window of 4096 never closes on sequences as long as the run's
    tokens = _tokens(known, home, image, length, template)
    return Composition(ModelConfig(tower=tower_config, connector=connector, language=home), image, vision, text, tokens)


def architecture(specifier: str) -> tuple[str, int | None]:
    """Prismatic's arch_specifier -> (connector, tokens a picture is pooled to or None). The prefixes say what a run
    took over from the stage before, which its weights already show.

    Raises: ConfigError where it is none of the grammar: linear, or [no-align+|full-align+] before gelu-mlp,
    fused-gelu-mlp, avgpool (144 tokens) or Q-avgpool.
    """
    if specifier == "linear":
        return "linear", None
    found = re.fullmatch(r"(?:no-align\+|full-align\+)?(?:(fused-gelu-mlp)|(gelu-mlp)|(?:(\d+)-)?(avgpool))", specifier)
    if found is None:
        known = "linear, or [no-align+|full-align+] and gelu-mlp, fused-gelu-mlp, avgpool or Q-avgpool"
        raise ConfigError(f"arch_specifier '{specifier}' is none of Prismatic's: {known}.")
    fused, _, count, is_pooled = found.groups()
    number = int(count or POOLED) if is_pooled else None
    if number is not None and round(number**0.5) ** 2 != number:
        raise ConfigError(f"arch_specifier '{specifier}' asks for {number} tokens, which is no square grid.")
    return "fused_mlp" if fused else "mlp2x_gelu", number


def _image(config: dict[str, Any], towers: Sequence[names.Vision], pooled: int | None) -> FixedConfig:
    strategy = config.get("image_resize_strategy", "letterbox")
    if strategy not in RESIZE:
        raise ConfigError(f"image_resize_strategy '{strategy}' is none of {', '.join(RESIZE)}.")
    side = towers[0].tokens_per_side if pooled is None else round(pooled**0.5)
    return names.image_rule(config["vision_backbone_id"], resize=RESIZE[strategy], tokens_per_side=side)


def _vision(known: names.Vision, home: Path, has_tower: bool) -> dict[str, Any]:
    """The tower's hub config. Prismatic's SigLIP is timm's, which runs the exact GELU where the hub's approximates."""
    activation = "gelu" if KINDS.get(known.model_type) == "siglip" else known.activation
    return {**(known.hub_config() if has_tower else vision_settings(home)), "hidden_act": activation}


def _text(home: Path, state: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """The language model's config, with as many rows of vocabulary as the checkpoint has."""
    text = plain(read_json(home / "config.json"))
    if not text:
        raise DataError(f"{home} holds no config.json of a language model.")
    embeddings = state.get("llm_backbone", {}).get("llm.model.embed_tokens.weight")
    return text if embeddings is None else {**text, "vocab_size": embeddings.shape[0]}


def _tokens(known: names.Language, home: Path, image: FixedConfig, length: int, template: str | None) -> dict[str, Any]:
    template = template or known.prismatic
    start = "<s>" if template == "prismatic_qwen2" else known.start_of_text
    tokens = {
        "tokenizer": str(home),
        "image": image.model_dump(mode="json"),
        "max_tokens": length,
        "end_of_text": known.end_of_text,
    }
    return tokens | ({"start_of_text": start} if start else {}) | ({"template": template} if template else {})


def tensors(source: Path, *, tower: Sequence[Path] = (), language: Path | None = None) -> Iterator[Named]:
    """All tensors of the run, and those that it stands on and did not write. Vision names say kind and, of two, which:
    `vision_backbone.0.dino.blocks...`."""
    held, state = read(source, tower=tower, language=language), _state(weights_file(source))
    towers = names.vision(_config(source)["vision_backbone_id"])
    yield from ((f"projector.{name}", tensor) for name, tensor in state["projector"].items())
    parts = held.model.tower.parts or (held.model.tower,)
    for number, (part, known) in enumerate(zip(parts, towers, strict=True)):
        place = f"parts.{number}." if len(towers) > 1 else ""
        if "vision_backbone" in state:
            kind = _kind(known)
            prefix = f"{kind}_featurizer." if len(towers) > 1 else "featurizer."
            for name, tensor in state["vision_backbone"].items():
                if name.startswith(prefix):
                    yield f"vision_backbone.{place}{kind}.{name.removeprefix(prefix)}", tensor
        elif part.weights is not None:
            for name, tensor in tower_tensors(part.weights):
                yield f"tower.{place}{name.removeprefix('tower.')}", tensor
    if "llm_backbone" in state:
        yield from state["llm_backbone"].items()
    else:
        yield from ((f"llm.{name}", tensor) for name, tensor in stored_tensors(held.model.language))


def _kind(tower: names.Vision) -> str:
    if tower.model_type not in KINDS:
        raise ConfigError(f"Rebus has no tower for a {tower.model_type} ({tower.hub}).")
    return KINDS[tower.model_type]


def to_ours(name: str, tensor: torch.Tensor) -> list[Named]:
    part, _, rest = name.partition(".")
    if part == "llm":
        return [] if rest.endswith(".inv_freq") else [(f"language.{rest}", tensor)]
    if part == "projector":  # linear: `projector.weight`; else a sequence under one of several names
        found = re.fullmatch(r"(?:\w+\.)??(?:(\d)\.)?(weight|bias)", rest)
        return [(f"connector.mlp.{found[1] or 0}.{found[2]}", tensor)] if found else [(f"connector.{rest}", tensor)]
    if part == "vision_backbone":
        where = re.fullmatch(r"(parts\.\d\.)?(\w+?)\.(.+)", rest)
        assert where is not None
        place = f"tower.{where[1] or ''}model."
        return [(place + theirs, value) for theirs, value in to_transformers(where[2], where[3], tensor)]
    return [(name, tensor)]


def refusal(model: VisionLanguageModel) -> str | None:
    return "Prismatic's files are read, not written"
