"""The files of dead owners in the data directory: what they left queued, and taking them over."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hybrid_memory.errors import HybridMemoryError, SchemaMismatch, StorageCorrupt, StorageFailed
from hybrid_memory.messages import LeftBehind
from hybrid_memory.sqlite.driver import Driver, configure_reader
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.slots import Slot, existing_slots, slot_path, try_slot

# What only a person, or another version of the program, can mend: not tried again until the file is another.
_BEYOND_USE = (StorageCorrupt, SchemaMismatch)


class _Part(NamedTuple):
    inode: int
    size: int
    mtime_ns: int


class _Mark(NamedTuple):
    """By which a file is known again, from the directory alone. No change leaves all of it as it was."""

    file: _Part | None
    log: _Part | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found in a file when it bore the mark."""

    mark: _Mark
    left: LeftBehind | None
    refusal: HybridMemoryError | None = None


class SqliteOrphans:
    """`Orphans` among the slots of a data directory, all but our own."""

    def __init__(
        self, data_dir: Path, *, own: int, driver: Driver, open_file: Callable[[Slot], Awaitable[HotFile]]
    ) -> None:
        self._data_dir = data_dir
        self._own = own
        self._driver = driver
        self._open_file = open_file
        self._known: dict[int, _Known] = {}

    def slots(self) -> list[int]:
        """The other slots that have a file."""
        try:
            return [number for number in existing_slots(self._data_dir) if number != self._own]
        except OSError as error:
            raise _unusable(error) from None

    async def look(self, slot: int) -> LeftBehind | None:
        """What a dead owner left queued.

        Asked again and again, so a file that has not changed since it was looked at is neither locked nor opened. The
        lock is taken and given back on the thread: nothing is left locked by a caller that goes away.
        """
        known = self._known.get(slot)
        if known is None or known.mark != _mark(slot_path(self._data_dir, slot)):
            self._known.pop(slot, None)
            known = await asyncio.to_thread(self._find_out, slot)
            if known is None:
                return None
            self._known[slot] = known
        if known.refusal is not None:
            raise known.refusal.with_traceback(None)
        return known.left

    async def open(self, slot: int) -> HotFile | None:
        """Take the slot and open its file: a new opening, so a copy, or whoever held it before, is fenced."""
        taken = self._take(slot)
        if taken is None:
            return None
        try:
            return await self._open_file(taken)
        except BaseException as error:
            if isinstance(error, _BEYOND_USE):
                # Before the lock is free: what changes from here on is somebody else's doing.
                self._known[slot] = _Known(_mark(taken.path), None, error)
            taken.release()
            raise

    def _take(self, slot: int) -> Slot | None:
        try:
            return try_slot(self._data_dir, slot)
        except OSError as error:
            raise _unusable(error) from None

    def _find_out(self, slot: int) -> _Known | None:
        taken = self._take(slot)
        if taken is None:
            return None
        try:
            mark = _mark(taken.path)
            if mark.file is None:
                return None
            try:
                return _Known(mark, self._read(taken.path, mark))
            except _BEYOND_USE as refusal:
                return _Known(mark, None, refusal)
        finally:
            taken.release()

    def _read(self, path: Path, mark: _Mark) -> LeftBehind | None:
        # Through SQLite, for plain reads would cancel its locks, and read-only, for nothing may change where nothing is
        # to be done. After a clean end there is no log; an ordinary read-only connection would make one and could not
        # remove it. But under the slot's lock the file keeps still and can be read without. After a kill -9 the log is
        # there, is read along, and stays.
        has_log = mark.log is not None and mark.log.size > 0
        try:
            connection = self._driver.connect(path, read_only=True, still=not has_log)
            try:
                configure_reader(connection)
                return _left_behind(connection)
            finally:
                connection.close()
        except self._driver.errors as error:
            raise self._driver.translate(error) from None


def _left_behind(connection: sqlite3.Connection) -> LeftBehind | None:
    (tables,) = connection.execute(
        "select count(*) from sqlite_master where type = 'table' and name in ('outbox', 'meta')"
    ).fetchone()
    if tables == 0:
        return None  # its maker died before the first table
    users = connection.execute("select distinct user_id from outbox").fetchall()
    if not users:
        return None
    (client_id,) = connection.execute("select value from meta where key = 'client_id'").fetchone()
    return LeftBehind(client_id=client_id, users=frozenset(user_id for (user_id,) in users))


def _mark(path: Path) -> _Mark:
    return _Mark(file=_part(path), log=_part(path.with_name(f"{path.name}-wal")))


def _part(path: Path) -> _Part | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return _Part(inode=seen.st_ino, size=seen.st_size, mtime_ns=seen.st_mtime_ns)


def _unusable(error: OSError) -> StorageFailed:
    return StorageFailed(
        f"cannot look at the data directory: {error.strerror}", fix="run as the user whose directory it is"
    )
