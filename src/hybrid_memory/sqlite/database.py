"""One SQLite file: the writer task with group commit, an inline reader for point reads, a reader thread for scans."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import aiosqlite

from hybrid_memory.errors import Closed, DataDirBusy, HybridMemoryError, StorageFailed
from hybrid_memory.sqlite.driver import Driver, configure_reader, configure_writer

T = TypeVar("T")
R = TypeVar("R")

# Work that may ride along does so with the first commit after this time, or by itself if none comes in as long again.
# Well below anything a person notices.
RIDE_ALONG_SECONDS = 0.02
# Bounds how long one transaction keeps the others waiting; a group of this size takes some ten milliseconds.
MAX_GROUP = 512
# Holds the whole index of a million rows and the rows read most; it fills only as far as the file is large and read.
# Measured against a small file, a look-up among a million rows takes 1.40 times as long with it, 1.47 with a quarter of
# it, 1.64 with SQLite's usual 2 MiB.
POINT_CACHE_KIB = 128 * 1024
# One to search while the other builds an index: on two cores more would only stand in each other's way.
READERS = 2
# Each try waits for readers up to the busy time-out; a scan of our own is over long before.
CUT_TRIES = 3


# What a work may raise besides SQLite's own errors: the group is undone, and each work tried alone.
_UNDOING = (HybridMemoryError, ArithmeticError, LookupError, TypeError, ValueError)


class OwnedConnection(aiosqlite.Connection):
    """An aiosqlite connection that runs a whole transaction as one function on its own thread: one hop, not three."""

    if TYPE_CHECKING:
        # aiosqlite gives its executor no types.
        async def _execute(self, fn: Callable[..., T], *args: object, **kwargs: object) -> T: ...

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the connection's thread. It must return plain data, never a cursor."""
        return await self._execute(work, self._conn)


@dataclass(slots=True)
class _Request(Generic[T, R]):
    work: Callable[[sqlite3.Connection], T]
    stages: bool
    answer: Callable[[T, asyncio.Future[R]], None]
    future: asyncio.Future[R]


@dataclass(slots=True)
class Hooks:
    """What the owner of in-memory state beside the file must do inside a transaction and after one failed."""

    before_work: Callable[[sqlite3.Connection], None]
    before_commit: Callable[[sqlite3.Connection], None]
    after_commit: Callable[[], None]
    """On the event loop, before anybody is answered."""
    after_rollback: Callable[[], None]


