"""Opening a slot's file in whatever state it is: of a damaged one is saved what nobody else has."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.clock import Clock, IdSource, from_us
from hybrid_memory.errors import StorageCorrupt
from hybrid_memory.events import FileQuarantined
from hybrid_memory.payloads import carried_node, carried_relationship
from hybrid_memory.sqlite.accepting import QueueBounds
from hybrid_memory.sqlite.disks import check_rights
from hybrid_memory.sqlite.driver import Driver, choose_driver, configure_writer
from hybrid_memory.sqlite.failures import refused
from hybrid_memory.sqlite.hot_file import HotFile, make_ours
from hybrid_memory.sqlite.inspection import NotOurs
from hybrid_memory.sqlite.quarantine import Quarantine, Report, begin, unfinished
from hybrid_memory.sqlite.readable import check_readable
from hybrid_memory.sqlite.rows import put_node, put_relationship, queue_entry
from hybrid_memory.sqlite.salvage import PAGE_BYTES, Salvaged, read_damaged
from hybrid_memory.sqlite.side_record import read_side_record
from hybrid_memory.sqlite.slots import Slot

# By table, in the order in which `SCRATCH` has them read.
_FILLINGS: Final = {
    "threads": "insert or ignore into threads (thread_id, last_used_at) values (?, ?)",
    "transient": "insert or ignore into transient (thread_id, node_id, context_type, content, created_at, expires_at)"
    " values (?, ?, ?, ?, ?, ?)",
    "checkpoints": "insert or ignore into checkpoints (thread_id, checkpoint_id, parent_id, state, created_at)"
    " values (?, ?, ?, ?, ?)",
    "erasures": "insert or ignore into erasures (user_id, erased_rev, erased_at, in_doubt) values (?, ?, ?, ?)",
}


async def open_whole(
    slot: Slot, *, clock: Clock, ids: IdSource, bounds: QueueBounds, index_bytes: int, place: str | None = None
) -> HotFile:
    """Open the slot's file. A damaged one is replaced by a new one that holds what could be saved; `findings` says so.

    What was queued stays queued under its numbers and its client, so that Postgres knows what it has of it; all that
    is only a copy of what Postgres has is loaded again when it is asked for. Raises `StorageCorrupt` for a file that is
    not ours, `StorageFailed` and its kin, `SchemaMismatch`.
    """
    opened = partial(HotFile.open, slot, clock=clock, ids=ids, bounds=bounds, index_bytes=index_bytes, place=place)
    data_dir = slot.path.parent
    check_rights(slot.path)
    try:
        interrupted = unfinished(data_dir, slot.number)
        if interrupted is None:
            file = await _opened_unless_damaged(opened, slot.path)
            if file is not None:
                return file
            interrupted = begin(data_dir, slot.number, from_us(clock.now_us()))
        report = await asyncio.to_thread(mend, interrupted, slot.path, choose_driver(), clock)
    except OSError as error:
        raise refused(error, "the data directory") from None
    file = await opened()
    file.findings.append(
        FileQuarantined(
            folder=str(interrupted.folder.relative_to(data_dir)),
            salvaged=report.operations,
            dead_letters=report.dead_letters,
            unaccounted=report.unaccounted,
        )
    )
    return file


async def _opened_unless_damaged(opened: Callable[[], Awaitable[HotFile]], path: Path) -> HotFile | None:
    """The open file; None only where it was read without fail, and was found damaged once more after that.

    A sound file on a disk that fails is to be left alone: set aside, it would lose what cannot be read just now.
    """
    try:
        return await opened()
    except NotOurs:
        raise
    except StorageCorrupt:
        await asyncio.to_thread(check_readable, path)
    try:
        return await opened()
    except NotOurs:
        raise
    except StorageCorrupt:
        return None


def mend(quarantine: Quarantine, path: Path, driver: Driver, clock: Clock) -> Report:
    """Set a slot's file aside and put a new one in its place, from whichever step an earlier try came to."""
    report = quarantine.report
    if report is None:
        quarantine.take_in(path)
        check_readable(quarantine.damaged)
        for part in ("-shm", "-wal", ""):
            # What an earlier try had come to.
            quarantine.mended.with_name(quarantine.mended.name + part).unlink(missing_ok=True)
        salvaged = _replace(quarantine, path, driver, clock)
        report = Report(
            operations=len(salvaged.operations),
            dead_letters=len(salvaged.dead_letters),
            transient=len(salvaged.scratch.get("transient", ())),
            checkpoints=len(salvaged.scratch.get("checkpoints", ())),
            unaccounted=tuple(salvaged.unaccounted),
        )
        quarantine.conclude(report)
    quarantine.hand_over(path)
    return report


def _replace(quarantine: Quarantine, path: Path, driver: Driver, clock: Clock) -> Salvaged:
    try:
        return _made_new(quarantine, path, driver, clock)
    except driver.errors as error:
        # Of the new file: a full disk. The next opening tries again.
        raise driver.translate(error) from None


def _made_new(quarantine: Quarantine, path: Path, driver: Driver, clock: Clock) -> Salvaged:
    with closing(driver.connect(quarantine.mended, create=True)) as connection:
        configure_writer(connection)
        make_ours(connection)
    # Read now that nobody has it open.
    first_page = quarantine.mended.read_bytes()[:PAGE_BYTES]
    salvaged = read_damaged(quarantine.damaged, driver, read_side_record(path), first_page=first_page)
    # The close moves the log into the file, fsyncs it and removes the log.
    with closing(driver.connect(quarantine.mended)) as connection:
        configure_writer(connection)
        connection.execute("begin immediate")
        _fill(connection, salvaged, clock.now_us())
        connection.execute("commit")
    return salvaged


def _fill(connection: sqlite3.Connection, salvaged: Salvaged, now_us: int) -> None:
    meta = salvaged.meta | {"last_seq": str(salvaged.last_seq), "clean": "1"}
    connection.executemany("insert into meta (key, value) values (?, ?)", list(meta.items()))
    connection.executemany(
        "insert or ignore into outbox"
        " (seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at, checksum)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        list(map(queue_entry, salvaged.operations)),
    )
    connection.executemany(
        "insert or ignore into dead_letters"
        " (seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at, checksum,"
        " died_at, sqlstate, reason)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        salvaged.dead_letters,
    )
    for table, rows in salvaged.scratch.items():
        connection.executemany(_FILLINGS[table], rows)
    _show(connection, salvaged.operations, now_us)


def _show(connection: sqlite3.Connection, operations: list[Operation], now_us: int) -> None:
    """Make what is queued readable, for each operation carries its whole row; the rest of a user is loaded later."""
    places: dict[str, int] = {}
    for row_id, one in enumerate(operations, start=1):
        if one.kind is Kind.ERASE:
            continue
        user_no = places.setdefault(one.user_id, len(places) + 1)
        rev = max(one.base, 0)
        if one.kind is Kind.NODE:
            put_node(connection, user_no, row_id, carried_node(one.payload).row._replace(rev=rev))
        else:
            put_relationship(connection, user_no, row_id, carried_relationship(one.payload)[0]._replace(rev=rev))
    connection.executemany(
        "insert into users (user_id, user_no, last_used_at) values (?, ?, ?)",
        [(user_id, user_no, now_us) for user_id, user_no in places.items()],
    )
