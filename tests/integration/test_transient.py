"""Transient memory: of a thread, local, gone when it expires or nobody uses the thread; or promoted, in one step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager, InvalidInput, NodeId, NotFound, Settings, Status
from tests.support.clocks import NOON, HandClock
from tests.support.waiting import until

STATE = "temporary_state"
OFTEN = Settings(sweep_interval=timedelta(milliseconds=5))
DAY = timedelta(hours=24)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def manager(tmp_path: Path, clock: HandClock) -> AsyncIterator[HybridMemoryManager]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        yield manager


def _ids(manager: HybridMemoryManager, thread_id: str) -> list[NodeId]:
    return [node.node_id for node in manager.transient_memories(thread_id)]


async def test_it_is_enqueued_at_once_and_need_not_be_awaited(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        manager.store_transient_memory("t", {"n": 1}, STATE)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        (node,) = manager.transient_memories("t")
    assert json.loads(node.content) == {"n": 1}


async def test_awaiting_it_gives_the_id_and_waits_for_the_disk(manager: HybridMemoryManager, clock: HandClock) -> None:
    node_id = await manager.store_transient_memory("t", {"n": 1}, STATE, ttl=DAY)
    (node,) = manager.transient_memories("t")
    assert (node.node_id, node.thread_id, node.context_type) == (node_id, "t", STATE)
    assert json.loads(node.content) == {"n": 1}
    assert node.expires_at == node.created_at + DAY // timedelta(microseconds=1)
    assert node.created_at == clock.now_us()


async def test_giving_up_waiting_does_not_undo_it(manager: HybridMemoryManager) -> None:
    stored = asyncio.ensure_future(manager.store_transient_memory("t", {"n": 1}, STATE))
    stored.cancel()
    await manager.store_transient_memory("t", {"n": 2}, STATE)
    assert len(_ids(manager, "t")) == 2


async def test_a_thread_sees_its_own_in_the_order_they_were_stored(
    manager: HybridMemoryManager, clock: HandClock
) -> None:
    stored: list[NodeId] = []
    for number in range(5):
        stored.append(await manager.store_transient_memory("t", {"n": number}, STATE))
        await manager.store_transient_memory("T", {}, STATE)
        clock.advance(timedelta(milliseconds=1))
    assert _ids(manager, "t") == stored
    assert _ids(manager, "another") == []


async def test_it_belongs_to_no_user_and_is_not_queued(manager: HybridMemoryManager) -> None:
    await manager.store_transient_memory("ann", {"text": "tea"}, STATE)
    ann = await manager.ensure_user_memories("ann")
    assert (await ann.list()).items == ()
    assert await ann.search("tea") == []
    assert manager.queue().entries == 0


async def test_it_expires_by_the_microsecond(manager: HybridMemoryManager, clock: HandClock) -> None:
    short = await manager.store_transient_memory("t", {}, STATE, ttl=timedelta(seconds=1))
    await manager.store_transient_memory("t", {}, STATE)
    clock.advance(timedelta(microseconds=999_999))
    assert short in _ids(manager, "t")
    clock.advance(timedelta(microseconds=1))
    assert short not in _ids(manager, "t")
    with pytest.raises(NotFound):
        await manager.promote("t", short, "ann")


# Stale threads


async def test_a_thread_idle_for_a_day_is_swept(tmp_path: Path, clock: HandClock) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock, settings=OFTEN) as manager:
        await manager.store_transient_memory("idle", {"n": 1}, STATE)
        await manager.checkpoints.save("idle", "c", {})
        await manager.store_transient_memory("busy", {"n": 1}, STATE)
        clock.advance(DAY)
        await manager.store_transient_memory("busy", {"n": 2}, STATE)
        assert len(_ids(manager, "idle")) == 1
        clock.advance(timedelta(microseconds=1))
        await until(lambda: not _ids(manager, "idle"))
        assert await manager.checkpoints.load("idle") is None
        assert len(_ids(manager, "busy")) == 2


async def test_how_long_a_thread_may_be_idle_can_be_set(tmp_path: Path, clock: HandClock) -> None:
    soon = Settings(sweep_interval=timedelta(milliseconds=5), stale_thread_after=timedelta(minutes=1))
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock, settings=soon) as manager:
        await manager.store_transient_memory("t", {}, STATE)
        clock.advance(timedelta(minutes=2))
        await until(lambda: not _ids(manager, "t"))


async def test_a_new_thread_of_the_same_name_begins_empty(tmp_path: Path, clock: HandClock) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        await manager.store_transient_memory("t", {"n": 1}, STATE)
    clock.advance(DAY * 2)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock, settings=OFTEN) as manager:
        await until(lambda: not _ids(manager, "t"))
        await manager.store_transient_memory("t", {"n": 2}, STATE)
        assert [json.loads(node.content) for node in manager.transient_memories("t")] == [{"n": 2}]


# Promoting


async def test_a_promoted_memory_keeps_its_id_and_leaves_its_thread(
    manager: HybridMemoryManager, clock: HandClock
) -> None:
    node_id = await manager.store_transient_memory("t", {"text": "tea"}, "tool_output", ttl=DAY)
    clock.advance(timedelta(seconds=5))
    receipt = await manager.promote("t", node_id, "ann")
    assert (receipt.node_id, receipt.status) == (node_id, Status.PENDING)
    assert _ids(manager, "t") == []
    ann = await manager.ensure_user_memories("ann")
    node = await ann.get(node_id)
    assert node is not None
    assert (node.content, node.context_type, node.session_id) == ({"text": "tea"}, "tool_output", "t")
    assert (node.created_at, node.updated_at) == (NOON, NOON + timedelta(seconds=5))
    assert node.expires_at is None
    assert [hit.node.node_id for hit in await ann.search("tea")] == [node_id]


async def test_it_can_be_promoted_once(manager: HybridMemoryManager) -> None:
    node_id = await manager.store_transient_memory("t", {}, STATE)
    await manager.promote("t", node_id, "ann")
    for user in ("ann", "bea"):
        with pytest.raises(NotFound):
            await manager.promote("t", node_id, user)
    assert manager.queue().entries == 1
    assert await manager.user("bea").get(node_id) is None


async def test_of_two_promoters_at_the_same_time_one_wins(manager: HybridMemoryManager) -> None:
    node_id = await manager.store_transient_memory("t", {}, STATE)
    outcomes = await asyncio.gather(
        *(manager.promote("t", node_id, user) for user in ("ann", "bea")), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NotFound", "Receipt"]
    assert manager.queue().entries == 1


async def test_it_is_promoted_from_its_own_thread_only(manager: HybridMemoryManager) -> None:
    node_id = await manager.store_transient_memory("t", {}, STATE)
    for thread in ("T", "other"):
        with pytest.raises(NotFound):
            await manager.promote(thread, node_id, "ann")
    assert _ids(manager, "t") == [node_id]
    assert manager.queue().entries == 0


async def test_a_promotion_that_is_refused_leaves_it_in_its_thread(tmp_path: Path) -> None:
    full = Settings(queue_entries=1)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, settings=full) as manager:
        await manager.store_persistent_memory("ann", {}, STATE)
        node_id = await manager.store_transient_memory("t", {}, STATE)
        with pytest.raises(Exception, match="queue"):
            await manager.promote("t", node_id, "ann")
        assert _ids(manager, "t") == [node_id]
        assert await manager.user("ann").get(node_id) is None


async def test_nothing_wrong_is_enqueued(manager: HybridMemoryManager) -> None:
    with pytest.raises(InvalidInput, match="ttl"):
        manager.store_transient_memory("t", {}, STATE, ttl=timedelta(0))
    with pytest.raises(InvalidInput, match="thread_id"):
        manager.store_transient_memory("", {}, STATE)
    await manager.store_transient_memory("other", {}, STATE)
    assert _ids(manager, "t") == []
