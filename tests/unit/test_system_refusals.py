"""What the operating system refuses in the data directory comes out as one of our errors, with what to do."""

from __future__ import annotations

import errno
import os

import pytest

from hybrid_memory.errors import HybridMemoryError, StorageFailed, StorageFull
from hybrid_memory.sqlite.failures import refused


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [
        (errno.ENOSPC, StorageFull, "free disk space"),
        (errno.EDQUOT, StorageFull, "free disk space"),
        (errno.EACCES, StorageFailed, "run as the user"),
        (errno.EPERM, StorageFailed, "run as the user"),
        (errno.EROFS, StorageFailed, "a writable directory"),
        (errno.EIO, StorageFailed, "check the disk"),
    ],
    ids=str,
)
def test_each_number_has_its_error_and_its_fix(number: int, kind: type[HybridMemoryError], fix: str) -> None:
    error = refused(OSError(number, os.strerror(number)), "the local file")
    assert type(error) is kind
    assert "the local file" in error.message
    assert fix in error.fix
