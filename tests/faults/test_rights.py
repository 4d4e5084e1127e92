"""What is not ours to write, or lies where SQLite is not safe, is refused at once, and left as it is."""

from __future__ import annotations

import asyncio
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager, StorageFailed
from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.sqlite import disks
from hybrid_memory.testing.postgres import short_folder
from tests.support.images import FILE
from tests.support.managers import FACT

NOBODY = pwd.getpwnam("nobody")


async def make(data_dir: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=data_dir) as manager:
        await manager.store_persistent_memory("ada", {"text": "tea"}, FACT)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account can pass through."""
    with short_folder() as folder:
        yield folder


def give_away(data_dir: Path) -> None:
    """To the account that will open it: root may do what rights forbid."""
    for path in (data_dir, *data_dir.iterdir()):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)


def opened_by_a_plain_account(data_dir: Path) -> str:
    """What opening raised, as its class, its message and its fix; in a child, which alone gives up its rights."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = "the child failed"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY.pw_gid)
                os.setuid(NOBODY.pw_uid)
            told = asyncio.run(_opened(data_dir))
        finally:
            os.write(writing, told.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    return told


async def _opened(data_dir: Path) -> str:
    try:
        async with HybridMemoryManager.open(postgres="off", data_dir=data_dir):
            return "it opened"
    except HybridMemoryError as refused:
        return f"{type(refused).__name__}: {refused.message} -> {refused.fix}"


def close_directory(data_dir: Path) -> None:
    data_dir.chmod(0o500)
    (data_dir / "slot-00.lock").unlink()


def close_file(data_dir: Path) -> None:
    (data_dir / FILE).chmod(0o400)


def give_file_to_root(data_dir: Path) -> None:
    os.chown(data_dir / FILE, 0, 0)


def close_lock(data_dir: Path) -> None:
    (data_dir / "slot-00.lock").chmod(0o400)


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (close_directory, "cannot use the lock of a slot"),
        (close_lock, "cannot use the lock of a slot"),
        (close_file, "may not be read and written"),
        pytest.param(give_file_to_root, "belongs to another user", marks=ROOT_ONLY),
    ],
    ids=["read-only directory", "read-only lock", "read-only file", "another's file"],
)
def test_what_is_not_ours_to_write_is_refused_at_opening_with_what_to_do(
    folder: Path, spoil: Callable[[Path], None], says: str
) -> None:
    data_dir = folder / "data"
    asyncio.run(make(data_dir))
    before = (data_dir / FILE).read_bytes()
    if os.geteuid() == 0:
        give_away(data_dir)
    spoil(data_dir)
    told = opened_by_a_plain_account(data_dir)
    assert told.startswith("StorageFailed: ")
    assert says in told
    assert told.partition("-> ")[2]
    assert (data_dir / FILE).read_bytes() == before
    data_dir.chmod(0o700)


async def test_a_file_that_is_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    await make(tmp_path)
    (tmp_path / FILE).chmod(0o644)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        await manager.store_persistent_memory("ada", {"text": "milk"}, FACT)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {FILE, f"{FILE}-wal", "slot-00.lock", "slot-00.last"} <= modes.keys()


def _always(kind: str | None, _directory: Path) -> str | None:
    return kind


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
async def test_a_directory_on_the_network_is_refused_before_anything_is_made_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(disks, "file_system", partial(_always, kind))
    with pytest.raises(StorageFailed, match=kind) as refused:
        await make(tmp_path / "data")
    assert "local disk" in refused.value.fix
    assert list((tmp_path / "data").iterdir()) == []


async def test_a_layered_disk_or_one_that_nothing_is_known_of_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("overlay", "9p", "ext4", None):
        monkeypatch.setattr(disks, "file_system", partial(_always, kind))
        await make(tmp_path)
