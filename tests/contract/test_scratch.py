"""What transient memory and checkpoints promise: local, in order, gone when they expire or their thread is stale."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory.errors import Backpressure, NotFound
from hybrid_memory.graph import Checkpoint, NodeId, TransientNode
from hybrid_memory.sqlite.accepting import QueueBounds
from hybrid_memory.sqlite.hot_file import HotFile
from tests.support.hot_files import IDS, count, fresh, hot_file

HOUR_US = 3_600_000_000
KEPT = timedelta(hours=24)


@dataclass(slots=True)
class HandSet:
    """A clock whose wall time is set by hand."""

    us: int = 1_800_000_000_000_000

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


@pytest.fixture
def clock() -> HandSet:
    return HandSet()


@pytest.fixture
async def file(tmp_path: Path, clock: HandSet) -> AsyncIterator[HotFile]:
    async with hot_file(tmp_path, clock=clock) as opened:
        yield opened


def transient(clock: HandSet, text: str = "x", *, thread: str = "t", ttl_us: int | None = None) -> TransientNode:
    return TransientNode(
        thread_id=thread,
        node_id=NodeId(IDS.new()),
        context_type="temporary_state",
        content=f'{{"text":"{text}"}}',
        created_at=clock.us,
        expires_at=None if ttl_us is None else clock.us + ttl_us,
    )


def checkpoint(clock: HandSet, name: str, *, thread: str = "t", state: str = "{}") -> Checkpoint:
    return Checkpoint(thread_id=thread, checkpoint_id=name, parent_id=None, state=state, created_at=clock.us)


async def test_transient_memories_come_oldest_first_and_only_those_of_the_thread(file: HotFile, clock: HandSet) -> None:
    stored: list[TransientNode] = []
    for number in range(4):
        clock.us += 1
        stored.append(transient(clock, str(number)))
        await file.scratch.put(stored[-1])
    await file.scratch.put(transient(clock, thread="other"))
    assert file.scratch.of_thread("t") == stored
    assert file.scratch.of_thread("nobody") == []


async def test_a_transient_memory_is_enqueued_at_once_and_needs_no_awaiting(tmp_path: Path, clock: HandSet) -> None:
    node = transient(clock)
    async with hot_file(tmp_path, clock=clock) as file:
        file.scratch.put(node)
    async with hot_file(tmp_path, clock=clock) as file:
        assert file.scratch.of_thread("t") == [node]


async def test_what_has_expired_is_not_told_even_if_nobody_swept(file: HotFile, clock: HandSet) -> None:
    node = transient(clock, ttl_us=10)
    await file.scratch.put(node)
    assert file.scratch.of_thread("t") == [node]
    clock.us += 10
    assert file.scratch.of_thread("t") == []
    with pytest.raises(NotFound):
        await file.scratch.promote("t", node.node_id, "ada", fresh()._replace(node_id=node.node_id))


async def test_a_promotion_moves_the_memory_in_one_step_and_only_once(file: HotFile, clock: HandSet) -> None:
    node = transient(clock)
    await file.scratch.put(node)
    change = fresh()._replace(node_id=node.node_id, fresh=False)
    accepted = await file.scratch.promote("t", node.node_id, "ada", change)
    assert accepted.entity_id == node.node_id
    assert file.scratch.of_thread("t") == []
    assert file.hot.get("ada", node.node_id) is not None
    assert [one.entity_id for one in file.outbox.claim(after_seq=0, limit=9)] == [node.node_id]
    with pytest.raises(NotFound):
        await file.scratch.promote("t", node.node_id, "ada", change)


async def test_a_promotion_that_the_queue_refuses_leaves_the_memory_where_it_was(
    tmp_path: Path, clock: HandSet
) -> None:
    async with hot_file(tmp_path, clock=clock, bounds=QueueBounds(entries=1, payload_bytes=2**20)) as file:
        await file.outbox.accept_node("ada", fresh())
        node = transient(clock)
        await file.scratch.put(node)
        with pytest.raises(Backpressure):
            await file.scratch.promote("t", node.node_id, "ada", fresh()._replace(node_id=node.node_id, fresh=False))
        assert file.scratch.of_thread("t") == [node]
        assert file.hot.get("ada", node.node_id) is None


async def test_checkpoints_are_loaded_by_id_or_the_newest_and_listed_newest_first(
    file: HotFile, clock: HandSet
) -> None:
    for number in range(4):
        clock.us += number % 2  # two of one moment: the later saved is the newer
        await file.scratch.save(checkpoint(clock, f"c{number}"))
    assert [one.checkpoint_id for one in file.scratch.history("t", 10)] == ["c3", "c2", "c1", "c0"]
    assert [one.checkpoint_id for one in file.scratch.history("t", 2)] == ["c3", "c2"]
    newest, second = file.scratch.load("t", None), file.scratch.load("t", "c1")
    assert newest is not None
    assert second is not None
    assert (newest.checkpoint_id, second.checkpoint_id) == ("c3", "c1")
    assert file.scratch.load("t", "none") is None
    assert file.scratch.load("other", None) is None


async def test_a_checkpoint_saved_again_is_replaced(file: HotFile, clock: HandSet) -> None:
    await file.scratch.save(checkpoint(clock, "c", state='{"n":1}'))
    await file.scratch.save(checkpoint(clock, "c", state='{"n":2}'))
    (kept,) = file.scratch.history("t", 10)
    assert kept.state == '{"n":2}'


async def test_checkpoints_are_deleted_one_by_one_or_all_of_a_thread(file: HotFile, clock: HandSet) -> None:
    for thread in ("t", "other"):
        for name in ("a", "b", "c"):
            await file.scratch.save(checkpoint(clock, name, thread=thread))
    assert await file.scratch.delete("t", "a") == 1
    assert await file.scratch.delete("t", "a") == 0
    assert await file.scratch.delete("t", None) == 2
    assert len(file.scratch.history("other", 10)) == 3


async def test_a_sweep_removes_what_expired_and_stale_threads_and_nothing_else(file: HotFile, clock: HandSet) -> None:
    await file.scratch.put(transient(clock, thread="stale"))
    await file.scratch.save(checkpoint(clock, "c", thread="stale"))
    clock.us += 20 * HOUR_US
    live = transient(clock, thread="live")
    await file.scratch.put(live)
    await file.scratch.put(transient(clock, thread="live", ttl_us=HOUR_US))
    clock.us += 5 * HOUR_US
    swept = await file.scratch.sweep(now_us=clock.us, idle=timedelta(hours=24), receipts_kept=KEPT)
    assert (swept["transient"], swept["threads"]) == (3, 1)  # the expired one, and two of the stale thread
    assert file.scratch.of_thread("live") == [live]
    assert file.scratch.history("stale", 10) == []
    assert await count(file, "threads") == 1


async def test_using_a_thread_keeps_it_from_going_stale(file: HotFile, clock: HandSet) -> None:
    await file.scratch.save(checkpoint(clock, "old"))
    clock.us += 23 * HOUR_US
    await file.scratch.put(transient(clock))
    clock.us += 23 * HOUR_US
    await file.scratch.sweep(now_us=clock.us, idle=timedelta(hours=24), receipts_kept=KEPT)
    assert len(file.scratch.history("t", 10)) == 1
    assert len(file.scratch.of_thread("t")) == 1
