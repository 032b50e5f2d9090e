"""Caption hygiene: what marks a caption as something other than words about its picture.

Rules in the order in which they are asked; the first that a caption breaks gives its name. They are written for web
alt texts, by the classes of junk that data filters commonly name (file names, addresses, markup, template leftovers,
shop codes); scripts other than Latin pass them as well as Latin does. Each is a linear pass over the text.
"""

import html
import re
from collections.abc import Callable

MAX_CODE_WORDS = 3  # "SKU 4711-AX" says nothing; a sentence that names a product code does
MIN_CAPITALS = 25  # letters: shorter texts in capitals are titles and signs
MAX_CAPITAL_SHARE = 0.9
MAX_SYMBOL_SHARE = 0.3
MIN_SYMBOL_CHARS = 10
MAX_WORD_CHARS = 40  # the longest German and Finnish compounds in common use have about 35
MIN_RUN = 4  # the same word so often in a row; a pair of words one time less
MIN_WORDS_FOR_REPETITION = 8
MAX_REPETITION = 0.6  # share of words that were there before

_PICTURE = r"(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|cr2|nef|psd)"
_FILE_NAME = re.compile(rf"\S\.{_PICTURE}(?:\b|_)", re.I)
_CAMERA_NAME = re.compile(r"\s*(?:img|dsc[nf]?|pict?|image|photo|screen ?shot|scan|untitled)[-_ ]?\(?\d[\d\W_]*", re.I)
_URL = re.compile(r"(?:https?:|ftp:)//|\bwww\.[a-z0-9-]|\b[a-z0-9-]{2,63}\.(?:com|org|net|info|biz)\b", re.I)
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}\.[a-z]{2,}", re.I)
_TAG = re.compile(r"</?[a-z][a-z0-9]{0,15}(?:\s[^<>]{0,500})?/?>|<!--|\[/?(?:b|i|url|img)(?:=[^\]]{0,200})?\]", re.I)
_ENTITY = re.compile(r"&(?:[a-z]{2,8}|#\d{2,6}|#x[0-9a-f]{2,5});", re.I)
_TEMPLATE = re.compile(r"\{\{|\}\}|\$\{|<%|%[sd]\b|\{\d*\}|\[(?:title|name|caption|alt|image)\]", re.I)
_MOJIBAKE = re.compile("\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]")
_CODE = re.compile(r"(?=[^\s]*\d)(?=[^\s]*[A-Za-z])[A-Za-z0-9]+(?:[-_/.][A-Za-z0-9]+)*|\d[\d-]{3,}|#\d+")
_CODE_LABEL = re.compile(r"(?:sku|ref|art|item|model|product|part|no|nr|id|code|isbn|ean|asin)[.:#]*", re.I)
_SYMBOL = re.compile(
    r"[!-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00bf\u2010-\u2bff\u3003-\u303f\U0001f000-\U0001faff]"
)
_LONG_WORD = re.compile(rf"[!-~\u00c0-\u024f]{{{MAX_WORD_CHARS + 1}}}")
_RUN = re.compile(rf"\b(\w++)(?:\W{{1,3}}\1\b){{{MIN_RUN - 1}}}", re.I)
_RUN_OF_PAIRS = re.compile(rf"\b(\w++\W{{1,3}}\w++)(?:\W{{1,3}}\1\b){{{MIN_RUN - 2}}}", re.I)

_JUNK_PHRASES = """
alt text|alternative text|avatar|background|banner|blank|caption|click here|click to enlarge|click to view|cover|
default|default image|download|empty|enlarge image|featured image|header|home|icon|illustration|image|
image may contain|image not available|image not found|image title|image unavailable|img|loading|logo|main image|
more|my image|n/a|next|no alt text|no caption|no description|no image|no image available|no picture|no title|none|
null|photo|photo by|photo of|picture|pic|placeholder|placeholder image|preview|previous|product image|
product photo|profile picture|read more|screenshot|see more|share|slide|slideshow|tap to zoom|test|thumbnail|
thumb|title|undefined|unknown|untitled|untitled design|user avatar|view image|view larger image|zoom
"""
JUNK = frozenset(_JUNK_PHRASES.strip().replace("|\n", "|").split("|"))
"""Captions that say this and nothing else, in small letters and without the punctuation around them."""

