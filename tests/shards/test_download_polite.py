"""Manners and safety: how many at a time, how long to wait, whom to ask at all."""

import asyncio
import itertools
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_download import fetch, recipe, write_table

from rebus.shards.damage import DamagedSampleError
from rebus.shards.download import addresses, reasons
from rebus.shards.download.addresses import CheckedBackend, Resolver, is_open
from rebus.shards.download.politeness import (
    Hosts,
    backoff_seconds,
    refusing_directive,
    retry_after_seconds,
    user_agent,
)
from rebus.shards.run import run
from rebus.version import __version__
from web_server import WebServer, serving


@pytest.fixture
def web():
    with serving() as server:
        yield server


REFUSED = (
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
    *("203.0.113.5", "192.0.0.8", "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1"),
    *("fd12:3456::1", "ff02::1", "::127.0.0.1", "2001:db8::1", "100::1", "3fff::1", "5f00::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),  # addresses of version 4 inside of others
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::1", "2002:c0a8:101::1"),
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
)
OPEN = ("8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1")
INSIDE = ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]")


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_of_no_open_internet(address: str):
    assert not is_open(address)


@pytest.mark.parametrize("address", OPEN)
def test_addresses_of_the_open_internet(address: str):
    assert is_open(address)


@pytest.mark.parametrize("host", INSIDE)
def test_nobody_inside_is_asked(tmp_path: Path, web: WebServer, host: str):
    rows = [{"url": f"http://{host}:{web.port}/ok/1", "caption": "x"}, {"url": f"{web.base}/ok/2", "caption": "x"}]
    options = recipe(tmp_path, write_table(tmp_path / "t.parquet", rows), {"allow_private": False})
    with pytest.raises(Exception, match="none of 2 samples is usable"):
        run(options)
    assert not web.counts
    lines = (tmp_path / "out" / "00000.quarantine.jsonl").read_text().splitlines()
    assert all(f'"{reasons.PRIVATE_ADDRESS}"' in line for line in lines)


def test_a_redirect_leads_nowhere_inside(tmp_path: Path, web: WebServer, monkeypatch):
    """Every hop is looked up by itself: the first host is allowed here, the second is not."""
    names = {"public.test": "8.8.8.8", "127.0.0.1": "127.0.0.1"}
    monkeypatch.setattr(addresses, "_resolve", lambda host: [names[host]])
    to_server(monkeypatch, web)
    rows = [{"url": f"http://public.test/to/{web.base}/ok/1", "caption": "x"}]
    rows += [{"url": "http://public.test/ok/2", "caption": "x"}]
    run(recipe(tmp_path, write_table(tmp_path / "t.parquet", rows), {"allow_private": False}))
    assert web.counts == {f"/to/{web.base}/ok/1": 1, "/ok/2": 1}
    assert f'"{reasons.PRIVATE_ADDRESS}"' in (tmp_path / "out" / "00000.quarantine.jsonl").read_text()


def to_server(monkeypatch, web: WebServer) -> list[str]:
    """Connections to any address end at the server. Returns the addresses, as they come."""
    seen: list[str] = []
    real = addresses.httpcore.AnyIOBackend.connect_tcp

    async def connect(self, host, port, *rest):
        seen.append(host)
        return await real(self, "127.0.0.1", web.port, *rest)

    monkeypatch.setattr(addresses.httpcore.AnyIOBackend, "connect_tcp", connect)
    return seen


def test_the_connection_goes_to_the_address_that_was_checked(tmp_path: Path, web: WebServer, monkeypatch):
    """A name that means something else the second time it is looked up is never looked up twice."""
    answers = iter([["8.8.4.4"], ["127.0.0.1"]])
    monkeypatch.setattr(addresses, "_resolve", lambda host: next(answers))
    seen = to_server(monkeypatch, web)
    rows = [{"url": "http://rebinding.test/ok/1", "caption": "x"}]
    run(recipe(tmp_path, write_table(tmp_path / "t.parquet", rows), {"allow_private": False}))
    assert seen == ["8.8.4.4"]
    assert web.counts == {"/ok/1": 1}


