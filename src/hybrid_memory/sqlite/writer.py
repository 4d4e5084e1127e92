"""The one writer of a SQLite file: what is to be changed waits in line and is committed in groups."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import aiosqlite

from hybrid_memory.errors import Closed, HybridMemoryError, StorageCorrupt, StorageFailed
from hybrid_memory.sqlite.driver import Driver
from hybrid_memory.sqlite.readable import judged

T = TypeVar("T")
R = TypeVar("R")

# Work that may ride along does so with the first commit after this time, or by itself if none comes in as long again.
# Well below anything a person notices.
RIDE_ALONG_SECONDS = 0.02
# Bounds how long one transaction keeps the others waiting; a group of this size takes some ten milliseconds.
MAX_GROUP = 512

# What a work may raise besides SQLite's own errors: the group is undone, and each work tried alone.
_UNDOING = (HybridMemoryError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError)


class Worker(Protocol):
    """A connection and who works on it: works are run one after the other, in the order in which they were given."""

    @property
    def has_died(self) -> bool:
        """Whether nothing that is posted is done any more, although the connection is open."""
        ...

    def bury(self) -> None:
        """Close the connection of one who has died."""
        ...

    async def open(self) -> None:
        """Open the connection. Raises what the driver raises."""
        ...

    async def perform(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, and give what it returns or raises. It must return plain data, never a cursor."""
        ...

    def post(self, work: Callable[[sqlite3.Connection], T], reply: Reply[T]) -> None:
        """Run `work` and have its result, or what it raised, acted on."""
        ...

    async def close(self) -> None:
        """Close the connection when what was given before is done."""
        ...


Hire: TypeAlias = "Callable[[Callable[[], sqlite3.Connection]], Worker]"
"""Makes the worker of a connection that is yet to be opened by the function given."""


def own_thread(connect: Callable[[], sqlite3.Connection]) -> Worker:
    """A connection on a thread of its own."""
    return OwnedConnection(connect)


class OwnedConnection(aiosqlite.Connection):
    """An aiosqlite connection that runs a whole transaction as one function on its own thread: one hop, not three."""

    if TYPE_CHECKING:
        # aiosqlite gives its queue, its executor and its thread no types.
        _tx: SimpleQueue[tuple[asyncio.Future[Any] | None, Callable[[], Any]]]
        _connection: sqlite3.Connection | None

        async def _execute(self, fn: Callable[..., T], *args: object, **kwargs: object) -> T: ...

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, 64)
        # Before 0.22 the connection is its thread.
        thread: object = getattr(self, "_thread", self)
        if not isinstance(thread, Thread):
            raise TypeError("aiosqlite has no thread")
        # Were the event loop closed before us, an ordinary thread would keep the process for ever.
        thread.daemon = True
        self._worker = thread

    @property
    def has_died(self) -> bool:
        """Whether its thread ended although the connection is open: nothing that is posted is done any more."""
        return self._connection is not None and not self._worker.is_alive()

    def bury(self) -> None:
        """Close a connection whose thread has died; the last one to a file to close checkpoints it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def open(self) -> None:
        """Open the connection on a thread of its own."""
        await self

    # Not `run`: before 0.22 an aiosqlite connection is a thread, whose method that is.
    async def perform(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the connection's thread. It must return plain data, never a cursor."""
        return await self._execute(work, self._conn)

    def post(self, work: Callable[[sqlite3.Connection], T], reply: Reply[T]) -> None:
        """Run `work` on the connection's thread and have its result, or what it raised, acted on."""
        self._tx.put_nowait((reply, partial(work, self._conn)))


class Reply(asyncio.Future[T]):
    """A future whose result is acted on as soon as the event loop has it: tasks that wait for one run a turn later."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, act: Callable[[T], None], failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__(loop=loop)
        self._act = act
        self._failed = failed

    def set_result(self, result: T) -> None:
        """Act on the result."""
        self._act(result)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """Act on the failure."""
        self._failed(exception if isinstance(exception, BaseException) else exception())


@dataclass(slots=True)
class _Request(Generic[T, R]):
    work: Callable[[sqlite3.Connection], T]
    stages: bool
    answer: Callable[[T, asyncio.Future[R]], None]
    future: asyncio.Future[R]


@dataclass(slots=True)
class Hooks:
    """What the owner of in-memory state beside the file must do inside a transaction and after it."""

    before_work: Callable[[sqlite3.Connection], None]
    before_commit: Callable[[sqlite3.Connection], None]
    after_commit: Callable[[], Callable[[], None]]
    """Still on the writer's thread. What it returns is called on the event loop before anybody is answered."""
    after_rollback: Callable[[], None]


