"""What the files of a hub folder say besides the weights: settings of the image processor, tokens, chat template."""

import json
from pathlib import Path
from typing import Any

from rebus.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """The file's values; none where there is no file. Raises: DataError where it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Fetch it again.") from error
    if not isinstance(body, dict):
        raise DataError(f"{path} holds a {type(body).__name__}, not settings by name. Fetch it again.")
    return body


def write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_type(folder: Path) -> str | None:
    return read_json(folder / "config.json").get("model_type")


def image_settings(folder: Path) -> dict[str, Any]:
    """Of the image processor: from processor_config.json (transformers 5), else preprocessor_config.json."""
    nested = read_json(folder / "processor_config.json").get("image_processor")
    return nested if isinstance(nested, dict) else read_json(folder / "preprocessor_config.json")


def video_settings(folder: Path) -> dict[str, Any]:
    nested = read_json(folder / "processor_config.json").get("video_processor")
    return nested if isinstance(nested, dict) else read_json(folder / "video_preprocessor_config.json")


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))


def token_settings(folder: Path, text: dict[str, Any], template: str | None) -> dict[str, Any]:
    """TokensConfig's fields as far as the folder tells them. text: the language model's config as JSON values."""
    found: dict[str, Any] = {"tokenizer": str(folder), "max_tokens": text["max_position_embeddings"]}
    if template is not None or has_chat_template(folder):
        found["template"] = template or "own"
    end = _end_of_text(folder, text)
    return {**found, "end_of_text": end} if end else found


def _end_of_text(folder: Path, text: dict[str, Any]) -> str | None:
    """What closes a document. Instruct models name several ends; the tokenizer's own closes a turn there
    (Qwen's <|im_end|>, Llama 3's <|eot_id|>), so the first other one closes the text."""
    ends = read_json(folder / "generation_config.json").get("eos_token_id", text.get("eos_token_id"))
    named = read_json(folder / "tokenizer_config.json").get("eos_token")
    own = named.get("content") if isinstance(named, dict) else named
    if ends is None:
        return own
    names = {token["id"]: token["content"] for token in read_json(folder / "tokenizer.json").get("added_tokens", [])}
    known = [names[number] for number in ([ends] if isinstance(ends, int) else ends) if number in names]
    others = [name for name in known if name != own]
    return next(iter([*others, *known]), own)


def to_bytes(colour: list[float]) -> tuple[float, float, float]:
    """Of 0..1 to 0..255."""
    red, green, blue = (value * 255 for value in colour)
    return red, green, blue


def to_unit(colour: tuple[float, float, float]) -> list[float]:
    """Of 0..255 to 0..1, rounded beyond float32, so that what was read as 0.40821073 is written so."""
    return [round(value / 255, 12) for value in colour]
