"""The one tokenizer builder: tokenizer.json read directly, and text from data can never become a special token."""

from dataclasses import dataclass
from pathlib import Path

import tokenizers

from rebus.errors import DataError, nearest
from rebus.fingerprint import file_fingerprint, fingerprint
from rebus.tokens.config import TokensConfig

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Tokens:
    """A loaded tokenizer with the rules to use it by. Make it with `load_tokens`."""

    config: TokensConfig
    tokenizer: tokenizers.Tokenizer
    fingerprint: str


def load_tokens(config: TokensConfig) -> Tokens:
    """Loads the tokenizer that `config` names and checks that it has the special tokens of the template.

    Raises: DataError where the folder lacks tokenizer.json or the tokenizer lacks a special token.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    for name in _special_tokens(config):
        number = special_id(tokenizer, name, config.tokenizer)
        if number in tokenizer.encode(name, add_special_tokens=False).ids:
            raise DataError(
                f"{config.tokenizer}: '{name}' is not marked as special in tokenizer.json, so text that merely "
                'contains it would become it. Set "special": true in its added_tokens entry.'
            )
    return Tokens(config, tokenizer, tokens_fingerprint(config))


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Reads folder/tokenizer.json; the tokenizer neither pads, truncates nor finds special tokens in text.

    Raises: DataError that names the folder and what it lacks.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        state = "has no tokenizer.json" if Path(folder).is_dir() else "does not exist"
        raise DataError(f"tokenizer folder {folder} {state}. Point `tokenizer:` at a model folder in the hub's layout.")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not a tokenizer: {error}. Copy it again from where it came.") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def special_id(tokenizer: tokenizers.Tokenizer, name: str, folder: Path | str = "the tokenizer") -> int:
    """The id of a special token, looked up by name. Raises DataError that names the folder and the nearest name."""
    number = tokenizer.token_to_id(name)
    if number is None:
        known = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        raise DataError(
            f"{folder}: the tokenizer has no token '{name}'{nearest(name, known)}; its added tokens are "
            f"{known[:12]}. Choose another `template:` or set `end_of_text:`."
        )
    return number


def stop_ids(tokens: Tokens) -> tuple[int, ...]:
    """Ids at which an answer ends: end of text, and the end of the turn where the template has turns."""
    closing = (tokens.config.end_of_text, TURN_END)
    return tuple(special_id(tokens.tokenizer, name) for name in _special_tokens(tokens.config) if name in closing)


def tokens_fingerprint(config: TokensConfig) -> str:
    """Fingerprint of everything that decides ids: the bytes of tokenizer.json and the rules, not the folder's place."""
    rules = config.model_dump(mode="json", exclude={"tokenizer"})
    return fingerprint({"tokenizer": file_fingerprint(config.tokenizer / "tokenizer.json"), **rules})


def _special_tokens(config: TokensConfig) -> tuple[str, ...]:
    turns = (TURN_START, TURN_END) if config.template == "chatml" else ()
    opening = (config.start_of_text,) if config.start_of_text is not None else ()
    return (*opening, config.end_of_text, *turns)
