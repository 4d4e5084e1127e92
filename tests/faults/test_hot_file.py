"""Opening the local file: its own, whole, private and one process's; anything else is refused and left alone."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.errors import DataDirBusy, SchemaMismatch, StorageCorrupt, StorageFailed, StorageFull
from hybrid_memory.messages import Opening
from hybrid_memory.sqlite import hot_file as opening
from hybrid_memory.sqlite import inspection
from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.sqlite.inspection import APPLICATION_ID
from hybrid_memory.sqlite.slots import existing_slots, prepare_directory, take_slot, try_slot
from tests.support.hot_files import count, fresh, hot_file

PAGE = 4096


@contextmanager
def closed_file(data_dir: Path) -> Generator[sqlite3.Connection]:
    """A connection to the file of a directory that nobody has open."""
    connection = choose_driver().connect(data_dir / "slot-00.db")
    try:
        yield connection
    finally:
        connection.close()


async def make(data_dir: Path, nodes: int = 3) -> None:
    async with hot_file(data_dir) as file:
        for number in range(nodes):
            await file.outbox.accept_node("ada", fresh(str(number)))


def leave_unclean(data_dir: Path) -> None:
    with closed_file(data_dir) as connection:
        connection.execute("update meta set value = '0' where key = 'clean'")


async def test_the_file_its_log_and_its_directory_are_closed_to_others(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    mask = os.umask(0o022)
    try:
        async with hot_file(data_dir) as file:
            await file.outbox.accept_node("ada", fresh())
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data_dir.iterdir()}
    finally:
        os.umask(mask)
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert {"slot-00.db", "slot-00.db-wal", "slot-00.lock"} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_a_directory_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    await make(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


async def test_a_slot_that_is_held_is_refused_to_everybody_else(tmp_path: Path) -> None:
    async with hot_file(tmp_path) as file:
        assert try_slot(tmp_path, 0) is None
        other = take_slot(tmp_path)
        assert (file.slot.number, other.number) == (0, 1)
        other.release()
        with pytest.raises(DataDirBusy):
            async with HybridMemoryManager.open(data_dir=tmp_path, postgres="off", slot=0):
                raise AssertionError
    free = try_slot(tmp_path, 0)
    assert free is not None
    free.release()


async def test_a_slot_asked_for_while_somebody_looks_at_it_is_had_a_moment_later(tmp_path: Path) -> None:
    looking = try_slot(prepare_directory(tmp_path), 0)
    assert looking is not None
    asyncio.get_running_loop().call_later(0.03, looking.release)
    async with HybridMemoryManager.open(data_dir=tmp_path, postgres="off", slot=0):
        assert try_slot(tmp_path, 0) is None


async def test_every_opening_has_a_higher_number_and_a_token_of_its_own_for_the_same_client(tmp_path: Path) -> None:
    openings: list[Opening] = []
    for _ in range(3):
        async with hot_file(tmp_path) as file:
            openings.append(file.opening)
    assert [one.number for one in openings] == [1, 2, 3]
    assert len({one.token for one in openings}) == 3
    assert len({one.client_id for one in openings}) == 1


async def test_the_file_is_checked_after_an_unclean_stop_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = 0
    whole: Callable[[sqlite3.Connection], None] = vars(inspection)["_check_whole"]

    def check(connection: sqlite3.Connection) -> None:
        nonlocal checks
        checks += 1
        whole(connection)

    monkeypatch.setattr(inspection, "_check_whole", check)
    await make(tmp_path)
    async with hot_file(tmp_path) as file:
        assert file.was_clean
    assert checks == 0
    leave_unclean(tmp_path)
    async with hot_file(tmp_path) as file:
        assert not file.was_clean
        assert file.outbox.state().entries == 3
    assert checks == 1


async def test_a_damaged_page_is_found_after_an_unclean_stop(tmp_path: Path) -> None:
    await make(tmp_path, nodes=200)
    leave_unclean(tmp_path)
    path = tmp_path / "slot-00.db"
    with path.open("r+b") as raw:  # nobody has it open
        raw.seek(PAGE * (path.stat().st_size // PAGE // 2))
        raw.write(os.urandom(PAGE * 4))
    with pytest.raises(StorageCorrupt):
        async with hot_file(tmp_path):
            raise AssertionError


@pytest.mark.parametrize(
    "content", [b"not a database, whatever its name says" * 200, b"SQLite format 3\0" + b"\xff" * 8192]
)
async def test_a_file_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path, content: bytes) -> None:
    path = prepare_directory(tmp_path) / "slot-00.db"
    path.write_bytes(content)
    with pytest.raises(StorageFailed):
        async with hot_file(tmp_path):
            raise AssertionError
    assert path.read_bytes() == content


async def test_the_database_of_another_program_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = prepare_directory(tmp_path) / "slot-00.db"
    path.touch()
    with closed_file(tmp_path) as connection:
        connection.execute("create table theirs (a)")
        connection.execute("insert into theirs values (1)")
    with pytest.raises(StorageCorrupt):
        async with hot_file(tmp_path):
            raise AssertionError
    with closed_file(tmp_path) as connection:
        tables = [row[0] for row in connection.execute("select name from sqlite_master").fetchall()]
    assert tables == ["theirs"]


@pytest.mark.parametrize("died_after", ["creating", "naming", "preparing"])
async def test_a_file_whose_maker_died_at_once_is_made_anew(tmp_path: Path, died_after: str) -> None:
    path = prepare_directory(tmp_path) / "slot-00.db"
    path.touch(0o600)
    if died_after != "creating":
        with closed_file(tmp_path) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute(f"pragma application_id = {APPLICATION_ID}")
            if died_after == "preparing":
                connection.execute(
                    "create table migrations (version integer primary key not null, name text not null,"
                    " checksum text not null, applied_at integer not null) strict"
                )
    await make(tmp_path)
    async with hot_file(tmp_path) as file:
        assert await count(file, "nodes") == 3


async def test_a_schema_newer_than_the_code_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    await make(tmp_path)
    with closed_file(tmp_path) as connection:
        connection.execute("insert into migrations values (9999, 'from_the_future', 'x', 0)")
    with pytest.raises(SchemaMismatch):
        async with hot_file(tmp_path):
            raise AssertionError
    with closed_file(tmp_path) as connection:
        connection.execute("delete from migrations where version = 9999")
    async with hot_file(tmp_path) as file:
        assert file.outbox.state().entries == 3


async def test_after_a_refused_opening_the_slot_is_free_again(tmp_path: Path) -> None:
    (prepare_directory(tmp_path) / "slot-00.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(StorageFailed):
        async with HybridMemoryManager.open(data_dir=tmp_path, postgres="off"):
            raise AssertionError
    slot = take_slot(tmp_path)
    assert slot.number == 0
    slot.release()


async def test_with_no_room_to_write_down_that_it_was_closed_the_file_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_connection: sqlite3.Connection) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(opening, "_mark_clean", refuse)
    with pytest.raises(StorageFull):
        async with hot_file(tmp_path) as file:
            await file.outbox.accept_node("ada", fresh())
    monkeypatch.undo()
    async with hot_file(tmp_path) as file:
        assert (file.slot.number, file.was_clean) == (0, False)
        assert file.outbox.state().entries == 1


def test_with_no_room_to_write_down_who_holds_it_a_slot_is_not_left_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(StorageFull):
        try_slot(prepare_directory(tmp_path), 0)
    monkeypatch.undo()
    slot = try_slot(tmp_path, 0)
    assert slot is not None
    slot.release()


async def test_what_somebody_laid_beside_the_slots_is_no_slot(tmp_path: Path) -> None:
    await make(tmp_path)
    for name in ("slot-00 copy.db", "slot-0x.db", "slot-3.db"):
        (tmp_path / name).touch()
    assert existing_slots(tmp_path) == [0]


async def test_a_copied_file_keeps_its_queue_and_its_client(tmp_path: Path) -> None:
    await make(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    async with hot_file(tmp_path / "one") as first, hot_file(tmp_path / "two") as second:
        assert first.opening.client_id == second.opening.client_id
        # Alike in number, so that only the token tells them apart: that is what the fence compares.
        assert first.opening.number == second.opening.number
        assert first.opening.token != second.opening.token
