"""A caller that is cancelled at any moment: its write is there completely or not at all, and others notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from hybrid_memory import HybridMemoryManager, UserMemory
from tests.plugins.postgres import Database, connected
from tests.support.beneath import tiers
from tests.support.managers import FACT, both_tiers_agree, contents, drained, head_rev, opened
from tests.support.waiting import turns

SECONDS = 20.0
ENOUGH_UNHARMED = 3


def moments() -> Iterator[int]:
    """How many steps of the event loop to wait before cancelling: every one at first, then further apart."""
    step = 0.0
    while True:
        yield int(step)
        step = step + 1 if step < 40 else step * 1.15


async def cancelled_after(steps: int, write: Awaitable[object]) -> bool:
    """Cancel a write after so many steps; whether that came in time to cancel it."""
    task = asyncio.ensure_future(write)
    await turns(steps)
    came_in_time = task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert outcome is not None
    assert came_in_time == isinstance(outcome, asyncio.CancelledError)
    return came_in_time


async def cancel_everywhere(write: Callable[[int], Awaitable[object]]) -> int:
    """Cancel one write after the other, each later, until they are too fast; gives how many there were."""
    unharmed = 0
    for count, steps in enumerate(moments(), start=1):
        if not await cancelled_after(steps, write(count)):
            unharmed += 1
            if unharmed == ENOUGH_UNHARMED:
                return count
    raise AssertionError


async def entries_of_the_queue(manager: HybridMemoryManager) -> set[str]:
    operations = tiers(manager).file.outbox.claim(after_seq=0, limit=10_000)
    return {operation.entity_id for operation in operations}


async def test_a_store_cancelled_anywhere_is_in_the_file_with_its_queue_entry_or_not_at_all(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(data_dir=tmp_path, postgres="off") as manager:
        memory = manager.user("ada")

        async def write(number: int) -> object:
            return await memory.store({"n": number}, context_type=FACT, key=str(number), wait=0)

        count = await cancel_everywhere(write)
        after = await memory.store({"n": -1}, context_type=FACT, key="after", wait=0)
        there = await contents(memory)
        assert ENOUGH_UNHARMED < len(there) <= count + 1
        assert there.keys() == await entries_of_the_queue(manager)
        assert after.node_id in there
        assert manager.queue().entries == len(there)


async def test_stores_cancelled_while_they_wait_for_postgres_are_durable_all_the_same(
    postgres: Database, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")

        async def write(number: int) -> object:
            return await memory.store({"n": number}, context_type=FACT, key=str(number), wait=SECONDS)

        await cancel_everywhere(write)
        await drained(manager)
        await both_tiers_agree(manager, memory)
        there = len(await contents(memory))
    async with connected(postgres.admin_dsn) as admin:
        assert await head_rev(admin, "ada") == there


async def test_a_delete_with_relationships_cancelled_anywhere_takes_all_of_them_or_none(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(data_dir=tmp_path, postgres="off") as manager:
        memory = manager.user("ada")
        hub = (await memory.store({"hub": 1}, context_type=FACT, wait=0)).node_id
        leaves: dict[int, str] = {}

        async def write(number: int) -> object:
            return await memory.delete(leaves[number], wait=0)

        for number in range(1, 400):
            leaves[number] = (await memory.store({"n": number}, context_type=FACT, wait=0)).node_id
            await memory.relate(hub, leaves[number], "led_to", wait=0)
            await memory.relate(leaves[number], hub, "led_to", wait=0)
            await cancelled_after(number % 60, write(number))
            assert await is_whole(memory, hub, leaves[number])


async def is_whole(memory: UserMemory, hub: str, leaf: str) -> bool:
    """Whether a leaf is there with both its relationships, or neither it nor they are."""
    await memory.store({"barrier": 1}, context_type=FACT, key="barrier", wait=0)
    near = [neighbour.node.node_id for neighbour in await memory.neighbours(leaf)]
    return near == ([hub] if await memory.get(leaf) is not None else [])


async def test_a_promotion_cancelled_anywhere_leaves_the_memory_in_one_place(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(data_dir=tmp_path, postgres="off") as manager:
        memory = manager.user("ada")
        for number in range(120):
            node_id = await manager.store_transient_memory("thread", {"n": number}, FACT)
            await cancelled_after(number % 40, manager.promote("thread", node_id, "ada", wait=0))
            await memory.store({"barrier": 1}, context_type=FACT, key="barrier", wait=0)
            left = node_id in {node.node_id for node in manager.transient_memories("thread")}
            assert left != (await memory.get(node_id) is not None)
