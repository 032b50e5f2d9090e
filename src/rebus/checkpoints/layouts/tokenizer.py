"""The tokenizer of an exported folder, the special tokens that a layout needs in it, and its chat template."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebus.checkpoints.layouts.folder import read_json, write_json
from rebus.errors import DataError
from rebus.log import say
from rebus.model.families import VisionLanguageModel

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
ROUNDED = 64
"""A vocabulary that grows is filled up to a multiple of it, as llava-hf's are: tensor cores like that."""
TOKENIZERS_5 = ("backend", "is_local", "local_files_only")
"""What transformers 5 writes into tokenizer_config.json for itself."""
CHATML = (
    "{% for message in messages %}<<system>><|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'video' %}<<video>>"
    "{% else %}<<image>>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n<<words>><|im_end|>\n{% endif %}"
"""The built-in `chatml` as Jinja, for folders whose tokenizer brings no chat template of its own."""


def copy_tokenizer(source: Path, folder: Path, tokens: dict[str, Any]) -> None:
    """The tokenizer's files as they are; tokenizer_config.json is made where there is none."""
    if not (source / "tokenizer.json").is_file():
        raise DataError(
            f"no tokenizer at {source}: it holds no tokenizer.json. An export needs the one of the training."
        )
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens.get("start_of_text"),
        "eos_token": tokens.get("end_of_text"),
        "pad_token": tokens.get("end_of_text"),
        "model_max_length": tokens.get("max_tokens", 2048),
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", _old_form(read_json(folder / "tokenizer_config.json")) or settings)


def _old_form(written: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json as transformers 4 reads it too: version 5 has another class, and lists extra tokens."""
    found = {name: value for name, value in written.items() if name not in TOKENIZERS_5}
    if found.get("tokenizer_class") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    return found


def token_id(folder: Path, token: str) -> int:
    """Raises: DataError where the tokenizer has no such special token."""
    found = _ids(folder).get(token)
    if found is None:
        raise DataError(f"{folder / 'tokenizer.json'} has no token '{token}'.")
    return found


def add_tokens(folder: Path, names: Sequence[str]) -> list[str]:
    """Adds special tokens that are missing, behind all others, to every file that lists them. Returns those added."""
    ids = _ids(folder)
    missing = [name for name in names if name not in ids]
    first = 1 + max(ids.values())
    for number, name in enumerate(missing, first):
        _add(folder, name, number)
    return missing


def num_rows(model: VisionLanguageModel, folder: Path) -> int:
    """Rows of the embeddings that the exported tokenizer needs: the model's, or more, filled up to a multiple of 64."""
    held = model.language.get_input_embeddings().weight.shape[0]
    needed = 1 + max(_ids(folder).values())
    return held if needed <= held else -(-needed // ROUNDED) * ROUNDED


def say_growth(model: VisionLanguageModel, folder: Path, added: Sequence[str]) -> None:
    held, rows = model.language.get_input_embeddings().weight.shape[0], num_rows(model, folder)
    for name in added:
        say(f"the tokenizer had no '{name}': added as token {token_id(folder, name)}")
    if rows != held:
        say(f"the vocabulary grows from {held} to {rows} rows; the new ones are the mean of the others")


def _ids(folder: Path) -> dict[str, int]:
    body = read_json(folder / "tokenizer.json")
    vocabulary = body["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of piece and score, ids by place
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in body.get("added_tokens", [])}}


def _add(folder: Path, name: str, number: int) -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    body = read_json(folder / "tokenizer.json")
    body["added_tokens"] = [*body.get("added_tokens", []), {"id": number, "content": name, **flags}]
    (folder / "tokenizer.json").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    settings = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"][str(number)] = {"content": name, **flags}
        write_json(folder / "tokenizer_config.json", settings)
    if (folder / "added_tokens.json").is_file():
        write_json(folder / "added_tokens.json", {**read_json(folder / "added_tokens.json"), name: number})


def write_template(tokens: dict[str, Any], folder: Path, placeholders: dict[str, str]) -> None:
    """chat_template.jinja, and the same in the two files that older transformers read. A processor's template knows
    pictures, so it goes before the tokenizer's. placeholders: what stands for an `image` and a `video`; none: a layout
    in which no token does."""
    settings, file = read_json(folder / "tokenizer_config.json"), folder / "chat_template.jinja"
    sources = [read_json(folder / "chat_template.json"), settings]
    found = [file.read_text(encoding="utf-8")] if file.is_file() else [_default(tree) for tree in sources]
    built_in = chat_template(tokens.get("template", ""), placeholders, tokens.get("system")) if placeholders else None
    template = next((text for text in [*found, built_in] if text), None)
    if template is None:
        say(f"the folder has no chat template: how '{tokens.get('template')}' writes turns is the reader's to know")
        return
    file.write_text(template, encoding="utf-8")
    write_json(folder / "chat_template.json", {"chat_template": template})
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": template})


def _default(tree: dict[str, Any]) -> str | None:
    """Of several templates in one file the one called `default`."""
    found = tree.get("chat_template")
    return {one["name"]: one["template"] for one in found}.get("default") if isinstance(found, list) else found


def chat_template(name: str, placeholders: dict[str, str], system: str | None) -> str | None:
    """The template of that name; None for those that have no Jinja here. placeholders: what stands for an `image` and a
    `video`. system: what the system says where a conversation does not; None: nothing."""
    if name != "chatml":
        return None
    written = CHATML.replace("<<system>>", SYSTEM.replace("<<words>>", system) if system else "")
    video = placeholders.get("video", placeholders["image"])
    return written.replace("<<image>>", placeholders["image"]).replace("<<video>>", video)
