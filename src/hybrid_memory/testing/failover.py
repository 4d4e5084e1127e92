"""A primary and its standby behind one address: the standby lags on demand and takes over, with a lost tail or none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

from hybrid_memory.embedded.place import prepare_home, server_account, settle_place
from hybrid_memory.errors import DurableTierError, Unreachable
from hybrid_memory.postgres.database import PostgresSettings
from hybrid_memory.postgres.migrator import Migrator
from hybrid_memory.testing.postgres import Cluster, base_backup, short_folder
from hybrid_memory.testing.proxy import Proxy

_DATABASE: Final = "memory"
_ROLE: Final = "memory_app"
_SECONDS: Final = 30.0
_STEP_SECONDS: Final = 0.01


class Pair:
    """Two clusters, of which one streams from the other; make it with `failing_over`.

    Clients reach whichever is the primary by `dsn`. Replication is asynchronous.
    """

    def __init__(self, folder: Path, primary: Cluster, proxy: Proxy) -> None:
        self._folder = folder
        self._names = (f"standby-{number}" for number in count(1))
        self._streams_from = ""
        self.primary = primary
        self.proxy = proxy
        self.standby: Cluster | None = None

    @property
    def dsn(self) -> str:
        """The application's DSN, through the proxy."""
        return self.proxy.dsn

    @property
    def admin_dsn(self) -> str:
        """The superuser's DSN of the memory database on the primary of the moment, past the proxy."""
        return self.primary.dsn(database=_DATABASE)

    async def add_standby(self) -> None:
        """Copy the primary and have the copy stream from it. After a failover it makes the pair whole again."""
        if self.standby is not None:
            await self.standby.stop()
        folder = self._folder / next(self._names)
        folder.mkdir(mode=0o755)
        place = settle_place(prepare_home(folder / "postgres"), server_account())
        await base_backup(self.primary, place.cluster, "--wal-method=stream", "--write-recovery-conf")
        self.standby = await Cluster.start(folder)
        self._streams_from = str(await self.standby.execute("select current_setting('primary_conninfo')"))
        await self.catch_up()

    async def lag(self) -> None:
        """Stop the stream: what is committed from now on is the tail that a failover loses."""
        standby = self._standby()
        await standby.set("primary_conninfo", "")
        await _comes_about(lambda: _holds(standby, "select not exists (select from pg_stat_wal_receiver)"))

    async def catch_up(self) -> None:
        """Let it stream, and wait until the standby has replayed all that the primary has written until now."""
        standby = self._standby()
        await standby.set("primary_conninfo", self._streams_from)
        written = str(await self.primary.execute("select pg_current_wal_flush_lsn()::text"))
        replayed = f"select coalesce(pg_last_wal_replay_lsn() >= '{written}'::pg_lsn, false)"
        await _comes_about(lambda: _holds(standby, replayed))

    async def promote(self, *, lose_tail: bool) -> None:
        """Kill the primary with -9 and promote the standby; clients are cut off and led to it.

        With `lose_tail` all that was committed after `lag` is gone. Without, nothing acknowledged is, lag or none:
        clients are cut off first, then the standby catches up, then the primary is killed.
        """
        standby = self._standby()
        self.proxy.shut()
        if not lose_tail:
            await self.catch_up()
        await self.primary.kill()
        await standby.execute("select pg_promote(true, 30)")
        self.proxy.lead_to(standby.dsn())
        await self.proxy.heal()
        await self.primary.stop()
        self.primary, self.standby = standby, None

    async def stop(self) -> None:
        """End both."""
        for cluster in (self.standby, self.primary):
            if cluster is not None:
                await cluster.stop()

    def _standby(self) -> Cluster:
        if self.standby is None:
            raise Unreachable("there is no standby", fix="call add_standby")
        return self.standby


@asynccontextmanager
async def failing_over() -> AsyncGenerator[Pair]:
    """A primary with a migrated memory database, a standby that streams from it, and the address of both."""
    with short_folder() as folder:
        primary = await Cluster.start(folder)
        async with Proxy.before(primary.dsn(_ROLE, _DATABASE), folder) as proxy:
            pair = Pair(folder, primary, proxy)
            try:
                await primary.execute(f"create database {_DATABASE}")
                migrator = Migrator(PostgresSettings(dsn=pair.admin_dsn))
                await migrator.migrate()
                await migrator.grant_login(_ROLE)
                await pair.add_standby()
                yield pair
            finally:
                await pair.stop()


async def _holds(cluster: Cluster, question: str) -> bool:
    with suppress(DurableTierError):  # it starts, or has just been reloaded
        return await cluster.execute(question) is True
    return False


async def _comes_about(check: Callable[[], Awaitable[bool]]) -> None:
    give_up = time.monotonic() + _SECONDS
    while not await check():
        if time.monotonic() > give_up:
            raise Unreachable("the pair has not come into the state wanted in time", fix="see the servers' logs")
        await asyncio.sleep(_STEP_SECONDS)
