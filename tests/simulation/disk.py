"""Hot-tier files of simulated processes: real SQLite files in memory, worked on inline, done a while later."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from hybrid_memory.sqlite.writer import Reply, Worker
from tests.simulation.loop import SimulatedLoop

T = TypeVar("T")

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a place in memory, with folders of our own below it
# How long works take, at most, until they are done and until that is known, in seconds of virtual time.
WORKING: Final = 0.003
TELLING: Final = 0.001


def make_place() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one: an fsync costs nothing there."""
    return tempfile.TemporaryDirectory(prefix="hm-simulation-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None)


class InlineWorker:
    """`Worker` without a thread: works run whole, one by one, at a moment of the seed's choice."""

    def __init__(self, loop: SimulatedLoop, connect: Callable[[], sqlite3.Connection]) -> None:
        self._loop = loop
        self._connect = connect
        self._posted: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._busy = False
        self.connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        self.connection = self._connect()

    async def perform(self, work: Callable[[sqlite3.Connection], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._enqueue(partial(work, self._open_connection()), future)
        return await future

    def post(self, work: Callable[[sqlite3.Connection], T], reply: Reply[T]) -> None:
        self._enqueue(partial(work, self._open_connection()), reply)

    def _open_connection(self) -> sqlite3.Connection:
        if self.connection is None:
            raise ValueError("no active connection")
        return self.connection

    def _enqueue(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self._posted.append((work, future))
        if not self._busy:
            self._busy = True
            self._loop.call_later(self._loop.delay(WORKING), self._work)

    def _work(self) -> None:
        work, future = self._posted.popleft()
        try:
            result, error = work(), None
        except Exception as failure:  # noqa: BLE001 - whoever waits gets it
            result, error = None, failure
        # Committed, and nobody knows yet: a crash falls here as well.
        self._loop.call_later(self._loop.delay(TELLING), self._tell, future, result, error)
        if self._posted:
            self._loop.call_later(self._loop.delay(WORKING), self._work)
        else:
            self._busy = False

    def _tell(self, future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
        # As aiosqlite does it: a future that was cancelled meanwhile is left alone.
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    async def close(self) -> None:
        await self.perform(lambda _: None)
        self.kill()

    @property
    def has_died(self) -> bool:
        return False

    def bury(self) -> None:
        self.kill()

    def kill(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def hire(loop: SimulatedLoop, hired: list[InlineWorker], connect: Callable[[], sqlite3.Connection]) -> Worker:
    """A worker for one connection, noted among those hired."""
    worker = InlineWorker(loop, connect)
    hired.append(worker)
    return worker


def copy_file(source: Path, target: Path) -> None:
    """The file and its log, as a dead process leaves them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")
