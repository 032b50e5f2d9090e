"""One URL -> the bytes behind it, with every limit that a stranger's server needs."""

import asyncio
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpcore
import httpx

from rebus.shards.damage import UNREADABLE_IMAGE, DamagedSampleError
from rebus.shards.download import reasons
from rebus.shards.download.addresses import CheckedBackend, Resolver
from rebus.shards.download.config import Download
from rebus.shards.download.connections import Connections
from rebus.shards.download.politeness import Hosts, refusing_directive, retry_after_seconds, user_agent

REDIRECTS = (301, 302, 303, 307, 308)
GZIP_OR_ZLIB = 47  # zlib's window bits: finds out which of the two it is


class Fetcher:
    """Asks for pictures. One a process, inside of one event loop."""

    def __init__(self, options: Download):
        self.options = options
        self.hosts = Hosts(options.concurrency_per_host, options.delay_per_host, options.max_retry_after)
        self.num_bytes = 0
        self._places = asyncio.Semaphore(options.concurrency)
        self._resolver = Resolver(options.allow_private)
        tls = httpx.create_ssl_context(verify=options.verify_certificates)
        self._connections = Connections(CheckedBackend(self._resolver), tls)

    async def close(self) -> None:
        await self._connections.close()
        self._resolver.close()

    @asynccontextmanager
    async def fetched(self, url: str) -> AsyncIterator[bytes]:
        """Yields the bytes; the place among `concurrency` is kept until they are done with, which bounds memory.

        Raises: DamagedSampleError with the reason.
        """
        where, seconds = parse_url(url), self.options.timeout
        for _ in range(self.options.max_redirects + 1):
            # The host first: who waits for one must not keep others from the rest.
            async with self.hosts.turn(where.host), self._places:
                started = time.monotonic()
                answer = await self._ask(where, seconds)
                seconds -= time.monotonic() - started
                if isinstance(answer, bytes):
                    yield answer
                    return
            where = answer
        raise DamagedSampleError(reasons.TOO_MANY_REDIRECTS, f"more than {self.options.max_redirects}, to {where}")

    async def _ask(self, url: httpx.URL, seconds: float) -> bytes | httpx.URL:
        """The bytes, or where to ask instead."""
        try:
            async with asyncio.timeout(seconds):
                target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
                async with self._connections.asked(target, self._headers(url)) as response:
                    return await self._read(url, response)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise DamagedSampleError(reasons.TIMEOUT, f"not done within {self.options.timeout:g} s") from error
        except httpcore.ConnectError as error:
            bad = isinstance(error.__cause__, ssl.SSLCertVerificationError)
            raise DamagedSampleError(reasons.BAD_CERTIFICATE if bad else reasons.NOT_CONNECTED, str(error)) from error
        except (httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
            raise DamagedSampleError(reasons.BROKEN_OFF, str(error)) from error
        except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol) as error:
            raise DamagedSampleError(reasons.BAD_URL, str(error)) from error

    def _headers(self, url: httpx.URL) -> list[tuple[bytes, bytes]]:
        return [
            (b"Host", url.netloc),
            (b"User-Agent", user_agent(self.options.user_agent_url).encode()),
            (b"Accept", b"image/webp,image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5"),
            (b"Accept-Encoding", b"identity"),
        ]

    async def _read(self, url: httpx.URL, response: httpcore.Response) -> bytes | httpx.URL:
        headers = httpx.Headers(response.headers)
        if response.status in REDIRECTS and "location" in headers:
            return _redirected(url, headers["location"])
        if not 200 <= response.status < 300:
            wait = retry_after_seconds(headers.get("retry-after")) if response.status in (429, 503) else None
            if wait is not None:
                self.hosts.close_for(url.host, wait)
            raise DamagedSampleError(reasons.of_status(response.status), str(url))
        directive = refusing_directive(headers.get_list("x-robots-tag"), self.options.disallowed_directives)
        if directive is not None:
            raise DamagedSampleError(reasons.ROBOTS, directive)
        self._refuse_long(int(headers.get("content-length") or 0))
        return self._plain(await self._body(response), headers.get("content-encoding", "identity").strip().lower())

    async def _body(self, response: httpcore.Response) -> bytes:
        blocks, num_bytes = [], 0
        async for block in response.aiter_stream():
            num_bytes += len(block)
            self.num_bytes += len(block)
            self._refuse_long(num_bytes)
            blocks.append(block)
        return b"".join(blocks)

    def _plain(self, body: bytes, encoding: str) -> bytes:
        """Undoes a compression that nobody asked for, without unpacking more than is allowed."""
        if encoding not in ("gzip", "x-gzip", "deflate"):
            return body
        try:
            plain = zlib.decompressobj(GZIP_OR_ZLIB).decompress(body, self.options.max_bytes + 1)
        except zlib.error as error:
            raise DamagedSampleError(UNREADABLE_IMAGE, f"content encoding {encoding}: {error}") from error
        self._refuse_long(len(plain))
        return plain

    def _refuse_long(self, num_bytes: int) -> None:
        if num_bytes > self.options.max_bytes:
            raise DamagedSampleError(reasons.TOO_MANY_BYTES, f"more than {self.options.max_bytes:,}")


def parse_url(text: str) -> httpx.URL:
    """Raises: DamagedSampleError for what is no http or https URL with a host."""
    try:
        url = httpx.URL(text.strip())
        port = url.port
        url.netloc.decode("ascii")
    except (httpx.InvalidURL, ValueError) as error:
        raise DamagedSampleError(reasons.BAD_URL, str(error)) from error
    if url.scheme not in ("http", "https") or not url.host or not (port is None or 0 < port < 65_536):
        raise DamagedSampleError(reasons.BAD_URL, f"{text[:200]}: http and https are asked")
    return url


def _redirected(url: httpx.URL, location: str) -> httpx.URL:
    """Raises: DamagedSampleError where it leads out of http and https."""
    try:
        return parse_url(str(url.join(location)))
    except (httpx.InvalidURL, ValueError) as error:
        raise DamagedSampleError(reasons.BAD_URL, f"redirected to {location[:200]}: {error}") from error