class Database:
    """The only writer and the only checkpointer of one file, and its readers in this process.

    `write` gives a future that is done when the change is fsynced. A caller that goes away cannot undo or tear it.
    """

    def __init__(self, path: Path, driver: Driver, hooks: Hooks) -> None:
        self._path = path
        self._driver = driver
        self._hooks = hooks
        self._undoing: tuple[type[Exception], ...] = (*driver.errors, *_UNDOING)
        self._waiting: deque[_Request[Any, Any]] = deque()
        self._riding: deque[_Request[Any, Any]] = deque()
        self._wake = asyncio.Event()
        self._ride_along: asyncio.TimerHandle | None = None
        self._ride_due = 0.0
        self._closing = False
        self._failure: BaseException | None = None
        self._readers = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="hybrid-memory-reader")
        self._writer = OwnedConnection(partial(driver.connect, path, check_same_thread=False), 64)
        self._scanners: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Open the writer and then the readers."""
        try:
            await self._writer
            await self._writer.run(configure_writer)
        except self._driver.errors as error:
            raise self._driver.translate(error) from None

    async def open_readers(self) -> None:
        """Open the readers and start the writer task; the schema is in place by now."""
        self.point = self._driver.connect(self._path, read_only=True)
        configure_reader(self.point, cache_kib=POINT_CACHE_KIB)
        for _ in range(READERS):
            self._scanners.put(self._open_scanner())
        self._task = self._loop.create_task(self._serve(), name="hybrid-memory-writer")

    def _open_scanner(self) -> sqlite3.Connection:
        # Each is used by one reader thread at a time, whichever took it.
        connection = self._driver.connect(self._path, read_only=True, check_same_thread=False)
        configure_reader(connection)
        return connection

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def driver(self) -> Driver:
        """The SQLite library in use."""
        return self._driver

    @property
    def failure(self) -> BaseException | None:
        """Why the writer stopped, None while it works."""
        return self._failure

    @property
    def takes_work(self) -> bool:
        """Whether `write` would take a work: not once it is closing, nor when the writer has stopped."""
        return not self._closing and self._failure is None

    async def prepare(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the writer before the writer task serves; it makes its own transactions."""
        return await self._writer.run(work)

    def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        after: Callable[[T], None] | None = None,
        ride: bool = False,
    ) -> asyncio.Future[T]:
        """Run `work` in the next transaction and return a future for its result, done when it is fsynced.

        `after` is called on the event loop once it is committed, also if the caller has gone. `ride` lets it wait a
        moment, and be done together with others like it, unless a work comes that may read it.
        """
        return self.submit(work, _tell if after is None else partial(_tell_after, after), ride=ride)

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        answer: Callable[[T, asyncio.Future[R]], None],
        *,
        ride: bool = False,
        stages: bool = False,
    ) -> asyncio.Future[R]:
        """Run `work` in the next transaction; when it is fsynced, `answer` gets its result and the future returned.

        It may answer the future later, and is called on the event loop, also if the caller has gone. `stages` says
        that the work reads nothing that works of its group may have staged. A `HybridMemoryError` raised before the
        work's first write refuses this work alone; any other error undoes the group, whose works are then tried one
        by one.
        """
        if self._closing:
            raise Closed("the hot tier is closed")
        if self._failure is not None:
            raise StorageFailed("the hot tier's writer has stopped") from self._failure
        future: asyncio.Future[R] = self._loop.create_future()
        request = _Request(work, stages, answer, future)
        if ride:
            self._riding.append(request)
            if self._ride_along is None:
                self._ride_due = self._loop.time() + RIDE_ALONG_SECONDS
                self._ride_along = self._loop.call_later(2 * RIDE_ALONG_SECONDS, self._take_along)
            return future
        if self._riding and (not stages or self._loop.time() >= self._ride_due):
            self._take_along()
        self._waiting.append(request)
        self._wake.set()
        return future

    def rides(self, future: asyncio.Future[Any]) -> bool:
        """Whether a work given with `ride` still waits, so that what it is to do can be added to."""
        return any(request.future is future for request in self._riding)

    def _take_along(self) -> None:
        """Put what rides before what comes now."""
        if self._ride_along is not None:
            self._ride_along.cancel()
            self._ride_along = None
        self._waiting.extend(self._riding)
        self._riding.clear()
        self._wake.set()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the reader thread. It must fetch all it needs: no cursor outlives it."""
        return await self.read_soon(work)

    def read_soon(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Like `read`, without waiting."""
        if self._closing:
            raise Closed("the hot tier is closed")
        return self._loop.run_in_executor(self._readers, self._scan, work)

    def _scan(self, work: Callable[[sqlite3.Connection], T]) -> T:
        scanner = self._scanners.get()
        try:
            return work(scanner)
        except self._driver.errors as error:
            raise self._driver.translate(error) from None
        finally:
            self._scanners.put(scanner)

    async def _serve(self) -> None:
        try:
            while not (self._closing and not self._waiting):
                await self._wake.wait()
                self._wake.clear()
                await self._commit_waiting()
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._take_along()
        while self._waiting:
            request = self._waiting.popleft()
            if not request.future.done():
                request.future.set_exception(StorageFailed("the hot tier's writer has stopped"))

    async def _commit_waiting(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]
            try:
                outcomes = await self._writer.run(partial(self._commit, group))
            except BaseException:
                self._waiting.extendleft(reversed(group))  # so that they are told with the others
                raise
            self._hooks.after_commit()
            for request, outcome in zip(group, outcomes, strict=True):
                _deliver(request, outcome)

    def _commit(self, group: list[_Request[Any, Any]], connection: sqlite3.Connection) -> list[object]:
        try:
            connection.execute("begin immediate")
            outcomes = [self._attempt(request, connection) for request in group]
            self._hooks.before_commit(connection)
            connection.execute("commit")
        except self._undoing as error:
            # SQLITE_FULL and its like roll back by themselves; anything executed after that would autocommit.
            if connection.in_transaction:
                connection.execute("rollback")
            self._hooks.after_rollback()
            if len(group) > 1:
                return [self._commit([request], connection)[0] for request in group]
            return [self._driver.translate(error) if isinstance(error, self._driver.errors) else error]
        return outcomes

    def _attempt(self, request: _Request[Any, Any], connection: sqlite3.Connection) -> object:
        if not request.stages:
            self._hooks.before_work(connection)
        changes = connection.total_changes
        try:
            return request.work(connection)
        except HybridMemoryError as refusal:
            if connection.total_changes != changes:
                raise
            return refusal

    async def cut_log(self) -> None:
        """Move the log into the file and cut the log to nothing, so that no deleted byte is left in it.

        Raises `DataDirBusy` when a reader is in the way for too long.
        """
        for _ in range(CUT_TRIES):
            if await self._writer.run(_cut_log):
                return
        raise DataDirBusy("a reader keeps the log from being cut", fix="try again")

    async def close(self) -> None:
        """Commit what is waiting and close, readers first: the last connection to close checkpoints."""
        if self._closing:
            return
        self._take_along()
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self.point.close()
        # Searches under way end in milliseconds; a reader must not outlive the writer, which checkpoints last.
        await asyncio.to_thread(self._readers.shutdown)
        while not self._scanners.empty():
            self._scanners.get().close()
        await self._writer.close()


def _deliver(request: _Request[Any, Any], outcome: object) -> None:
    if not isinstance(outcome, BaseException):
        request.answer(outcome, request.future)
    elif not request.future.done():
        request.future.set_exception(outcome)


def _tell(outcome: T, future: asyncio.Future[T]) -> None:
    if not future.done():
        future.set_result(outcome)


def _tell_after(after: Callable[[T], None], outcome: T, future: asyncio.Future[T]) -> None:
    after(outcome)
    _tell(outcome, future)


def _cut_log(connection: sqlite3.Connection) -> bool:
    busy, _, _ = cast("tuple[int, int, int]", connection.execute("pragma wal_checkpoint(truncate)").fetchone())
    return busy == 0
