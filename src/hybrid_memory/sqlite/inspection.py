"""Looking at a hot-tier file before it is opened to be written, so that a damaged one stays as it was found."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from hybrid_memory.errors import StorageCorrupt
from hybrid_memory.sqlite.driver import Driver, configure_reader
from hybrid_memory.sqlite.peek import is_unborn
from hybrid_memory.sqlite.rows import is_sound
from hybrid_memory.sqlite.salvage import QUEUED
from hybrid_memory.sqlite.side_record import Noted

# "HMem" in ASCII: a file that says otherwise is not ours.
APPLICATION_ID: Final = 0x484D656D


class NotOurs(StorageCorrupt):
    """The file is sound as far as can be told, and of another program, or nothing says that it ever was ours."""


def inspect_file(path: Path, driver: Driver, noted: Noted | None) -> None:
    """Raise `StorageCorrupt` for a damaged file, `NotOurs` for somebody else's; nothing is changed.

    To be called before this process has the file open. `noted` is what its side record says: where that tells of an
    opening, an empty file is one that was cut to nothing, not a new one.
    """
    if not path.exists():
        raise StorageCorrupt("the local file is gone", fix="`hybrid-memory doctor` says what can be saved")
    if noted is None and is_unborn(path):
        return
    try:
        connection = driver.connect(path, read_only=True)
        try:
            # Only a connection that writes moves the log into the file when it is the last to close.
            configure_reader(connection)
            _inspect(connection, noted)
        finally:
            connection.close()
    except driver.errors as error:
        failure = _damage(error) or driver.translate(error)
        if isinstance(failure, StorageCorrupt) and noted is None and not has_our_name(path):
            raise NotOurs("the file is not a hot tier of hybrid_memory", fix="use another data directory") from None
        raise failure from None


def _damage(error: BaseException) -> StorageCorrupt | None:
    """What an error means that only the file's content can cause, as the statements are right."""
    # SQLITE_ERROR: a table is not there. None: Python could not read a text.
    if getattr(error, "sqlite_errorcode", None) in {None, 1}:
        return StorageCorrupt("the hot-tier file is damaged", fix="`hybrid-memory doctor` says what can be saved")
    return None


def _inspect(connection: sqlite3.Connection, noted: Noted | None) -> None:
    (application_id,) = connection.execute("pragma application_id").fetchone()
    (tables,) = connection.execute("select count(*) from sqlite_master").fetchone()
    if tables == 0 and application_id in {0, APPLICATION_ID}:
        if noted is not None:
            raise StorageCorrupt("the local file was emptied", fix="`hybrid-memory doctor` says what can be saved")
        return
    if application_id != APPLICATION_ID:
        raise NotOurs("the file is not a hot tier of hybrid_memory", fix="use another data directory")
    (known,) = connection.execute("select count(*) from sqlite_master where name in ('meta', 'outbox')").fetchone()
    if known and connection.execute("select value from meta where key = 'clean'").fetchone() != ("1",):
        _check_whole(connection)


def _check_whole(connection: sqlite3.Connection) -> None:
    # Costs 1 ms per MB, so only after an unclean stop.
    (verdict,) = connection.execute("pragma quick_check(1)").fetchone()
    # A flipped bit inside a row is no concern of SQLite's. What is only a copy can be loaded again; what is queued
    # would be sent.
    if verdict != "ok" or not all(map(is_sound, connection.execute(QUEUED))):
        raise StorageCorrupt("the hot-tier file is damaged", fix="`hybrid-memory doctor` says what can be saved")


def has_our_name(path: Path) -> bool:
    """Whether the header of a file that nobody has open names us."""
    with path.open("rb") as file:
        header = file.read(72)
    return header[68:72] == APPLICATION_ID.to_bytes(4, "big")
