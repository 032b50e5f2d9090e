"""Which refusals pass, how long to wait for that, and which are final."""

import email.utils
import time
from typing import NoReturn

from rebus.errors import ConfigError
from rebus.scores.mlm.config import EndpointConfig

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
FATAL = {
    401: "The key is missing or wrong",
    403: "The key has no right to this",
    404: "There is no such address, or no such model",
}
LONGEST_S = 60.0
LONGEST_TOLD_S = 600.0
"""Of our own waits, and of those that a server tells with Retry-After."""


def wait_before(number: int, backoff_s: float, retry_after: str | None, chance: float) -> float:
    """Seconds to wait after try `number` (from 0): what the server said, else twice as long each time; and up to half
    of that more, so that many do not come back at once. chance: 0 to 1."""
    told = _told(retry_after)
    if told is not None:
        return min(told, LONGEST_TOLD_S) + chance * backoff_s
    return min(backoff_s * 2**number, LONGEST_S) * (1 + chance / 2)


def refuse(url: str, config: EndpointConfig, status: int, said: str) -> NoReturn:
    """Raises: ConfigError for a status that no other try would change."""
    key = f"the key in {config.api_key_env}" if config.api_key_env else "no key (`api_key_env`)"
    raise ConfigError(
        f"{url} refuses with HTTP {status}. {FATAL.get(status, 'It has moved')}: the recipe asks for model "
        f"'{config.model}' with {key}. The server says: {said}"
    )


def _told(retry_after: str | None) -> float | None:
    """Seconds, or a date as HTTP writes it; None where it is neither."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
