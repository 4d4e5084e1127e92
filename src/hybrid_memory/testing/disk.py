"""A disk that fails when it is told to, and writes down what it was told: for a process to be tested, on Linux."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources
from pathlib import Path
from typing import ClassVar, Final, Self

from hybrid_memory.errors import HybridMemoryError

_COMPILERS: Final = ("cc", "gcc", "clang")
_COMPILE_SECONDS: Final = 60
_FOR_EVER: Final = 2**63

# `struct control` of faultdisk.c.
_BEGINS: Final = 0x31304B5349444D48
_FAULT: Final = struct.Struct("=QQQQQ32s")
_NUMBER: Final = struct.Struct("=Q")
_ARMED_AT: Final = 8
_FAULT_AT: Final = 16
_MATCHED_AT: Final = _FAULT_AT + _FAULT.size
_STRUCK_AT: Final = _MATCHED_AT + 8
_UNLOGGED_AT: Final = _MATCHED_AT + 24
_COUNTS_AT: Final = _MATCHED_AT + 32
_HALF_FIRST: Final = 1
_GROWING_ONLY: Final = 2


class ShimUnusable(HybridMemoryError):
    """The library that makes a disk fail could not be made here: no C compiler, or not Linux."""

    code: ClassVar[str] = "shim_unusable"


class Call(IntEnum):
    """What a process asks of its disk, by the numbers of faultdisk.c."""

    OPEN = 0
    READ = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    """fsync and fdatasync, of files and of directories."""
    UNLINK = 5
    RENAME = 6
    MKDIR = 7
    RMDIR = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFault:
    """Which calls fail, and how.

    Of the `calls` on files whose path ends in `suffix`, counted from when the fault is armed, the `nth` fails with
    `error` (an errno), and those after it, `times` in all (None: for ever). With `half_first` the nth, if it is a
    write, writes half its bytes and says so, and it is the calls after it that fail: `times` of them. `growing_only`
    leaves out what needs no room: then only opens that create and writes beyond the end of a file count, as on a full
    disk.
    """

    error: int = errno.EIO
    calls: frozenset[Call] = frozenset(Call)
    suffix: str = ""
    nth: int = 1
    times: int | None = 1
    half_first: bool = False
    growing_only: bool = False


FULL: Final = DiskFault(
    error=errno.ENOSPC, calls=frozenset({Call.OPEN, Call.WRITE, Call.MKDIR}), times=None, growing_only=True
)
"""No room on the disk: nothing new, nothing that grows; what has its place can be written over."""


class FaultDisk:
    """What lies below one directory, as the processes see it that are started with `environment`.

    `root` is made if needed; everything below it is affected, in those processes only. The library is compiled (with
    the system's C compiler, once for each folder) into `folder`, which must not lie below `root`; there lie also the
    file by which the processes are switched, and the log. Raises `ShimUnusable`. Close it, or use it as a context.
    """

    def __init__(self, root: Path, *, folder: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        """The directory without symbolic links: name it so to the process, or its calls are not recognised."""
        self.log = folder / "disk.log"
        """Where recording processes append what they tell the disk; see `power.read_log`."""
        self._library = compile_shim(folder)
        self._control_path = folder / "disk.control"
        self._control_path.write_bytes(_NUMBER.pack(_BEGINS) + bytes(_COUNTS_AT + 8 * len(Call) - 8))
        with self._control_path.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(self, *, records: bool = False, marks_fd: int | None = None) -> Mapping[str, str]:
        """What to add to the environment of a process that is to have this disk.

        With `records` it logs what it tells the disk; what it writes to the descriptor `marks_fd` then stands in the
        log too, in order, as marks. Record one process at a time.
        """
        added = {
            "LD_PRELOAD": str(self._library),
            "HYBRID_MEMORY_DISK_ROOT": str(self.root),
            "HYBRID_MEMORY_DISK_CONTROL": str(self._control_path),
        }
        if records:
            added["HYBRID_MEMORY_DISK_LOG"] = str(self.log)
            added["HYBRID_MEMORY_DISK_MARKS"] = "" if marks_fd is None else str(marks_fd)
        return added

    def arm(self, fault: DiskFault) -> None:
        """Have calls fail from now on, in processes that run too; counting begins anew."""
        self.disarm()
        times = _FOR_EVER if fault.times is None else fault.times + fault.half_first
        flags = _HALF_FIRST * fault.half_first | _GROWING_ONLY * fault.growing_only
        kinds = sum(1 << call for call in fault.calls)
        suffix = os.fsencode(fault.suffix)
        _FAULT.pack_into(self._control, _FAULT_AT, kinds, fault.nth, times, fault.error, flags, suffix)
        self._put(_MATCHED_AT, 0)
        self._put(_STRUCK_AT, 0)
        self._put(_ARMED_AT, 1)

    def disarm(self) -> None:
        """Let everything go well again."""
        self._put(_ARMED_AT, 0)

    @property
    def matched(self) -> int:
        """How many calls counted since the fault was armed."""
        return self._get(_MATCHED_AT)

    @property
    def struck(self) -> int:
        """How many of them failed."""
        return self._get(_STRUCK_AT)

    @property
    def unlogged(self) -> int:
        """How many changes could not be written down; a log is worth something only while this is 0."""
        return self._get(_UNLOGGED_AT)

    def count(self, call: Call) -> int:
        """How often a call was made since the disk was made."""
        return self._get(_COUNTS_AT + 8 * call)

    def close(self) -> None:
        """Let go of the control file; the processes are not affected."""
        self._control.close()

    def _get(self, at: int) -> int:
        (number,) = _NUMBER.unpack_from(self._control, at)
        return int(number)

    def _put(self, at: int, number: int) -> None:
        _NUMBER.pack_into(self._control, at, number)


def compile_shim(folder: Path) -> Path:
    """The library to preload, compiled into the folder if it is not there. Raises `ShimUnusable`."""
    if sys.platform != "linux":
        raise ShimUnusable("a disk can be made to fail on Linux only", fix="run these tests on Linux")
    source = resources.files(__package__ or "").joinpath("faultdisk.c").read_bytes()
    library = folder.resolve() / f"faultdisk-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise ShimUnusable("no C compiler was found", fix="install one: gcc and libc6-dev, or your system's like")
    unfinished = library.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, "-std=c11", "-O2", "-shared", "-fPIC", "-pthread", "-x", "c", "-", "-o", unfinished, "-ldl"],
        input=source,
        capture_output=True,
        timeout=_COMPILE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ShimUnusable(
            f"the C compiler failed: {said[0] if said else done.returncode}",
            fix="install libc6-dev, or your system's like",
        )
    unfinished.rename(library)
    return library