_BOILERPLATE_PHRASES = """
accept cookies|accept all cookies|use cookies|uses cookies|cookie policy|cookie settings|cookie consent|
all rights reserved|privacy policy|terms of use|terms of service|terms and conditions|enable javascript|lorem ipsum|
free shipping|add to cart|add to basket|add to wishlist|sign up for|sign up to|log in to|login to|subscribe to|
subscribe now|this image is no|this image has been|this image may be|this image cannot|this photo is no|
this photo has been|image not available|image is not available|image not found|click here|click on the image|
click the image|click to view|click to zoom|click to enlarge|your browser does not
"""
BOILERPLATE = tuple(_BOILERPLATE_PHRASES.strip().replace("|\n", "|").split("|"))
"""Phrases of web pages, in small letters, that a caption holds somewhere."""


def broken_rule(text: str) -> str:
    """The name of the first rule of RULES that a caption breaks, "" where it is clean."""
    text = text.strip()
    return next((name for name, is_broken in RULES.items() if is_broken(text)), "")


def _has_no_letters(text: str) -> bool:
    return not any(map(str.isalpha, text))


def _is_file_name(text: str) -> bool:
    return bool(("." in text and _FILE_NAME.search(text)) or _CAMERA_NAME.fullmatch(text))


def _has_markup(text: str) -> bool:
    """Tags and entities; `AT&T;` is none, which only the list of entities can tell."""
    return bool(_TAG.search(text)) or any(html.unescape(found) != found for found in _ENTITY.findall(text))


def _is_junk(text: str) -> bool:
    return " ".join(text.lower().strip(" .,:;!?-_()[]*\"'").split()) in JUNK


def _is_boilerplate(text: str) -> bool:
    lowered = " ".join(text.lower().split())
    return any(phrase in lowered for phrase in BOILERPLATE)


def _is_code(text: str) -> bool:
    """Nothing but product codes and their labels, in at most MAX_CODE_WORDS words."""
    words = text.split()
    if len(words) > MAX_CODE_WORDS:
        return False
    return any(map(_CODE.fullmatch, words)) and all(_CODE.fullmatch(w) or _CODE_LABEL.fullmatch(w) for w in words)


def _is_in_capitals(text: str) -> bool:
    """Of letters that have two cases; scripts without capitals have none to count."""
    num_upper = sum(map(str.isupper, text))
    num_cased = num_upper + sum(map(str.islower, text))
    return num_cased >= MIN_CAPITALS and num_upper > MAX_CAPITAL_SHARE * num_cased


def _has_many_symbols(text: str) -> bool:
    """Punctuation, arrows, emoji and the like, not the vowel signs and marks of other scripts."""
    return len(text) >= MIN_SYMBOL_CHARS and len(_SYMBOL.findall(text)) > MAX_SYMBOL_SHARE * len(text)


def _repeats_itself(text: str) -> bool:
    words = text.lower().split()
    if len(words) >= MIN_WORDS_FOR_REPETITION and len(set(words)) < (1 - MAX_REPETITION) * len(words):
        return True
    return bool(_RUN.search(text) or _RUN_OF_PAIRS.search(text))


RULES: dict[str, Callable[[str], object]] = {
    "empty": lambda text: not text,
    "no letters": _has_no_letters,
    "file name": _is_file_name,
    "e-mail": lambda text: "@" in text and _EMAIL.search(text),
    "url": lambda text: ("." in text or "//" in text) and _URL.search(text),
    "markup": _has_markup,
    "template": _TEMPLATE.search,
    "broken encoding": _MOJIBAKE.search,
    "placeholder": _is_junk,
    "boilerplate": _is_boilerplate,
    "product code": _is_code,
    "long word": _LONG_WORD.search,
    "symbols": _has_many_symbols,
    "all capitals": _is_in_capitals,
    "repetition": _repeats_itself,
}
"""Name -> what says that a stripped caption breaks the rule, in the order in which they are asked."""
