"""Connections to addresses of the open internet alone, and to the very address that was checked: a table of URLs is
written by strangers, and what it names must not reach the services of this network (SSRF), not by a redirect and not by
a name that means something else the second time it is looked up (DNS rebinding)."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import httpcore

from rebus.shards.damage import DamagedSampleError
from rebus.shards.download.reasons import PRIVATE_ADDRESS, RESOLVER_FAILED, UNKNOWN_HOST

NUM_THREADS = 32  # look-ups at a time; the system's resolver blocks a thread for each
KEPT_SECONDS, MAX_KEPT = 60.0, 50_000
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SPECIAL = ("64:ff9b:1::/48", "fec0::/10", "3fff::/20", "5f00::/16", "192.0.0.0/24", "192.88.99.0/24")
_REFUSED = tuple(map(ipaddress.ip_network, _SPECIAL))  # what some of Python's own tables of addresses lack

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_open(text: str) -> bool:
    """Whether an address is of the open internet: not private, loopback, link-local, shared, multicast or reserved; of
    addresses of version 6 that carry one of version 4 (mapped, 6to4, Teredo, NAT64), the carried one counts too."""
    address = ipaddress.ip_address(text)
    carried = _carried(address)
    if carried is not None:
        return is_open(str(carried))
    if any(address in network for network in _REFUSED if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


class Resolver:
    """Names -> addresses that may be connected to. Answers are kept for a minute: tables name few hosts often."""

    def __init__(self, allow_private: bool):
        self.allow_private = allow_private
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="names")
        self._kept: dict[str, tuple[float, asyncio.Future[list[str] | OSError]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """Raises: DamagedSampleError where there is none, or none that is allowed."""
        found = await asyncio.shield(self._look_up(host))
        if isinstance(found, OSError):
            is_passing = isinstance(found, socket.gaierror) and found.errno == socket.EAI_AGAIN
            if is_passing:
                self._kept.pop(host, None)
            raise DamagedSampleError(RESOLVER_FAILED if is_passing else UNKNOWN_HOST, f"{host}: {found}")
        allowed = [one for one in found if self.allow_private or is_open(one)]
        if not allowed:
            raise DamagedSampleError(PRIVATE_ADDRESS, f"{host} is {', '.join(found)}; `allow_private` would allow it")
        return allowed

    def _look_up(self, host: str) -> "asyncio.Future[list[str] | OSError]":
        known = self._kept.get(host)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        future = asyncio.get_running_loop().run_in_executor(self._threads, _resolve, host)
        self._kept[host] = time.monotonic() + KEPT_SECONDS, future
        return future

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _resolve(host: str) -> list[str] | OSError:
    """An error is an answer too: it is kept like one."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError as error:  # a label of more than 63 characters
        return OSError(str(error))
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens sockets for httpcore. Every connection goes through here, TLS above it still checks the host's name."""

    def __init__(self, resolver: Resolver):
        self._resolver = resolver
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolver.addresses(host)
        for address in addresses[:-1]:
            try:
                return await self._sockets.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # a host may have an address of version 6 that nobody reaches
        return await self._sockets.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
