"""What lies beneath a manager's public surface: where faults are injected and promises of the file are looked up."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from queue import LifoQueue
from typing import Final, cast

from hybrid_memory import HybridMemoryManager
from hybrid_memory.connect import Tiers
from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.search_index import SearchIndexes
from hybrid_memory.sqlite.writer import Hooks
from hybrid_memory.staff import Staff

HELD_AT_MOST_SECONDS: Final = 20.0


def tiers(manager: HybridMemoryManager) -> Tiers:
    """Both sides, open."""
    return cast("Tiers", vars(manager)["_tiers"])


def staff(manager: HybridMemoryManager) -> Staff:
    """The background services."""
    return cast("Staff", vars(manager)["_staff"])


def let_readers_go(file: HotFile) -> None:
    """Close the connections that only read, as the end of their process would."""
    cast("ExitStack", vars(file.database)["_opened"]).close()
    cast("SearchIndexes", vars(file)["_indexes"]).close()


def connections(file: HotFile) -> list[sqlite3.Connection]:
    """All of a file's connections, while nobody is reading."""
    database = vars(file.database)
    scanners = cast("LifoQueue[sqlite3.Connection]", database["_scanners"])
    resting = [scanners.get_nowait() for _ in range(scanners.qsize())]
    for scanner in resting:
        scanners.put(scanner)
    writer = cast("object", vars(database["_writer"])["_connection"])
    working = [vars(one)["_connection"] for one in (writer, file.database.point)]
    return [*cast("list[sqlite3.Connection]", working), *resting]


def is_open(connection: sqlite3.Connection) -> bool:
    """Whether a connection is open. The question does not touch the file."""
    try:
        return connection.total_changes >= 0
    except choose_driver().module.Error:
        return False


def after_each_commit(file: HotFile, look: Callable[[], None]) -> None:
    """From now on, call `look` on the writer's thread after each of its commits, before anybody hears of it."""
    hooks = cast("Hooks", vars(vars(file.database)["_writer"])["_hooks"])
    publication = hooks.after_commit

    def looked() -> Callable[[], None]:
        look()
        return publication()

    hooks.after_commit = looked


@asynccontextmanager
async def unheard(file: HotFile, work: Awaitable[object]) -> AsyncGenerator[None]:
    """Begin `work`; in the block, its first commit is done and nobody has heard of it. It ends with the block."""
    loop = asyncio.get_running_loop()
    committed, let_on = asyncio.Event(), threading.Event()

    def hold() -> None:
        loop.call_soon_threadsafe(committed.set)
        let_on.wait(HELD_AT_MOST_SECONDS)

    after_each_commit(file, hold)
    working = asyncio.ensure_future(work)
    try:
        async with asyncio.timeout(HELD_AT_MOST_SECONDS):
            await committed.wait()
        yield
    finally:
        let_on.set()
        await working
