"""Who holds the lock that a write waits for: asked of the server by another connection, while the write waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, LiteralString, TypeVar

from hybrid_memory.errors import Contended, DurableTierError
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose

T = TypeVar("T")

_LOCK_NOT_HAD: Final = "55P03"
_DEADLINE: Final = timedelta(seconds=1)


@dataclass(slots=True)
class _Wait:
    """Of one user's writes, since the first that was in vain began to wait."""

    since: float
    held_by: str = ""


class LockWaits:
    """Watches a user's writes once one has waited for a lock in vain, until one gets through.

    Nothing is asked for who is well, and only for a user whose writes go alone: of a batch it would not be known whose
    lock it is.
    """

    def __init__(self, settings: PostgresSettings, lock_timeout: timedelta) -> None:
        self._settings = settings
        # Late enough that it is not told of every short wait, early enough that there is time to ask.
        self._patience_seconds = lock_timeout.total_seconds() / 2
        self._lock_timeout_seconds = lock_timeout.total_seconds()
        self._waits: dict[str, _Wait] = {}

    def watched(
        self, work: Callable[[Connection], Awaitable[T]], users: Sequence[str]
    ) -> Callable[[Connection], Awaitable[T]]:
        """The work, with somebody asking meanwhile who keeps it waiting, if there is reason to ask."""
        wait = self._wait_of(users)
        if wait is None:
            return work

        async def watch(connection: Connection) -> T:
            asking = asyncio.create_task(self._ask(connection.get_server_pid(), wait), name="hybrid-memory-lock-wait")
            try:
                return await work(connection)
            finally:
                asking.cancel()
                await asyncio.wait([asking])

        return watch

    def told(self, refusal: Contended, users: Sequence[str]) -> Contended:
        """The refusal with what is known of its cause."""
        if refusal.sqlstate != _LOCK_NOT_HAD or len(users) != 1:
            return refusal
        wait = self._waits.setdefault(users[0], _Wait(time.monotonic() - self._lock_timeout_seconds))
        return Contended(refusal.message, fix=refusal.fix, sqlstate=refusal.sqlstate, held_by=wait.held_by)

    def had(self, users: Sequence[str]) -> None:
        """These users' writes got through."""
        if self._waits:
            for user_id in users:
                self._waits.pop(user_id, None)

    def _wait_of(self, users: Sequence[str]) -> _Wait | None:
        return self._waits.get(users[0]) if self._waits and len(users) == 1 else None

    # What another role does is not for us to see, its process is.
    _HOLDER: Final[LiteralString] = """
        select b.pid, extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds
        from unnest(pg_blocking_pids($1)) as b (pid)
        left join pg_stat_activity a on a.pid = b.pid
        order by seconds desc nulls last
        limit 1
    """

    async def _ask(self, waiting: int, wait: _Wait) -> None:
        await asyncio.sleep(self._patience_seconds)

        async def work(connection: Connection) -> tuple[int, float | None] | None:
            records = await connection.fetch(self._HOLDER, waiting)
            return (records[0]["pid"], records[0]["seconds"]) if records else None

        link = Link(self._settings, Purpose(name="locks", deadline=_DEADLINE, statement_timeout=_DEADLINE))
        holder = None
        try:
            # Not to know it is no failure of the write.
            with suppress(DurableTierError):
                holder = await link.run(work)
        finally:
            await link.close()
        if holder is not None:
            pid, seconds = holder
            # A prepared transaction has no process.
            name = f"process {pid} of the server" if pid else "a prepared transaction"
            at_least = time.monotonic() - wait.since
            wait.held_by = f"{name} has held a lock for {max(seconds or 0.0, at_least):.0f} s"
