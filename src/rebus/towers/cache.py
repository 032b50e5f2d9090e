"""A frozen encoder needs to see a picture once: FeatureCache keeps what it saw, keyed by the picture's bytes."""

import concurrent.futures
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.fingerprint import fingerprint, write_atomically

if TYPE_CHECKING:
    import numpy as np


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
