"""The files of dead owners in the data directory: what they left queued, and taking them over."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hybrid_memory.errors import HybridMemoryError, SchemaMismatch, StorageCorrupt
from hybrid_memory.messages import LeftBehind
from hybrid_memory.sqlite.binding import UNBOUND, Binding, read_binding
from hybrid_memory.sqlite.failures import refused
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.peek import has_tables, is_unborn, peeked
from hybrid_memory.sqlite.readable import check_readable
from hybrid_memory.sqlite.slots import Slot, existing_slots, slot_path, try_slot
from hybrid_memory.sqlite.syncing import log_path

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
    left: LeftBehind | None = None
    binding: Binding = UNBOUND
    refusal: HybridMemoryError | None = None


class SqliteOrphans:
    """`Orphans` among the slots of a data directory, all but our own."""

    def __init__(self, data_dir: Path, *, own: HotFile, open_file: Callable[[Slot], Awaitable[HotFile]]) -> None:
        self._data_dir = data_dir
        self._own = own
        self._driver = own.database.driver
        self._open_file = open_file
        self._known: dict[int, _Known] = {}

    def slots(self) -> list[int]:
        """The other slots that have a file."""
        try:
            return [number for number in existing_slots(self._data_dir) if number != self._own.slot.number]
        except OSError as error:
            raise refused(error, "the data directory") from None

    async def look(self, slot: int) -> LeftBehind | None:
        """What a dead owner left queued for our database.

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
        # What is queued for another database is for whoever works with that one.
        return known.left if self._own.binding.is_of(known.binding) else None

    async def open(self, slot: int) -> HotFile | None:
        """Take the slot and open its file: a new opening, so a copy, or whoever held it before, is fenced."""
        taken = self._take(slot)
        if taken is None:
            return None
        try:
            file = await self._open_file(taken)
        except BaseException as error:
            # Also when cancelled: the lock would stay ours for as long as this process lives.
            if isinstance(error, _BEYOND_USE):
                # Before the lock is free: what changes from here on is somebody else's doing.
                self._known[slot] = _Known(_mark(taken.path), refusal=error)
            taken.release()
            raise
        try:
            await file.meet(self._own.binding)
        except BaseException:
            # Likewise: nobody else knows of the open file.
            await file.close()
            raise
        return file

    def _take(self, slot: int) -> Slot | None:
        try:
            return try_slot(self._data_dir, slot)
        except OSError as error:
            raise refused(error, "the data directory") from None

    def _find_out(self, slot: int) -> _Known | None:
        taken = self._take(slot)
        if taken is None:
            return None
        try:
            mark = _mark(taken.path)
            if mark.file is None or is_unborn(taken.path):
                return None
            try:
                return _Known(mark, *self._peek(taken.path))
            except _BEYOND_USE as refusal:
                return _Known(mark, refusal=refusal)
        finally:
            taken.release()

    def _peek(self, path: Path) -> tuple[LeftBehind | None, Binding]:
        try:
            with peeked(self._driver, path) as connection:
                return _read(connection)
        except StorageCorrupt:
            # What the disk would not give just now is no damage, and must be asked for again.
            check_readable(path)
        with peeked(self._driver, path) as connection:
            return _read(connection)


def _read(connection: sqlite3.Connection) -> tuple[LeftBehind | None, Binding]:
    if not has_tables(connection):
        return None, UNBOUND
    binding = read_binding(connection)
    users = connection.execute("select distinct user_id from outbox").fetchall()
    if not users:
        return None, binding
    (client_id,) = connection.execute("select value from meta where key = 'client_id'").fetchone()
    return LeftBehind(client_id=client_id, users=frozenset(user_id for (user_id,) in users)), binding


def _mark(path: Path) -> _Mark:
    return _Mark(file=_part(path), log=_part(log_path(path)))


def _part(path: Path) -> _Part | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return _Part(inode=seen.st_ino, size=seen.st_size, mtime_ns=seen.st_mtime_ns)
