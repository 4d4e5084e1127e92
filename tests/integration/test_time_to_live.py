"""What has expired is as good as absent, from the microsecond on, before anything sweeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager, InvalidInput, Settings, UserMemory
from tests.support.beneath import tiers
from tests.support.clocks import NOON, HandClock
from tests.support.hot_files import count
from tests.support.waiting import eventually

FACT = "conversation_fact"
HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def manager(tmp_path: Path, clock: HandClock) -> AsyncIterator[HybridMemoryManager]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        yield manager


@pytest.fixture
async def ann(manager: HybridMemoryManager) -> UserMemory:
    return await manager.ensure_user_memories("ann")


async def _expired(memory: UserMemory, clock: HandClock, *, key: str | None = None) -> str:
    receipt = await memory.store({"text": "tea"}, context_type=FACT, key=key, ttl=HOUR, tags=["old"], summary="old")
    clock.advance(HOUR)
    return receipt.node_id


async def test_it_lives_to_the_last_microsecond_and_not_one_longer(ann: UserMemory, clock: HandClock) -> None:
    receipt = await ann.store({"text": "tea"}, context_type=FACT, ttl=HOUR)
    clock.advance(HOUR - MICROSECOND)
    assert await ann.get(receipt.node_id) is not None
    clock.advance(MICROSECOND)
    assert await ann.get(receipt.node_id) is None
    assert await ann.get_many([receipt.node_id]) == [None]
    assert (await ann.list()).items == ()
    assert await ann.search("tea") == []
    assert (await ann.digest()).nodes == 0


async def test_storing_again_sets_the_time_anew_and_without_one_it_stays(ann: UserMemory, clock: HandClock) -> None:
    receipt = await ann.store({"n": 1}, context_type=FACT, key="k", ttl=HOUR)
    clock.advance(HOUR / 2)
    await ann.store({"n": 2}, context_type=FACT, key="k", ttl=HOUR)
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert node.expires_at == NOON + HOUR * 1.5
    await ann.store({"n": 3}, context_type=FACT, key="k")
    clock.advance(HOUR * 1000)
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert (node.content, node.expires_at) == ({"n": 3}, None)


@pytest.mark.parametrize("ttl", [MICROSECOND, timedelta(days=3653)])
async def test_times_to_live_from_the_shortest_to_the_longest_are_kept_exactly(
    ann: UserMemory, clock: HandClock, ttl: timedelta
) -> None:
    receipt = await ann.store({}, context_type=FACT, ttl=ttl)
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert node.expires_at == NOON + ttl
    clock.advance(ttl)
    assert await ann.get(receipt.node_id) is None


@pytest.mark.parametrize("ttl", [timedelta(0), -MICROSECOND, timedelta.max, timedelta(days=3653) + MICROSECOND])
async def test_no_time_and_more_than_ten_years_are_refused(ann: UserMemory, ttl: timedelta) -> None:
    with pytest.raises(InvalidInput, match="ttl"):
        await ann.store({}, context_type=FACT, ttl=ttl)
    assert ann.freshness().queued == 0


async def test_what_has_expired_is_no_neighbour_and_has_none(ann: UserMemory, clock: HandClock) -> None:
    other = (await ann.store({}, context_type=FACT)).node_id
    short = (await ann.store({}, context_type=FACT, ttl=HOUR)).node_id
    await ann.relate(short, other, "led_to")
    clock.advance(HOUR)
    assert await ann.neighbours(other) == []
    assert await ann.neighbours(short) == []


async def test_a_key_whose_memory_has_expired_is_free(ann: UserMemory, clock: HandClock) -> None:
    node_id = await _expired(ann, clock, key="k")
    await ann.store({"n": 2}, context_type=FACT, key="k")
    node = await ann.get(node_id)
    assert node is not None
    assert (node.tags, node.summary, node.created_at) == ((), None, NOON + HOUR)


async def test_expired_rows_are_swept_out_of_the_file(tmp_path: Path, clock: HandClock) -> None:
    often = Settings(sweep_interval=timedelta(milliseconds=5))
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock, settings=often) as manager:
        ann = manager.user("ann")
        await ann.store({}, context_type=FACT, ttl=HOUR)
        kept = await ann.store({}, context_type=FACT)
        clock.advance(HOUR)

        async def swept() -> bool:
            # What is only hidden is still there.
            return await count(tiers(manager).file, "nodes") == 1

        await eventually(swept)
        assert [node.node_id for node in (await ann.list()).items] == [kept.node_id]
        assert manager.queue().entries == 2
