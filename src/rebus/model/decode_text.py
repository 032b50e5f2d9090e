"""Token ids -> text in pieces that are never taken back: whole characters, and nothing of a stop string."""

from collections.abc import Callable, Sequence

HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class TextWriter:
    """The text of one answer as it grows; white space in front of it is left out.

    decode: a tokenizer's decode of a list of ids. stop: texts that end the answer. Pieces joined are `text`, which
    ends where the first stop string begins. What may be half a character, or the beginning of a stop string, waits.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, tuple(stop)
        self.ids: list[int] = []
        self.text = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Takes one more id; returns the text that is now certain."""
        self.ids.append(token)
        return self._send(is_last=False)

    def close(self) -> str:
        """No more ids come: returns the rest."""
        return "" if self.is_stopped else self._send(is_last=True)

    def _send(self, *, is_last: bool) -> str:
        whole = self.decode(self.ids)
        found = [place for place in (whole.find(stop) for stop in self.stop) if place >= 0]
        self.is_stopped = bool(found)
        if found:
            whole = whole[: min(found)]
        elif not is_last:
            whole = whole[: len(whole) - _waiting(whole, self.stop)]
        text = whole.lstrip()
        if not text.startswith(self.text) or (whole.endswith(HALF_CHARACTER) and not (is_last or found)):
            return ""
        piece = text[len(self.text) :]
        self.text = text
        return piece


def _waiting(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` may begin a stop string."""
    longest = 0
    for one in stop:
        sizes = range(min(len(one) - 1, len(text)), longest, -1)
        longest = max(longest, next((size for size in sizes if text.endswith(one[:size])), 0))
    return longest
