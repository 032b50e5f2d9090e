"""An endpoint that is slow, overloaded, broken or wrong loses no sample, invents no score, is asked nothing twice."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in_endpoint import Play, StandIn, completion, serving, wait_until

from rebus.errors import ConfigError, DataError
from rebus.pictures.decode import decode_image
from rebus.scores.decode import Decoded
from rebus.scores.mlm.replies import NoAnswerError, read_reply
from rebus.scores.mlm.retry import wait_before
from rebus.scores.mlm.tally import Tally
from rebus.scores.scorers import mlm_filter
from tiny_pictures import encoded, photo

METRIC = "semantic_understanding"


def sample(caption: str, data: bytes | None = None) -> Decoded:
    data = data if data is not None else encoded(photo(12, 8), "PNG")
    return Decoded("0" * 32, caption, caption, data, decode_image(data))


def options_for(folder: Path, url: str, **more) -> mlm_filter.Options:
    """One metric whose prompt is the caption, so that the stand-in sees which sample it is asked about."""
    prompt = folder / "prompt.txt"
    prompt.write_text("caption: {caption}")
    endpoint = {"url": url, "model": "judge", "backoff_s": 0.001, "tries": 3, **more}
    return mlm_filter.Options.model_validate(
        {"metrics": [METRIC], "prompts": {METRIC: prompt}, "endpoint": endpoint, "cache": folder / "answers.sqlite"}
    )


def run(options: mlm_filter.Options, samples: list[Decoded]) -> dict[str, np.ndarray]:
    opened = mlm_filter.open_scorer(options)
    return opened.measure([opened.look(one) for one in samples])


def raw(status: int, body: bytes = b"{}", **headers: str) -> Play:
    return Play("raw", status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_request_and_its_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    data = encoded(photo(12, 8), "PNG")
    with serving(StandIn()) as server:
        options = options_for(tmp_path, server.url, api_key_env="JUDGE_KEY", extra={"seed": 7, "max_tokens": None})
        made = run(options, [sample("a dog", data)])
    asked = server.asked[0]
    assert asked.picture == data
    assert asked.key == "Bearer secret"
    sent = {name: value for name, value in asked.body.items() if name != "messages"}
    assert sent == {"model": "judge", "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 7}
    assert asked.body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    # 8 (0.9), 5 (0.9) or 0 (0.05), end (0.9) or one more digit (0.05); 0 (0.05) at the start.
    numbers = {85: 0.9 * 0.9 * 0.9, 80: 0.9 * 0.05, 0: 0.05}
    mean = sum(number * mass for number, mass in numbers.items()) / sum(numbers.values())
    assert made[METRIC][0] == pytest.approx(mean)
    assert made[f"{METRIC}_mass"][0] == pytest.approx(sum(numbers.values()))
    assert made[f"{METRIC}_hard"][0] == 85
    assert made[f"{METRIC}_raw"][0] == "85\n"
    assert made["failure"][0] == ""


FIXED_BY_TRYING = {
    "busy": raw(429, retry_after="0"),
    "broken": raw(500),
    "away": raw(503, b"<html>"),
    "malformed": raw(200, b'{"choices": [{"mess'),
    "no choices": raw(200, b'{"choices": []}'),
    "no list": raw(200, b"[1]"),
    "empty": raw(200, completion([], True)),
    "odd logprobs": raw(200, b'{"choices": [{"message": {"content": "85"}, "logprobs": {"content": [{"a": 1}]}}]}'),
    "dropped": Play("drop"),
}


def test_troubles_that_pass_cost_nothing(tmp_path):
    """Each trouble twice, then an answer."""
    script = lambda caption, before: FIXED_BY_TRYING.get(caption, Play()) if before < 2 else Play()  # noqa: E731
    captions = [*FIXED_BY_TRYING, "fine"]
    with serving(StandIn(script)) as server:
        made = run(options_for(tmp_path, server.url), [sample(one) for one in captions])
    assert made[f"{METRIC}_hard"].tolist() == [85] * len(captions)
    assert np.isfinite(made[METRIC]).all()
    assert Counter(server.captions()) == {**dict.fromkeys(FIXED_BY_TRYING, 3), "fine": 1}
    assert set(made["failure"]) == {""}


def test_a_slow_server_is_asked_again_and_then_let_go(tmp_path):
    script = lambda caption, before: Play("hang" if caption == "stuck" or before == 0 else "ok")  # noqa: E731
    with serving(StandIn(script)) as server:
        made = run(options_for(tmp_path, server.url, timeout_s=2.0), [sample("slow"), sample("stuck")])
    assert made["failure"].tolist() == ["", "timeout"]
    np.testing.assert_equal(made[f"{METRIC}_hard"], np.array([85, np.nan], np.float32))
    assert Counter(server.captions()) == {"slow": 2, "stuck": 3}


def test_troubles_that_last_cost_their_samples_alone(tmp_path):
    lasting = {**FIXED_BY_TRYING, "too large": raw(413), "bad": raw(400, b'{"error": "bad picture"}')}
    script = lambda caption, before: lasting.get(caption, Play())  # noqa: E731
    captions = ["fine", *lasting, "also fine"]
    with serving(StandIn(script)) as server:
        options = options_for(tmp_path, server.url)
        made = run(options, [sample(one) for one in captions])
        found = dict(zip(captions, made["failure"], strict=True))
        assert (found["fine"], found["also fine"]) == ("", "")
        assert found["busy"] == "HTTP 429"
        assert found["malformed"] == "malformed JSON"
        assert found["no choices"] == found["no list"] == "no choices in the reply"
        assert found["empty"] == "empty answer"
        assert found["odd logprobs"] == "malformed logprobs"
        assert found["dropped"].startswith("connection: ")
        assert (found["too large"], found["bad"]) == ("HTTP 413", "HTTP 400")
        for column in (METRIC, f"{METRIC}_hard", f"{METRIC}_mass"):
            assert np.isfinite(made[column]).tolist() == [one in ("fine", "also fine") for one in captions]
        assert [text is None for text in made[f"{METRIC}_raw"]] == [one in lasting for one in captions]
        asked = Counter(server.captions())
        assert {asked[one] for one in FIXED_BY_TRYING} == {3}
        assert (asked["too large"], asked["bad"]) == (1, 2)  # a second time without logprobs

        server.script = lambda caption, before: Play()  # what failed was not kept; what was answered is
        again = run(options, [sample(one) for one in captions])
    assert again[f"{METRIC}_hard"].tolist() == [85] * len(captions)
    assert Counter(server.captions()) == {**{one: asked[one] + 1 for one in lasting}, "fine": 1, "also fine": 1}


@pytest.mark.parametrize("text", ["850", "Score: 85", "85/100", "85.", "I cannot see a picture."])
def test_answers_that_are_no_number_have_no_hard_score(tmp_path, text):
    with serving(StandIn(answer=lambda caption: [text])) as server:
        made = run(options_for(tmp_path, server.url), [sample("a dog")])
    assert np.isnan(made[f"{METRIC}_hard"][0])
    assert made[f"{METRIC}_raw"][0] == text
    says_85 = text in ("85/100", "85.")  # the expectation reads the number that the answer begins with
    assert (made[METRIC][0] > 75) if says_85 else np.isnan(made[METRIC][0])
    assert made["failure"][0] == ("" if says_85 else "no number in the answer")


def test_without_logprobs_the_hard_score_stands_alone(tmp_path, capsys):
    with serving(StandIn(lambda caption, before: Play("plain"))) as server:
        made = run(options_for(tmp_path, server.url), [sample(f"caption {n}") for n in range(4)])
    assert made[f"{METRIC}_hard"].tolist() == [85] * 4
    assert np.isnan(made[METRIC]).all()
    assert set(made["failure"]) == {""}
    assert capsys.readouterr().err.count("no probabilities of tokens") == 1


def test_a_server_that_refuses_logprobs_is_asked_without(tmp_path):
    class Plain(StandIn):
        def enter(self, asked):
            self.script = lambda caption, before: raw(400) if "logprobs" in asked.body else Play("plain")
            return super().enter(asked)

    with serving(Plain()) as server:
        options = options_for(tmp_path, server.url, concurrency=1)
        made = run(options, [sample(f"caption {n}") for n in range(4)])
    assert made[f"{METRIC}_hard"].tolist() == [85] * 4
    assert ["logprobs" in one.body for one in server.asked] == [True, False, False, False, False]


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_wrong_key_or_model_stops_at_once(tmp_path, status):
    with serving(StandIn(lambda caption, before: raw(status, b"who are you"))) as server:
        options = options_for(tmp_path, server.url, concurrency=2)
        with pytest.raises(ConfigError, match=rf"HTTP {status}(?s:.)*model 'judge' with no key(?s:.)*who are you"):
            run(options, [sample(f"caption {n}") for n in range(40)])
    assert len(server.asked) <= 4


def test_a_missing_key_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="no JUDGE_KEY"):
        mlm_filter.open_scorer(options_for(tmp_path, "http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY"))


def test_nothing_but_failures_stops_with_their_table(tmp_path):
    script = lambda caption, before: raw(500) if caption.endswith("1") else raw(503)  # noqa: E731
    with serving(StandIn(script)) as server:
        options = options_for(tmp_path, server.url, tries=1, stop_after=20)
        with pytest.raises(DataError, match=r"20 questions in a row(?s:.)*HTTP 503(?s:.)*HTTP 500"):
            run(options, [sample(f"caption {n}") for n in range(60)])


def test_an_address_where_nobody_listens_stops_the_run_even_of_a_few_samples(tmp_path):
    with serving(StandIn()) as server:
        url = server.url
    with pytest.raises(ConfigError, match=r"nobody listens at http.*/chat/completions, asked 3 times"):
        run(options_for(tmp_path, url), [sample("a dog")])


def test_one_answer_among_failures_goes_on_and_a_judge_that_dies_later_is_noticed():
    tally = Tally("judge", stop_after=3)
    for _ in range(10):
        tally.fail("HTTP 500")
        tally.fail("HTTP 500")
        tally.answer()
    tally.fail("HTTP 503")
    tally.fail("HTTP 503")
    with pytest.raises(DataError, match=r"3 questions in a row(?s:.)*20  HTTP 500\n +3  HTTP 503"):
        tally.fail("HTTP 503")


def test_no_more_requests_at_once_than_allowed(tmp_path):
    """Every reply waits until five are there: fewer at once would time out, more would be counted."""
    with serving(StandIn(wanted_at_once=5)) as server:
        made = run(options_for(tmp_path, server.url, concurrency=5), [sample(f"caption {n}") for n in range(5)])
        server.wanted_at_once = 0
        run(options_for(tmp_path, server.url, concurrency=5), [sample(f"another {n}") for n in range(60)])
    assert server.most_at_once == 5
    assert made[f"{METRIC}_hard"].tolist() == [85] * 5


def test_the_same_question_is_asked_once(tmp_path):
    with serving(StandIn()) as server:
        options = options_for(tmp_path, server.url)
        other = encoded(photo(9, 9), "PNG")
        samples = [sample("twin"), sample("twin"), sample("twin", other), Decoded("0", "none", "text", None, None)]
        made = run(options, samples)
        assert len(server.asked) == 2
        assert made["failure"].tolist() == ["", "", "", "no picture"]
        run(options, samples)
        assert len(server.asked) == 2
        run(options_for(tmp_path, server.url, max_tokens=9), samples)  # another parameter, another question
        assert len(server.asked) == 4


def test_formats_and_turned_pictures_are_sent_as_png(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    upright, turned = encoded(photo(12, 8), "JPEG"), encoded(photo(12, 8), "JPEG", exif=exif)
    with serving(StandIn()) as server:
        samples = [sample("jpeg", upright), sample("turned", turned), sample("webp", encoded(photo(12, 8), "WEBP"))]
        run(options_for(tmp_path, server.url), samples)
    sent = {one.caption: one.picture for one in server.asked}
    assert sent["jpeg"] == upright
    assert [decode_image(sent[one]).size for one in ("turned", "webp")] == [(8, 12), (12, 8)]
    assert sent["webp"].startswith(b"\x89PNG")


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_mlm_endpoint import options_for, run, sample
run(options_for(Path(sys.argv[1]), sys.argv[2]), [sample(f"caption {n}") for n in range(40)])
"""


