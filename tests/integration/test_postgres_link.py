"""What a connection does when the server is slow, silent, gone or gives an answer that is not the expected one."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from hybrid_memory.errors import (
    Closed,
    Contended,
    DurableTierError,
    Misconfigured,
    OutcomeUnknown,
    Overloaded,
    PoisonOperation,
    ReadOnly,
    RoleRefused,
    Unforeseen,
    Unreachable,
)
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose, transaction
from hybrid_memory.postgres.failures import explain
from tests.plugins.postgres import Database

SECOND = timedelta(seconds=1)
PURPOSE = Purpose(name="test", deadline=5 * SECOND, statement_timeout=2 * SECOND)


@asynccontextmanager
async def linked(settings: PostgresSettings, purpose: Purpose = PURPOSE) -> AsyncGenerator[Link, None]:
    link = Link(settings, purpose)
    try:
        yield link
    finally:
        await link.close()


async def backend(link: Link) -> int:
    """What tells one connection from another: the pid of its server's process, or what a pooler says for it."""

    async def work(connection: Connection) -> int:
        return connection.get_server_pid()

    return await link.run(work)


async def test_a_swallowed_error_is_not_taken_for_a_commit(postgres: Database) -> None:
    async def swallow(connection: Connection) -> None:
        async with transaction(connection):
            try:
                await connection.execute("select 1 / 0")
            except asyncpg.PostgresError:
                logging.getLogger(__name__).debug("swallowed on purpose")

    async with linked(postgres.settings) as link:
        with pytest.raises(OutcomeUnknown):
            await link.run(swallow, writes=True)


async def test_an_open_transaction_never_reaches_the_next_call(postgres: Database) -> None:
    async def fail(connection: Connection) -> None:
        async with transaction(connection):
            await connection.execute("select set_config('memory.user_id', 'alice', true)")
            raise RoleRefused("anything")

    async def state(connection: Connection) -> tuple[bool, str | None]:
        setting: str | None = await connection.fetchval("select current_setting('memory.user_id', true)")
        return connection.is_in_transaction(), setting or None

    async with linked(postgres.settings) as link:
        with pytest.raises(RoleRefused):
            await link.run(fail)
        assert await link.run(state) == (False, None)


async def test_an_answer_of_the_server_keeps_the_connection(postgres: Database) -> None:
    async def fail(connection: Connection) -> None:
        await connection.execute("select 1 / 0")

    async with linked(postgres.settings) as link:
        before = await backend(link)
        with pytest.raises(PoisonOperation):
            await link.run(fail)
        assert await backend(link) == before


async def test_a_late_call_is_cut_off_and_its_outcome_unknown(postgres: Database) -> None:
    async def linger(connection: Connection) -> None:
        await connection.execute("select pg_sleep(60)")

    purpose = replace(PURPOSE, deadline=0.2 * SECOND, statement_timeout=60 * SECOND)
    async with linked(postgres.settings, purpose) as link:
        before = await backend(link)
        with pytest.raises(OutcomeUnknown):
            await link.run(linger, writes=True)
        with pytest.raises(Unreachable) as unreachable:
            await link.run(linger)
        assert not isinstance(unreachable.value, OutcomeUnknown)
        assert await backend(link) != before


async def test_each_call_has_its_own_deadline_though_one_timer_serves_them_all(postgres: Database) -> None:
    async def take_half_the_time(connection: Connection) -> None:
        await connection.execute("select pg_sleep(0.3)")

    async def linger(connection: Connection) -> None:
        await connection.execute("select pg_sleep(60)")

    async def seconds_until_given_up(link: Link, deadline: timedelta | None = None) -> float:
        started = time.monotonic()
        with pytest.raises(Unreachable):
            await link.run(linger, deadline=deadline)
        return time.monotonic() - started

    purpose = replace(PURPOSE, deadline=0.6 * SECOND, statement_timeout=60 * SECOND)
    async with linked(postgres.settings, purpose) as link:
        await link.run(take_half_the_time)
        assert 0.6 <= await seconds_until_given_up(link) < 10, "the timer of the call before it cut it off, or none did"
        assert await backend(link) != 0
        assert await seconds_until_given_up(link, 0.1 * SECOND) < 0.5, "it waited for the timer of the call before it"
        unused = await backend(link)
        # Longer than the deadline: that nothing happens to it has no event to wait for.
        await asyncio.sleep(0.7)
        assert await backend(link) == unused, "a timer cut off a connection that nobody used"


async def test_the_server_gives_up_first_so_that_the_outcome_is_known(postgres: Database) -> None:
    async def linger(connection: Connection) -> None:
        await connection.ask("select pg_sleep(60)")

    purpose = replace(PURPOSE, statement_timeout=0.1 * SECOND)
    async with linked(postgres.settings, purpose) as link:
        with pytest.raises(Overloaded, match="57014"):
            await link.run(linger, writes=True)


