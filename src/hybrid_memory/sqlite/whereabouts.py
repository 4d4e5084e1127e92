"""By what a file that is open is known again on the disk: looked at from the outside, never opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from hybrid_memory.sqlite.syncing import log_path

_Identity: TypeAlias = "tuple[int, int]"


class Whereabouts:
    """The file, its log and its lock as they were when they were opened. Each is held open, so no number is reused."""

    def __init__(self, path: Path, lock_path: Path, lock_fd: int) -> None:
        self._known = {part: _identity(part) for part in (path, log_path(path))}
        # By the descriptor: the lock may have been taken on a file that somebody had replaced by then.
        held = os.fstat(lock_fd)
        self._known[lock_path] = (held.st_dev, held.st_ino)

    def displaced(self) -> str | None:
        """The name of a part that is not what it was, None while all are."""
        return next((part.name for part, known in self._known.items() if _identity(part) != known), None)


def _identity(path: Path) -> _Identity | None:
    try:
        seen = path.stat(follow_symlinks=False)
    except OSError:
        # Whatever keeps us from seeing it: it cannot be told to be in its place.
        return None
    return (seen.st_dev, seen.st_ino)
