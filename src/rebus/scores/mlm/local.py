"""Asks a transformers vision-language model on this machine, several prompts at a time."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError
from rebus.fingerprint import fingerprint, folder_fingerprint
from rebus.scores.decode import Decoded
from rebus.scores.mlm.answers import Answer
from rebus.scores.mlm.cache import AnswerCache
from rebus.scores.mlm.config import MlmConfig
from rebus.scores.mlm.prompts import fill
from rebus.scores.mlm.tally import Tally
from rebus.scores.mlm.walk import Heard, hear, read_vocabulary

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for the model. words: tensors as long as its ids. sight: the picture's, the same for all
    prompts of a sample. failure: why there is none of both."""

    key: str
    words: "dict[str, torch.Tensor]"
    sight: "dict[str, torch.Tensor]"
    failure: str = ""


class LocalModel:
    """A model of the hub's layout with its processor and chat template.

    Every prompt of a sample passes the picture tower again: families differ too much in how pictures enter to share it.
    """

    def __init__(self, config: MlmConfig, prompts: Mapping[Any, str]) -> None:
        """Raises: ConfigError where the folder holds no such model."""
        assert config.model is not None
        self.config, self.prompts = config, prompts
        self.cache = AnswerCache(config.cache)
        self.tally = Tally(f"mlm_filter with {config.model}", stop_after=50)
        self.processor = _open_processor(config.model)
        self.model = _open_model(config.model, config)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.backend_tokenizer.no_padding()  # threads share it: what a call would change is set here
        self.tokenizer.backend_tokenizer.no_truncation()
        self.vocabulary = read_vocabulary(self.tokenizer, _ends(self.model, self.tokenizer))
        shaped = config.model_dump(mode="json", include={"max_tokens", "answer_start"})
        self._asked = fingerprint(
            {"exact": config.is_exact, "weights": weights(config.model), "dtype": str(self.model.dtype), **shaped}
        )

    def look(self, item: Decoded) -> list[Prompt] | None:
        """The prompts of a sample, one a metric; None without a picture."""
        if item.picture is None or item.image_bytes is None:
            return None
        seen = hashlib.sha256(item.image_bytes).hexdigest()
        caption = _harmless(item.text, self.tokenizer)
        prompts: list[Prompt] = []
        for prompt in self.prompts.values():
            text = fill(prompt, caption)
            key = fingerprint({"asked": self._asked, "text": text, "picture": seen})
            prompts.append(self._prepare(key, text, item.picture, prompts[0].sight if prompts else None))
        return prompts

    def ask(self, looked: Sequence[list[Prompt] | None]) -> list[list[Answer]]:
        """The answers of each sample, one a metric."""
        prompts = {prompt.key: prompt for sample in looked for prompt in sample or []}
        with self.cache.opened() as cache:
            answers = cache.find(list(prompts))
            self.tally.num_cached += len(answers)
            left = [prompt for key, prompt in prompts.items() if key not in answers]
            answers |= {prompt.key: Answer(None, failure=prompt.failure) for prompt in left if prompt.failure}
            left = [prompt for prompt in left if not prompt.failure]
            for start in range(0, len(left), self.config.prompts_at_once):
                some = left[start : start + self.config.prompts_at_once]
                for prompt, answer in zip(some, self._answer(some), strict=True):
                    answers[prompt.key] = answer
                    cache.keep(prompt.key, answer)
        nothing = [Answer(None, failure="no picture")] * len(self.prompts)
        return [nothing if sample is None else [answers[one.key] for one in sample] for sample in looked]

    def _prepare(self, key: str, text: str, picture: Any, sight: "dict[str, torch.Tensor] | None") -> Prompt:
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        whole = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        bos = self.tokenizer.bos_token
        has_bos = bos is not None and whole.startswith(bos)
        try:
            made = self.processor(
                text=[whole + self.config.answer_start],
                images=[picture],
                return_tensors="pt",
                add_special_tokens=not has_bos,
                **_types_wanted(self.model),
            )
        except ValueError as error:  # a picture too thin or too small for the model's rule: that sample's own fault
            return Prompt(key, {}, {}, f"not prepared: {error}"[:200])
        shape = made["input_ids"].shape
        words = {name: value for name, value in made.items() if value.shape == shape}
        found = {name: value for name, value in made.items() if name not in words}
        return Prompt(key, words, sight or found)

    def _answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        device = self.model.device
        inputs = {name: value.to(device) for name, value in collate(prompts).items()}
        inputs = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }
        heard = hear(self.model, inputs, self.vocabulary, self.config.max_tokens, exact=self.config.is_exact)
        self.tally.num_requests += len(heard)
        return [self._written(one) for one in heard]

    def _written(self, heard: Heard) -> Answer:
        text = self.tokenizer.decode(heard.ids, skip_special_tokens=True)
        if any(path and not "".join(path).strip() for path in heard.tree):
            self.tally.tell_once(
                "an answer begins with a token of white space, behind which only its own way is known. Where most do, "
                "`answer_start: ' '` puts that token into the prompt."
            )
        return Answer(text, heard.tree)