def test_an_inner_address_among_outer_ones_is_left_out(monkeypatch):
    monkeypatch.setattr(addresses, "_resolve", lambda host: ["10.0.0.1", "8.8.8.8", "::1"])

    async def found() -> list[str]:
        resolver = Resolver(allow_private=False)
        try:
            return await resolver.addresses("mixed.test")
        finally:
            resolver.close()

    assert asyncio.run(found()) == ["8.8.8.8"]


def test_the_second_address_is_tried_where_the_first_refuses(web: WebServer, monkeypatch):
    monkeypatch.setattr(
        addresses, "_resolve", lambda host: ["127.0.0.9", "127.0.0.1"]
    )  # the server is not on the first

    async def connect() -> None:
        resolver = Resolver(allow_private=True)
        stream = await CheckedBackend(resolver).connect_tcp("two.test", web.port, timeout=5)
        await stream.aclose()
        resolver.close()

    asyncio.run(connect())


def test_unknown_hosts_are_named(tmp_path: Path, web: WebServer):
    rows = [{"url": "http://nobody.invalid/x.jpg", "caption": "x"}, {"url": f"{web.base}/ok/1", "caption": "x"}]
    rows += [{"url": f"http://{'x' * 70}.test/", "caption": "x"}]
    run(recipe(tmp_path, write_table(tmp_path / "t.parquet", rows), {"retries": 0}))
    listed = (tmp_path / "out" / "00000.quarantine.jsonl").read_text().splitlines()
    known = (reasons.UNKNOWN_HOST, reasons.RESOLVER_FAILED, reasons.BAD_URL)
    assert len(listed) == 2
    assert all(any(f'"{reason}"' in line for reason in known) for line in listed)


@pytest.mark.parametrize(("per_host", "in_all"), [(3, 50), (50, 3)])
def test_as_many_at_a_time_as_allowed(tmp_path: Path, web: WebServer, per_host: int, in_all: int):
    """The first ones are held until as many came as may; then it is seen that more never did."""
    waiting = threading.Thread(target=lambda: (web.wait_for(lambda: web.now == 3), web.held.set()))
    waiting.start()
    options = {"concurrency_per_host": per_host, "concurrency": in_all, "timeout": 60}
    fetch(tmp_path, web, [f"/held/{number}" for number in range(30)], options)
    waiting.join()
    assert (len(web.counts), web.most) == (30, 3)


def test_processes_share_the_limits(tmp_path: Path, web: WebServer):
    paths = [f"/ok/{number}" for number in range(40)]
    options = {"concurrency_per_host": 5, "concurrency": 50}
    fetch(tmp_path, web, paths, options, num_workers=2, samples_per_shard=4)
    assert web.counts == dict.fromkeys(paths, 1)
    assert web.most <= 4
    assert len(list((tmp_path / "out").glob("*.tar"))) == 10


def test_a_delay_lies_between_two_requests_to_a_host(tmp_path: Path, web: WebServer):
    fetch(tmp_path, web, [f"/ok/{number}" for number in range(5)], {"delay_per_host": 0.1})
    times = sorted(time for found in web.times.values() for time in found)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert sum(gaps) >= 0.1 * 4 - 0.05


def test_a_busy_host_is_left_alone_for_as_long_as_it_says(tmp_path: Path, web: WebServer):
    fetch(tmp_path, web, ["/busy/1"])
    first, second = web.times["/busy/1"]
    assert second - first >= 0.95


def test_a_host_that_closes_itself_is_not_asked_again(tmp_path: Path, web: WebServer):
    paths = ["/closed"] + [f"/closed?{number}" for number in range(30)] + ["/ok/1"]
    options = {"concurrency_per_host": 1, "concurrency": 1}
    with pytest.raises(Exception, match="none of 32 samples is usable"):
        fetch(tmp_path, web, paths, options)
    assert sum(web.counts.values()) == 1
    text = (tmp_path / "out" / "00000.quarantine.jsonl").read_text()
    assert text.count(f'"{reasons.HOST_WAITS}"') == 32 or text.count('"HTTP 503"') == 1


@pytest.mark.parametrize("path", ["/drip", "/silent"])
def test_a_straggler_ends_at_its_deadline(tmp_path: Path, web: WebServer, path: str):
    rows = fetch(tmp_path, web, [path, "/ok/1"], {"timeout": 0.5, "retries": 1})
    assert [row["reason"] for row in rows] == [reasons.TIMEOUT, None]
    assert web.counts[path] == 2
    web.held.set()


