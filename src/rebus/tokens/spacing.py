"""What tokenizers do to white space where text meets text or a special token, so that spans, tokenised one by one, give
what transformers' fast tokenizers give for the whole rendered string.

SentencePiece's tokenizers (Llama 2, Vicuna, Mistral, Phi-3) put a dummy space before a text: before the first alone
(Metaspace "first"), or before each that follows a special token (Metaspace "always", the older Prepend normalizer,
ByteLevel with add_prefix_space). A text that goes on with another never gets one. Special tokens may swallow the white
space beside them (`lstrip`, `rstrip`: Phi-3).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tokenizers

from rebus.tokens.spans import Span, SpecialSpan, TextSpan


@dataclass(frozen=True)
class Spacing:
    """prefix: before which texts a dummy space goes: "", "first" or "always". left, right: tokens that swallow."""

    prefix: str = ""
    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()


def spacing_of(tokenizer: tokenizers.Tokenizer) -> Spacing:
    """Reads the tokenizer's components, not its vocabulary."""
    schemes = [_scheme(part) for part in _parts(tokenizer)]
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    return Spacing(
        prefix=next((scheme for scheme in ("always", "first") if scheme in schemes), ""),
        left=frozenset(token.content for token in added if token.lstrip),
        right=frozenset(token.content for token in added if token.rstrip),
    )


def without_prefix(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy that puts no dummy space before a text."""
    tree = json.loads(tokenizer.to_str())
    tree["pre_tokenizer"] = _bare(tree["pre_tokenizer"])
    tree["normalizer"] = _bare(tree["normalizer"])
    bare = tokenizers.Tokenizer.from_str(json.dumps(tree))
    bare.encode_special_tokens = tokenizer.encode_special_tokens
    return bare


def fit(spans: Sequence[Span], spacing: Spacing, *, is_opened: bool) -> list[Span]:
    """Marks the texts that get no dummy space and drops white space that special tokens swallow.

    is_opened: the first span was put there by the tokenizer, so that the text after it still is the first.
    """
    if not spacing.prefix and not spacing.left and not spacing.right:
        return list(spans)
    spans = _swallowed(spans, spacing)
    first = 1 if is_opened else 0
    fitted: list[Span] = []
    for place, span in enumerate(spans):
        if isinstance(span, TextSpan):
            goes_on = place > 0 and isinstance(spans[place - 1], TextSpan)
            span = replace(span, joined=goes_on or (spacing.prefix == "first" and place > first))
        fitted.append(span)
    return fitted


def _swallowed(spans: Sequence[Span], spacing: Spacing) -> list[Span]:
    backwards = _one_way(reversed(spans), spacing.left, str.rstrip)
    return _one_way(reversed(backwards), spacing.right, str.lstrip)


def _one_way(spans: Any, swallowing: frozenset[str], strip: Any) -> list[Span]:
    """Strips the texts that follow a swallowing token, up to the first that has more than white space."""
    kept: list[Span] = []
    swallows = False
    for span in spans:
        if isinstance(span, TextSpan):
            text = strip(span.text) if swallows else span.text
            swallows = swallows and not text
            if text:
                kept.append(replace(span, text=text))
        else:
            swallows = isinstance(span, SpecialSpan) and span.token in swallowing
            kept.append(span)
    return kept


def _parts(tokenizer: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The normalizer and the pre-tokenizer, sequences taken apart."""
    found: list[dict[str, Any]] = []
    for component in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        if component is not None:
            part = json.loads(component.__getstate__())
            found += part.get("normalizers") or part.get("pretokenizers") or [part]
    return found


def _scheme(part: dict[str, Any]) -> str:
    match part["type"]:
        case "Metaspace":
            return part["prepend_scheme"]
        case "Prepend":
            return "always"
        case "ByteLevel" if part["add_prefix_space"]:
            return "always"
    return ""


def _bare(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """The component without its dummy space; None where nothing else is left of it."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        return {**part, name: [bare for inner in part[name] if (bare := _bare(inner)) is not None]}
    quiet: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    return {**part, **quiet.get(part["type"], {})}
