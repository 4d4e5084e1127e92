"""A look into a file that nobody has open, under its slot's lock: nothing in it or beside it changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hybrid_memory.sqlite.driver import Driver, configure_reader
from hybrid_memory.sqlite.syncing import log_path


@contextmanager
def peeked(driver: Driver, path: Path) -> Generator[sqlite3.Connection]:
    """A connection for the length of the block. Raises `StorageFailed` and its kin.

    Through SQLite, for plain reads would cancel its locks, and read-only, for nothing may change where nothing is to
    be done. After a clean end there is no log; an ordinary read-only connection would make one and could not remove
    it. But under the slot's lock the file keeps still and can be read without. After a kill -9 the log is there, is
    read along, and stays.
    """
    try:
        connection = driver.connect(path, read_only=True, still=not _has_log(path))
        try:
            configure_reader(connection)
            yield connection
        finally:
            connection.close()
    except driver.errors as error:
        raise driver.translate(error) from None


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the file's maker lived to make them."""
    (tables,) = connection.execute(
        "select count(*) from sqlite_master where type = 'table' and name in ('outbox', 'meta')"
    ).fetchone()
    return bool(tables)


def is_unborn(path: Path) -> bool:
    """Whether its maker died while it made the file: before all else that switches from a journal to a log.

    Nothing was ever in it, and only who writes can undo what the journal tells of.
    """
    return path.with_name(f"{path.name}-journal").exists()


def _has_log(path: Path) -> bool:
    try:
        return log_path(path).stat().st_size > 0
    except OSError:
        return False
