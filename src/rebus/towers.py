"""Frozen vision encoders, shared by scoring and training. The seam is narrow: any module that maps pixels
float32 [B, 3, H, W] to features [B, num_tokens, width] and carries those two numbers as attributes.

A frozen encoder needs to see a picture once: FeatureCache keeps what it saw, keyed by the picture's bytes.
"""

import concurrent.futures
import hashlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rebus.config import Config
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import file_fingerprint, fingerprint, folder_fingerprint, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import torch


class TowerConfig(Config):
    """Which encoder, and where its weights are.

    kind: `efficientnet_lite0` (weights: a .safetensors file from `rebus import`), `transformers` (weights: the hub
    folder of a CLIP or SigLIP model), `tiny` (random weights, for tests). image_size: side of the square input in
    pixels. select_layer: index into the transformer's hidden states; -2 is LLaVA's choice.
    """

    kind: Literal["efficientnet_lite0", "transformers", "tiny"]
    weights: Path | None = None
    image_size: int = 224
    select_layer: int = -2


def tower_fingerprint(config: TowerConfig) -> str:
    """What the features depend on: the weights' bytes (not where they lie) and the settings."""
    settings = config.model_dump(mode="json", exclude={"weights"})
    return fingerprint({**settings, "weights": _weights_fingerprint(config)})


def _weights_fingerprint(config: TowerConfig) -> str | None:
    if config.weights is None:
        return None
    if config.weights.is_dir() and config.kind == "transformers":
        return folder_fingerprint(config.weights)
    if _single_file(config.weights).is_file():
        return file_fingerprint(_single_file(config.weights))
    raise DataError(f"no vision weights at {config.weights}. `rebus import --help` shows how to make them.")


def build_tower(config: TowerConfig, device: str = "cpu") -> "torch.nn.Module":
    """The encoder in eval mode, its parameters frozen, on `device`.

    Raises: ConfigError or DataError where a package or the weights are missing, or the image size does not fit.
    """
    builders = {"efficientnet_lite0": _build_efficientnet, "transformers": _build_transformers, "tiny": _build_tiny}
    tower = builders[config.kind](config)
    return tower.eval().requires_grad_(False).to(device)


def _required_weights(config: TowerConfig) -> Path:
    if config.weights is None:
        raise ConfigError(f"tower '{config.kind}' needs `weights`. `rebus import --help` shows how to make them.")
    if not config.weights.exists():
        raise DataError(f"no vision weights at {config.weights}. `rebus import --help` shows how to make them.")
    return config.weights


def _single_file(weights: Path) -> Path:
    """The .safetensors file itself, also where the folder around it is named."""
    return weights / "model.safetensors" if weights.is_dir() else weights


