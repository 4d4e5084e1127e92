"""Listing: in order, by filter, and page by page to the last row while rows come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_memory import Filter, HybridMemoryManager, InvalidInput, MemoryNode, UserMemory, field
from hybrid_memory.clock import to_us
from tests.support.clocks import HandClock

FACT = "conversation_fact"
ORDERS = ["created_at", "-created_at", "updated_at", "-updated_at", "importance", "-importance"]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def ann(tmp_path: Path, clock: HandClock) -> AsyncIterator[UserMemory]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        yield await manager.ensure_user_memories("ann")


async def _fill(memory: UserMemory, clock: HandClock, count: int = 20) -> None:
    """Nodes with many equal times and weights, some of them changed later."""
    chance = random.Random(7)
    for number in range(count):
        await memory.store({"n": number}, context_type=FACT, key=str(number), importance=chance.choice([0.0, 0.1, 1.0]))
        clock.advance(timedelta(microseconds=chance.choice([0, 0, 1])))
    for number in chance.sample(range(count), count // 4):
        await memory.store({"n": number, "changed": True}, context_type=FACT, key=str(number))
        clock.advance(timedelta(microseconds=chance.choice([0, 1])))


async def _walk(memory: UserMemory, *, order: str, limit: int, where: Filter | None = None) -> list[MemoryNode]:
    found: list[MemoryNode] = []
    cursor: str | None = None
    while True:
        page = await memory.list(order=order, limit=limit, cursor=cursor, where=where)
        assert len(page.items) <= limit
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found
        assert len(page.items) == limit


def _value(order: str, node: MemoryNode) -> float:
    value: datetime | float = getattr(node, order.removeprefix("-"))
    return to_us(value) if isinstance(value, datetime) else value


@pytest.mark.parametrize("order", ORDERS)
async def test_nodes_come_in_order_and_the_opposite_order_is_its_mirror(
    ann: UserMemory, clock: HandClock, order: str
) -> None:
    await _fill(ann, clock)
    nodes = list((await ann.list(order=order, limit=1000)).items)
    values = [_value(order, node) for node in nodes]
    assert len(nodes) == 20
    assert values == sorted(values, reverse=order.startswith("-"))
    opposite = order[1:] if order.startswith("-") else f"-{order}"
    assert list((await ann.list(order=opposite, limit=1000)).items) == nodes[::-1]


@pytest.mark.parametrize("order", ORDERS)
async def test_all_pages_together_are_one_big_page(ann: UserMemory, clock: HandClock, order: str) -> None:
    await _fill(ann, clock)
    everything = list((await ann.list(order=order, limit=1000)).items)
    for limit in (1, 3, 19, 20, 21):
        assert await _walk(ann, order=order, limit=limit) == everything


async def test_the_newest_come_first_unless_asked_otherwise(ann: UserMemory, clock: HandClock) -> None:
    for number in range(3):
        await ann.store({"n": number}, context_type=FACT)
        clock.advance(timedelta(seconds=1))
    assert [node.content["n"] for node in (await ann.list()).items] == [2, 1, 0]


async def test_a_hundred_come_at_a_time_unless_asked_otherwise(ann: UserMemory) -> None:
    await asyncio.gather(*(ann.store({"n": n}, context_type=FACT) for n in range(101)))
    page = await ann.list()
    assert len(page.items) == 100
    assert page.next_cursor is not None
    rest = await ann.list(cursor=page.next_cursor)
    assert (len(rest.items), rest.next_cursor) == (1, None)


async def test_the_last_page_knows_that_it_is_the_last(ann: UserMemory) -> None:
    await asyncio.gather(*(ann.store({"n": n}, context_type=FACT) for n in range(4)))
    first = await ann.list(limit=2)
    second = await ann.list(limit=2, cursor=first.next_cursor)
    assert second.next_cursor is None
    assert len({node.node_id for node in first.items + second.items}) == 4
    assert (await ann.list(limit=4)).next_cursor is None


async def test_a_user_without_memories_has_one_empty_page(ann: UserMemory) -> None:
    page = await ann.list()
    assert (page.items, page.next_cursor) == ((), None)


Step: TypeAlias = tuple[str, int]


@settings(max_examples=25, deadline=None)
@given(
    order=st.sampled_from(["created_at", "-created_at", "importance", "-importance"]),
    limit=st.integers(1, 4),
    count=st.integers(0, 12),
    steps=st.lists(st.tuples(st.sampled_from(["store", "delete", "tick"]), st.integers(0, 30)), max_size=12),
)
def test_rows_that_stay_are_met_once_each_while_others_come_and_go(
    order: str, limit: int, count: int, steps: list[Step]
) -> None:
    with TemporaryDirectory() as folder, asyncio.Runner() as runner:
        runner.run(_walk_among_changes(Path(folder), order, limit, count, steps))


async def _walk_among_changes(folder: Path, order: str, limit: int, count: int, steps: list[Step]) -> None:
    clock = HandClock()
    async with HybridMemoryManager.open(postgres="off", data_dir=folder, clock=clock) as manager:
        memory = manager.user("ann")
        lasting: list[str] = []
        for number in range(count):
            lasting.append((await memory.store({}, context_type=FACT, importance=number % 3 / 2)).node_id)
            clock.advance(timedelta(microseconds=number % 2))
        script = iter(steps)
        met: list[str] = []
        cursor: str | None = None
        while True:
            page = await memory.list(order=order, limit=limit, cursor=cursor)
            met += [node.node_id for node in page.items]
            if (cursor := page.next_cursor) is None:
                break
            await _change(memory, clock, lasting, next(script, ("tick", 0)))
        assert len(set(met)) == len(met)
        assert set(lasting) <= set(met)


async def _change(memory: UserMemory, clock: HandClock, lasting: list[str], step: Step) -> None:
    what, number = step
    match what:
        case "store":
            await memory.store({}, context_type=FACT, importance=number % 3 / 2)
        case "delete" if lasting:
            await memory.delete(lasting.pop(number % len(lasting)))
        case _:
            clock.advance(timedelta(microseconds=number % 2))


async def test_the_row_a_cursor_stands_at_may_go(ann: UserMemory, clock: HandClock) -> None:
    for number in range(4):
        await ann.store({"n": number}, context_type=FACT)
        clock.advance(timedelta(seconds=1))
    first = await ann.list(order="created_at", limit=2)
    for node in first.items:
        await ann.delete(node.node_id)
    rest = await ann.list(order="created_at", limit=5, cursor=first.next_cursor)
    assert [node.content["n"] for node in rest.items] == [2, 3]


async def test_a_cursor_of_another_order_is_refused(ann: UserMemory) -> None:
    await asyncio.gather(*(ann.store({"n": n}, context_type=FACT) for n in range(4)))
    cursors = {order: (await ann.list(order=order, limit=1)).next_cursor for order in ORDERS}
    for made_for, cursor in cursors.items():
        for order in ORDERS:
            if order == made_for:
                assert len((await ann.list(order=order, cursor=cursor)).items) == 3
                continue
            with pytest.raises(InvalidInput) as caught:
                await ann.list(order=order, cursor=cursor)
            assert caught.value.field == "cursor"


@pytest.mark.parametrize("cursor", ["", "x", "====", "W10", "WzFd", "é", "\0", "W251bGwsbnVsbCxudWxsXQ", "a" * 100_000])
async def test_what_is_no_cursor_is_refused(ann: UserMemory, cursor: str) -> None:
    await ann.store({}, context_type=FACT)
    with pytest.raises(InvalidInput) as caught:
        await ann.list(cursor=cursor)
    assert caught.value.field == "cursor"


async def test_a_filter_lets_pass_what_it_describes_page_by_page(ann: UserMemory, clock: HandClock) -> None:
    await _fill(ann, clock)
    changed = field("content.changed").eq(True) & (field("importance") >= 0.1)
    everything = (await ann.list(limit=1000, order="created_at")).items
    expected = [node for node in everything if node.content.get("changed") and node.importance >= 0.1]
    assert expected
    assert await _walk(ann, order="created_at", limit=2, where=changed) == expected
    by_dict: Filter = {"content.changed": True, "importance": {"gte": 0.1}}
    assert await _walk(ann, order="created_at", limit=2, where=by_dict) == expected


async def test_what_has_expired_or_was_deleted_is_not_listed(ann: UserMemory, clock: HandClock) -> None:
    await ann.store({"n": 1}, context_type=FACT, ttl=timedelta(seconds=1))
    gone = await ann.store({"n": 2}, context_type=FACT)
    await ann.store({"n": 3}, context_type=FACT, ttl=timedelta(seconds=2))
    await ann.delete(gone.node_id)
    assert [node.content["n"] for node in (await ann.list(order="created_at")).items] == [1, 3]
    clock.advance(timedelta(seconds=1))
    assert [node.content["n"] for node in (await ann.list(order="created_at")).items] == [3]