def test_killed_and_run_again_no_answer_is_asked_for_twice(tmp_path):
    """A real process, killed while 25 answers are kept and the other requests hang."""
    script = lambda caption, before: Play("ok" if int(caption.split()[1]) < 25 else "hang")  # noqa: E731
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    with serving(StandIn(script)) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), server.url, *folders])
        try:
            wait_until(lambda: (_num_kept(tmp_path) == 25 and len(server.asked) == 40) or child.poll() is not None)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        assert _num_kept(tmp_path) == 25
        server.hold.set()
        made = run(options_for(tmp_path, server.url), [sample(f"caption {n}") for n in range(40)])
    assert made[f"{METRIC}_hard"].tolist() == [85] * 40
    assert Counter(server.captions()) == {f"caption {n}": 1 if n < 25 else 2 for n in range(40)}


def _num_kept(folder: Path) -> int:
    path = folder / "answers.sqlite"
    if not path.is_file():
        return 0
    connection = sqlite3.connect(path, timeout=10)
    try:
        return connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0
    finally:
        connection.close()


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"something else entirely" * 100)
    with serving(StandIn()) as server, pytest.raises(DataError, match=r"answers\.sqlite cannot be kept"):
        run(options_for(tmp_path, server.url), [sample("a dog")])


def test_waits_grow_unless_the_server_says_how_long():
    assert [wait_before(n, 1.0, None, 0.0) for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert wait_before(2, 1.0, None, 1.0) == 6
    assert wait_before(0, 1.0, "7", 0.0) == 7
    assert wait_before(0, 1.0, "86400", 0.0) == 600
    assert wait_before(1, 1.0, "soon", 0.0) == 2
    assert wait_before(0, 1.0, formatdate(0, usegmt=True), 0.0) == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "logprobs", "token", "logprob", "top_logprobs"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON | st.fixed_dictionaries({"choices": st.lists(JSON, min_size=1)}), st.binary(max_size=8))
