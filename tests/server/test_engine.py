"""A loaded model answers: one and many, whole and in pieces, scored; and refuses in plain words."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rebus
from rebus.errors import ConfigError, DataError
from rebus.model.decode_sampling import Sampling
from rebus.model.generate import generate
from rebus.server.engine import Engine, PromptTooLongError
from rebus.server.load import choose_dtype

RED = np.full((12, 16, 3), (200, 10, 10), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_an_answer_says_what_it_cost(engine: Engine):
    answer = engine.generate("What is this?", [RED], max_new_tokens=8)
    prompt, encoded = engine.prompt(engine.request("What is this?", [RED]))
    expected = list(generate(engine.model, prompt, Sampling(8), engine.stop_ids))
    assert list(answer.ids) == expected
    assert answer.text == engine.tokens.tokenizer.decode(expected).lstrip()
    assert (answer.num_prompt_tokens, answer.num_new_tokens) == (encoded.num_tokens, len(expected))
    assert answer.finish_reason == ("length" if len(expected) == 8 else "stop")
    assert answer.seconds > 0


def test_many_are_answered_as_each_alone(engine: Engine):
    messages = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "a red"}]}]
    prompts = ["What is this?", messages, "And the table, the square, the photo?", "x", "What is in the photo?"]
    images = [[RED], None, [NOISE, RED], None, NOISE]
    options = {"max_new_tokens": 12, "temperature": 0.9, "seed": 3}
    alone = [
        engine.generate(prompt, *([] if shown is None else [shown if isinstance(shown, list) else [shown]]), **options)
        for prompt, shown in zip(prompts, images, strict=True)
    ]
    for num_rows in (2, 8):
        made = engine.generate_batch(prompts, images, num_rows=num_rows, **options)
        assert [one.ids for one in made] == [one.ids for one in alone]
    assert len({one.ids for one in alone}) == len(alone)


def test_the_stream_is_the_text(engine: Engine):
    pieces = list(engine.stream("What is this?", [RED], max_new_tokens=16))
    assert "".join(pieces) == engine.generate("What is this?", [RED], max_new_tokens=16).text
    assert len(pieces) > 1


def test_a_stop_string_ends_the_answer(engine: Engine):
    whole = engine.generate("What is this?", [RED], max_new_tokens=24)
    stop = whole.text[7:10]
    answer = engine.generate("What is this?", [RED], max_new_tokens=24, stop=stop)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason == "stop"
    assert answer.num_new_tokens < whole.num_new_tokens
    assert "".join(engine.stream("What is this?", [RED], max_new_tokens=24, stop=[stop])) == answer.text


def test_an_answer_ends_where_the_model_does(engine: Engine):
    asked = engine.tokens.config.max_tokens - 5
    prompt = "word " * 200
    with pytest.raises(
        PromptTooLongError, match=r"the prompt has \d+ tokens, 4 of them pictures; .* made for 256 in all"
    ):
        engine.generate(prompt * 2, [RED])
    answer = engine.generate("What?", max_new_tokens=asked)
    assert answer.num_prompt_tokens + answer.num_new_tokens <= 256


def test_scores_are_log_likelihoods_of_the_answer(engine: Engine):
    candidates = ["red", "a photo", ""]
    scores = engine.score("What is this?", candidates, [RED])
    prompt, _ = engine.prompt(engine.request("What is this?", [RED]))
    for candidate, score in zip(candidates, scores, strict=True):
        ids = torch.tensor(engine.tokens.tokenizer.encode(candidate).ids, dtype=torch.int64)
        whole = torch.cat([prompt.ids, ids])
        bounds = torch.tensor([0, len(whole)])
        states = engine.model.hidden(whole, torch.arange(len(whole)), bounds, prompt.pixels, prompt.slots, prompt.grids)
        table = engine.model.head(states[len(prompt.ids) - 1 : -1] if len(ids) else states[:0]).log_softmax(-1)
        assert score == pytest.approx(float(table.gather(1, ids[:, None]).sum()), abs=1e-4)
    closed = engine.score("What is this?", candidates, [RED], close=True)
    assert all(more < less for more, less in zip(closed, scores, strict=True))
    answer = engine.generate("What is this?", [RED], max_new_tokens=1, string_probabilities=["red", "a photo"])
    shares = [math.exp(score) for score in scores[:2]]
    assert answer.string_probabilities == pytest.approx([share / sum(shares) for share in shares], rel=1e-4)


def test_history_system_and_several_pictures_reach_the_prompt(engine: Engine):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "image", "image": NOISE}]},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Sure?"},
    ]
    _, encoded = engine.prompt(engine.request(messages))
    text = engine.tokens.tokenizer.decode([id for id in encoded.ids.tolist() if id >= 0], skip_special_tokens=False)
    turns = ["system\nBe brief.", "user\n", "assistant\nTwo.", "user\nSure?"]
    assert text == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert len(encoded.images) == 2


def test_what_is_wrong_with_one_costs_it_alone(engine: Engine):
    rules = Sampling(4)
    requests = [
        engine.request("What?", sampling=rules),
        engine.request("word " * 300, sampling=rules),
        DataError("no picture"),
        engine.request("the photo", sampling=rules),
    ]
    found = dict(engine.answer(requests, num_rows=2))
    assert [type(found[number]).__name__ for number in range(4)] == [
        "Answer",
        "PromptTooLongError",
        "DataError",
        "Answer",
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (["What?"], {"temperatur": 1}, ConfigError, "'temperatur' is nothing that sampling knows"),
        (["What?"], {"temperature": -1}, ConfigError, "temperature is -1"),
        ([["a", "b"], [[RED]]], {}, DataError, "2 prompts came with pictures for 1"),
        ([[{"role": "user", "content": "x"}], [RED]], {}, DataError, "messages bring their own"),
        (["What?", ["nowhere.png"]], {}, DataError, "no file at nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: Engine, arguments: list, options: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        engine.generate(*arguments, **options)


def test_loading_by_name_dtype_and_pixels(tiny_checkpoint: Path):
    half = rebus.load(tiny_checkpoint, dtype="bf16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.model.language.model.rotary_emb.inv_freq.dtype == torch.float32
    assert half.generate("What is this?", [RED], max_new_tokens=3).num_new_tokens > 0
    with pytest.raises(ConfigError, match=r"max_pixels: this model's pictures are 'fixed'"):
        rebus.load(tiny_checkpoint, max_pixels=1000)
    with pytest.raises(ConfigError, match="dtype 'int3' is not known"):
        rebus.load(tiny_checkpoint, dtype="int3")


def test_the_dtype_follows_the_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert choose_dtype(None, "cpu") is torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    for has_bf16, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert choose_dtype("auto", "cuda") is wanted
    assert choose_dtype("bfloat16", "cuda") is torch.float16
    assert "Tesla T4 does not compute in bfloat16: float16 instead." in capsys.readouterr().err


def test_importing_rebus_is_light():
    code = "import sys, rebus; print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("device", ["cuda:99", "cdua", "xpu"])
def test_a_device_that_is_not_there_is_named(device: str):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used: torch finds"):
        choose_dtype("auto", device)


def test_a_template_with_a_typing_error_is_named_before_anything_is_read():
    with pytest.raises(ConfigError, match="did you mean 'chatml'"):
        rebus.load("tests", template="chatlm")


def test_one_source_needs_no_list(engine: Engine):
    pixels = np.full((9, 12, 3), 200, np.uint8)
    several = engine.prompt(engine.request("What?", [pixels], [[pixels, pixels]]))[1]
    assert len(several.images) > 1
    frames = ([pixels, pixels], {"fps": 1})
    assert engine.prompt(engine.request("What?", pixels, frames))[1].ids.tolist() == several.ids.tolist()
    alone = engine.generate(["a", "b"], images=[pixels, None], max_new_tokens=2)
    assert [one.num_prompt_tokens for one in alone] == [
        engine.generate("a", pixels, max_new_tokens=2).num_prompt_tokens,
        engine.generate("b", max_new_tokens=2).num_prompt_tokens,
    ]
