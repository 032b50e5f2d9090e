"""`rebus chat`: talk to a checkpoint in the terminal. The whole conversation is rendered anew for every answer by the
template that training used, so nothing can drift apart."""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rebus.checkpoints.load import load_model
from rebus.errors import DataError
from rebus.log import console, say
from rebus.model.families import VisionLanguageModel
from rebus.model.generate import Prompt, Sampling, generate, prompt_of, stream_text
from rebus.pictures.config import FixedConfig
from rebus.pictures.decode import decode_image
from rebus.pictures.prepare import normalise, prepare
from rebus.records import Image, Part, Text
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import Encoded, encode_prompt
from rebus.tokens.positions import prompt_positions
from rebus.tokens.template import user_turn
from rebus.tokens.tokenizer import Tokens, load_tokens, stop_ids

COMMANDS = "/image PATH shows a picture, /clear forgets the conversation, /quit leaves"


class Conversation:
    """A loaded model, the picture on the table, and what was said about it."""

    def __init__(self, model: VisionLanguageModel, tokens: Tokens, sampling: Sampling) -> None:
        self.model, self.tokens, self.sampling = model, tokens, sampling
        self.image: Image | None = None
        self.parts: list[Part] = []

    def show(self, path: Path) -> None:
        """Puts another picture on the table and starts over. Raises: DataError; the old picture then stays."""
        self.image = read_image(path)
        self.clear()

    def clear(self) -> None:
        """Forgets what was said; the picture stays."""
        self.parts = []

    def ask(self, question: str) -> Iterator[str]:
        """Yields the answer in pieces as it is made; question and answer then belong to the conversation.

        Raises: DataError where the conversation has become longer than the model was trained for.
        """
        images = [self.image] if self.image is not None and not self.parts else []
        parts = [*self.parts, *user_turn(question, images)]
        encoded = encode_prompt(parts, self.tokens)
        limit, room = self.tokens.config.max_tokens, self.sampling.max_new_tokens
        if encoded.num_tokens + room > limit:
            raise DataError(
                f"the conversation has {encoded.num_tokens} tokens and the answer may have {room}; the model "
                f"was made for {limit} in all. /clear forgets the conversation."
            )
        made = generate(self.model, self._prompt(encoded), self.sampling, stop_ids(self.tokens))
        pieces = []
        for piece in stream_text(made, self._decode):
            pieces.append(piece)
            yield piece
        self.parts = [*parts, Text("".join(pieces), "assistant")]

    def _prompt(self, encoded: Encoded) -> Prompt:
        rule = self.tokens.config.image
        rows = [prepare(image, rule).rows for image in encoded.images]
        pixels = normalise(np.concatenate(rows), rule) if rows else None
        positions = prompt_positions(encoded, rule)
        key, device = "the conversation", self.model.device
        return prompt_of(encoded.ids, positions, encoded.slots, encoded.grids, pixels, device=device, key=key)

    def _decode(self, ids: list[int]) -> str:
        return printable(self.tokens.tokenizer.decode(ids)).lstrip()


def run(model: Path, *, image: Path | None, question: str | None, max_tokens: int, temperature: float) -> None:
    """Answers one question on standard output, or talks until an empty line, /quit or the end of the input.

    Raises: DataError, StrangerError where the checkpoint or, asked once, the picture cannot be used.
    """
    first = read_image(image) if image is not None else None
    sampling = Sampling(max_new_tokens=max_tokens, temperature=temperature, seed=secrets.randbits(63))
    conversation = open_conversation(model, sampling)
    conversation.image = first
    if question is not None:
        answer(conversation, question)
        return
    say(introduce(model, conversation))
    say(f"{COMMANDS}.")
    for line in read_lines():
        if line in ("", "/quit"):
            return
        reply(conversation, line)


def open_conversation(folder: Path, sampling: Sampling) -> Conversation:
    """Loads a checkpoint to talk to. Raises: DataError, StrangerError."""
    model, tokens = load_model(folder)
    return Conversation(model, load_tokens(TokensConfig.model_validate(tokens)), sampling)


def introduce(folder: Path, conversation: Conversation) -> str:
    """One line about who is talking."""
    config = conversation.model.config
    num_parameters = sum(parameter.numel() for parameter in conversation.model.parameters())
    rule = conversation.model.image
    pictures = (
        f"{rule.tokens_per_side**2} tokens a picture" if isinstance(rule, FixedConfig) else f"{rule.kind} pictures"
    )
    adapters = f" with LoRA of rank {config.lora.rank}" if config.lora else ""
    return (
        f"{folder}: {config.language.name}{adapters} sees through {config.tower.kind}, "
        f"{pictures}, {num_parameters / 1e6:,.1f} M parameters"
    )


def read_image(path: Path) -> Image:
    """Reads a picture and looks at all of it. Raises: DataError that names the file."""
    if not path.is_file():
        raise DataError(f"no picture at {path}.")
    data = path.read_bytes()
    try:
        width, height = decode_image(data).size
    except ValueError as error:
        raise DataError(f"{path}: {error}. PNG, JPEG, WebP, GIF and BMP files can be shown.") from error
    return Image(width, height, data, "user")


def read_lines() -> Iterator[str]:
    """What the person types, stripped; ends with the input. Without a terminal no prompt is shown."""
    prompt = "[bold]you>[/bold] " if sys.stdin.isatty() else ""
    while True:
        try:
            yield console.input(prompt).strip()
        except EOFError:
            return


def reply(conversation: Conversation, line: str) -> None:
    """Does one line of the person's: a command or a question. What goes wrong is said, and the chat goes on."""
    command, _, argument = line.partition(" ")
    try:
        if command == "/image":
            conversation.show(Path(argument.strip()).expanduser())
            say(f"looking at {argument.strip()}")
        elif command == "/clear":
            conversation.clear()
            say("forgotten")
        elif command.startswith("/"):
            say(f"no command {command}: {COMMANDS}.")
        else:
            answer(conversation, line)
    except DataError as error:
        say(f"error: {error}")
    except KeyboardInterrupt:
        say("\nstopped; that answer is forgotten")


def answer(conversation: Conversation, question: str) -> None:
    """Writes an answer to standard output as it is made."""
    for piece in conversation.ask(question):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """Without control characters: a model can make escape sequences, which a terminal would obey."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t\ufffd")
