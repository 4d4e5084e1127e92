"""Programs and databases of different versions meet: they work together, or say what to do, and damage nothing."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import Condition, HybridMemoryManager, SchemaMismatch
from hybrid_memory.migrations import Migration, load
from hybrid_memory.sqlite import hot_file
from hybrid_memory.sqlite.slots import take_slot
from tests.plugins.postgres import Database
from tests.support.agent import REPOSITORY
from tests.support.images import closed_file, digest
from tests.support.managers import FACT, contents, drained, opened
from tests.support.waiting import eventually

SQL = "create table later (a integer primary key not null) strict; insert into later values (7);"


def next_version(patch: pytest.MonkeyPatch) -> None:
    """Make the program what its next version will be: with one migration of the file more."""
    shipped = load("sqlite")
    checksum = hashlib.sha256(SQL.encode()).hexdigest()
    later = Migration(version=len(shipped) + 1, name="later", sql=SQL, checksum=checksum)

    def load_later(_tier: str) -> tuple[Migration, ...]:
        return (*shipped, later)

    patch.setattr(hot_file, "load", load_later)


async def queue_three(data_dir: Path) -> list[str]:
    async with HybridMemoryManager.open(postgres="off", data_dir=data_dir) as manager:
        receipts = [await manager.store_persistent_memory("ada", {"n": number}, FACT) for number in range(3)]
    return sorted(receipt.node_id for receipt in receipts)


async def test_a_newer_program_takes_over_an_older_file_with_its_queue(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await queue_three(tmp_path)
    next_version(monkeypatch)
    async with opened(postgres, tmp_path) as manager:
        assert sorted(await contents(manager.user("ada"))) == stored
        await drained(manager)
    assert await admin.fetchval("select count(*) from memory.nodes") == 3
    with closed_file(tmp_path) as connection:
        assert connection.execute("select a from later").fetchall() == [(7,)]


async def test_an_older_program_refuses_a_newer_file_says_what_to_do_and_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_version(monkeypatch)
    stored = await queue_three(tmp_path)
    before = digest(tmp_path)
    with monkeypatch.context() as older:
        older.setattr(hot_file, "load", load)
        with pytest.raises(SchemaMismatch, match="version") as refused:
            async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path):
                raise AssertionError
    assert refused.value.fix == "upgrade hybrid-memory in this process"
    assert digest(tmp_path) == before
    assert not (tmp_path / "quarantine").exists()
    slot = take_slot(tmp_path)
    assert slot.number == 0
    slot.release()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        assert sorted(await contents(manager.user("ada"))) == stored
        assert manager.queue().entries == 3


async def test_a_migration_of_the_file_killed_half_way_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    stored = await queue_three(tmp_path)
    command = [sys.executable, "-m", "tests.support.half_migrated", str(tmp_path)]
    killed = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY)
    async with asyncio.timeout(60):
        assert await killed.wait() == -signal.SIGKILL
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        assert sorted(await contents(manager.user("ada"))) == stored
        assert manager.queue().entries == 3
    with closed_file(tmp_path) as connection:
        found = connection.execute("select name from sqlite_master where name in ('half', 'other')").fetchall()
        (versions,) = connection.execute("select max(version) from migrations").fetchone()
    assert found == []
    assert versions == len(load("sqlite"))


@pytest.mark.parametrize(
    ("skew", "mend"),
    [
        (
            "insert into memory.migrations (version, name, checksum) values (9999, 'later', 'x')",
            "delete from memory.migrations where version = 9999",
        ),
        (
            (
                "create table public.kept as select * from memory.migrations; delete from memory.migrations"
                " where version = (select max(version) from memory.migrations)"
            ),
            "insert into memory.migrations select * from public.kept on conflict do nothing",
        ),
    ],
    ids=["newer", "older"],
)
async def test_a_postgres_of_another_version_gets_nothing_loses_nothing_and_is_used_once_it_fits(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection, skew: str, mend: str
) -> None:
    await admin.execute(skew)
    async with opened(postgres, tmp_path) as manager:
        receipt = await manager.store_persistent_memory("ada", {"n": 1}, FACT, wait=0)

        async def told() -> bool:
            health = await manager.health()
            return health.condition is Condition.FAILED and "schema_mismatch" in str(health.causes)

        await eventually(told)
        assert await manager.user("ada").get(receipt.node_id) is not None
        assert manager.queue().entries == 1
        assert manager.queue().dead_letters == 0
        assert await admin.fetchval("select count(*) from memory.nodes") == 0
    await admin.execute(mend)
    async with opened(postgres, tmp_path) as manager:
        await drained(manager)
    assert await admin.fetchval("select count(*) from memory.nodes") == 1
