"""The one tokenizer builder: tokenizer.json read directly, and text from data can never become a special token."""

from dataclasses import dataclass
from pathlib import Path

import tokenizers

from rebus.errors import DataError, nearest
from rebus.fingerprint import file_fingerprint, fingerprint
from rebus.tokens.chat_template import ChatTemplate, closing, read_chat_template
from rebus.tokens.config import TokensConfig
from rebus.tokens.spacing import Spacing, spacing_of, without_prefix
from rebus.tokens.templates import style


@dataclass(frozen=True)
class Tokens:
    """A loaded tokenizer with the rules to use it by. Make it with `load_tokens`.

    tokenizer: for texts that stand by themselves. continuing: for texts that go on with another, the same where the
    tokenizer puts no dummy space before texts. chat: the tokenizer's own template, where the config asks for it.
    """

    config: TokensConfig
    tokenizer: tokenizers.Tokenizer
    continuing: tokenizers.Tokenizer
    spacing: Spacing
    chat: ChatTemplate | None
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
    spacing, chat = spacing_of(tokenizer), _own_template(config, tokenizer)
    continuing = without_prefix(tokenizer) if spacing.prefix else tokenizer
    return Tokens(config, tokenizer, continuing, spacing, chat, _fingerprint(config, spacing, chat))


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
    """Ids at which an answer ends: end of text, and the end of the turn where the template has another token for it."""
    names = dict.fromkeys((tokens.config.end_of_text, turn_end(tokens)))
    return tuple(special_id(tokens.tokenizer, name) for name in names)


def turn_end(tokens: Tokens) -> str:
    """The special token that closes an answer in a conversation."""
    if tokens.chat is not None:
        return closing(tokens.chat)
    return style(tokens.config.template).END or tokens.config.end_of_text


def tokens_fingerprint(config: TokensConfig) -> str:
    """Fingerprint of everything that decides ids: the bytes of tokenizer.json and the rules, not the folder's place."""
    if config.template not in ("chatml", "own"):  # the only ones that need a look into the tokenizer
        return _fingerprint(config, Spacing(), None)
    tokenizer = load_tokenizer(config.tokenizer)
    return _fingerprint(config, spacing_of(tokenizer), _own_template(config, tokenizer))


def _fingerprint(config: TokensConfig, spacing: Spacing, chat: ChatTemplate | None) -> str:
    """Rules that say nothing new are left out, so that plans of earlier versions stay what they are."""
    rules = config.model_dump(mode="json", exclude={"tokenizer"})
    if config.system is None:
        del rules["system"]
    if config.template == "chatml" and (spacing.prefix or (spacing.left | spacing.right) & {*style("chatml").SPECIAL}):
        rules["spacing"] = "as transformers"  # earlier versions put a dummy space before every span
    if chat is not None:
        rules["chat_template"] = chat.source
        rules["named_tokens"] = chat.named
    return fingerprint({"tokenizer": file_fingerprint(config.tokenizer / "tokenizer.json"), **rules})


def _own_template(config: TokensConfig, tokenizer: tokenizers.Tokenizer) -> ChatTemplate | None:
    if config.template != "own":
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    return read_chat_template(config.tokenizer, [token.content for token in added if token.special])


def _special_tokens(config: TokensConfig) -> tuple[str, ...]:
    framing = (config.start_of_text, config.end_of_text, config.image_start, config.image_end)
    return (*dict.fromkeys(name for name in (*framing, *style(config.template).SPECIAL) if name is not None),)
