"""Somebody moves, replaces or deletes the local file while it is open: nothing is acknowledged that would be lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import Condition, HybridMemoryManager, StorageReplaced, sentinel
from hybrid_memory.events import FileDisplaced
from hybrid_memory.graph import Status
from tests.plugins.postgres import Database
from tests.support.beneath import tiers
from tests.support.gate import writers_wait
from tests.support.images import FILE, digest, log_of
from tests.support.managers import FACT, Ears, opened

PATIENCE = 5.0


def delete_file(data_dir: Path) -> None:
    (data_dir / FILE).unlink()


def replace_file(data_dir: Path) -> None:
    copy = data_dir / "copy"
    subprocess.run(["cp", str(data_dir / FILE), str(copy)], check=True)
    copy.rename(data_dir / FILE)


def move_file(data_dir: Path) -> None:
    (data_dir / FILE).rename(data_dir / "elsewhere.db")


def delete_log(data_dir: Path) -> None:
    log_of(data_dir).unlink()


def delete_lock(data_dir: Path) -> None:
    (data_dir / "slot-00.lock").unlink()


def close_it_with_another_library(data_dir: Path) -> None:
    """What reading the live file does: our locks are gone, and the next to close the file takes its log away."""
    (data_dir / FILE).read_bytes()
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('select 1 from meta'); c.close()"
    subprocess.run([sys.executable, "-c", program, str(data_dir / FILE)], check=True)
    assert not log_of(data_dir).exists()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel, "LOOK_SECONDS", 0.02)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    "displace",
    [delete_file, replace_file, move_file, delete_log, delete_lock, close_it_with_another_library],
    ids=lambda displace: displace.__name__,
)
async def test_when_the_file_is_not_where_it_was_writes_are_refused_and_reads_go_on(
    tmp_path: Path, displace: Callable[[Path], None]
) -> None:
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, observer=ears) as manager:
        receipt = await manager.store_persistent_memory("ada", {"text": "tea"}, FACT)
        displace(tmp_path)
        await ears.hear(FileDisplaced, seconds=PATIENCE)
        with pytest.raises(StorageReplaced):
            await manager.store_persistent_memory("ada", {"text": "milk"}, FACT)
        with pytest.raises(StorageReplaced):
            await manager.store_transient_memory("thread", {"text": "milk"}, "agent_thought")
        assert await manager.user("ada").get(receipt.node_id) is not None
        health = await manager.health()
        assert health.condition is Condition.FAILED
        assert "moved, replaced or deleted" in health.causes[-1]


async def test_it_is_noticed_within_five_seconds(tmp_path: Path) -> None:
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, observer=ears) as manager:
        await asyncio.sleep(0)  # the sentinel has had its first look
        delete_file(tmp_path)
        started = time.monotonic()
        await ears.hear(FileDisplaced, seconds=PATIENCE)
        assert time.monotonic() - started < PATIENCE
        assert (await manager.health()).condition is Condition.FAILED


@pytest.mark.usefixtures("hurry")
async def test_what_was_queued_in_a_displaced_file_is_still_carried(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        async with writers_wait(admin):
            receipts = [
                await manager.store_persistent_memory(user, {"text": str(number)}, FACT, wait=0)
                for number in range(120)
                for user in ("ada", "bob")
            ]
            delete_file(tmp_path)
            await ears.hear(FileDisplaced, seconds=PATIENCE)
        told = [await receipt.durable(20) for receipt in receipts]
        assert {one.status for one in told} == {Status.DURABLE}
    assert await admin.fetchval("select count(*) from memory.nodes") == len(receipts)
    assert await admin.fetchval("select sum(rev) from memory.heads") == len(receipts)


@pytest.mark.usefixtures("hurry")
async def test_what_lies_in_the_place_of_the_file_is_not_touched_by_closing(tmp_path: Path) -> None:
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, observer=ears) as manager:
        await manager.store_persistent_memory("ada", {"text": "tea"}, FACT)
        for part in (FILE, f"{FILE}-wal"):
            (tmp_path / part).unlink()
            (tmp_path / part).write_bytes(b"somebody else's")
        before = digest(tmp_path)
        await ears.hear(FileDisplaced, seconds=PATIENCE)
    assert digest(tmp_path) == before


async def test_while_it_is_in_its_place_nothing_is_held_against_it(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        file = tiers(manager).file
        for number in range(3):
            await manager.store_persistent_memory("ada", {"text": str(number)}, FACT)
            assert file.displaced() is None
            await file.database.cut_log()
            assert file.displaced() is None
