"""How samples become tokens. Light: no import of the tokenizer, numpy or torch."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from rebus.config import Config
from rebus.errors import nearest
from rebus.pictures.config import FixedConfig, ImageConfig

TemplateName = Literal[
    "plain",
    "chatml",
    "vicuna_v1",
    "llava_llama_3",
    "llama3",
    "llama2",
    "mistral",
    "phi3",
    "prismatic_qwen2",
    "own",
]
FRAMES: dict[str, tuple[str | None, str]] = {
    "vicuna_v1": ("<s>", "</s>"),
    "llava_llama_3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llama2": ("<s>", "</s>"),
    "mistral": ("<s>", "</s>"),
    "prismatic_qwen2": ("<s>", "<|im_end|>"),
}
"""start_of_text and end_of_text of the models that a template belongs to, where the config names none."""


class TokensConfig(Config):
    """tokenizer: a folder in the hub's layout (tokenizer.json). template: see docs/templates.md.

    system: what the system says in a conversation where nobody else said it; None: the template's own words, if it has
    any; "": nothing.

    end_of_text: the special token that closes a document.
    start_of_text: the special token that opens one, where the language model was trained with one (Llama's <s>). Both
    follow the template where they are not set.
    Models put much of their attention on the first token (Xiao et al. 2023, "attention sinks"): better not an image.
    Nothing predicts it; in a plan with `cross_document` the end of the document before does, and is trained to.

    image_start, image_end: special tokens around every picture, where the language model knows some
    (Qwen2-VL's <|vision_start|> and <|vision_end|>). Template `own` writes what its text says instead.

    max_tokens: samples with more, image positions included, are refused, never cut: a cut could part an image.
    """

    tokenizer: Path
    template: TemplateName = "plain"
    system: str | None = None
    image: ImageConfig = FixedConfig()
    max_tokens: int = Field(default=2048, ge=2)
    end_of_text: str = "<|endoftext|>"
    start_of_text: str | None = None
    image_start: str | None = None
    image_end: str | None = None

    @field_validator("template", mode="before")
    @classmethod
    def _is_known(cls, name: Any) -> Any:
        known = get_args(TemplateName)
        if name not in known:
            raise ValueError(f"no template '{name}'{nearest(str(name), known)}; there are {', '.join(known)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _follow_the_template(cls, values: Any) -> Any:
        if not isinstance(values, dict) or (frame := FRAMES.get(str(values.get("template")))) is None:
            return values
        return {"start_of_text": frame[0], "end_of_text": frame[1], **values}
