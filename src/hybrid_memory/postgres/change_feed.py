"""What others wrote: heads to poll, snapshots to load, digests to compare, and hints that make the poll come sooner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Final, LiteralString

import asyncpg

from hybrid_memory.clock import Clock
from hybrid_memory.errors import Unreachable
from hybrid_memory.graph import Digest
from hybrid_memory.messages import UNMARKED, Head, Mark, Opening
from hybrid_memory.ports import Snapshot
from hybrid_memory.postgres.database import Connection, Link, Meet, PostgresSettings, Purpose
from hybrid_memory.postgres.openings import mark_met
from hybrid_memory.postgres.reach import Reach
from hybrid_memory.postgres.snapshot import PostgresSnapshot

_CHANNEL: Final = "memory_changed"
# A listener gets nothing on a dead connection and no error either, so it asks from time to time.
_PULSE: Final = timedelta(seconds=5)
# A load may wait for the consumer's disk between two chunks; a snapshot held for longer than this is given up.
_LONGEST_PAUSE: Final = timedelta(seconds=60)
_NO_LIMIT: Final = timedelta()

_NIL: Final = "00000000-0000-0000-0000-000000000000"
NOBODY: Final = Opening(client_id=_NIL, number=0, token=_NIL)
"""Of whoever only reads: no mark is ever set for it."""


class PostgresChangeFeed:
    """`ChangeFeed` on a connection for polling, one for hints, and as many for loads as the settings allow."""

    def __init__(
        self, settings: PostgresSettings, clock: Clock, *, opening: Opening = NOBODY, meet: Meet | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._opening = opening
        deadline = settings.feed_deadline
        self._reach = Reach()
        polling = Purpose(name="feed", deadline=deadline, statement_timeout=deadline)
        self._polling = Link(settings, polling, self._reach, meet)
        hints = Purpose(name="hints", deadline=deadline, statement_timeout=deadline, direct=True)
        # Its own way may be closed while the other one is open.
        self._hints = Link(settings, hints, Reach() if settings.listen_dsn else self._reach)
        load = Purpose(
            name="load",
            deadline=settings.chunk_deadline,
            statement_timeout=_NO_LIMIT,
            idle_in_transaction=_LONGEST_PAUSE,
        )
        self._loaders = [Link(settings, load, self._reach, meet) for _ in range(settings.loads_at_once)]
        self._free = list(self._loaders)
        self._room = asyncio.Semaphore(settings.loads_at_once)

    _HEADS: Final[LiteralString] = """
        select user_id, epoch, rev, erased_rev, timeline, live from memory.heads_of($1)
    """

    async def heads(self, user_ids: Sequence[str]) -> list[Head]:
        """The heads of those users that have one; one round trip, also for nobody."""
        if len(user_ids) == 1:
            return await self._head_of(user_ids[0])

        async def work(connection: Connection) -> list[asyncpg.Record]:
            return await connection.ask(self._HEADS, user_ids)

        return [_head(record) for record in await self._polling.run(work)]

    _HEAD: Final[LiteralString] = "select memory.head_of($1)"

    async def _head_of(self, user_id: str) -> list[Head]:
        async def work(connection: Connection) -> list[asyncpg.Record]:
            return await connection.ask(self._HEAD, user_id)

        ((found,),) = await self._polling.run(work)
        if found is None:
            return []
        epoch, rev, erased_rev, log_file = found
        # The timeline is the first 32 bits of the name of a file of the log.
        timeline = int(log_file[:8], 16)
        return [Head(user_id=user_id, epoch=epoch, rev=int(rev), erased_rev=int(erased_rev), timeline=timeline)]

    def snapshot(self, user_id: str, *, after_rev: int | None) -> AbstractAsyncContextManager[Snapshot]:
        """The live graph (`after_rev` None) or all rows newer than a revision, tombstones included, in one snapshot.

        Waits for a free connection. A user without a head is given one, so that the copy has an epoch.
        """
        return self._snapshot(user_id, after_rev)

    @asynccontextmanager
    async def _snapshot(self, user_id: str, after_rev: int | None) -> AsyncGenerator[Snapshot, None]:
        async with self._loader() as link, link.held() as connection:
            record = await link.step(self._begin(connection, user_id))
            found = await link.step(self._mark(connection, user_id, self._opening.client_id))
            mark = await link.step(mark_met(connection, self._opening, *found[:3])) if found.last_seq else UNMARKED
            snapshot = PostgresSnapshot(
                connection,
                self._settings,
                replace(_head(record), done_seq=self._opening.covered(mark)),
                expected=record["live"] if after_rev is None else max(0, record["rev"] - after_rev),
                after_rev=after_rev,
                now_us=self._clock.now_us(),
            )
            try:
                yield snapshot
            finally:
                await snapshot.abandon()
            await snapshot.commit()

    @asynccontextmanager
    async def _loader(self) -> AsyncGenerator[Link, None]:
        failures = self._reach.failures
        async with self._room:
            self._reach.check(failures)
            link = self._free.pop()
            try:
                yield link
            finally:
                self._free.append(link)

    _ENSURE_HEAD: Final[LiteralString] = "select memory.ensure_head($1)"

    async def _begin(self, connection: Connection, user_id: str) -> asyncpg.Record:
        """Open the snapshot's transaction, with the tenant set for its length, and read the head in it."""
        await connection.begin("begin isolation level repeatable read read only")
        records = await connection.fetch(self._HEADS, [user_id])
        if not records:
            await connection.execute("rollback")
            await connection.ask(self._ENSURE_HEAD, user_id)
            await connection.begin("begin isolation level repeatable read read only")
            records = await connection.fetch(self._HEADS, [user_id])
        return records[0]

    _MARK: Final[LiteralString] = """
        select last_seq, open_number, open_token::text as open_token from memory.applied
        where user_id = $1 and client_id = $2
    """

    async def _mark(self, connection: Connection, user_id: str, client_id: str) -> Mark:
        """A client's mark on the user as of the snapshot; what is at or below it is in the rows already."""
        records = await connection.fetch(self._MARK, user_id, client_id)
        return Mark(*records[0].values()) if records else UNMARKED

    async def head_for(self, user_id: str, client_id: str) -> Head:
        """The user's head, `done_seq` being the last number of that client's queue that it contains."""
        async with self._loader() as link, link.held() as connection:
            record = await link.step(self._begin(connection, user_id))
            mark = await link.step(self._mark(connection, user_id, client_id))
            await link.step(connection.execute("commit"))
        return replace(_head(record), done_seq=mark.last_seq)

    _DIGEST: Final[LiteralString] = """
        select value, nodes, relationships from memory.digest($1, memory.moment($2))
    """

    async def digest(self, user_id: str) -> Digest:
        """The user's fingerprint over live rows, as of our clock."""

        async def work(connection: Connection) -> list[asyncpg.Record]:
            return await connection.ask(self._DIGEST, user_id, self._clock.now_us())

        async with self._loader() as link:
            (record,) = await link.run(work)
        return Digest(value=record["value"], nodes=record["nodes"], relationships=record["relationships"])

    async def listen(self, on_hint: Callable[[], None]) -> None:
        """Call `on_hint` at every hint of another process until the connection is lost; then raise `Unreachable`.

        Behind a pooler in transaction mode nothing would ever be delivered, so without a direct way this waits for
        ever. Cancel it to stop listening.
        """
        if self._settings.transaction_pooler and self._settings.listen_dsn is None:
            await asyncio.Event().wait()
        lost = asyncio.Event()
        subscribed = await self._hints.run(lambda connection: _subscribe(connection, on_hint, lost))

        async def check(connection: Connection) -> None:
            if connection is not subscribed:
                raise Unreachable("the listening connection was lost")
            await connection.execute("select 1")

        while not await _happened(lost, within=_PULSE):
            await self._hints.run(check)
        raise Unreachable("the listening connection was lost")

    async def hint(self) -> None:
        """Hint to other processes that something changed: a transaction of its own, without a word of what."""

        async def work(connection: Connection) -> None:
            await connection.execute("notify memory_changed")

        await self._hints.run(work)

    async def close(self) -> None:
        """Let go of the server; loads under way fail."""
        for link in (self._polling, self._hints, *self._loaders):
            await link.close()


async def _subscribe(connection: Connection, on_hint: Callable[[], None], lost: asyncio.Event) -> Connection:
    own = connection.get_server_pid()

    def hinted(_connection: object, pid: int, _channel: str, _payload: object) -> None:
        if pid != own:
            on_hint()

    def ended(_connection: object) -> None:
        lost.set()

    connection.add_termination_listener(ended)
    await connection.add_listener(_CHANNEL, hinted)
    return connection


async def _happened(event: asyncio.Event, *, within: timedelta) -> bool:
    try:
        async with asyncio.timeout(within.total_seconds()):
            return await event.wait()
    except TimeoutError:
        return False


def _head(record: asyncpg.Record) -> Head:
    return Head(
        user_id=record["user_id"],
        epoch=record["epoch"],
        rev=record["rev"],
        erased_rev=record["erased_rev"],
        timeline=record["timeline"],
    )
