"""What the operating system refuses in the data directory, as our errors: classed once, by the number it gives."""

from __future__ import annotations

import errno
from typing import Final

from hybrid_memory.errors import StorageFailed, StorageFull

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_OURS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def refused(error: OSError, what: str) -> StorageFull | StorageFailed:
    """Our error for what was refused to do with `what`; raise it `from None`."""
    if error.errno in _NO_ROOM:
        return StorageFull(f"no room for {what}", fix="free disk space or raise the quota")
    if error.errno in _NOT_OURS:
        fix = "run as the user whose directory it is, or set HYBRID_MEMORY_DATA_DIR to a writable directory"
    else:
        fix = "check the disk and the data directory"
    return StorageFailed(f"cannot use {what}: {error.strerror}", fix=fix)
