"""What kind of disk the data directory is on, and whether the local file is ours to write."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybrid_memory.errors import StorageFailed
from hybrid_memory.sqlite.failures import refused

# SQLite's write-ahead log needs memory that all its users share, and locks that hold: neither is had over a network.
NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "fuse.sshfs"}
)
# Somebody else's promises about fsync and locks: a layer over another file system, a program, or the host of a sandbox.
UNSURE: Final = frozenset({"overlay", "virtiofs", "9p", "fuse", "fuseblk"})
_OTHERS: Final = 0o077


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    point: Path
    kind: str


def file_system(directory: Path) -> str | None:
    """The kind of file system a directory is on, as the kernel names it; None where it does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    real = directory.resolve()
    holding = [mount for mount in map(_mount, lines) if mount.point == real or mount.point in real.parents]
    # Of two at the same point the later one hides the earlier.
    nearest = max(enumerate(holding), key=lambda one: (len(one[1].point.parts), one[0]), default=None)
    return None if nearest is None else nearest[1].kind


def _mount(line: str) -> _Mount:
    # Fields: id, parent, device, root, mount point, options, any number of others, "-", type, source, options. Blanks
    # in names are written as octal codes.
    before, _, after = line.partition(" - ")
    point = before.split(" ")[4].encode().decode("unicode_escape")
    return _Mount(point=Path(point), kind=after.split(" ")[0])


def check_disk(directory: Path) -> Path:
    """The directory, if SQLite is safe where it is. Raises `StorageFailed` for one that is reached over a network."""
    kind = file_system(directory)
    if kind in NETWORK:
        raise StorageFailed(
            f"the data directory is on {kind}, which is reached over a network: SQLite is not safe on it",
            fix="set HYBRID_MEMORY_DATA_DIR to a directory on a local disk",
        )
    return directory


def check_rights(path: Path) -> None:
    """Raise `StorageFailed` for a file that is not ours to read and write, and close one that is open to others.

    SQLite would open a file that it may not write for reading, and fail at the first change.
    """
    try:
        seen = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(error, "the local file") from None
    if seen.st_uid != os.geteuid():
        raise StorageFailed("the local file belongs to another user", fix="run as its owner, or name another directory")
    if not os.access(path, os.R_OK | os.W_OK):
        raise StorageFailed("the local file may not be read and written", fix=f"chmod 600 {path}")
    if seen.st_mode & _OTHERS:
        path.chmod(0o600)
