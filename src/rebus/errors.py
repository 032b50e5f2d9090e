"""What goes wrong, in words a person can act on. Every message says what, where, and what to do next."""

import difflib
import errno
import os
from collections.abc import Iterable


class RebusError(Exception):
    """Base of every error that Rebus raises for a user; the command line prints it without a traceback."""


class ConfigError(RebusError):
    """A recipe or an override is not what the verb expects."""


class DataError(RebusError):
    """Input data is missing, empty, or damaged beyond the share that a recipe allows."""


class UnreachableError(DataError):
    """Remote storage does not answer or does not let us in: nothing is known about the data itself."""


class StrangerError(RebusError):
    """An artifact was made by something else than the reader expects; the message lists what differs."""


class SlotMismatchError(RebusError):
    """Image slots in the token ids and image features disagree in number."""


class Stopped(RebusError):
    """Told to stop, a run has saved what it had and ends with this exit status: 128 and the number of the signal."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the candidate most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def explain(error: Exception) -> str:
    """The one message for an error: our own words as they are, the system's with what to do."""
    if isinstance(error, RebusError):
        return f"error: {error}"
    full = os.strerror(errno.ENOSPC)
    if full in str(error):  # safetensors and Arrow wrap the system's error in their own
        return f"error: {full}. Free some space and run the same command again: it goes on.\n({error})"
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return f"error: {os.strerror(error.errno)}{where}. Check the path."
    kind = type(error).__name__
    return f"error: {kind}: {error}\nThis is a defect in Rebus. Run again with --debug for the traceback."
