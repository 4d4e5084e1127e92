"""What the writing rests on goes away: whoever waits hears of it, and what was acknowledged is there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import aiosqlite
import pytest

from hybrid_memory import Condition, HybridMemoryManager, StorageFailed, sentinel
from hybrid_memory.sqlite.writer import OwnedConnection
from tests.support.agent import REPOSITORY
from tests.support.beneath import tiers
from tests.support.images import closed_file
from tests.support.managers import FACT, contents


def end_the_writers_thread(manager: HybridMemoryManager) -> None:
    connection = cast("OwnedConnection", vars(vars(tiers(manager).file.database)["_writer"])["_connection"])
    vars(connection)["_tx"].put_nowait((None, lambda: vars(aiosqlite.core)["_STOP_RUNNING_SENTINEL"]))


async def test_when_the_writers_thread_dies_nobody_waits_for_ever_and_what_was_acknowledged_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel, "LOOK_SECONDS", 0.02)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        kept = await manager.store_persistent_memory("ada", {"text": "tea"}, FACT)
        end_the_writers_thread(manager)
        waiting = [
            asyncio.ensure_future(manager.store_persistent_memory("ada", {"text": str(number)}, FACT))
            for number in range(5)
        ]
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StorageFailed}
        with pytest.raises(StorageFailed):
            await manager.store_persistent_memory("ada", {"text": "milk"}, FACT)
        assert await manager.user("ada").get(kept.node_id) is not None
        health = await manager.health()
        assert health.condition is Condition.FAILED
        assert "thread" in health.causes[-1]
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, slot=0) as manager:
        assert list(await contents(manager.user("ada"))) == [kept.node_id]
        assert manager.queue().entries == 1


async def test_a_loop_closed_before_the_manager_loses_nothing_and_the_process_ends(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.loose_end",
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    try:
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, said) == (0, b"10 acknowledged\n")
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, slot=0) as manager:
        texts = {str(content["text"]) for content in (await contents(manager.user("ada"))).values()}
        assert {str(number) for number in range(10)} <= texts
        assert manager.queue().entries == len(texts)
    with closed_file(tmp_path) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