def _build_tiny(config: TowerConfig) -> "torch.nn.Module":
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patches = torch.nn.Conv2d(3, 16, kernel_size=config.image_size // 4, stride=config.image_size // 4)
    return _grid_tower(torch.nn.Sequential(patches, torch.nn.Tanh()), num_tokens=16, width=16)


def _grid_tower(maps: "torch.nn.Module", num_tokens: int, width: int) -> "torch.nn.Module":
    """Wraps a convolutional network [B, 3, H, W] -> [B, width, h, w] as a tower."""
    import torch

    class GridTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Channels last: 43 pictures a second on one core against 27 (Lite0, 224 pixels).
            self.maps = maps.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.num_tokens, self.width = num_tokens, width

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            grid = self.maps(pixels.contiguous(memory_format=torch.channels_last))
            return grid.flatten(2).transpose(1, 2)  # [B, h * w, width]

    return GridTower()


def _build_efficientnet(config: TowerConfig) -> "torch.nn.Module":
    """EfficientNet-Lite0 (TensorFlow's mobile variant, ReLU6, no squeeze-excite): 1280 x 7 x 7 at 224 pixels."""
    import safetensors.torch

    weights = _single_file(_required_weights(config))
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        raise ConfigError(
            "tower 'efficientnet_lite0' needs a package: pip install --no-deps efficientnet-lite-pytorch==0.1.0"
        )
    if config.image_size % 32:
        raise ConfigError(f"image_size {config.image_size} is no multiple of 32, the stride of efficientnet_lite0.")
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=config.image_size)
    network.load_state_dict(safetensors.torch.load_file(weights))
    maps = _folded(network.eval())
    return _grid_tower(maps, num_tokens=(config.image_size // 32) ** 2, width=1280)


def _folded(network: "torch.nn.Module") -> "torch.nn.Module":
    """The network up to its last feature map, each BatchNorm folded into the convolution before it."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    class Residual(torch.nn.Module):
        def __init__(self, branch: torch.nn.Module) -> None:
            super().__init__()
            self.branch = branch

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs + self.branch(inputs)

    def layers(module: torch.nn.Module, pairs: Sequence[tuple[str, str]], linear_end: bool) -> torch.nn.Sequential:
        chain: list[torch.nn.Module] = []
        for convolution, norm in pairs:
            chain += [fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)), torch.nn.ReLU6(True)]
        return torch.nn.Sequential(*(chain[:-1] if linear_end else chain))

    chain: list[torch.nn.Module] = [layers(network, [("_conv_stem", "_bn0")], linear_end=False)]
    for block in network._blocks:  # type: ignore[union-attr]
        pairs = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.insert(0, ("_expand_conv", "_bn0"))
        branch = layers(block, pairs, linear_end=True)
        arguments = block._block_args
        is_residual = (
            block.id_skip and arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters
        )
        chain.append(Residual(branch) if is_residual else branch)
    chain.append(layers(network, [("_conv_head", "_bn1")], linear_end=False))
    return torch.nn.Sequential(*chain)


def _build_transformers(config: TowerConfig) -> "torch.nn.Module":
    """Patch tokens of a CLIP or SigLIP vision model; the layers above `select_layer` are never run."""
    import torch
    import transformers

    weights = _required_weights(config)
    hub_config = transformers.AutoConfig.from_pretrained(weights, local_files_only=True)
    vision = getattr(hub_config, "vision_config", hub_config)
    models = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}
    if vision.model_type not in models:
        raise ConfigError(f"{weights} holds a {vision.model_type}; known towers: {', '.join(models)}.")
    if vision.image_size != config.image_size:
        raise ConfigError(f"{weights} sees {vision.image_size} pixels a side, the recipe says {config.image_size}.")
    model = getattr(transformers, models[vision.model_type]).from_pretrained(
        weights, dtype=torch.float32, local_files_only=True
    )
    num_tokens = (vision.image_size // vision.patch_size) ** 2

    class TransformerTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.num_tokens, self.width = model, num_tokens, vision.hidden_size

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
            return states[config.select_layer][:, -num_tokens:]  # CLIP's class token stands first

    return TransformerTower()


class FeatureCache:
    """Features float32 [num_tokens, width], one .npy a picture, under `folder`/<maker>/.

    maker: a fingerprint of all that shapes features besides the picture's bytes: the tower and the image rule. Other
    makers live beside it untouched. Files appear whole or not at all, so processes may share a cache.
    """

    def __init__(self, folder: Path, tower: str, image_rule: str) -> None:
        """tower: tower_fingerprint(config). image_rule: fingerprint of the resize and normalisation settings."""
        self.folder = Path(folder) / fingerprint({"tower": tower, "image": image_rule})

    def _path(self, picture: bytes) -> Path:
        name = hashlib.blake2b(picture, digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.npy"

    def get(self, picture: bytes) -> "np.ndarray | None":
        """The features of these image bytes, or None where no one has put them yet."""
        import numpy as np

        path = self._path(picture)
        return np.load(path, allow_pickle=False) if path.is_file() else None

    def put(self, picture: bytes, features: "np.ndarray") -> None:
        """Keeps the features of these image bytes."""
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, np.asarray(features, dtype=np.float32), allow_pickle=False)
        write_atomically(self._path(picture), buffer.getvalue())


def encode_cached(
    tower: Any,
    cache: FeatureCache | None,
    pictures: Sequence[bytes],
    prepare: Callable[[bytes], "np.ndarray"],
) -> "np.ndarray":
    """Features float32 [len(pictures), num_tokens, width] of encoded images, from the cache where it has them.

    prepare: image bytes -> float32 [3, H, W]; what it raises passes through.

    The features are a pure function of the picture, to the bit, whatever else is asked for, before or together:
    on the CPU a picture is one batch on one thread (oneDNN's sums change with batch size and thread count, by 4e-5
    for Lite0), and pictures run side by side on torch's threads. That is also the quickest way on two cores.
    """
    import numpy as np
    import torch

    def one(picture: bytes) -> np.ndarray:
        features = cache.get(picture) if cache else None
        if features is None:
            features = _encode_one(tower, prepare(picture))
            if cache:
                cache.put(picture, features)
        return features

    if not pictures:
        return np.zeros((0, tower.num_tokens, tower.width), dtype=np.float32)
    num_threads = torch.get_num_threads()
    try:
        with concurrent.futures.ThreadPoolExecutor(
            num_threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return np.stack(list(pool.map(one, pictures)))
    finally:
        torch.set_num_threads(num_threads)


def _encode_one(tower: Any, pixels: "np.ndarray") -> "np.ndarray":
    import torch

    parameter = next(tower.parameters())
    with torch.inference_mode():
        batch = torch.from_numpy(pixels).unsqueeze(0).to(parameter.device, parameter.dtype)
        return tower(batch)[0].float().cpu().numpy()
