"""How samples become tokens. Light: no import of the tokenizer, numpy or torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rebus.config import Config
from rebus.pictures import ImageConfig

TemplateName = Literal["plain", "chatml"]


class TokensConfig(Config):
    """tokenizer: a folder in the hub's layout (tokenizer.json). end_of_text: the special token that closes a document.

    start_of_text: the special token that opens one, where the language model was trained with one (Llama's <s>).
    Models put much of their attention on the first token (Xiao et al. 2023, "attention sinks"): better not an image.
    Nothing predicts it; in a plan with `cross_document` the end of the document before does, and is trained to.

    max_tokens: samples with more, image positions included, are refused, never cut: a cut could part an image.
    """

    tokenizer: Path
    template: TemplateName = "plain"
    image: ImageConfig = ImageConfig()
    max_tokens: int = Field(default=2048, ge=2)
    end_of_text: str = "<|endoftext|>"
    start_of_text: str | None = None
