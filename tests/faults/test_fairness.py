"""Many users on few connections: one who writes without end costs the others a moment, and the queue stays bounded."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncpg

from hybrid_memory import Backpressure, HybridMemoryManager, Settings, Status
from tests.plugins.postgres import Database
from tests.support.managers import BRISK, FACT, both_tiers_agree, drained, head_rev, opened

USERS = 150
BOUND = 400
SECONDS = 20.0
# The promise is one second; the machine may be busy with other things.
LONGEST_SECONDS = 5.0


async def write_without_end(manager: HybridMemoryManager) -> int:
    """Fill the queue and keep it full; gives the number of writes accepted when cancelled."""
    memory = manager.user("hog")
    accepted = 0
    try:
        while True:
            try:
                await memory.store({"n": accepted}, context_type=FACT, key="hot", wait=0)
                accepted += 1
            except Backpressure:
                await asyncio.sleep(0)
            assert manager.queue().entries <= BOUND
    except asyncio.CancelledError:
        return accepted


async def test_one_who_writes_without_end_does_not_keep_hundreds_of_others_waiting(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    small = Settings(poll_interval=BRISK.poll_interval, pool_size=4, queue_entries=BOUND)

    async def session(manager: HybridMemoryManager, number: int) -> float:
        memory = await manager.ensure_user_memories(f"user-{number}")
        while True:
            began = time.monotonic()
            try:
                receipt = await memory.store({"n": number}, context_type=FACT, wait=SECONDS)
            except Backpressure:
                await asyncio.sleep(0)
                continue
            assert receipt.status is Status.DURABLE
            return time.monotonic() - began

    async with opened(postgres, tmp_path, settings=small) as manager:
        hog = asyncio.create_task(write_without_end(manager))
        waits = await asyncio.gather(*(session(manager, number) for number in range(USERS)))
        hog.cancel()
        accepted = await hog
        assert max(waits) < LONGEST_SECONDS
        await drained(manager)
        await both_tiers_agree(manager, await manager.ensure_user_memories("hog"))
    # What was cancelled may have been accepted.
    assert USERS < accepted <= await head_rev(admin, "hog") <= accepted + 1
    assert await admin.fetchval("select count(*) from memory.nodes where user_id like 'user-%'") == USERS
