"""One module a style of conversation, found by its name. Each has the same anatomy:

SYSTEM: what the system says where nobody else did; None: nothing. SPECIAL: the special tokens that it writes.
END: the special token that closes an answer; None: the config's `end_of_text`.
OPENED: whether `start_of_text` is put before it, as tokenizers do, because its own text does not write one.
conversation(turns, tokens, is_open=): the spans of whole turns; is_open: then what announces an answer.
"""

from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def style(name: str) -> ModuleType:
    """The module of a template's name, which the config has checked."""
    return import_module(f"rebus.tokens.templates.{name}")
