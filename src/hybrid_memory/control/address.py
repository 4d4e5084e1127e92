"""Addresses of sockets: a path longer than the system takes is reached by a shorter way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the zero at the end included.
LONGEST_ADDRESS: Final = 100
_OPEN_FILES: Final = Path("/proc/self/fd")


@contextmanager
def short_address(path: Path) -> Generator[str]:
    """An address of the socket file `path` that fits, good for the length of the block. Raises `OSError`."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
    elif _OPEN_FILES.is_dir():
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"{_OPEN_FILES}/{folder}/{path.name}"
        finally:
            os.close(folder)
    else:
        way = Path(tempfile.mkdtemp(prefix="hm-"))
        try:
            (way / "d").symlink_to(path.parent.absolute(), target_is_directory=True)
            yield str(way / "d" / path.name)
        finally:
            shutil.rmtree(way, ignore_errors=True)
