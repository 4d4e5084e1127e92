"""Telling a disk that does not give what it holds from a damaged file: SQLite calls both damage, and says no more."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, TypeVar

from hybrid_memory.errors import HybridMemoryError, StorageCorrupt, StorageFailed
from hybrid_memory.sqlite.driver import Driver, configure_reader
from hybrid_memory.sqlite.syncing import log_path

T = TypeVar("T")

_PIECE: Final = 2**20
# The descriptors of this process, on Linux and on macOS.
_DESCRIPTORS: Final = Path("/dev/fd")


def check_readable(path: Path) -> None:
    """Raise `StorageFailed` if the disk does not give every byte of a file that nobody has open, and of its log."""
    try:
        for part in (path, log_path(path)):
            _read_closed(part)
    except OSError as error:
        raise _unreadable(error) from None


def check_open(path: Path) -> None:
    """The same of a file that this process has open: it is read by SQLite's own descriptor.

    One opened beside it would, when it is closed, cancel SQLite's locks. On the log there are none.
    """
    try:
        fd = _descriptor(path)
        at = 0
        while fd is not None and (piece := os.pread(fd, _PIECE, at)):
            at += len(piece)
        _read_closed(log_path(path))
    except OSError as error:
        raise _unreadable(error) from None


def read_again(error: BaseException, read: Callable[[], T], path: Path, driver: Driver) -> T:
    """What a read gives when it is tried once more that met a failing disk, or what SQLite calls damage.

    Raises `StorageCorrupt` if all of the open file could be read meanwhile and it was found damaged once more; else
    `StorageFailed` and its kin.
    """
    if not driver.disk_failed(error):
        raise driver.translate(error) from None
    if isinstance(driver.translate(error), StorageCorrupt):
        check_open(path)
    try:
        return read()
    except driver.errors as again:
        raise driver.translate(again) from None


def judged(error: BaseException, path: Path, driver: Driver) -> HybridMemoryError:
    """Our error for one that ended the writing of an open file: damage only where a second look finds it too."""
    failure = driver.translate(error)
    if not isinstance(failure, StorageCorrupt):
        return failure
    try:
        check_open(path)
    except StorageFailed as unreadable:
        return unreadable
    if _is_damaged(path, driver):
        return failure
    return StorageFailed("the disk failed to give a page, and gave it later", fix="check the disk")


def _is_damaged(path: Path, driver: Driver) -> bool:
    try:
        with closing(driver.connect(path, read_only=True)) as connection:
            configure_reader(connection)
            return bool(connection.execute("pragma quick_check(1)").fetchone() != ("ok",))
    except driver.errors as error:
        return isinstance(driver.translate(error), StorageCorrupt)


def _read_closed(part: Path) -> None:
    with suppress(FileNotFoundError), part.open("rb", buffering=0) as file:
        while file.read(_PIECE):
            pass


def _descriptor(path: Path) -> int | None:
    """A descriptor of this process for a file; None where that cannot be told."""
    try:
        wanted = path.stat()
        numbers = [int(entry.name) for entry in _DESCRIPTORS.iterdir()]
    except FileNotFoundError:
        return None
    for fd in numbers:
        # The one by which they were listed is closed by now.
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), wanted):
                return fd
    return None


def _unreadable(error: OSError) -> StorageFailed:
    return StorageFailed(
        f"the disk cannot be read: {error.strerror}",
        fix="check the disk; the local file was left as it is, for when it can be read again",
    )