class Writer:
    """Takes works on the event loop and commits them, in their order, on the connection's thread, a group at a time."""

    def __init__(self, path: Path, driver: Driver, hooks: Hooks, hire: Hire) -> None:
        self._path = path
        self._driver = driver
        self._hooks = hooks
        self._undoing: tuple[type[Exception], ...] = (*driver.errors, *_UNDOING)
        self._loop = asyncio.get_running_loop()
        self._connection = hire(partial(driver.connect, path, check_same_thread=False))
        # The event loop appends, the thread takes; a deque bears both at once.
        self._waiting: deque[_Request[Any, Any]] = deque()
        self._riding: deque[_Request[Any, Any]] = deque()
        self._ride_along: asyncio.TimerHandle | None = None
        self._ride_due = 0.0
        # The group under way, and what there is to publish after it: the thread's until it replies.
        self._group: list[_Request[Any, Any]] = []
        self._publish: Callable[[], None] = _nothing
        self._rested = asyncio.Event()
        self._rested.set()
        self._closing = False
        self._failure: BaseException | None = None
        self._disk_failure: BaseException | None = None

    async def open(self, configure: Callable[[sqlite3.Connection], None]) -> None:
        """Open the connection."""
        try:
            await self._connection.open()
            await self._connection.perform(configure)
        except self._driver.errors as error:
            raise self._driver.translate(error) from None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` between two groups; it makes its own transactions. Raises `StorageFailed` and its kin."""
        try:
            return await self._connection.perform(partial(self._guarded, work))
        except StorageFailed as error:
            self._fail(error)
            raise
        except self._driver.errors as error:
            raise self._driver.translate(error) from None

    def _guarded(self, work: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
        """On the thread: a connection whose disk has failed is not used again, whatever waits for it in line."""
        if self._disk_failure is not None:
            raise self._stopped(self._disk_failure)
        try:
            return work(connection)
        except StorageFailed as error:
            self._disk_failure = error
            raise
        except self._driver.errors as error:
            if not self._driver.disk_failed(error):
                raise
            self._disk_failure = judged(error, self._path, self._driver)
            raise self._disk_failure from None

    @property
    def failure(self) -> BaseException | None:
        """Why the writer stopped, None while it works."""
        return self._failure

    @property
    def closing(self) -> bool:
        """Whether it was told to stop."""
        return self._closing

    @property
    def takes_work(self) -> bool:
        """Whether `submit` would take a work: not once it is closing, nor when the writer has stopped."""
        return not self._closing and self._failure is None

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        answer: Callable[[T, asyncio.Future[R]], None],
        *,
        ride: bool = False,
        stages: bool = False,
    ) -> asyncio.Future[R]:
        """Run `work` in the next transaction; when it is fsynced, `answer` gets its result and the future returned.

        It may answer the future later, and is called on the event loop, also if the caller has gone. `ride` lets the
        work wait a moment, and be done together with others like it, unless a work comes that may read it. `stages`
        says that the work reads nothing that works of its group may have staged. A `HybridMemoryError` raised before
        the work's first write refuses this work alone; any other error undoes the group, whose works are then tried
        one by one. When the disk fails, the writer stops: the works of the group raise `StorageFailed`, what became of
        them is unknown until the file is opened again, and nothing more is taken.
        """
        if self._closing:
            raise Closed("the hot tier is closed")
        if self._failure is not None:
            raise self._stopped(self._failure) from self._failure
        future: asyncio.Future[R] = self._loop.create_future()
        request = _Request(work, stages, answer, future)
        if ride:
            self._riding.append(request)
            if self._ride_along is None:
                self._ride_due = self._loop.time() + RIDE_ALONG_SECONDS
                self._ride_along = self._loop.call_later(2 * RIDE_ALONG_SECONDS, self._ride)
            return future
        if self._riding and (not stages or self._loop.time() >= self._ride_due):
            self._take_along()
        self._waiting.append(request)
        self._begin()
        return future

    def rides(self, future: asyncio.Future[Any]) -> bool:
        """Whether a work given with `ride` still waits, so that what it is to do can be added to."""
        return any(request.future is future for request in self._riding)

    def _ride(self) -> None:
        """Nothing came to take along what rides."""
        self._take_along()
        self._begin()

    def _take_along(self) -> None:
        """Put what rides before what comes now."""
        if self._ride_along is not None:
            self._ride_along.cancel()
            self._ride_along = None
        self._waiting.extend(self._riding)
        self._riding.clear()

    def _begin(self) -> None:
        if self._rested.is_set():
            self._rested.clear()
            self._post()

    def _post(self) -> None:
        # What is submitted until the thread gets hold of the interpreter makes a group with what waits.
        commit = partial(self._guarded, self._commit_waiting)
        self._connection.post(commit, Reply(self._loop, self._answer, self._fail))

    def _commit_waiting(self, connection: sqlite3.Connection) -> list[object]:
        """On the thread: commit what waits; the results or errors of its works, in their order."""
        self._group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]
        if self._failure is not None:
            raise self._stopped(self._failure)
        return self._commit(self._group, connection)

    def _answer(self, outcomes: Sequence[object]) -> None:
        try:
            self._publish()
            for request, outcome in zip(self._group, outcomes, strict=True):
                if not isinstance(outcome, BaseException):
                    request.answer(outcome, request.future)
                elif not request.future.done():
                    request.future.set_exception(outcome)
        except BaseException as error:
            # Whatever it was: what is known in memory may no longer be what is in the file, and somebody would wait.
            self._fail(error)
            raise
        if self._waiting:
            self._post()
        else:
            self._rested.set()

    def _fail(self, error: BaseException) -> None:
        self.give_up(error)
        self._refuse(self._group)
        self._rested.set()

    def give_up(self, failure: BaseException) -> None:
        """Take nothing more, and refuse what waits. What is under way ends as it may."""
        self._failure = self._failure or failure
        self._take_along()
        while self._waiting:
            # The thread may take some meanwhile; it refuses them itself.
            with suppress(IndexError):
                self._refuse([self._waiting.popleft()])

    def check_thread(self) -> None:
        """Refuse what was given and what comes, if the thread that should do it has died."""
        if self._failure is None and self._connection.has_died:
            self._fail(StorageFailed("the thread that writes the local file has died", fix="start this process again"))

    def _refuse(self, requests: Sequence[_Request[Any, Any]]) -> None:
        for request in requests:
            if not request.future.done():
                request.future.set_exception(self._stopped(self._failure))

    def _stopped(self, error: BaseException | None) -> HybridMemoryError:
        if isinstance(error, self._driver.errors):
            return self._driver.translate(error)
        if isinstance(error, StorageFailed):
            return type(error)(error.message, fix=error.fix)
        return StorageFailed("the hot tier's writer has stopped")

    def _commit(self, group: Sequence[_Request[Any, Any]], connection: sqlite3.Connection) -> list[object]:
        try:
            connection.execute("begin immediate")
            outcomes = [self._attempt(request, connection) for request in group]
            self._hooks.before_commit(connection)
            connection.execute("commit")
        except self._undoing as error:
            if self._driver.disk_failed(error):
                # What became of the group is unknown, and the connection knows it no better. It ends here.
                raise
            # SQLITE_FULL and its like roll back by themselves; anything executed after that would autocommit.
            if connection.in_transaction:
                connection.execute("rollback")
            self._hooks.after_rollback()
            failure = self._driver.translate(error) if isinstance(error, self._driver.errors) else error
            if isinstance(failure, StorageCorrupt):
                # Whatever is written after this may spread the damage: the writer stops here.
                raise failure from None
            if len(group) > 1:
                return [self._commit([request], connection)[0] for request in group]
            return [failure]
        # Outside: what fails after the commit must not have the works done again.
        self._publish = self._hooks.after_commit()
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

    async def stop(self) -> None:
        """Commit what is waiting, and take nothing more."""
        self._closing = True
        self._take_along()
        if self._waiting:
            self._begin()
        await self._rested.wait()

    async def close(self) -> None:
        """Close the connection; the last one to a file to close checkpoints it."""
        if self._connection.has_died:
            self._connection.bury()
        else:
            await self._connection.close()


def _nothing() -> None:
    """Nothing was committed yet."""
