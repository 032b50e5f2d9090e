"""The image rules: how a picture becomes pixels, and how many positions of the sequence it takes. Light: pydantic.

Tokens, batches and model share one of them; a checkpoint carries it.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rebus.config import Config
from rebus.fingerprint import fingerprint

RULE = 3
"""Part of what shapes the pixels: count it up when the same bytes give others. 2: JPEG decoded at reduced scale, EXIF
orientation applied, 16 bits scaled to 8. 3: `crop` resizes the whole picture and then crops, as CLIP's processor;
EXIF counts where it stands before the pixels."""

ResizeName = Literal["squash", "crop", "letterbox", "pad"]
MergeName = Literal["flat", "spatial", "spatial_unpad"]
Colour = tuple[float, float, float]

CLIP_MEAN: Colour = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD: Colour = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)


class _Rule(Config):
    """mean, std: of RGB in 0..255; the tower sees (x - mean) / std. reduced_jpeg: decode a JPEG at the smallest scale
    that the resize still shrinks: quicker, and off by what libjpeg's own reduction loses; False gives the pixels of
    the hub's processors, and is all that `anyres` and `native` know. patch_size: side in pixels
    of the squares that the tower cuts and its work is counted in."""

    mean: Colour
    std: Colour
    reduced_jpeg: bool = True
    patch_size: int = Field(ge=1)


def _refuse_reduced(rule: _Rule) -> None:
    if rule.reduced_jpeg:
        raise ValueError(
            "reduced_jpeg is for `kind: fixed`: anyres and native keep a picture's detail, whose sizes are counted "
            "before it is decoded. Leave it out"
        )


class FixedConfig(_Rule):
    """Every picture becomes one square.

    size: its side, in pixels. resize: `squash` stretches the sides, `crop` takes the centre of the picture resized by
    its shorter side (CLIP's processor), `letterbox` lays the resized picture on the mean colour, `pad` lays the
    picture on a square of the mean colour and resizes that (LLaVA's; Prismatic calls it letterbox). mean, std: 127
    and 128 are EfficientNet-Lite's. tokens_per_side: a picture takes tokens_per_side**2 positions of the sequence;
    where the tower's grid is finer, features are averaged.
    """

    kind: Literal["fixed"] = "fixed"
    size: int = Field(default=224, ge=1)
    resize: ResizeName = "letterbox"
    mean: Colour = (127.0, 127.0, 127.0)
    std: Colour = (128.0, 128.0, 128.0)
    tokens_per_side: int = Field(default=7, ge=1)
    patch_size: int = Field(default=32, ge=1)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    @property
    def fingerprint(self) -> str:
        """Of what shapes the pixels; how many tokens or patches they become does not."""
        shaping = self.model_dump(mode="json", exclude={"tokens_per_side", "patch_size"})
        return fingerprint({**shaping, "rule": RULE})


class AnyresConfig(_Rule):
    """LLaVA-NeXT's: the squashed picture, then tiles of it on the best of several canvases.

    size: side of a tile, in pixels. grids: the canvases as (columns, rows) of tiles, in the order that breaks ties;
    or pinpoints: the same as (width, height) in pixels. tokens_per_side: of a tile, pooled if the tower's grid is
    finer. merge: `flat` lays the tiles one after another, `spatial` puts their tokens in the order of the whole
    picture, `spatial_unpad` also drops the rows and columns of the margins and ends every row with a learned newline.
    max_tiles: `anyres_max_N` of LLaVA-OneVision: shrinks the grid by bilinear interpolation where it holds more
    tokens than N tiles (only with `spatial_unpad`); None: never.
    """

    kind: Literal["anyres"]
    size: int = Field(default=336, ge=1)
    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    pinpoints: tuple[tuple[int, int], ...] | None = None
    merge: MergeName = "spatial_unpad"
    max_tiles: int | None = Field(default=None, ge=1)
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD
    reduced_jpeg: bool = False
    tokens_per_side: int = Field(default=24, ge=1)
    patch_size: int = Field(default=14, ge=1)

    @model_validator(mode="after")
    def _whole_tiles(self) -> "AnyresConfig":
        _refuse_reduced(self)
        for width, height in self.canvases:
            if width < 1 or height < 1 or width % self.size or height % self.size:
                raise ValueError(f"pinpoint {width} x {height} is no whole number of tiles of {self.size} pixels")
        if not self.canvases:
            raise ValueError("anyres needs at least one canvas: `grids` or `pinpoints`")
        if self.max_tiles is not None and self.merge != "spatial_unpad":
            raise ValueError("max_tiles shrinks the grid of `merge: spatial_unpad` alone")
        return self

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """(width, height) in pixels."""
        return self.pinpoints or tuple((columns * self.size, rows * self.size) for columns, rows in self.grids)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    @property
    def fingerprint(self) -> str:
        shaping = {"size": self.size, "canvases": self.canvases, "mean": self.mean, "std": self.std}
        return fingerprint({**shaping, "kind": self.kind, "rule": RULE})


class NativeConfig(_Rule):
    """Qwen2-VL's: every picture keeps its own size, rounded to whole merged patches.

    min_pixels, max_pixels: of a picture after the resize. video_min_pixels, video_max_pixels: of one frame;
    video_total_pixels: of all frames of a video. merge_size: side of the square of patches that becomes one token;
    temporal_patch_size: frames that become one. A picture's or video's own limits go before these.
    tokens_per_second: steps of the time axis in a second of video; 0 counts pairs of frames (Qwen2-VL), 2 is
    Qwen2.5-VL's.
    """

    kind: Literal["native"]
    min_pixels: int = Field(default=4 * 28 * 28, ge=1)
    max_pixels: int = Field(default=16384 * 28 * 28, ge=1)
    video_min_pixels: int = Field(default=128 * 28 * 28, ge=1)
    video_max_pixels: int = Field(default=768 * 28 * 28, ge=1)
    video_total_pixels: int = Field(default=24576 * 28 * 28, ge=1)
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD
    reduced_jpeg: bool = False
    patch_size: int = Field(default=14, ge=1)
    merge_size: int = Field(default=2, ge=1)
    temporal_patch_size: int = Field(default=2, ge=1)
    tokens_per_second: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "NativeConfig":
        _refuse_reduced(self)
        if self.min_pixels > self.max_pixels or self.video_min_pixels > self.video_max_pixels:
            raise ValueError("min_pixels is above max_pixels")
        return self

    @property
    def factor(self) -> int:
        """Side of the square that becomes one token, in pixels."""
        return self.patch_size * self.merge_size

    @property
    def row_shape(self) -> tuple[int, ...]:
        """One row of pixels is one patch: (channels, frames, height, width), flat."""
        return (3 * self.temporal_patch_size * self.patch_size**2,)

    @property
    def fingerprint(self) -> str:
        shaping = self.model_dump(mode="json", exclude={"tokens_per_second"})
        return fingerprint({**shaping, "rule": RULE})


def _kind(value: Any) -> str:
    return value.get("kind", "fixed") if isinstance(value, dict) else value.kind


ImageConfig = Annotated[
    Annotated[FixedConfig, Tag("fixed")]
    | Annotated[AnyresConfig, Tag("anyres")]
    | Annotated[NativeConfig, Tag("native")],
    Discriminator(_kind),
]
"""One of the rules, told apart by `kind`; without one it is `fixed`."""
