"""What a recipe says of the model that is asked. Fields that are excluded shape no score: a change of them makes no
table anew."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rebus.config import Config

Metric = Literal["image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding"]
METRICS: tuple[Metric, ...] = (
    "image_text_matching",
    "object_detail_fulfillment",
    "caption_text_quality",
    "semantic_understanding",
)


class EndpointConfig(Config):
    """An OpenAI-compatible server. url: as far as `/v1`. model: its name there. api_key_env: the NAME of the
    environment variable that holds the key. extra: more fields of the request's body; null takes one of ours away.

    concurrency: requests on their way at once. tries: of each request, `backoff_s` and then twice as long each time
    between them. stop_after: failures in a row that end the run.
    """

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^?#]+$")]
    model: str = Field(min_length=1)
    api_key_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    max_tokens: int = Field(default=8, gt=0)
    top_logprobs: int = Field(default=20, ge=0, le=20)
    extra: dict[str, Any] = Field(default_factory=dict)
    concurrency: int = Field(default=16, gt=0, exclude=True)
    timeout_s: float = Field(default=120.0, gt=0, exclude=True)
    tries: int = Field(default=6, gt=0)
    backoff_s: float = Field(default=1.0, gt=0, exclude=True)
    stop_after: int = Field(default=50, gt=0, exclude=True)


class MlmConfig(Config):
    """`model`: a folder of a transformers vision-language model on this machine, or `endpoint`: a server.

    prompts: a text file for a metric in place of ours; `{caption}` in it is where the caption goes.
    expectation: `exact` asks the model for the distributions of all numbers, `along` has those on the way of its answer
    alone, which is all that an endpoint tells. By default `exact` for a model, `along` for an endpoint.
    min_mass: an expectation is given only where numbers from 0 to 100 have at least this probability together.
    answer_start: text behind the prompt, before the model's first token: " " where its tokenizer writes a space there.
    cache: a file in which all answers are kept; an endpoint must have one.
    """

    metrics: tuple[Metric, ...] = Field(default=METRICS, min_length=1)
    prompts: dict[Metric, Path] = Field(default_factory=dict)
    model: Path | None = None
    endpoint: EndpointConfig | None = None
    cache: Path | None = Field(default=None, exclude=True)
    expectation: Literal["exact", "along"] | None = None
    min_mass: float = Field(default=0.1, ge=0, le=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str | None = Field(default=None, exclude=True)
    prompts_at_once: int = Field(default=16, gt=0, exclude=True)
    max_tokens: int = Field(default=4, ge=3)
    answer_start: str = ""

    @property
    def is_exact(self) -> bool:
        return (self.expectation or ("exact" if self.endpoint is None else "along")) == "exact"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("say either `model: FOLDER` or `endpoint: {url: ..., model: ...}`")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("a metric is named twice")
        if self.endpoint is not None and self.is_exact:
            raise ValueError("`expectation: exact` needs a model on this machine; an endpoint tells `along` alone")
        if self.endpoint is not None and self.cache is None:
            raise ValueError("an endpoint needs `cache: FILE`, so that no answer is paid for twice")
        return self
