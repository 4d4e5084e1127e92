"""The disk that fails when it is told to, by itself: whose calls it touches, which of them fail, what it records."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_memory.testing.disk import FULL, Call, DiskFault, FaultDisk, ShimUnusable, compile_shim
from hybrid_memory.testing.power import read_log

# Does each line of the script and says by which error number it failed, 0 for none.
CHILD = """
import os, sys, json
ends = []
for line in json.loads(sys.argv[1]):
    try:
        exec(line)
        ends.append(0)
    except OSError as error:
        ends.append(error.errno)
print(json.dumps(ends))
"""
OPENED = "fd = os.open('a', os.O_RDWR | os.O_CREAT)"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultDisk]:
    with FaultDisk(tmp_path / "root", folder=tmp_path / "shim") as made:
        yield made


def run(disk: FaultDisk, *lines: str, cwd: Path | None = None, records: bool = False) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(lines)],
        cwd=cwd or disk.root,
        env={**os.environ, **disk.environment(records=records, marks_fd=1)},
        stdout=subprocess.PIPE,
        check=True,
    )
    ends: list[int] = json.loads(done.stdout.splitlines()[-1])
    return ends


def test_only_calls_on_what_lies_below_the_root_fail(disk: FaultDisk, tmp_path: Path) -> None:
    disk.arm(DiskFault(times=None))
    assert run(disk, "open('outside', 'w').write('x')", cwd=tmp_path) == [0]
    assert (tmp_path / "outside").read_text() == "x"
    assert run(disk, "open('inside', 'w')", f"open({str(disk.root / 'inside')!r}, 'w')") == [errno.EIO] * 2
    beside = disk.root.with_name("root-beside")
    beside.mkdir()
    assert run(disk, "open('a', 'w')", cwd=beside) == [0]


def test_the_nth_call_fails_and_none_before_or_after(disk: FaultDisk) -> None:
    disk.arm(DiskFault(calls=frozenset({Call.WRITE}), nth=2, error=errno.ENOSPC))
    assert run(disk, OPENED, *["os.write(fd, b'tea')"] * 3) == [0, 0, errno.ENOSPC, 0]
    assert (disk.root / "a").read_bytes() == b"teatea"
    assert (disk.matched, disk.struck) == (3, 1)


def test_every_call_can_fail(disk: FaultDisk) -> None:
    calls = {
        Call.OPEN: "os.open('b', os.O_RDWR | os.O_CREAT)",
        Call.READ: "os.read(fd, 1)",
        Call.WRITE: "os.pwrite(fd, b'x', 0)",
        Call.TRUNCATE: "os.ftruncate(fd, 0)",
        Call.SYNC: "os.fdatasync(fd)",
        Call.RENAME: "os.rename('a', 'c')",
        Call.UNLINK: "os.unlink('a')",
        Call.MKDIR: "os.mkdir('d')",
        Call.RMDIR: "os.rmdir('d')",
    }
    assert calls.keys() == set(Call)
    for call, line in calls.items():
        disk.arm(DiskFault(calls=frozenset({call}), nth=2 if call is Call.OPEN else 1))
        assert run(disk, OPENED, line) == [0, errno.EIO], call
        assert disk.struck == 1
    assert {path.name for path in disk.root.iterdir()} == {"a"}


def test_only_files_of_the_name_given_fail(disk: FaultDisk) -> None:
    disk.arm(DiskFault(calls=frozenset({Call.WRITE}), suffix="-wal", times=None))
    lines = ["open('a.db', 'wb', 0).write(b'x')", "open('a.db-wal', 'wb', 0).write(b'x')"]
    assert run(disk, *lines) == [0, errno.EIO]


def test_a_write_cut_short_writes_half_and_the_next_fails(disk: FaultDisk) -> None:
    disk.arm(DiskFault(calls=frozenset({Call.WRITE}), half_first=True))
    assert run(disk, OPENED, *["os.write(fd, b'tea!')"] * 3) == [0, 0, errno.EIO, 0]
    assert (disk.root / "a").read_bytes() == b"tetea!"


def test_on_a_full_disk_what_has_its_place_can_be_written_over(disk: FaultDisk) -> None:
    (disk.root / "a").write_bytes(b"milk")
    disk.arm(FULL)
    lines = [OPENED, "os.pwrite(fd, b'tea!', 0)", "os.pwrite(fd, b'more', 1)", "open('b', 'w')", "os.unlink('a')"]
    assert run(disk, *lines) == [0, 0, errno.ENOSPC, errno.ENOSPC, 0]


def test_what_a_process_tells_its_disk_and_says_stands_in_the_log_in_order(disk: FaultDisk) -> None:
    ends = run(
        disk,
        OPENED,
        "os.write(fd, b'tea')",
        "os.write(1, b'written\\n')",
        "os.pwrite(fd, b'T', 0)",
        "os.fsync(fd)",
        "os.write(1, b'synced\\n')",
        "os.ftruncate(fd, 1)",
        "os.mkdir('in')",
        "os.rename('a', 'in/b')",
        "os.unlink('in/b')",
        "open('a-shm', 'w').write('nothing that lasts')",
        records=True,
    )
    assert set(ends) == {0}
    assert disk.unlogged == 0
    lines = read_log(disk.log)
    root = str(disk.root)
    lines = [line for line in lines if not line.data.startswith((b"[", b"\n"))]  # how the child ended
    assert [(line.call, line.at, line.data) for line in lines] == [
        (Call.OPEN, 0, f"{root}/a".encode()),
        (Call.WRITE, 0, b"tea"),
        (None, 0, b"written\n"),
        (Call.WRITE, 0, b"T"),
        (Call.SYNC, 0, b""),
        (None, 0, b"synced\n"),
        (Call.TRUNCATE, 1, b""),
        (Call.MKDIR, 0, f"{root}/in".encode()),
        (Call.RENAME, 0, f"{root}/a\0{root}/in/b".encode()),
        (Call.UNLINK, 0, f"{root}/in/b".encode()),
    ]


def test_without_a_compiler_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(shutil, "which", nothing)
    with pytest.raises(ShimUnusable) as refused:
        compile_shim(tmp_path)
    assert "gcc" in refused.value.fix
