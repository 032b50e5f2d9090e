"""What is asked follows from seed and uid alone, and never gives the answer away."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.errors import DataError
from rebus.evals.task import Item, ask, draw_candidates, read_items, wrong_pictures
from rebus.records import Image, content_uid


def make_items(labels: list[str]) -> list[Item]:
    return [
        Item(content_uid(str(number).encode()), f"{number:03d}", label, Image(1, 1, b""))
        for number, label in enumerate(labels)
    ]


ITEMS = make_items([f"thing {number}" for number in range(30)])


@given(st.integers(0, 10), st.randoms())
def test_questions_do_not_depend_on_the_order_of_items(seed: int, chance: random.Random):
    shuffled = list(ITEMS)
    chance.shuffle(shuffled)
    arguments = {"num_choices": 4, "num_draws": 2, "seed": seed}
    assert ask(shuffled, **arguments) == ask(ITEMS, **arguments)


def test_another_seed_asks_otherwise():
    first, second = (ask(ITEMS, num_choices=4, num_draws=1, seed=seed) for seed in (0, 1))
    assert {q.item.uid: q.draws for q in first} != {q.item.uid: q.draws for q in second}
    assert [q.item.uid for q in first] != [q.item.uid for q in second]


@given(st.integers(0, 50), st.integers(2, 6), st.integers(1, 3))
def test_candidates_are_the_answer_and_others(seed: int, num_choices: int, num_draws: int):
    for question in ask(ITEMS, num_choices=num_choices, num_draws=num_draws, seed=seed):
        assert len(question.draws) == num_draws
        for draw in question.draws:
            assert len(set(draw)) == len(draw) == num_choices
            assert draw.count(question.item.label) == 1


def test_every_other_label_is_drawn_about_equally_often():
    labels = sorted(item.label for item in ITEMS)
    counts: Counter[str] = Counter()
    places: Counter[int] = Counter()
    for draw in range(2900):
        candidates = draw_candidates(ITEMS[7], labels, 4, 0, draw)
        counts.update(candidates)
        places[candidates.index(ITEMS[7].label)] += 1
    assert counts.pop(ITEMS[7].label) == 2900
    assert set(counts) == set(labels) - {ITEMS[7].label}
    assert all(230 < count < 370 for count in counts.values())  # 300 expected, standard deviation 16
    assert all(600 < places[place] < 850 for place in range(4))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.integers(0, 5))
def test_wrong_pictures_are_a_derangement_of_labels_too(labels: list[str], seed: int):
    items = make_items(labels)
    if max(Counter(labels).values()) * 2 > len(labels):
        with pytest.raises(DataError, match="more than half"):
            wrong_pictures(items, seed)
        return
    wrong = wrong_pictures(items, seed)
    assert sorted(item.uid for item in wrong.values()) == sorted(item.uid for item in items)
    assert all(wrong[item.uid].label != item.label for item in items)


def test_too_few_labels_are_refused():
    with pytest.raises(DataError, match="2 different labels, 4 choices"):
        ask(make_items(["a", "b", "a", "b"]), num_choices=4, num_draws=1, seed=0)


def test_items_come_from_shards_with_their_labels(labelled_shards: Path):
    items = read_items(labelled_shards)
    assert [item.uid for item in items] == sorted(item.uid for item in items)
    assert {item.label for item in items} >= {"red square", "green table"}
    assert all(item.image.data for item in items)


def test_a_sample_without_label_is_named(tiny_shards):
    with pytest.raises(DataError, match=r"00000\.tar, sample '0+' has 1 pictures and the label None"):
        read_items(tiny_shards(4))
