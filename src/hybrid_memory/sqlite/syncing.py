"""What must be done to files beside SQLite's own work so that a power cut, or an fsync that failed, loses nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from hybrid_memory.errors import StorageFailed
from hybrid_memory.sqlite.failures import refused

_REWRITTEN_AT_ONCE: Final = 2**20


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last: a file that was synced can still lose its name. Raises `StorageFailed`."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # Some file systems know no such thing, and a parent of ours may be closed to us.
        if error.errno not in {errno.EINVAL, errno.EACCES}:
            raise refused(error, "the data directory") from None


def log_path(path: Path) -> Path:
    """Where SQLite keeps the write-ahead log of a file."""
    return path.with_name(f"{path.name}-wal")


def rewrite_log(path: Path) -> None:
    """Write what an unclean stop left in a file's log over itself, and sync it.

    After an fsync that failed the kernel may hold what never reached the disk, and take it for written: the next fsync
    passes over it, and with it everything committed behind it would be lost in a power cut. Must come before the first
    connection. Raises `StorageFull` or `StorageFailed`.
    """
    try:
        fd = os.open(log_path(path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(error, "the local file's log") from None
    try:
        at = 0
        while piece := os.pread(fd, _REWRITTEN_AT_ONCE, at):
            at += os.pwrite(fd, piece, at)
        os.fsync(fd)
    except OSError as error:
        raise refused(error, "the local file's log") from None
    finally:
        os.close(fd)


def sync_log(path: Path) -> None:
    """Make the length of a file's log last. SQLite holds no lock on the log, so it may be opened beside it.

    Raises `StorageFailed`, whatever the reason: after a sync that failed nothing is known.
    """
    try:
        fd = os.open(log_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageFailed(
            f"cannot sync the local file's log: {error.strerror}", fix="check the disk and the data directory"
        ) from None