def test_the_next_shard_does_not_wait_for_a_straggler(tmp_path: Path, web: WebServer):
    """The one held answer comes only once all of the other shards have been asked for."""
    paths = ["/held/1", *(f"/ok/{number}" for number in range(30))]
    waiting = threading.Thread(target=lambda: (web.wait_for(lambda: len(web.counts) == 31), web.held.set()))
    waiting.start()
    rows = fetch(tmp_path, web, paths, {"timeout": 60}, samples_per_shard=3)
    waiting.join()
    assert {row["status"] for row in rows} == {"success"}


def test_we_say_who_we_are(tmp_path: Path, web: WebServer):
    fetch(tmp_path, web, ["/ok/1"], {"user_agent_url": "https://lab.example/crawl"})
    assert web.agents == {f"rebus/{__version__} (+https://lab.example/crawl)"}
    assert user_agent(None) == f"rebus/{__version__}"


def test_directives_of_robots():
    known = ("noai", "noindex")
    assert refusing_directive(["NoAI"], known) == "noai"
    assert refusing_directive(["nofollow", "all , noindex"], known) == "noindex"
    assert refusing_directive(["Rebus: noai"], known) == "noai"
    assert refusing_directive(["other: noai", "unavailable_after: 25 Jun 2030 15:00:00 PST"], known) is None
    assert refusing_directive(["noai"], ()) is None


def test_retry_after_is_seconds_or_a_date():
    assert retry_after_seconds("7") == 7
    assert retry_after_seconds(None) is None
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds(formatdate(time.time() - 99, usegmt=True)) == 0
    assert 50 < retry_after_seconds(formatdate(time.time() + 60, usegmt=True)) <= 60


@given(st.integers(0, 60), st.floats(0, 10))
def test_backoff_grows_and_is_bounded(attempt: int, first: float):
    middle = min(first * 2**attempt, 60)
    assert 0.5 * middle <= backoff_seconds(attempt, first) <= 1.5 * middle


def test_what_can_pass():
    passing = {429, 408, 425, 500, 502, 503, 504}
    assert {code for code in range(200, 600) if reasons.is_retryable(reasons.of_status(code))} >= passing
    assert not any(reasons.is_retryable(reasons.of_status(code)) for code in (400, 401, 403, 404, 410, 451))
    assert not any(map(reasons.is_retryable, (reasons.PRIVATE_ADDRESS, reasons.ROBOTS, reasons.UNKNOWN_HOST, "")))


def test_hosts_are_forgotten_when_nobody_asks_them(monkeypatch):
    monkeypatch.setattr("rebus.shards.download.politeness.MAX_IDLE_HOSTS", 10)

    async def many() -> Hosts:
        hosts = Hosts(per_host=1, delay=0, max_wait=60)
        hosts.close_for("closed.test", 1000)
        for number in range(100):
            async with hosts.turn(f"{number}.test"):
                pass
        with pytest.raises(DamagedSampleError, match="asks to wait"):
            await hosts.turn("closed.test").__aenter__()
        return hosts

    assert len(asyncio.run(many())._hosts) <= 10


def test_connections_are_used_again(tmp_path: Path, web: WebServer):
    fetch(tmp_path, web, [f"/ok/{number}" for number in range(30)], {"concurrency": 2})
    assert len(web.counts) == 30
    assert web.num_connections <= 2


def test_idle_connections_are_bounded(tmp_path: Path, web: WebServer, monkeypatch):
    """Three names of one server, room for one idle connection: the others are closed, and nothing is lost."""
    monkeypatch.setattr("rebus.shards.download.connections.MAX_IDLE", 1)
    monkeypatch.setattr(addresses, "_resolve", lambda host: ["127.0.0.1"])
    rows = [{"url": f"http://{n % 3}.test:{web.port}/ok/{n}", "caption": "x"} for n in range(9)]
    options = recipe(tmp_path, write_table(tmp_path / "t.parquet", rows), {"concurrency": 1})
    assert run(options).num_samples == 9
    assert web.num_connections == 9
