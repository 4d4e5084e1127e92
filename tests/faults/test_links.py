"""Connections on a wire that stalls, goes silent, trickles or refuses: every call ends in time, and nothing is left."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory.clock import SystemClock
from hybrid_memory.errors import HybridMemoryError, OutcomeUnknown, Unreachable
from hybrid_memory.postgres import change_feed as change_feed_module
from hybrid_memory.postgres.change_feed import PostgresChangeFeed
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose
from hybrid_memory.testing.proxy import Loss, Proxy, Way, Weather
from tests.faults.conftest import Sick
from tests.plugins.postgres import Database
from tests.support.waiting import eventually, until

SECOND = timedelta(seconds=1)
DEADLINE = 0.3 * SECOND
PURPOSE = Purpose(name="test", deadline=DEADLINE, statement_timeout=30 * SECOND)
# From a deadline until what it cut off is gone, on a busy machine.
SLACK_SECONDS = 0.5


@pytest.fixture
async def proxy(postgres: Database, socket_folder: Path) -> AsyncIterator[Proxy]:
    async with Proxy.before(postgres.app_dsn, socket_folder) as proxy:
        yield proxy


@pytest.fixture
async def tcp_proxy(postgres: Database) -> AsyncIterator[Proxy]:
    async with Proxy.before(postgres.app_dsn) as proxy:
        yield proxy


def hurried(proxy: Proxy) -> PostgresSettings:
    """Settings with deadlines that a test can wait for."""
    return PostgresSettings(
        dsn=proxy.dsn, connect_deadline=DEADLINE, feed_deadline=DEADLINE, chunk_deadline=DEADLINE, loads_at_once=2
    )


async def asked(link: Link) -> int:
    async def work(connection: Connection) -> int:
        answer: int = await connection.fetchval("select 42")
        return answer

    return await link.run(work)


async def seconds_until_unreachable(work: Awaitable[object]) -> float:
    began = time.monotonic()
    with pytest.raises(Unreachable):
        await work
    return time.monotonic() - began


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd" if Path("/proc").exists() else "/dev/fd").iterdir())


@pytest.mark.parametrize("listen", ["socket", "loopback"])
async def test_what_passes_a_proxy_in_pieces_is_what_was_sent(
    postgres: Database, socket_folder: Path, listen: str
) -> None:
    folder = socket_folder if listen == "socket" else None
    async with Proxy.before(postgres.app_dsn, folder) as proxy:
        link = Link(PostgresSettings(dsn=proxy.dsn), replace(PURPOSE, deadline=20 * SECOND))
        proxy.weather = Weather(piece_bytes=3, jitter_seconds=0.002)

        async def work(connection: Connection) -> str:
            text: str = await connection.fetchval("select repeat($1, 500)", "wörd")
            return text

        assert await link.run(work) == "wörd" * 500
        await link.close()


async def test_a_black_hole_ends_a_call_at_its_deadline_and_the_next_one_after_it_works(proxy: Proxy) -> None:
    link = Link(hurried(proxy), PURPOSE)
    assert await asked(link) == 42
    proxy.stall()
    took = [await seconds_until_unreachable(asked(link)) for _ in range(3)]  # on a connection, and while connecting
    assert max(took) < DEADLINE.total_seconds() + SLACK_SECONDS
    await proxy.heal()
    await eventually(lambda: answers(link))  # after a failure a moment passes before the next try
    await link.close()


async def test_an_answer_that_stops_in_the_middle_ends_at_the_deadline_with_its_outcome_unknown(proxy: Proxy) -> None:
    link = Link(hurried(proxy), PURPOSE)
    proxy.lose("select 42", Loss.HANG)

    async def work(connection: Connection) -> None:
        await connection.fetchval("select 42")

    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        await link.run(work, writes=True)
    assert time.monotonic() - began < DEADLINE.total_seconds() + SLACK_SECONDS
    assert await asked(link) == 42
    await link.close()


async def test_bytes_that_trickle_do_not_put_off_a_deadline(proxy: Proxy) -> None:
    link = Link(hurried(proxy), PURPOSE)
    assert await asked(link) == 42
    proxy.weather = Weather.trickle()
    assert await seconds_until_unreachable(asked(link)) < DEADLINE.total_seconds() + SLACK_SECONDS
    await proxy.heal()
    await eventually(lambda: answers(link))  # after a failure a moment passes before the next try
    await link.close()


async def test_hundreds_of_vain_attempts_leave_no_descriptor_no_task_and_no_session(
    postgres: Database, admin: asyncpg.Connection, proxy: Proxy
) -> None:
    brief = 0.04 * SECOND
    settings = replace(hurried(proxy), connect_deadline=brief)
    link = Link(settings, replace(PURPOSE, deadline=brief))
    await eventually(lambda: answers(link))  # on a busy machine so little time is not always enough
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for _ in range(20):
        proxy.stall()  # one call cut off under way, then some that cannot even connect
        for _ in range(10):
            await seconds_until_unreachable(asked(link))
        await proxy.heal()
        await eventually(lambda: answers(link))
    await until(lambda: proxy.connections == 1)
    await until(lambda: descriptors() <= before)
    assert len(asyncio.all_tasks()) <= tasks

    async def one_session_is_left() -> bool:
        count: int = await admin.fetchval(
            "select count(*) from pg_stat_activity where datname = $1 and application_name like '%test'", postgres.name
        )
        return count == 1

    await eventually(one_session_is_left)
    await link.close()


async def answers(link: Link) -> bool:
    try:
        return await asked(link) == 42
    except Unreachable:
        return False


@pytest.mark.parametrize("way", [Way.STALLED, Way.SILENT])
async def test_a_hundred_who_wait_for_a_black_hole_do_not_wait_one_after_the_other(proxy: Proxy, way: Way) -> None:
    feed = PostgresChangeFeed(hurried(proxy), SystemClock())
    assert await feed.heads(["ada"]) == []
    if way is Way.STALLED:
        proxy.stall()
    else:
        proxy.go_silent()
    began = time.monotonic()
    outcomes = await asyncio.gather(
        *(feed.heads([f"user-{number}"]) for number in range(50)),
        *(feed.digest(f"user-{number}") for number in range(50)),
        return_exceptions=True,
    )
    assert {type(outcome) for outcome in outcomes} == {Unreachable}
    # The call under way, and one vain attempt to connect.
    assert time.monotonic() - began < 2 * DEADLINE.total_seconds() + 2 * SLACK_SECONDS
    await proxy.heal()

    async def reached() -> bool:
        with suppress(Unreachable):
            return await feed.heads(["ada"]) == []
        return False

    await eventually(reached)
    await feed.close()


async def test_a_listener_on_a_cut_cable_notices_though_nothing_happens(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_feed_module, "_PULSE", 0.2 * SECOND)
    feed = PostgresChangeFeed(hurried(proxy), SystemClock())
    await feed.hint()  # the listening connection is there
    listening = asyncio.create_task(feed.listen(lambda: None))
    await until(lambda: proxy.connections == 1)
    proxy.go_silent()
    assert await seconds_until_unreachable(listening) < 0.2 + DEADLINE.total_seconds() + SLACK_SECONDS
    await feed.close()


async def test_a_listening_backend_that_is_frozen_is_replaced(sick: Sick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_feed_module, "_PULSE", 0.2 * SECOND)
    settings = PostgresSettings(dsn=sick.database.app_dsn, feed_deadline=DEADLINE)
    feed, other = (PostgresChangeFeed(settings, SystemClock()) for _ in range(2))
    heard = asyncio.Event()
    first = asyncio.create_task(feed.listen(heard.set))

    async def frozen() -> bool:
        return await sick.server.freeze_backend("hints") == 1

    await eventually(frozen)
    assert await seconds_until_unreachable(first) < 0.2 + DEADLINE.total_seconds() + 2 * SLACK_SECONDS
    second = asyncio.create_task(feed.listen(heard.set))

    async def heard_on_the_new_one() -> bool:
        await other.hint()
        return heard.is_set()

    await eventually(heard_on_the_new_one)  # the old backend still stands where it stood
    second.cancel()
    await asyncio.wait([second])
    await feed.close()
    await other.close()


async def test_an_event_loop_that_was_blocked_is_not_taken_for_a_silent_server(postgres: Database) -> None:
    link = Link(postgres.settings, replace(PURPOSE, deadline=SECOND))
    assert await asked(link) == 42

    async def blocked_at_once(connection: Connection) -> int:
        asking = asyncio.ensure_future(connection.fetchval("select pg_backend_pid()"))
        await asyncio.sleep(0)
        time.sleep(2)  # noqa: ASYNC251 - twice its deadline
        first: int = await asking
        second: int = await connection.fetchval("select pg_backend_pid()")
        assert first == second
        return second

    before = await link.run(blocked_at_once)
    assert await link.run(blocked_at_once) == before, "the connection was cut off for it"
    with pytest.raises(Unreachable):
        await link.run(lambda connection: connection.execute("select pg_sleep(30)"))
    await link.close()


async def test_a_socket_over_tcp_probes_an_idle_peer_and_gives_an_unanswering_one_up(tcp_proxy: Proxy) -> None:
    link = Link(PostgresSettings(dsn=tcp_proxy.dsn), replace(PURPOSE, deadline=5 * SECOND))

    async def options(connection: Connection) -> tuple[int, int, int]:
        transport: asyncio.Transport = connection._transport  # pyright: ignore[reportPrivateUsage]
        sock: socket.socket = transport.get_extra_info("socket")
        probes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        between = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        user_timeout = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), idle + probes * between, user_timeout

    alive, unanswered_seconds, unacknowledged_ms = await link.run(options)
    assert alive == 1
    assert 4 <= unanswered_seconds <= 10
    assert 4_000 <= unacknowledged_ms <= 10_000
    await link.close()


async def test_a_refusing_address_and_one_that_nobody_knows_are_unreachable_at_once(tcp_proxy: Proxy) -> None:
    tcp_proxy.refuse()
    link = Link(hurried(tcp_proxy), PURPOSE)
    assert await seconds_until_unreachable(asked(link)) < DEADLINE.total_seconds() + SLACK_SECONDS
    await tcp_proxy.heal()
    await eventually(lambda: answers(link))
    await link.close()
    nowhere = Link(PostgresSettings(dsn="postgresql://nobody@nowhere.invalid/none"), PURPOSE)
    with pytest.raises(HybridMemoryError) as unknown:
        await asked(nowhere)
    assert (unknown.value.code, unknown.value.retryable) == ("unreachable", True)
    await nowhere.close()
