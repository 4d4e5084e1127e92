"""What a kill -9 leaves of a data directory, and ways to damage a file in it that nobody has open."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.sqlite.salvage import PAGE_BYTES

FILE = "slot-00.db"


def image(data_dir: Path, to: Path) -> Path:
    """Copy a directory whose file is open. By another process: reading it here would cancel SQLite's locks."""
    subprocess.run(["cp", "-a", str(data_dir), str(to)], check=True)
    (to / "slot-00.sock").unlink(missing_ok=True)
    return to


def log_of(data_dir: Path) -> Path:
    return data_dir / f"{FILE}-wal"


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(content)


@contextmanager
def closed_file(data_dir: Path) -> Generator[sqlite3.Connection]:
    """A connection to the file of a directory that nobody has open."""
    connection = choose_driver().connect(data_dir / FILE)
    try:
        yield connection
    finally:
        connection.close()


def digest(data_dir: Path) -> dict[str, str]:
    """What a file and its log hold, by another process: the file may be open here."""
    names = [path.name for path in data_dir.iterdir() if path.name in {FILE, f"{FILE}-wal"}]
    told = subprocess.run(["sha256sum", *sorted(names)], cwd=data_dir, check=True, capture_output=True, text=True)
    return {line.split()[1]: line.split()[0] for line in told.stdout.splitlines()}


def files_with(data_dir: Path, content: bytes) -> list[str]:
    """The files of a directory that hold some bytes, found by another process."""
    told = subprocess.run(
        ["grep", "-rlaF", content.decode(), "."], cwd=data_dir, check=False, capture_output=True, text=True
    )
    return told.stdout.split()


def _middle(path: Path) -> int:
    return path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES


def ruin_header(data_dir: Path) -> None:
    overwrite(data_dir / FILE, 0, random.Random(1).randbytes(100))


def ruin_first_page(data_dir: Path) -> None:
    overwrite(data_dir / FILE, 0, random.Random(2).randbytes(PAGE_BYTES))


def cut_in_half(data_dir: Path) -> None:
    os.truncate(data_dir / FILE, _middle(data_dir / FILE))


def zero_the_middle(data_dir: Path) -> None:
    overwrite(data_dir / FILE, _middle(data_dir / FILE), bytes(4 * PAGE_BYTES))


def scramble_the_middle(data_dir: Path) -> None:
    overwrite(data_dir / FILE, _middle(data_dir / FILE), random.Random(3).randbytes(4 * PAGE_BYTES))


def empty(data_dir: Path) -> None:
    os.truncate(data_dir / FILE, 0)


def remove(data_dir: Path) -> None:
    (data_dir / FILE).unlink()


def flip_a_bit_of_the_log(data_dir: Path) -> None:
    log = log_of(data_dir)
    at = log.stat().st_size // 2
    with log.open("r+b") as raw:
        raw.seek(at)
        byte = raw.read(1)[0]
        raw.seek(at)
        raw.write(bytes([byte ^ 1]))


def remove_log(data_dir: Path) -> None:
    log_of(data_dir).unlink()


Damage = Callable[[Path], None]

OF_THE_FILE: tuple[Damage, ...] = (
    ruin_header,
    ruin_first_page,
    cut_in_half,
    zero_the_middle,
    scramble_the_middle,
    empty,
    remove,
)
OF_THE_LOG: tuple[Damage, ...] = (flip_a_bit_of_the_log, remove_log)