async def test_a_lock_that_is_not_given_in_time_is_contention(postgres: Database, admin: asyncpg.Connection) -> None:
    async def lock(connection: Connection) -> None:
        async with transaction(connection):
            await connection.execute("select pg_advisory_xact_lock(7)")

    await admin.execute("select pg_advisory_lock(7)")
    async with linked(postgres.settings, replace(PURPOSE, lock_timeout=0.05 * SECOND)) as link:
        with pytest.raises(Contended, match="55P03"):
            await link.run(lock)


async def test_a_connection_killed_under_a_change_leaves_its_outcome_unknown(
    postgres: Database, admin: asyncpg.Connection
) -> None:
    async def die(connection: Connection) -> None:
        async with transaction(connection):
            pid: int = await connection.fetchval("select pg_backend_pid()")
            await admin.execute("select pg_terminate_backend($1)", pid)
            await connection.execute("select pg_sleep(60)")

    async with linked(postgres.settings) as link:
        with pytest.raises(OutcomeUnknown):
            await link.run(die, writes=True)
        assert await backend(link) != 0


async def test_a_silent_server_is_given_up_at_the_deadline() -> None:
    # A listening socket that nobody accepts from: the connection stands, and nothing ever comes.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host, port = silent.getsockname()
        settings = PostgresSettings.from_parts(host=host, port=port, database="d", user="u", password="sesame")
        async with linked(replace(settings, connect_deadline=0.2 * SECOND, tls="disable")) as link:
            with pytest.raises(Unreachable):
                await backend(link)


async def test_a_cancelled_call_takes_its_connection_along(postgres: Database, admin: asyncpg.Connection) -> None:
    begun = asyncio.Event()

    async def linger(connection: Connection) -> None:
        begun.set()
        await connection.execute("select pg_sleep(60)")

    async with linked(postgres.settings) as link:
        before = await backend(link)
        task = asyncio.create_task(link.run(linger))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await backend(link) != before
    assert await admin.fetchval("select 1") == 1


async def test_a_closed_link_stays_closed(postgres: Database) -> None:
    link = Link(postgres.settings, PURPOSE)
    await backend(link)
    await link.close()
    await link.close()
    with pytest.raises(Closed):
        await backend(link)


async def test_parts_with_odd_characters_make_a_dsn_that_works(postgres: Database, admin: asyncpg.Connection) -> None:
    odd = "o'dd @/:?#%ü"
    await admin.execute(f'create role "{odd}" login')
    folder: str = await admin.fetchval("select current_setting('unix_socket_directories')")
    port: str = await admin.fetchval("select current_setting('port')")
    settings = PostgresSettings.from_parts(
        host=folder, port=int(port), database=postgres.name, user=odd, password="s@/:?#%"
    )
    assert "s@" not in repr(settings)
    async with linked(settings) as link:
        assert await link.run(lambda connection: connection.fetchval("select current_user")) == odd


async def test_behind_a_pooler_no_statement_is_kept(postgres: Database) -> None:
    async def kept(connection: Connection) -> int:
        await connection.fetch("select $1::int", 1)
        count: int = await connection.fetchval("select count(*) from pg_prepared_statements where name <> ''")
        return count

    async with linked(replace(postgres.settings, transaction_pooler=True)) as link:
        assert await link.run(kept) == 0


STATES: dict[type[DurableTierError], str] = {
    Contended: "40001 40P01 55P03 55006",
    Unreachable: "08000 08001 08003 08004 08006 40003 57P01 57P02 57P03 57P05 25P03 53300",
    ReadOnly: "25006 55000",
    Overloaded: "53100 53200 53400 58030 57014",
    Misconfigured: "28000 28P01 3D000 3F000 42P01 42703 42883 42704 57P04 XX001 XX002 26000",
    RoleRefused: "42501",
    Unforeseen: "XX000 0A000 P0001",
}
POISON = "22000 22001 22003 22007 22008 22021 22023 22025 22P02 22P03 22P05 23502 23503 23505 21000 54000 54001 54023"
CASES = [
    *((state, expected) for expected, states in STATES.items() for state in states.split()),
    *((state, PoisonOperation) for state in POISON.split()),
]


@pytest.mark.parametrize(("state", "expected"), CASES)
def test_every_class_of_failure_has_one_meaning(state: str, expected: type[DurableTierError]) -> None:
    failure = asyncpg.PostgresError.new({"C": state, "M": "secret", "D": "Key (user_id)=(secret)"}, query="secret")
    error = explain(failure)
    assert type(error) is expected
    assert state in str(error)
    assert "secret" not in f"{error} {failure} {failure.__dict__}"


def test_a_value_the_driver_cannot_encode_is_poison() -> None:
    assert type(explain(asyncpg.DataError("secret"))) is PoisonOperation
