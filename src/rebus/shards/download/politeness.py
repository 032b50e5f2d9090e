"""How hosts are treated: so many requests at a time, so much time between two, and their wishes respected."""

import asyncio
import email.utils
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rebus.shards.damage import DamagedSampleError
from rebus.shards.download.reasons import HOST_WAITS
from rebus.version import __version__

NAME = "rebus"
MAX_BACKOFF_SECONDS = 60.0
MAX_IDLE_HOSTS = 50_000


@dataclass
class _Host:
    """next_start, closed_until: in seconds of the monotonic clock. num_users: tasks that wait or ask."""

    slots: asyncio.Semaphore
    next_start: float = 0.0
    closed_until: float = 0.0
    num_users: int = 0


class Hosts:
    """Who may ask which host now. A host that asks to wait is asked by nobody before that."""

    def __init__(self, per_host: int, delay: float, max_wait: float):
        self.per_host, self.delay, self.max_wait = per_host, delay, max_wait
        self._hosts: dict[str, _Host] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Waits for a place. Raises: DamagedSampleError where the host closed itself for longer than `max_wait`."""
        host = self._host(name)
        host.num_users += 1
        try:
            async with host.slots:
                await self._wait(host)
                yield
        finally:
            host.num_users -= 1

    def close_for(self, name: str, seconds: float) -> None:
        """Nobody asks this host for so long."""
        host = self._host(name)
        host.closed_until = max(host.closed_until, time.monotonic() + seconds)

    async def _wait(self, host: _Host) -> None:
        while (seconds := max(host.next_start, host.closed_until) - time.monotonic()) > 0:
            closed = host.closed_until - time.monotonic()
            if closed > self.max_wait:
                raise DamagedSampleError(HOST_WAITS, f"{closed:.0f} s from now, more than {self.max_wait:g}")
            await asyncio.sleep(seconds)
        host.next_start = time.monotonic() + self.delay

    def _host(self, name: str) -> _Host:
        if name not in self._hosts:
            if len(self._hosts) >= MAX_IDLE_HOSTS:
                self._forget_idle()
            self._hosts[name] = _Host(asyncio.Semaphore(self.per_host))
        return self._hosts[name]

    def _forget_idle(self) -> None:
        now = time.monotonic()
        self._hosts = {
            name: host
            for name, host in self._hosts.items()
            if host.num_users or host.closed_until > now or host.next_start > now
        }


def user_agent(url: str | None) -> str:
    """An honest name, and where to read more."""
    return f"{NAME}/{__version__}" + (f" (+{url})" if url else "")


def backoff_seconds(attempt: int, first: float) -> float:
    """Doubled with each attempt (0 is the first), with half of it either way by chance: not all come back at once."""
    return min(first * 2**attempt, MAX_BACKOFF_SECONDS) * random.uniform(0.5, 1.5)


def retry_after_seconds(value: str | None) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds, or a date. None where there is none that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def refusing_directive(values: Iterable[str], disallowed: Iterable[str]) -> str | None:
    """The first directive of X-Robots-Tag headers that speaks to us and is disallowed.

    `noai, noindex` speaks to everyone, `somebot: noai` to that one alone.
    """
    for value in values:
        name, separator, rest = value.partition(":")
        speaks_to_us = not separator or name.strip().lower() == NAME
        for directive in (rest if separator else name).split(","):
            if speaks_to_us and directive.strip().lower() in disallowed:
                return directive.strip().lower()
    return None
