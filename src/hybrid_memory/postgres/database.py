"""Connections to Postgres: few, owned, lazily opened, every call under a deadline, never closed politely when sick."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal, LiteralString, Self, TypeAlias, TypeVar
from urllib.parse import quote

import asyncpg

from hybrid_memory.errors import Closed, DurableTierError, HybridMemoryError, OutcomeUnknown, ReadOnly, Unreachable
from hybrid_memory.messages import Disputed, Identity
from hybrid_memory.postgres.failures import DRIVER_FAILURES, explain, explained
from hybrid_memory.postgres.reach import Reach

T = TypeVar("T")

TlsMode: TypeAlias = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]

# A cut cable is seen after this long, where the defaults would never see it.
_CABLE_CUT_AFTER_MS: Final = 8_000
_KEEPALIVE_SECONDS: Final = 4
_POLITE_CLOSE_SECONDS: Final = 1.0
# A timer that fires so late tells of an event loop that was blocked; in as much time it has read what had come.
_OVERSLEPT_SECONDS: Final = 0.5
# A larger piece of memory is asked of the system each time, and given back (glibc: from 128 KiB on).
_BITE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """Where Postgres is, and how long we wait for it.

    `tls` None leaves it to the DSN (asyncpg's default is `prefer`). `transaction_pooler` says that a pooler in
    transaction mode stands between: no statement is cached, limits are set anew in each transaction, and nobody
    listens, unless `listen_dsn` names a direct way.
    """

    dsn: str = field(repr=False)
    listen_dsn: str | None = field(default=None, repr=False)
    tls: TlsMode | None = None
    transaction_pooler: bool = False
    application_name: str = "hybrid_memory"
    connect_deadline: timedelta = timedelta(seconds=5)
    relay_deadline: timedelta = timedelta(seconds=10)
    feed_deadline: timedelta = timedelta(seconds=5)
    chunk_deadline: timedelta = timedelta(seconds=10)
    erase_deadline: timedelta = timedelta(seconds=120)
    loads_at_once: int = 4
    chunk_rows: int = 2000

    @classmethod
    def from_parts(
        cls, *, host: str, port: int, database: str, user: str, password: str | None, tls: TlsMode | None = None
    ) -> Self:
        """The settings of a server named by parts; `host` may be the directory of a unix socket."""
        secret = "" if password is None else ":" + quote(password, safe="")
        where = f"{quote(user, safe='')}{secret}@/{quote(database, safe='')}?host={quote(host, safe='')}&port={port}"
        return cls(dsn=f"postgresql://{where}", tls=tls)


class _Transport(asyncio.Transport):
    max_size: int
    """How many bytes asyncio asks for at a time; other event loops' transports have none."""


class Connection(asyncpg.Connection):
    """A connection whose socket notices within seconds that the other side is gone, and which reads in small bites."""

    _transport: _Transport

    limits: str = ""
    """What begins every transaction through a pooler: what is set for a session there is another client's next."""

    async def begin(self, mode: LiteralString = "begin") -> None:
        """Begin a transaction, through a pooler with the limits of this connection's purpose."""
        await self.execute(f"{mode}; {self.limits}" if self.limits else mode)

    async def ask(self, statement: LiteralString, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement that is a transaction of its own, unless one is open.

        Through a pooler it is put into one: only there do limits hold, and what it is sent in stays on one server.
        """
        if not self.limits or self.is_in_transaction():
            return await self.fetch(statement, *arguments)
        try:
            async with transaction(self):
                return await self.fetch(statement, *arguments)
        except asyncpg.PostgresError:
            if not self.is_closed() and self.is_in_transaction():
                # The server's answer, as without the pooler: the connection is as good as before.
                await self.execute("rollback")
            raise

    def read_in_bites(self) -> None:
        """Have each read of the socket make room for 64 KiB and not for 256, which takes a fifth of a round trip."""
        if hasattr(self._transport, "max_size"):
            self._transport.max_size = _BITE_BYTES

    def watch_socket(self) -> None:
        """Switch on what asyncpg leaves off: keep-alive probes and a limit on unacknowledged data."""
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _KEEPALIVE_SECONDS),
            ("TCP_KEEPINTVL", 1),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", _CABLE_CUT_AFTER_MS),
        ):
            # Not every system has all four.
            if (option := getattr(socket, name, None)) is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


# Read from the catalogue, for the function is missing from a schema that the self-test is still to refuse.
# The lineage changes with the cluster, with a promotion, and when the tables were made anew from a dump.
_IDENTITY: Final[LiteralString] = """
    select substring(p.prosrc from '[0-9a-f-]{36}') as installation,
           case when not pg_is_in_recovery() then
               (select case when has_function_privilege('pg_control_system()', 'execute')
                       then (select system_identifier::text from pg_control_system()) else '-' end)
               || ':' || left(pg_walfile_name(pg_current_wal_lsn()), 8) || ':' || c.oid::text end as lineage
    from pg_catalog.pg_proc p
    left join pg_catalog.pg_class c on c.relnamespace = p.pronamespace and c.relname = 'heads'
    where p.pronamespace = to_regnamespace('memory') and p.proname = 'installation'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a link is for: its name in `pg_stat_activity`, and the limits the server enforces on it."""

    name: str
    deadline: timedelta
    statement_timeout: timedelta
    idle_in_transaction: timedelta = timedelta(seconds=10)
    lock_timeout: timedelta = timedelta(seconds=2)
    direct: bool = False


async def connect(settings: PostgresSettings, purpose: Purpose) -> Connection:
    """Open a connection. Raises `Unreachable`, `Misconfigured` and their kin."""
    limit = settings.connect_deadline.total_seconds()
    listening = settings.listen_dsn if purpose.direct else None
    pooled = settings.transaction_pooler and listening is None
    with explained():
        async with asyncio.timeout(limit):
            connection = await asyncpg.connect(
                listening or settings.dsn,
                timeout=limit,
                ssl=settings.tls,
                # A statement that was prepared on one server is not known on the next.
                statement_cache_size=0 if pooled else 100,
                connection_class=Connection,
                # PgBouncer refuses a client that asks for parameters it does not know.
                server_settings={} if pooled else _server_settings(settings, purpose),
            )
    if pooled:
        connection.limits = _limits(purpose)
    connection.watch_socket()
    connection.read_in_bites()
    return connection


def _server_settings(settings: PostgresSettings, purpose: Purpose) -> dict[str, str]:
    return {"application_name": f"{settings.application_name} {purpose.name}", **_timeouts(purpose)}


def _limits(purpose: Purpose) -> str:
    return "; ".join(f"set local {name} = {span}" for name, span in _timeouts(purpose).items())


def _timeouts(purpose: Purpose) -> dict[str, str]:
    return {
        "statement_timeout": _milliseconds(purpose.statement_timeout),
        "lock_timeout": _milliseconds(purpose.lock_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(purpose.idle_in_transaction),
    }


def _milliseconds(span: timedelta) -> str:
    return str(span // timedelta(milliseconds=1))


@asynccontextmanager
async def transaction(connection: Connection, begin: LiteralString = "begin") -> AsyncGenerator[None, None]:
    """Run the block in a transaction and commit it. On any failure the transaction stays open for the link to end.

    A block that swallowed an error would end in a COMMIT that the server answers with ROLLBACK: that raises.
    """
    await connection.begin(begin)
    yield
    if await connection.execute("commit") != "COMMIT":
        raise OutcomeUnknown("the server rolled back what was to be committed", fix="the same work is tried again")


class _Deadline:
    """Cuts off a connection whose call is late, on which the driver gives up.

    One timer serves call after call: a time-out context for each would cost more than all the rest of a call, and a
    timer for each a good part of it.
    """

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: Connection, seconds: float) -> None:
        """A call begins, which has so long."""
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._due = loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            self.forget()
            self._timer = loop.call_at(self._due, self._look)

    def is_over(self) -> bool:
        """Whether the call is late."""
        return self._due <= asyncio.get_running_loop().time()

    def end(self) -> None:
        """The call has ended; the timer is left to the next one."""
        self._connection = None

    def forget(self) -> None:
        """No call follows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._connection is None:
            return
        loop = asyncio.get_running_loop()
        overslept = loop.time() - self._due > _OVERSLEPT_SECONDS
        if overslept:
            # The event loop was blocked, so the answer may lie here unread: that is not the server's fault.
            self._due = loop.time() + _OVERSLEPT_SECONDS
        if self.is_over():
            self._connection.terminate()
        else:
            self._timer = loop.call_at(self._due, self._look)


Meet: TypeAlias = Callable[[Identity], Awaitable[None]]
"""Told which server a new connection has reached; raises `OtherDatabase` for one that is not to be used."""


class Link:
    """One connection, opened at the first use, used by one call at a time, and replaced after it failed.

    Of every new connection `meet` is told which server it has reached, before anything else is asked there; of one to a
    standby before each call, for a promotion leaves the connection as it is.
    """

    def __init__(
        self, settings: PostgresSettings, purpose: Purpose, reach: Reach | None = None, meet: Meet | None = None
    ) -> None:
        self._settings = settings
        self._purpose = purpose
        self._reach = reach or Reach()
        # Not a null object: who has nothing to compare need not ask.
        self._meet = meet
        self._lock = asyncio.Lock()
        self._deadline = _Deadline()
        self._connection: Connection | None = None
        self._on_standby = False
        self._closed = False

    async def run(
        self, work: Callable[[Connection], Awaitable[T]], *, writes: bool = False, deadline: timedelta | None = None
    ) -> T:
        """Do `work` on the connection under the deadline and return its result.

        Driver errors come out as `DurableTierError`s; when the connection is lost after a change was sent
        (`writes`), as `OutcomeUnknown`. Cancelled or late, the connection is cut off, and what was sent may have
        happened.
        """
        limit = (deadline or self._purpose.deadline).total_seconds()
        failures = self._reach.failures
        # What `held` does, without its cost: every write and every session start passes here.
        async with self._lock:
            connection = self._usable() or await self._open(failures)
            healthy = False
            self._deadline.begin(connection, limit)
            try:
                result = await work(connection)
                healthy = True
            except DRIVER_FAILURES as failure:
                cause = TimeoutError() if self._deadline.is_over() else failure
                explained_error = explain(cause, after_sending=writes)
                healthy = not isinstance(explained_error, (Unreachable, ReadOnly))
                raise explained_error from cause
            except (HybridMemoryError, Disputed) as error:
                healthy = not isinstance(error, (Unreachable, ReadOnly))
                raise
            finally:
                self._deadline.end()
                if not healthy or connection.is_closed() or connection.is_in_transaction():
                    self._cut(connection)
        return result

    async def step(self, awaitable: Awaitable[T]) -> T:
        """Await something of a connection that is held, under the deadline, with driver errors explained."""
        with explained():
            async with asyncio.timeout(self._purpose.deadline.total_seconds()):
                return await awaitable

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[Connection, None]:
        """The connection for the length of the block, which has to keep its own deadlines (`step`).

        It is cut off afterwards if the block failed with anything but an answer of the server, or left a transaction
        open.
        """
        failures = self._reach.failures
        async with self._lock:
            connection = self._usable() or await self._open(failures)
            healthy = False
            try:
                yield connection
                healthy = True
            except (HybridMemoryError, Disputed) as error:
                healthy = not isinstance(error, (Unreachable, ReadOnly))
                raise
            finally:
                if not healthy or connection.is_closed() or connection.is_in_transaction():
                    self._cut(connection)

    async def close(self) -> None:
        """Let go of the server; a call under way is cut off. Calling it again does nothing."""
        self._closed = True
        self._deadline.forget()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if not self._lock.locked() and not connection.is_closed():
            # Where politeness fails, cutting it off below is all that closing was for.
            with suppress(*DRIVER_FAILURES):
                async with asyncio.timeout(_POLITE_CLOSE_SECONDS):
                    await connection.close()
        connection.terminate()

    def _usable(self) -> Connection | None:
        connection = self._connection
        return None if connection is None or self._on_standby or connection.is_closed() else connection

    async def _open(self, failures: int) -> Connection:
        if self._closed:
            raise Closed("the connection to Postgres was closed")
        standing = self._connection
        if standing is not None and not standing.is_closed():
            await self._introduce(standing)
            return standing
        self._reach.check(failures)
        try:
            self._connection = await connect(self._settings, self._purpose)
        except DurableTierError as error:
            self._reach.failed(error)
            raise
        self._reach.succeeded()
        await self._introduce(self._connection)
        return self._connection

    async def _introduce(self, connection: Connection) -> None:
        if self._meet is None:
            return
        try:
            met = await self.step(connection.fetchrow(_IDENTITY))
            self._on_standby = met is not None and met["lineage"] is None
            if met is not None:
                await self._meet(Identity(installation=met["installation"], lineage=met["lineage"]))
        except BaseException:
            # Cancelled or refused: a server that has not been introduced must not be taken for the next call's.
            self._cut(connection)
            raise

    def _cut(self, connection: Connection) -> None:
        # Never a polite close: on a link that has gone silent it would wait for ever.
        connection.terminate()
        if self._connection is connection:
            self._connection = None
