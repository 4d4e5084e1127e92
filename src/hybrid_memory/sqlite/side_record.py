"""The last queue number given out, told also outside the hot-tier file: damage to the log is otherwise silent.

A frame of the log that does not fit its checksum ends the log for SQLite, and what was committed behind it is gone
without a word. So each commit is also noted here, after its fsync: a file that knows fewer numbers than its side
record has lost some. The note itself costs no system call and no fsync. It survives the death of the process; of a
power cut it may be behind, never ahead.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybrid_memory.sqlite.failures import refused

# Client, number of the opening, last queue number, and a checksum over them.
_NOTE: Final = struct.Struct("<16sQQ")
_CHECK: Final = struct.Struct("<I")
_SIZE: Final = _NOTE.size + _CHECK.size
# Written in turn: of a note that was torn the one before is left.
_TURNS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What the side record says of the file beside it."""

    client_id: str
    open_number: int
    last_seq: int


def side_record_path(database: Path) -> Path:
    """Where the record of a file lies."""
    return database.with_suffix(".last")


def read_side_record(database: Path) -> Noted | None:
    """The newest note that is whole; None where there is none. Raises `StorageFailed`."""
    try:
        with side_record_path(database).open("rb") as file:
            content = file.read(_TURNS * _SIZE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(error, "the record beside the local file") from None
    notes = [note for turn in range(_TURNS) if (note := _parsed(content[turn * _SIZE : (turn + 1) * _SIZE]))]
    return max(notes, key=lambda note: (note.open_number, note.last_seq), default=None)


def _parsed(content: bytes) -> Noted | None:
    if len(content) != _SIZE or _CHECK.unpack(content[_NOTE.size :]) != (zlib.crc32(content[: _NOTE.size]),):
        return None
    client, number, last_seq = _NOTE.unpack(content[: _NOTE.size])
    if number == 0:
        return None  # never written
    return Noted(client_id=str(uuid.UUID(bytes=client)), open_number=number, last_seq=last_seq)


class SideRecord:
    """The record of a file that is open, kept by whoever writes the file."""

    def __init__(self, database: Path, noted: Noted) -> None:
        """Make the record if needed and note where the file stands, on the disk. Raises `StorageFailed` and its kin."""
        self._client = uuid.UUID(noted.client_id).bytes
        self._number = noted.open_number
        self._turn = 0
        self._open = True
        path = side_record_path(database)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < _TURNS * _SIZE:
                    # Written and not only extended: a hole would have to find room later, when it is too late to fail.
                    written = os.pwrite(fd, bytes(_TURNS * _SIZE), 0)
                    if written < _TURNS * _SIZE:
                        # Half of it, and no reason given: beyond its end the memory could not be touched.
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._notes = mmap.mmap(fd, _TURNS * _SIZE)
                self.note(noted.last_seq)
                self.note(noted.last_seq)
                self._notes.flush()
            finally:
                os.close(fd)
        except OSError as error:
            raise refused(error, "the record beside the local file") from None

    def note(self, last_seq: int) -> None:
        """Note the last number that is committed, and fsynced, in the file."""
        note = _NOTE.pack(self._client, self._number, last_seq)
        start = self._turn * _SIZE
        self._notes[start : start + _SIZE] = note + _CHECK.pack(zlib.crc32(note))
        self._turn = (self._turn + 1) % _TURNS

    def close(self) -> None:
        """Nothing more is noted."""
        if self._open:
            self._open = False
            self._notes.close()
