"""Health says how a manager is, why it is not better, and nothing that must not be shown."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import Condition, HybridMemoryManager, StorageFailed
from tests.support.beneath import tiers
from tests.support.clocks import HandClock
from tests.support.waiting import eventually

SECRET = "s3cret"
NOBODY = f"postgresql://ann:{SECRET}@127.0.0.1:1/memory"


async def _end_task(name: str) -> None:
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _unforeseen(_connection: sqlite3.Connection) -> None:
    raise RuntimeError("nobody thought of this")


async def test_without_postgres_it_is_degraded_and_says_why(tmp_path: Path) -> None:
    clock = HandClock()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        await manager.store_persistent_memory("ann", {"text": SECRET}, "conversation_fact")
        clock.advance(timedelta(seconds=90))
        health = await manager.health()
    assert health.condition is Condition.DEGRADED
    assert health.causes == ("no Postgres: switched off; memory is kept in this file only",)
    assert (health.postgres, health.postgres_reason, health.breaker) == ("off", "switched off", "closed")
    assert (health.queued, health.oldest_queued_seconds, health.dead_letters) == (1, 90.0, 0)
    assert (health.users_open, health.users_held) == (0, 1)
    assert health.queued_bytes > 0
    assert health.file_bytes > 0
    assert health.services["sweeper"] == "ok"
    assert SECRET not in str(asdict(health))


async def test_it_counts_users_and_has_no_oldest_entry_of_an_empty_queue(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        await manager.ensure_user_memories("ann")
        await manager.ensure_user_memories("ann")
        await manager.ensure_user_memories("bea")
        health = await manager.health()
    assert (health.users_open, health.users_held, health.queued, health.oldest_queued_seconds) == (2, 0, 0, None)


async def test_a_postgres_that_is_away_is_a_cause_and_its_password_is_not_told(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(dsn=NOBODY, data_dir=tmp_path) as manager:

        async def seen() -> bool:
            return (await manager.health()).services["relay"] == "unreachable"

        await eventually(seen)
        health = await manager.health()
        assert health.condition is Condition.DEGRADED
        assert manager.user("ann").freshness().degraded
    assert health.postgres == "external"
    assert health.causes == ("Postgres does not take writes: unreachable",)
    assert health.services["relay"] == "unreachable"
    assert SECRET not in str(asdict(health))


async def test_a_dead_service_is_seen_whatever_it_died_of(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(dsn=NOBODY, data_dir=tmp_path) as manager:

        async def relay_is(state: str) -> bool:
            return (await manager.health()).services["relay"] == state

        await eventually(lambda: relay_is("unreachable"))
        await _end_task("hybrid-memory-relay")
        health = await manager.health()
    assert health.services["relay"] == "dead"
    assert "the service relay is dead" in health.causes


async def test_a_file_that_takes_no_more_writes_is_a_failure(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        handle = await manager.ensure_user_memories("ann")
        await handle.store({"n": 1}, context_type="conversation_fact")
        with pytest.raises(StorageFailed):
            await tiers(manager).file.database.write(_unforeseen)
        health = await manager.health()
        assert health.condition is Condition.FAILED
        assert health.causes[-1] == "the local file's writer has stopped"
        with pytest.raises(StorageFailed):
            await handle.store({"n": 2}, context_type="conversation_fact")
        assert len((await handle.list()).items) == 1
