"""Runs a chat template as transformers does: jinja2's immutable sandbox, its blocks trimmed, loop controls.

Two differences, both so that a conversation is the same tokens on every day and machine: `strftime_now` is not there
(released templates then fall back to a fixed date), and a template sees marks in place of what was said.
"""

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from rebus.errors import DataError

BROKEN = (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)


def run(source: str, messages: Sequence[dict[str, Any]], named: Sequence[tuple[str, str]], *, is_open: bool) -> str:
    """The text of a conversation. named: bos_token and the like. is_open: with what announces an answer.

    Raises: DataError with the template's own words, or jinja2's.
    """
    try:
        return _compiled(source).render(
            messages=messages, add_generation_prompt=is_open, tools=None, documents=None, **dict(named)
        )
    except BROKEN as error:
        roles = [message["role"] for message in messages]
        raise DataError(f"the tokenizer's chat template refuses a conversation of {roles}: {error}.") from error


class Generation(jinja2.ext.Extension):
    """{% generation %} marks the assistant's words in some templates; they are found without it, so it does nothing."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 reads it from the class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache
def _compiled(source: str) -> jinja2.Template:
    extensions = [Generation, jinja2.ext.loopcontrols]
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    sandbox.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja2's own escapes for HTML
    sandbox.globals["raise_exception"] = _refuse
    return sandbox.from_string(source)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
