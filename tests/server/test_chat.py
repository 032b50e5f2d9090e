"""The terminal chat, in this process and as the command that people type."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from rebus.cli import main
from rebus.errors import DataError
from rebus.log import printable
from rebus.model.decode_sampling import Sampling
from rebus.records import Image, Text
from rebus.server.chat import Conversation, reply, run
from rebus.server.engine import Engine
from rebus.server.inputs import image_of
from rebus.tokens.encode import encode_prompt


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PIL.Image.new("RGB", (16, 12), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def conversation(engine: Engine) -> Conversation:
    return Conversation(engine, Sampling(max_new_tokens=8))


def ask(conversation: Conversation, question: str) -> str:
    return "".join(conversation.ask(question))


def roles(conversation: Conversation) -> list[str]:
    return [f"{part.role} {'image' if isinstance(part, Image) else 'text'}" for part in conversation.parts]


def test_the_history_is_the_sample_that_training_would_see(conversation: Conversation, picture: Path):
    conversation.show(picture)
    first = ask(conversation, "What is this?")
    ask(conversation, "And this?")
    turn = ["user text", "assistant text"]
    assert roles(conversation) == ["user image", "user text", *turn, *turn]
    assert conversation.parts[3] == Text(first, "assistant")
    decoded = conversation.engine.tokens.tokenizer.decode(
        [
            number
            for number in encode_prompt(conversation.parts[:3], conversation.engine.tokens).ids.tolist()
            if number >= 0
        ],
        skip_special_tokens=False,
    )
    assert decoded == "<|im_start|>user\n\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"


def test_the_picture_matters_and_another_one_starts_over(conversation: Conversation, picture: Path, tmp_path: Path):
    blind = ask(conversation, "What is this?")
    conversation.show(picture)
    assert conversation.parts == []
    red = ask(conversation, "What is this?")
    PIL.Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "noise.png")
    conversation.show(tmp_path / "noise.png")
    assert len({blind, red, ask(conversation, "What is this?")}) == 3


def test_clear_forgets_what_was_said_but_not_the_picture(conversation: Conversation, picture: Path):
    conversation.show(picture)
    first = ask(conversation, "What is this?")
    ask(conversation, "Why?")
    reply(conversation, "/clear")
    assert conversation.parts == []
    assert ask(conversation, "What is this?") == first


def test_a_broken_off_answer_is_forgotten(conversation: Conversation):
    pieces = conversation.ask("What is this?")
    next(pieces)
    pieces.close()
    assert conversation.parts == []


def test_a_conversation_that_is_too_long_says_so(conversation: Conversation):
    with pytest.raises(DataError, match=r"was made for 256 in all, the answer included\. /clear"):
        ask(conversation, "word " * 300)
    assert conversation.parts == []


def test_errors_do_not_end_the_chat(
    conversation: Conversation, picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture
):
    conversation.show(picture)
    (tmp_path / "notes.txt").write_text("no picture")
    for line in ("/image nowhere.png", f"/image {tmp_path / 'notes.txt'}", "/dance", "word " * 300):
        reply(conversation, line)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert conversation.image == image_of(picture)


@pytest.mark.parametrize(
    ("content", "message"), [(b"hello", "not a readable picture"), (b"", "not a readable"), (None, "no file at")]
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "thing.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        image_of(path)
    assert str(path) in str(caught.value)


def test_text_that_a_terminal_would_obey_is_marked_and_no_other():
    assert (
        printable("a\x1b[2Jb\r\u2028c\td\ne\u202e\u2066", kept="\n\t") == "a\ufffd[2Jb\ufffd\ufffdc\td\ne\ufffd\ufffd"
    )
    assert printable("a\n\tb") == "a\ufffd\ufffdb"
    spoken = "10\u00a0%, \u3000全角, 👨\u200d👩\u200d👧, نمی\u200cخواهم"  # spaces and joiners of other scripts
    assert printable(spoken) == spoken


def lines_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize(("end", "num_answers"), [("", 2), ("\nnever asked\n", 2), ("/quit\nnever asked\n", 2)])
def test_a_chat_from_a_pipe_answers_line_by_line(
    tiny_checkpoint: Path,
    picture: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    num_answers: int,
):
    lines_in(monkeypatch, f"What is this?\n/image {picture}\nWhat is this?\n{end}")
    asked: list[str] = []
    original = Conversation.ask

    def spy(self: Conversation, question: str) -> Iterator[str]:
        asked.append(question)
        return original(self, question)

    monkeypatch.setattr(Conversation, "ask", spy)
    run(tiny_checkpoint, image=None, question=None, max_tokens=4, temperature=0.0)
    assert asked == ["What is this?"] * num_answers
    assert "you>" not in capsys.readouterr().out


def test_one_question_from_the_command_line_gives_the_answer_alone(
    tiny_checkpoint: Path, picture: Path, conversation: Conversation
):
    conversation.show(picture)
    expected = ask(conversation, "What is this?")
    command = [sys.executable, "-m", "rebus", "chat", str(tiny_checkpoint), "--image", str(picture)]
    result = subprocess.run(
        [*command, "--question", "What is this?", "--max-tokens", "8"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode() == expected + "\n"


def test_a_missing_picture_is_one_message(tiny_checkpoint: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(["chat", str(tiny_checkpoint), "--image", "nowhere.png", "--question", "What?"])
    captured = capsys.readouterr()
    assert caught.value.code == 1
    assert (captured.out, captured.err) == ("", "error: no file at nowhere.png.\n")
