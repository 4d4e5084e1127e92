"""Watches that the local file on the disk is still the one that is open, and that somebody is there to write it."""

from __future__ import annotations

from typing import Final

from hybrid_memory.errors import HybridMemoryError, StorageReplaced
from hybrid_memory.events import FileDisplaced, Sink
from hybrid_memory.files import OwnFile

# Twice this stays well below the five seconds after which nothing more may be acknowledged; a look costs three stats.
LOOK_SECONDS: Final = 2.0


class Sentinel:
    """Looks now and then; once the file is not where it was, nothing more is written to it. Reads go on.

    What is written to a file that somebody deleted or replaced is gone with the process, and SQLite says nothing.
    """

    name = "sentinel"

    def __init__(self, file: OwnFile, events: Sink) -> None:
        self._file = file
        self._events = events

    async def run_once(self) -> float | None:
        """Look once."""
        self._file.check_thread()
        part = self._file.displaced()
        if part is None:
            return LOOK_SECONDS
        self._file.give_up(
            StorageReplaced(
                f"the local file was moved, replaced or deleted while it was open ({part})",
                fix="stop what touches the data directory, then start this process again",
            )
        )
        self._events.emit(FileDisplaced(part=part))
        return None

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - the next look tells
        """Seconds to the next look."""
        return LOOK_SECONDS
