"""`rebus chat`: talk to a checkpoint in the terminal. The whole conversation is rendered anew for every answer by the
template that training used, so nothing can drift apart."""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from rebus.errors import DataError
from rebus.log import console, say, write_pieces
from rebus.model.decode_sampling import Sampling
from rebus.pictures.config import FixedConfig
from rebus.records import Image, Part, Text
from rebus.server.engine import Engine, PromptTooLongError, Request
from rebus.server.inputs import image_of
from rebus.server.load import load

COMMANDS = "/image PATH shows a picture, /clear forgets the conversation, /quit leaves"


class Conversation:
    """A loaded model, the picture on the table, and what was said about it."""

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self.engine, self.sampling = engine, sampling
        self.image: Image | None = None
        self.parts: list[Part] = []

    def show(self, path: Path) -> None:
        """Puts another picture on the table and starts over. Raises: DataError; the old picture then stays."""
        self.image = image_of(path)
        self.clear()

    def clear(self) -> None:
        """Forgets what was said; the picture stays."""
        self.parts = []

    def ask(self, question: str) -> Iterator[str]:
        """Yields the answer in pieces as it is made; question and answer then belong to the conversation.

        Raises: DataError where the conversation has become longer than the model was trained for.
        """
        images = [self.image] if self.image is not None and not self.parts else []
        parts = [*self.parts, *self.engine.turn(question, images)]
        said = []
        try:
            for piece in self.engine.pieces(Request(tuple(parts), self.sampling)):
                said.append(piece)
                yield piece
        except PromptTooLongError as error:
            raise DataError(f"{error} /clear forgets the conversation.") from error
        self.parts = [*parts, Text("".join(said), "assistant")]


def run(model: str, *, image: Path | None, question: str | None, max_tokens: int, temperature: float) -> None:
    """Answers one question on standard output, or talks until an empty line, /quit or the end of the input.

    Raises: DataError, StrangerError where the checkpoint or, asked once, the picture cannot be used.
    """
    first = image_of(image) if image is not None else None
    sampling = Sampling(max_new_tokens=max_tokens, temperature=temperature, seed=secrets.randbits(63))
    conversation = Conversation(load(model), sampling)
    conversation.image = first
    if question is not None:
        write_pieces(conversation.ask(question))
        return
    say(introduce(model, conversation.engine))
    say(f"{COMMANDS}.")
    for line in read_lines():
        if line in ("", "/quit"):
            return
        reply(conversation, line)


def introduce(name: str, engine: Engine) -> str:
    """One line about who is talking. A model folder of the hub holds its language model, which has no other name."""
    config, rule = engine.config, engine.tokens.config.image
    num_parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    pictures = (
        f"{rule.tokens_per_side**2} tokens a picture" if isinstance(rule, FixedConfig) else f"{rule.kind} pictures"
    )
    adapters = f" with LoRA of rank {config.lora.rank}" if config.lora else ""
    is_whole = config.tower.weights == config.language
    speaks = engine.model.language.config.model_type if is_whole else config.language.name
    return (
        f"{name}: {speaks}{adapters} sees through {config.tower.kind}, "
        f"{pictures}, {num_parameters / 1e6:,.1f} M parameters"
    )


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
            write_pieces(conversation.ask(line))
    except DataError as error:
        say(f"error: {error}")
    except KeyboardInterrupt:
        say("\nstopped; that answer is forgotten")
