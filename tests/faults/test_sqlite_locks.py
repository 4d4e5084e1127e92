"""Locks belong to a process and a file: any descriptor of the open file that is closed cancels SQLite's."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import sentinel
from tests.plugins.postgres import Database
from tests.support.beneath import tiers
from tests.support.images import FILE
from tests.support.managers import FACT, drained, opened

# What SQLite locks of the file for as long as it has a log (its SHARED range). Asked by another process, to which
# alone the locks of this one are a hindrance, and which has none of its own to lose.
ASK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
    except OSError:
        sys.exit(1)
"""


async def is_locked(path: Path) -> bool:
    asker = await asyncio.create_subprocess_exec(sys.executable, "-c", ASK, str(path))
    async with asyncio.timeout(20):
        return await asker.wait() == 1


async def test_nothing_done_beside_sqlite_cancels_its_locks(
    tmp_path: Path, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel, "LOOK_SECONDS", 0.02)
    path = tmp_path / FILE
    async with opened(postgres, tmp_path) as manager, opened(postgres, tmp_path) as neighbour:
        assert await is_locked(path)
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"text": "kept"}, context_type=FACT, wait=10)
        await manager.user("bo").store({"text": "gone"}, context_type=FACT, wait=10)
        await memory.search("kept")
        assert tiers(manager).file.displaced() is None
        assert tiers(manager).file.bytes_on_disk > 0
        await manager.health()
        await manager.forget("bo")
        await drained(manager)
        await neighbour.drain(timedelta(seconds=10))
        assert await is_locked(path)
    assert not await is_locked(path)
