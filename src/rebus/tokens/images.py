"""The one image-token rule."""

from rebus.pictures import ImageConfig


def num_image_tokens(width: int, height: int, config: ImageConfig) -> int:
    """Positions that an image of this size (pixels) takes: the tower sees a fixed square, so the same for all."""
    return config.tokens_per_side**2


def num_patches(width: int, height: int, config: ImageConfig) -> int:
    """Patches that the tower works through for an image of this size (pixels): of the fixed square."""
    return (config.size // config.patch_size) ** 2
