"""Checkpoints of workflows, without any framework: saved, found again after a restart, listed, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager, InvalidInput
from hybrid_memory.checkpoints import Checkpoints
from hybrid_memory.graph import JsonValue
from tests.support.clocks import NOON, HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def checkpoints(tmp_path: Path, clock: HandClock) -> AsyncIterator[Checkpoints]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        yield manager.checkpoints


async def _save(checkpoints: Checkpoints, clock: HandClock, thread_id: str, *names: str) -> None:
    parent: str | None = None
    for name in names:
        await checkpoints.save(thread_id, name, {"name": name}, parent)
        clock.advance(timedelta(seconds=1))
        parent = name


async def test_a_checkpoint_is_loaded_as_it_was_saved(checkpoints: Checkpoints) -> None:
    state: dict[str, JsonValue] = {"a": [1e22, -0.0, 2**63 - 1, None, "e\u0301", {"": {}}]}
    await checkpoints.save("t", "c2", state, parent_id="c1")
    found = await checkpoints.load("t", "c2")
    assert found is not None
    assert (found.thread_id, found.checkpoint_id, found.parent_id, found.created_at) == ("t", "c2", "c1", NOON)
    assert repr(found.state) == repr(state)


async def test_the_newest_is_loaded_unless_one_is_named(checkpoints: Checkpoints, clock: HandClock) -> None:
    await _save(checkpoints, clock, "t", "b", "c", "a")
    newest, named = await checkpoints.load("t"), await checkpoints.load("t", "b")
    assert newest is not None
    assert named is not None
    assert (newest.checkpoint_id, named.checkpoint_id) == ("a", "b")
    assert await checkpoints.load("t", "absent") is None
    assert await checkpoints.load("absent") is None


async def test_of_one_moment_the_one_saved_last_is_the_newest(checkpoints: Checkpoints) -> None:
    for name in ("b", "c", "a"):
        await checkpoints.save("t", name, {})
    assert [one.checkpoint_id for one in await checkpoints.list("t")] == ["a", "c", "b"]


async def test_they_are_listed_newest_first_and_lead_back_to_the_first(
    checkpoints: Checkpoints, clock: HandClock
) -> None:
    await _save(checkpoints, clock, "t", "one", "two", "three")
    await _save(checkpoints, clock, "other", "four")
    listed = await checkpoints.list("t")
    assert [(one.checkpoint_id, one.parent_id) for one in listed] == [("three", "two"), ("two", "one"), ("one", None)]
    assert [one.checkpoint_id for one in await checkpoints.list("t", limit=2)] == ["three", "two"]
    assert await checkpoints.list("absent") == []


async def test_saving_the_same_ids_again_replaces(checkpoints: Checkpoints, clock: HandClock) -> None:
    await _save(checkpoints, clock, "t", "one", "two")
    await checkpoints.save("t", "one", {"again": True}, parent_id="two")
    listed = await checkpoints.list("t")
    assert [(one.checkpoint_id, one.parent_id) for one in listed] == [("one", "two"), ("two", "one")]
    assert listed[0].state == {"again": True}


async def test_one_or_all_of_a_thread_are_deleted(checkpoints: Checkpoints, clock: HandClock) -> None:
    await _save(checkpoints, clock, "t", "one", "two", "three")
    await _save(checkpoints, clock, "other", "one")
    assert await checkpoints.delete("t", "two") == 1
    assert await checkpoints.delete("t", "two") == 0
    assert await checkpoints.delete("t") == 2
    assert await checkpoints.delete("t") == 0
    assert await checkpoints.list("t") == []
    assert len(await checkpoints.list("other")) == 1


async def test_they_are_there_after_a_restart(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        await manager.checkpoints.save("t", "c", {"step": 3})
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        found = await manager.checkpoints.load("t")
    assert found is not None
    assert found.state == {"step": 3}


async def test_they_stay_in_the_file_and_are_not_queued(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        await manager.checkpoints.save("t", "c", {})
        assert manager.queue().entries == 0


async def test_a_fault_in_the_state_is_named_by_its_place(checkpoints: Checkpoints) -> None:
    with pytest.raises(InvalidInput) as caught:
        await checkpoints.save("t", "c", {"a": [float("nan")]})
    assert caught.value.field == "state.a[0]"
    assert await checkpoints.list("t") == []


async def test_a_checkpoint_may_be_its_own_parent_without_harm(checkpoints: Checkpoints) -> None:
    await checkpoints.save("t", "c", {}, parent_id="c")
    assert [one.parent_id for one in await checkpoints.list("t")] == ["c"]
