"""Connections that are used again: tables name some hosts often. httpcore's own pool looks at every idle connection at
every request, which at some hundred hosts costs more than the requests."""

import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpcore

MAX_IDLE = 256
KEEPALIVE_SECONDS = 5.0
Origin = tuple[bytes, bytes, int | None]


class Connections:
    """One for each request that runs, and the idle ones of a few seconds, the oldest closed first."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend, tls: ssl.SSLContext):
        self._backend, self._tls = backend, tls
        self._idle: OrderedDict[Origin, list[httpcore.AsyncHTTPConnection]] = OrderedDict()
        self._num_idle = 0

    @asynccontextmanager
    async def asked(self, url: httpcore.URL, headers: list[tuple[bytes, bytes]]) -> AsyncIterator[httpcore.Response]:
        """Sends GET and yields the answer, its body still to be read."""
        origin = (url.scheme, url.host, url.port)
        connection = await self._take(origin) or self._new(url)
        try:
            async with connection.stream(b"GET", url, headers=headers) as response:
                yield response
        except BaseException:
            await connection.aclose()
            raise
        await self._give_back(origin, connection)

    async def close(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                await connection.aclose()
        self._idle.clear()

    def _new(self, url: httpcore.URL) -> httpcore.AsyncHTTPConnection:
        return httpcore.AsyncHTTPConnection(
            url.origin, ssl_context=self._tls, keepalive_expiry=KEEPALIVE_SECONDS, network_backend=self._backend
        )

    async def _take(self, origin: Origin) -> httpcore.AsyncHTTPConnection | None:
        """An idle one that the other side has not closed meanwhile."""
        while origin in self._idle:
            connection = self._pop(origin)
            if connection.is_idle() and not connection.has_expired():
                return connection
            await connection.aclose()
        return None

    async def _give_back(self, origin: Origin, connection: httpcore.AsyncHTTPConnection) -> None:
        if not connection.is_idle():
            await connection.aclose()
            return
        self._idle.setdefault(origin, []).append(connection)
        self._idle.move_to_end(origin)
        self._num_idle += 1
        while self._num_idle > MAX_IDLE:
            await self._pop(next(iter(self._idle))).aclose()

    def _pop(self, origin: Origin) -> httpcore.AsyncHTTPConnection:
        found = self._idle[origin].pop()
        self._num_idle -= 1
        if not self._idle[origin]:
            del self._idle[origin]
        return found
