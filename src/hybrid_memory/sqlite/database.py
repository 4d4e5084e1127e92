"""One SQLite file: its writer, an inline reader for point reads, and readers on threads for scans."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import LifoQueue
from typing import Any, TypeVar, cast

from hybrid_memory.errors import Closed, DataDirBusy, HybridMemoryError, StorageCorrupt
from hybrid_memory.sqlite.driver import Driver, configure_reader, configure_writer
from hybrid_memory.sqlite.point_reader import PointReader
from hybrid_memory.sqlite.readable import read_again
from hybrid_memory.sqlite.syncing import rewrite_log, sync_directory, sync_log
from hybrid_memory.sqlite.writer import Hire, Hooks, Writer

T = TypeVar("T")
R = TypeVar("R")

# Holds the whole index of a million rows and the rows read most; it fills only as far as the file is large and read.
# Measured against a small file, a look-up among a million rows takes 1.40 times as long with it, 1.47 with a quarter of
# it, 1.64 with SQLite's usual 2 MiB.
POINT_CACHE_KIB = 128 * 1024
# One to search while the other builds an index: on two cores more would only stand in each other's way.
READERS = 2
# Each try waits for readers up to the busy time-out; a scan of our own is over long before.
CUT_TRIES = 3


class Database:
    """The only writer and the only checkpointer of one file, and its readers in this process.

    `write` gives a future that is done when the change is fsynced. A caller that goes away cannot undo or tear it.
    `hire` says who works on the writing connection.
    """

    def __init__(self, path: Path, driver: Driver, hooks: Hooks, hire: Hire) -> None:
        self._path = path
        self._driver = driver
        self._writer = Writer(path, driver, hooks, hire)
        self._readers = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="hybrid-memory-reader")
        # The one used last comes first: it knows the schema, has its statements prepared and pages at hand.
        self._scanners: LifoQueue[sqlite3.Connection] = LifoQueue()
        self._opened = ExitStack()
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Open the writer; the readers follow when the schema is in place. Raises `StorageFailed` and its kin."""
        await asyncio.to_thread(rewrite_log, self._path)
        await self._writer.open(configure_writer)
        # By now the log is there too. SQLite syncs the directory for it, but says nothing when that fails.
        await asyncio.to_thread(sync_directory, self._path.parent)

    def open_readers(self) -> None:
        """Open the readers. Raises `StorageFailed` and its kin."""
        try:
            point = self._driver.connect(self._path, read_only=True)
            self._opened.callback(point.close)
            configure_reader(point, cache_kib=POINT_CACHE_KIB)
            for _ in range(READERS):
                self._scanners.put(self._open_scanner())
        except self._driver.errors as error:
            raise self._driver.translate(error) from None
        self.point = PointReader(point, self._driver, self._again)

    def _open_scanner(self) -> sqlite3.Connection:
        # Each is used by one reader thread at a time, whichever took it.
        connection = self._driver.connect(self._path, read_only=True, check_same_thread=False)
        self._opened.callback(connection.close)
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
        return self._writer.failure

    def _again(self, error: BaseException, read: Callable[[], T], /) -> T:
        """A read that failed, tried again on the event loop; damage ends the writing at once."""
        try:
            return read_again(error, read, self._path, self._driver)
        except StorageCorrupt as failure:
            self._writer.give_up(failure)
            raise

    def check_thread(self) -> None:
        """Refuse what waits to be written, if the thread that should do it has died."""
        self._writer.check_thread()

    def give_up(self, failure: HybridMemoryError) -> None:
        """Write nothing more, for this reason; what waits to be written is refused. Reads go on."""
        self._writer.give_up(failure)

    @property
    def takes_work(self) -> bool:
        """Whether `write` would take a work: not once it is closing, nor when the writer has stopped."""
        return self._writer.takes_work

    async def prepare(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the writer before anything else is written; it makes its own transactions."""
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
        return self._writer.submit(work, _tell if after is None else partial(_tell_after, after), ride=ride)

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        answer: Callable[[T, asyncio.Future[R]], None],
        *,
        stages: bool = False,
    ) -> asyncio.Future[R]:
        """Like `write`; but `answer` gets the result and the future, which it may answer later (`Writer.submit`)."""
        return self._writer.submit(work, answer, stages=stages)

    def rides(self, future: asyncio.Future[Any]) -> bool:
        """Whether a work given with `ride` still waits, so that what it is to do can be added to."""
        return self._writer.rides(future)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the reader thread. It must fetch all it needs: no cursor outlives it."""
        return await self.read_soon(work)

    def read_soon(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Like `read`, without waiting."""
        if self._writer.closing:
            raise Closed("the hot tier is closed")
        return self._loop.run_in_executor(self._readers, self._scan, work)

    def _scan(self, work: Callable[[sqlite3.Connection], T]) -> T:
        scanner = self._scanners.get()
        try:
            return work(scanner)
        except self._driver.errors as error:
            try:
                return read_again(error, partial(work, scanner), self._path, self._driver)
            except StorageCorrupt as failure:
                self._loop.call_soon_threadsafe(self._writer.give_up, failure)
                raise
        finally:
            self._scanners.put(scanner)

    async def cut_log(self) -> None:
        """Move the log into the file and cut the log to nothing, so that no deleted byte is left in it.

        Nor does a power cut bring one back. Raises `DataDirBusy` when a reader is in the way for too long,
        `StorageFailed` and its kin.
        """
        for _ in range(CUT_TRIES):
            try:
                if await self._writer.run(partial(_cut_log, self._path)):
                    return
            except self._driver.errors as error:
                raise self._driver.translate(error) from None
        raise DataDirBusy("a reader keeps the log from being cut", fix="try again")

    async def close(self) -> None:
        """Commit what is waiting and close, readers first: the last connection to close checkpoints.

        After a failure of the disk the readers, which cannot, are the last: the file is left as it is to whoever
        opens it next.
        """
        if self._writer.closing:
            return
        await self._writer.stop()
        # Searches under way end in milliseconds; a reader must not outlive the writer, which checkpoints last.
        await asyncio.to_thread(self._readers.shutdown)
        if self._writer.failure is None:
            try:
                self._opened.close()
            finally:
                await self._writer.close()
        else:
            try:
                await self._writer.close()
            finally:
                self._opened.close()


def _tell(outcome: T, future: asyncio.Future[T]) -> None:
    if not future.done():
        future.set_result(outcome)


def _tell_after(after: Callable[[T], None], outcome: T, future: asyncio.Future[T]) -> None:
    after(outcome)
    _tell(outcome, future)


def _cut_log(path: Path, connection: sqlite3.Connection) -> bool:
    busy, _, _ = cast("tuple[int, int, int]", connection.execute("pragma wal_checkpoint(truncate)").fetchone())
    if busy:
        return False
    # SQLite cuts the log and leaves it at that: after a power cut it could have its old length again.
    sync_log(path)
    return True
