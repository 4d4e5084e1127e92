"""The wall clock is set while a process runs: nothing expires too early or comes back, and order is not time's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.clock import to_us
from tests.plugins.postgres import Database
from tests.support.clocks import NOON, HandClock, SetClock
from tests.support.managers import FACT, both_tiers_agree, drained

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
# A clock that was set is approached by one part in a thousand.
APPROACH = HOUR / 900


@pytest.mark.parametrize("by", [DAY, 40 * DAY, -HOUR, timedelta()], ids=["+1 day", "+40 days", "-1 hour", "frozen"])
async def test_what_lives_an_hour_lives_an_hour_whatever_the_wall_clock_is_set_to(
    tmp_path: Path, by: timedelta
) -> None:
    clock = HandClock()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        ann = manager.user("ann")
        receipt = await ann.store({"text": "tea"}, context_type=FACT, ttl=HOUR)
        thought = await manager.store_transient_memory("thread", {"text": "milk"}, "agent_thought", ttl=HOUR)

        async def alive() -> tuple[bool, ...]:
            return (
                await ann.get(receipt.node_id) is not None,
                len((await ann.list()).items) == 1,
                len(await ann.search("tea")) == 1,
                [node.node_id for node in manager.transient_memories("thread")] == [thought],
            )

        clock.jump(to_us(NOON + by))
        assert set(await alive()) == {True}
        for _ in range(59):
            # The wall clock stands where it was set to, the hours pass all the same.
            clock.advance(HOUR / 60)
            clock.jump(to_us(NOON + by))
            assert set(await alive()) == {True}
        clock.advance(HOUR / 60 + APPROACH)
        clock.jump(to_us(NOON + by))
        assert set(await alive()) == {False}


async def test_what_has_expired_does_not_come_back_when_the_clock_is_set_back(tmp_path: Path) -> None:
    clock = HandClock()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        ann = manager.user("ann")
        receipt = await ann.store({"text": "tea"}, context_type=FACT, ttl=HOUR)
        clock.advance(HOUR)
        assert await ann.get(receipt.node_id) is None
        for back in (HOUR, DAY, 400 * DAY):
            clock.jump(to_us(NOON - back))
            assert await ann.get(receipt.node_id) is None
            assert (await ann.list()).items == ()
            assert await ann.search("tea") == []
            clock.advance(timedelta(seconds=10))


async def test_a_snapshot_does_not_bring_back_what_has_expired_when_the_clock_is_set_back(
    tmp_path: Path, postgres: Database
) -> None:
    clock = HandClock()
    opened = HybridMemoryManager.open(dsn=postgres.app_dsn, data_dir=tmp_path / "one", clock=clock)
    async with opened as manager:
        receipt = await manager.user("ann").store({"text": "tea"}, context_type=FACT, ttl=HOUR)
        await drained(manager)
        clock.advance(HOUR + APPROACH)
        clock.jump(to_us(NOON - HOUR))
        ann = await manager.ensure_user_memories("ann")
        assert await ann.get(receipt.node_id) is None
        assert (await ann.list()).items == ()
        assert (await manager.durable_digest("ann")).nodes == 0


async def test_the_last_write_wins_on_both_tiers_wherever_the_clock_is_set_between_two(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    here, there = SetClock(), SetClock()
    one = HybridMemoryManager.open(dsn=postgres.app_dsn, data_dir=tmp_path / "one", clock=here)
    two = HybridMemoryManager.open(dsn=postgres.app_dsn, data_dir=tmp_path / "two", clock=there)
    async with one as first, two as second:
        ann, same = await first.ensure_user_memories("ann"), await second.ensure_user_memories("ann")
        for number, by in enumerate((timedelta(), -HOUR, DAY / 2, -DAY, HOUR)):
            here.set(by)
            if number == 3:
                here.freeze()
            await ann.store({"n": number}, context_type=FACT, key="k")
            await second.ensure_user_memories("ann")
            assert await same.barrier(ann.token())
            # The other process, whose clock was not set, has seen it, and writes after it.
            await same.store({"n": number + 100}, context_type=FACT, key="k")
            stands = await admin.fetchval("select (content->>'n')::int from memory.nodes where key = 'k'")
            assert stands == number + 100
            assert await ann.barrier(same.token())
        await both_tiers_agree(first, ann)
        await both_tiers_agree(second, same)


async def test_operations_go_in_the_order_of_their_acceptance_while_the_clock_is_set_about(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    clock = SetClock()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        for number in range(30):
            clock.set(timedelta(hours=(-1) ** number * number))
            await manager.store_persistent_memory("ann", {"n": number}, FACT)
    # A new opening, with the clock set back for good.
    clock.set(-DAY)
    opened = HybridMemoryManager.open(dsn=postgres.app_dsn, data_dir=tmp_path, clock=clock)
    async with opened as manager:
        await manager.user("ann").store({"n": 30}, context_type=FACT)
        await drained(manager)
    rows = await admin.fetch("select (content->>'n')::int as n from memory.nodes order by rev")
    assert [row["n"] for row in rows] == list(range(31))
