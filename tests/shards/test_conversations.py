"""LLaVA's rows, messages and chat content: pictures stay where the text has them, and nothing is fetched."""

import base64
import json
from pathlib import Path

import pytest
from test_shards_tars import picture

from rebus.records import Image, Text
from rebus.shards import damage
from rebus.shards.assemble import assemble
from rebus.shards.damage import DamagedSampleError
from rebus.shards.members import CLIMBING_PATH
from rebus.shards.sources.conversations import build, describe, survey


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture((number + 2, 4)))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    return tmp_path


def parts(record: dict, root: Path) -> list:
    """Texts as (role, text), images as their width."""
    found = assemble("k", "s", build(record, root)).sample.parts
    return [(part.role, part.text) if isinstance(part, Text) else part.width for part in found]


def messages(*contents, **rest) -> dict:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)], **rest}


def refused(record: dict, root: Path) -> str:
    with pytest.raises(DamagedSampleError) as caught:
        assemble("k", "s", build(record, root))
    return caught.value.reason


def test_images_stand_where_the_text_has_them(root: Path):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Is <image> left of <image>?"},
        {"from": "gpt", "value": "Yes."},
        {"from": "human", "value": "And <image>"},
        {"from": "gpt", "value": "No."},
    ]
    record = {"image": ["0.png", "1.png", "2.png"], "conversations": turns}
    assert parts(record, root) == [
        ("system", "Be brief."),
        ("user", "Is "),
        2,
        ("user", " left of "),
        3,
        ("user", "?"),
        ("assistant", "Yes."),
        ("user", "And "),
        4,
        ("assistant", "No."),
    ]
    assert parts({"conversations": [turns[0], {"from": "human", "value": "?"}, turns[2]], "image": None}, root)[1:] == [
        ("user", "?"),
        ("assistant", "Yes."),
    ]


def test_missing_places_come_before_the_first_user_as_paddlemix_has_it(root: Path):
    record = messages("What?", "This.", "And?", "That.", images=["0.png", "1.png"])
    wanted = [2, ("user", "\n"), 3, ("user", "\nWhat?"), ("assistant", "This."), ("user", "And?")]
    assert parts(record, root)[:6] == wanted
    record["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert parts(record, root)[:2] == [("system", "Be brief."), 2]
    assert refused(messages("<image>What?", "This.", images=["0.png", "1.png"]), root) == damage.PLACEHOLDER_MISMATCH
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
    assert refused({"conversations": turns, "image": "0.png"}, root) == damage.PLACEHOLDER_MISMATCH


def test_what_the_assistant_says_first_is_left_out(root: Path):
    said = [{"from": "gpt", "value": "Ask!"}, {"from": "gpt", "value": "Do."}]
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "Yes."}]
    assert parts({"conversations": [*said, *turns]}, root) == [("user", "?"), ("assistant", "Yes.")]
    assert refused({"conversations": said}, root) == damage.NO_ASSISTANT_TEXT


@pytest.mark.parametrize("name", ["video", "videos"])
def test_a_video_beside_the_turns_is_refused_and_its_placeholder_not_trained_on(root: Path, name: str):
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "This."}]
    assert refused({name: "a.mp4", "conversations": turns}, root) == damage.UNPLACED_VIDEO
    assert parts({name: None, "conversations": turns}, root)[0] == ("user", "<video>\nWhat?")


def test_chat_content_with_paths_uris_and_options(root: Path):
    uri = "data:image/png;base64," + base64.b64encode(picture((9, 9))).decode()
    content = [
        {"type": "text", "text": "one "},
        {"type": "text", "text": "two "},
        {"type": "image", "image": "0.png", "min_pixels": 3136, "max_pixels": 50176.0},
        {"type": "image", "image": f"file://{root}/1.png", "resized_height": 28, "resized_width": 56},
        {"type": "image", "image": uri},
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "3.png"}},
        {"type": "text", "text": "?"},
    ]
    record = messages(content, "Yes.", images=["2.png"])
    assert parts(record, root) == [("user", "one two "), 2, 3, 9, 4, 5, ("user", "?"), ("assistant", "Yes.")]
    members = build(record, root)
    images = [part for part in assemble("k", "s", members).sample.parts if isinstance(part, Image)]
    assert images[0].limits == (("min_pixels", 3136), ("max_pixels", 50176))
    assert images[1].limits == (("resized_height", 28), ("resized_width", 56))
    assert images[2].limits == ()
    assert uri[30:] not in members["json"].decode()  # the picture is a member, not text
    stored = json.loads(members["json"])
    assert describe(record) == {name: value for name, value in stored.items() if name != "uid"}
    assert survey(record)[1] == ["0.png", f"file://{root}/1.png", uri, "2.png", "3.png"]


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ({"type": "image", "image": "https://example.org/a.png"}, damage.REMOTE_FILE),
        ({"type": "image", "image": "absent.png"}, damage.MISSING_IMAGE),
        ({"type": "image", "image": "loop.png"}, damage.MISSING_IMAGE),
        ({"type": "image", "image": "9j4AAQSkZ" * 2000}, damage.MISSING_IMAGE),
        ({"type": "image", "image": "../0.png"}, CLIMBING_PATH),
        ({"type": "image", "image": "file:///etc/passwd"}, CLIMBING_PATH),
        ({"type": "image", "image": "/etc/passwd"}, CLIMBING_PATH),
        ({"type": "image", "image": "data:image/png;base64,!!"}, damage.BAD_BASE64),
        ({"type": "image", "image": 7}, damage.BAD_JSON),
        ({"type": "image", "image": "0.png", "max_pixels": "many"}, damage.BAD_JSON),
        ({"type": "image", "image": "0.png", "max_pixels": True}, damage.BAD_JSON),
        ({"type": "image", "image": "0.png", "max_pixels": float("inf")}, damage.BAD_JSON),
        ({"type": "image"}, damage.PLACEHOLDER_MISMATCH),
        ({"type": "audio", "audio": "a.wav"}, damage.BAD_JSON),
        ({"type": "video", "video": "https://example.org/a.mp4"}, damage.REMOTE_FILE),
        ("text", damage.BAD_JSON),
    ],
)
def test_elements_that_cannot_be_used_say_why(root: Path, element, reason: str):
    assert refused(messages([element, {"type": "text", "text": "?"}], "Yes."), root) == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": "hello"}, damage.BAD_JSON),
        ({"conversations": ["hello"]}, damage.BAD_JSON),
        ({}, damage.BAD_JSON),
        (messages("?", 7), damage.BAD_JSON),
        (messages("?", " \n"), damage.NO_ASSISTANT_TEXT),
        (messages("?", "<image>", images=["0.png"]), damage.PLACEHOLDER_MISMATCH),
        ({"messages": [{"role": "tool", "content": "?"}]}, damage.UNKNOWN_ROLE),
        ({"messages": [{"role": ["user"], "content": "?"}]}, damage.UNKNOWN_ROLE),
        (messages([{"type": "video"}], "Yes."), damage.BAD_JSON),
    ],
)
def test_records_that_cannot_be_used_say_why(root: Path, record: dict, reason: str):
    assert refused(record, root) == reason


def test_an_invalid_uid_gives_way_to_the_content(root: Path):
    first, second = (messages(text, "Yes.", uid="17") for text in ("a?", "b?"))
    uids = [json.loads(build(record, root)["json"])["uid"] for record in (first, second)]
    assert len(set(uids)) == 2
    assert {len(uid) for uid in uids} == {32}
    assert json.loads(build(messages("a?", "Yes.", uid="A" * 32), root)["json"])["uid"] == "a" * 32
