"""How samples become tokens. Light: no import of the tokenizer, numpy or torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rebus.config import Config
from rebus.pictures.config import FixedConfig, ImageConfig

TemplateName = Literal["plain", "chatml"]


class TokensConfig(Config):
    """tokenizer: a folder in the hub's layout (tokenizer.json). end_of_text: the special token that closes a document.

    start_of_text: the special token that opens one, where the language model was trained with one (Llama's <s>).
    Models put much of their attention on the first token (Xiao et al. 2023, "attention sinks"): better not an image.
    Nothing predicts it; in a plan with `cross_document` the end of the document before does, and is trained to.

    image_start, image_end: special tokens around every picture, where the language model knows some
    (Qwen2-VL's <|vision_start|> and <|vision_end|>).

    max_tokens: samples with more, image positions included, are refused, never cut: a cut could part an image.
    """

    tokenizer: Path
    template: TemplateName = "plain"
    image: ImageConfig = FixedConfig()
    max_tokens: int = Field(default=2048, ge=2)
    end_of_text: str = "<|endoftext|>"
    start_of_text: str | None = None
    image_start: str | None = None
    image_end: str | None = None
