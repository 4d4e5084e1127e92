"""The data directory: files of hot tiers (slots), each owned by the one process that holds its lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid_memory.errors import DataDirBusy
from hybrid_memory.sqlite.failures import refused
from hybrid_memory.sqlite.syncing import sync_directory

# More processes than this on one directory are refused; each holds a file and its cache of its own.
MAX_SLOTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A hot-tier file that this process owns for as long as `lock_fd` is open."""

    number: int
    path: Path
    lock_fd: int

    @property
    def socket_path(self) -> Path:
        """Where a running manager answers the command line."""
        return self.path.with_suffix(".sock")

    @property
    def lock_path(self) -> Path:
        """The file that is locked. A separate one: locking the database itself would break SQLite."""
        return self.path.with_suffix(".lock")

    def abandon(self) -> None:
        """In a forked child: hold the lock no longer, which stays the parent's until it dies."""
        os.close(self.lock_fd)

    def release(self) -> None:
        """Give the slot up. A lock that is free proves that its owner is gone."""
        os.close(self.lock_fd)


def prepare_directory(data_dir: Path) -> Path:
    """Make the directory if needed, closed to other users (0700), its name safe from a power cut.

    Raises `StorageFull` or `StorageFailed`.
    """
    made = [path for path in data_dir.parents if not path.exists()]
    try:
        data_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
        if data_dir.stat().st_mode & 0o077:
            data_dir.chmod(0o700)
    except OSError as error:
        raise refused(error, "the data directory") from None
    # Its own name always: whoever made it may have died before this.
    for parent in {data_dir.parent, *(path.parent for path in made)}:
        sync_directory(parent)
    return data_dir


def slot_path(data_dir: Path, number: int) -> Path:
    """The file of a slot."""
    return data_dir / f"slot-{number:02d}.db"


def existing_slots(data_dir: Path) -> list[int]:
    """The numbers of the slots that have a file; what somebody laid beside them under a similar name is none."""
    numbers = [path.stem.removeprefix("slot-") for path in data_dir.glob("slot-[0-9]*.db")]
    known = [int(number) for number in numbers if number.isascii() and number.isdecimal()]
    return sorted({number for number in known if slot_path(data_dir, number).exists()})


def try_slot(data_dir: Path, number: int) -> Slot | None:
    """Take one slot if its lock is free. The lock file is separate: locking the database itself would break SQLite.

    Raises `StorageFull` or `StorageFailed`.
    """
    path = slot_path(data_dir, number)
    try:
        fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise refused(error, "the lock of a slot") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {_boot_id()}\n".encode(), 0)
    except OSError as error:
        # On a full disk: kept open, it would lock the slot for as long as this process lives.
        os.close(fd)
        raise refused(error, "the lock of a slot") from None
    return Slot(number=number, path=path, lock_fd=fd)


def take_slot(data_dir: Path, *, suits: Callable[[Path], bool] = lambda _: True) -> Slot:
    """The first slot whose lock is free and whose file suits, or that has none.

    So a dead owner's file and queue are carried on by whoever comes next. Raises `DataDirBusy`.
    """
    for number in range(MAX_SLOTS):
        slot = try_slot(data_dir, number)
        if slot is None:
            continue
        if not slot.path.exists() or suits(slot.path):
            return slot
        slot.release()
    raise DataDirBusy(f"all {MAX_SLOTS} slots of the data directory are in use", fix="use another data directory")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "-"
