"""Owners that die and leave a queue behind, files that nobody has open, and looks at whoever adopts them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, UserMemory
from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.sqlite.slots import slot_path, try_slot
from tests.plugins.postgres import Database
from tests.support.beneath import tiers
from tests.support.managers import BRISK, FACT
from tests.support.waiting import until

SECONDS = 20.0
HASTY = BRISK.model_copy(update={"drain_on_close": timedelta()})
"""Closes at once, whatever is queued."""
PAGE = 4096


def in_slot(number: int, data: Path, dsn: str | None = None) -> AbstractAsyncContextManager[HybridMemoryManager]:
    """A manager in a certain slot, in an outage if no DSN is given."""
    away = f"postgresql://nobody@/none?host={data.parent}"
    return HybridMemoryManager.open(dsn=dsn or away, data_dir=data, settings=HASTY, slot=number)


def named(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Whatever the DSNs say, there is one database, and this is where."""

    def place_of(_dsn: str) -> str:
        return place

    monkeypatch.setattr("hybrid_memory.connect.place_of", place_of)


async def store(memory: UserMemory, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count):
        await memory.store({"n": number}, context_type=FACT, wait=0)


async def leave_behind(slot: int, data: Path, **queued: int) -> None:
    """An owner that fills its queue in an outage and is gone."""
    async with in_slot(slot, data) as manager:
        for user, count in queued.items():
            await store(manager.user(user), count)


@contextmanager
def closed_file(slot: int, data: Path) -> Generator[sqlite3.Connection]:
    """A connection to a file that nobody has open."""
    connection = choose_driver().connect(slot_path(data, slot))
    try:
        yield connection
    finally:
        connection.close()


def meta_of(slot: int, data: Path) -> dict[str, str]:
    with closed_file(slot, data) as connection:
        return dict(connection.execute("select key, value from meta").fetchall())


def left_in(slot: int, data: Path, table: str = "outbox") -> int:
    with closed_file(slot, data) as connection:
        (count,) = connection.execute(f"select count(*) from {table}").fetchone()
    return int(count)


def is_free(slot: int, data: Path) -> bool:
    taken = try_slot(data, slot)
    if taken is not None:
        taken.release()
    return taken is not None


async def numbers_of(admin: asyncpg.Connection, user: str) -> list[int]:
    """What is stored of a user, in the order in which it came to Postgres."""
    rows = await admin.fetch(
        "select (content->>'n')::int as n from memory.nodes where user_id = $1 and deleted_at is null order by rev",
        user,
    )
    return [row["n"] for row in rows]


class Rounds:
    """Counts how often a manager looks for dead owners."""

    def __init__(self, manager: HybridMemoryManager, monkeypatch: pytest.MonkeyPatch) -> None:
        orphans = tiers(manager).orphans
        self._slots = orphans.slots
        self.count = 0
        monkeypatch.setattr(orphans, "slots", self._counted)

    def _counted(self) -> list[int]:
        self.count += 1
        return self._slots()

    async def pass_by(self, rounds: int = 4) -> None:
        """Wait until so many have begun, and all but the last have ended."""
        enough = self.count + rounds
        await until(lambda: self.count >= enough)


async def adopter_of(manager: HybridMemoryManager) -> str:
    return (await manager.health()).services["adopter"]


@asynccontextmanager
async def cut_off(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    """A connection that is cut off in the end: its server may be dead by then."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def user_locked(admin_dsn: str, user: str) -> AsyncGenerator[None]:
    """Nothing of a user is applied in the block: who tries waits at its head."""
    async with cut_off(admin_dsn) as admin:
        await admin.execute("begin")
        await admin.fetch("select from memory.heads where user_id = $1 for update", user)
        yield  # the lock goes with the connection


async def waits_at_a_lock(admin: asyncpg.Connection, database: Database) -> bool:
    waiting = "select count(*) from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'"
    return bool(await admin.fetchval(waiting, database.name))


async def give_head(database: Database, data: Path, user: str) -> None:
    """Have Postgres know a user, by a first node."""
    async with in_slot(0, data, database.app_dsn) as manager:
        await manager.user(user).store({"n": -1}, context_type=FACT, wait=SECONDS)


def spoil(path: Path, data: Path, fault: str) -> str:
    """Make a file that nobody has open unusable; gives the error's code."""
    match fault:
        case "not a database":
            path.write_bytes(b"not a database, whatever its name says" * 200)
        case "damaged":
            with closed_file(1, data) as connection:
                connection.execute("update meta set value = '0' where key = 'clean'")
                (root,) = connection.execute(
                    "select rootpage from sqlite_master where name = 'nodes_by_creation'"
                ).fetchone()
            with path.open("r+b") as raw:
                raw.seek(PAGE * (root - 1))
                raw.write(os.urandom(PAGE))
        case _:
            with closed_file(1, data) as connection:
                connection.execute("insert into migrations values (9999, 'later', 'x', 0)")
            return "schema_mismatch"
    return "storage_corrupt"


def slots_taken(manager: HybridMemoryManager, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slots that are taken from now on, be it only to look into their files."""
    orphans, taken = tiers(manager).orphans, list[int]()
    take = vars(type(orphans))["_take"]

    def counted(slot: int) -> object:
        taken.append(slot)
        return take(orphans, slot)

    monkeypatch.setattr(orphans, "_take", counted)
    return taken