def test_no_reply_breaks_the_reader(tree, noise):
    step = {"choices": [{"message": {"content": "85"}, "logprobs": {"content": [tree]}}]}
    for body in (json.dumps(tree).encode(), json.dumps(step).encode(), noise):
        with suppress(NoAnswerError):
            assert read_reply(body).text


def test_what_shapes_the_answers_is_in_the_fingerprint(tmp_path):
    options = options_for(tmp_path, "http://127.0.0.1:9/v1")
    calmer = options_for(tmp_path, "http://127.0.0.1:9/v1", concurrency=1, timeout_s=9.0)
    stubborn = options_for(tmp_path, "http://127.0.0.1:9/v1", tries=9)
    assert calmer.model_dump() == options.model_dump() != stubborn.model_dump()
    before = mlm_filter.inputs(options)
    (tmp_path / "prompt.txt").write_text("other: {caption}")
    assert mlm_filter.inputs(options) != before
    assert list(before) == [f"prompt {METRIC}"]


def test_a_ten_that_the_model_ended_is_no_hundred_cut_off():
    """No token stands behind the last digit where the answer ends; where it was cut off, nothing is known of it."""
    whole = completion(["1", "0"], True)
    ended = read_reply(whole)
    cut = read_reply(whole.replace(b'"stop"', b'"length"'))
    assert ended.tree[("1", "0")] == {"": 1.0}
    assert ("1", "0") not in cut.tree