@functools.lru_cache(maxsize=4)
def weights(folder: Path) -> str:
    """Fingerprint of a model's folder; its bytes are read once a process."""
    return folder_fingerprint(folder)


def collate(prompts: Sequence[Prompt]) -> "dict[str, torch.Tensor]":
    """A batch: words padded on the left with zeros, which the mask leaves out; pictures one after the other."""
    import torch

    longest = max(prompt.words["input_ids"].shape[1] for prompt in prompts)
    words = {name: torch.cat([_padded(prompt.words[name], longest) for prompt in prompts]) for name in prompts[0].words}
    sight = {name: _joined([prompt.sight[name] for prompt in prompts]) for name in prompts[0].sight}
    return {**words, **sight}


def _padded(row: "torch.Tensor", length: int) -> "torch.Tensor":
    import torch

    return torch.nn.functional.pad(row, (length - row.shape[1], 0))


def _joined(tensors: "list[torch.Tensor]") -> "torch.Tensor":
    """One after the other; pictures of fewer crops are filled with zeros, as processors do."""
    import torch

    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        rests = [edge for size, own in zip(sizes[::-1], tensor.shape[:0:-1], strict=True) for edge in (0, size - own)]
        padded.append(torch.nn.functional.pad(tensor, rests))
    return torch.cat(padded)


def _open_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no config.json. `model` is the folder of a transformers model.")
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"the processor in {folder} cannot be opened: {error}") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ConfigError(f"{folder} holds no processor of pictures and text together (processor_config.json).")
    if not getattr(processor, "chat_template", None):
        raise ConfigError(f"{folder} has no chat template (chat_template.jinja): it says how the model is to be asked.")
    return processor


def _open_model(folder: Path, config: MlmConfig) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    named = {"bf16": torch.bfloat16, "fp32": torch.float32}
    automatic = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=named.get(config.precision, automatic), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no vision-language model that transformers reads: {error}") from error
    return model.eval().requires_grad_(False).to(device)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer, of the model and of its tokenizer."""
    told = model.generation_config.eos_token_id
    ids = told if isinstance(told, list) else [told]
    return [number for number in [*ids, tokenizer.eos_token_id] if number is not None]


def _types_wanted(model: Any) -> dict[str, bool]:
    """Models that place pictures by the type of each token must be given the types."""
    return {"return_mm_token_type_ids": True} if hasattr(model.model, "get_rope_index") else {}


def _harmless(caption: str, tokenizer: Any) -> str:
    """A caption may hold what the model takes for its own signs, such as the end of a turn or a picture's place."""
    for sign in tokenizer.get_added_vocab():
        if sign.strip() and sign in caption:
            caption = caption.replace(sign, f"{sign[0]} {sign[1:]}")
    return caption
