"""A data directory that was copied: one goes on, the other is stopped, and nothing is sent twice or lost."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import Condition, HybridMemoryManager
from hybrid_memory.events import PersistFailed
from tests.plugins.postgres import Database
from tests.support.managers import FACT, Ears, drained, opened
from tests.support.poison import queued
from tests.support.waiting import eventually

QUEUED = 8


async def twins(tmp_path: Path, database: Database) -> tuple[Path, Path]:
    """Two directories that are alike, with a queue that nobody has carried and a mark from before."""
    async with opened(database, tmp_path / "one") as manager:
        await manager.store_persistent_memory("ada", {"text": "marked"}, FACT)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "one") as manager:
        for number in range(QUEUED):
            await manager.store_persistent_memory("ada", {"text": f"queued {number}"}, FACT)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    return tmp_path / "one", tmp_path / "two"


async def texts(admin: asyncpg.Connection) -> list[str]:
    rows = await admin.fetch("select content->>'text' as text from memory.nodes order by rev")
    return [row["text"] for row in rows]


BEFORE = ["marked", *(f"queued {number}" for number in range(QUEUED))]


async def fenced(manager: HybridMemoryManager) -> bool:
    health = await manager.health()
    return health.condition is Condition.FAILED and any("taken over" in cause for cause in health.causes)


async def test_of_two_copies_opened_alike_the_one_that_comes_second_is_stopped_and_keeps_its_queue(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    one, two = await twins(tmp_path, postgres)
    ears = Ears()
    async with opened(postgres, one) as first:
        await drained(first)
        async with opened(postgres, two, ears=ears) as second:
            await second.store_persistent_memory("ada", {"text": "of the copy"}, FACT, wait=0)
            await eventually(lambda: fenced(second))
            assert "fenced" in {failure.code for failure in ears.all(PersistFailed)}
            # Shown, not sent: a person decides.
            assert [operation.seq for operation in queued(second)] == list(range(2, QUEUED + 3))
            assert second.queue().entries == QUEUED + 1
            assert await second.drain(timedelta(seconds=5)) == QUEUED + 1
            receipt = await first.store_persistent_memory("ada", {"text": "of the first"}, FACT)
            assert receipt.rev == len(BEFORE) + 1
    assert await texts(admin) == [*BEFORE, "of the first"]
    async with HybridMemoryManager.open(postgres="off", data_dir=two) as second:
        assert second.queue().entries == QUEUED + 1


async def test_a_copy_opened_later_takes_over_without_taking_its_own_writes_for_the_others(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    one, two = await twins(tmp_path, postgres)
    async with HybridMemoryManager.open(postgres="off", data_dir=two):
        pass  # the copy's number is now the higher one
    async with opened(postgres, one) as first:
        await drained(first)
        await first.store_persistent_memory("ada", {"text": "of the first"}, FACT)
        async with opened(postgres, two) as second:
            # The same number of the same client's queue as the other's write has, for another operation.
            await second.store_persistent_memory("ada", {"text": "of the copy"}, FACT)
            await drained(second)
            await first.store_persistent_memory("ada", {"text": "too late"}, FACT, wait=0)
            await eventually(lambda: fenced(first))
            assert first.queue().entries == 1
    assert await texts(admin) == [*BEFORE, "of the first", "of the copy"]


async def test_what_a_copy_queued_apart_is_not_taken_for_what_the_other_has_sent_under_the_same_number(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    one, two = await twins(tmp_path, postgres)
    async with HybridMemoryManager.open(postgres="off", data_dir=two) as second:
        await second.store_persistent_memory("ada", {"text": "of the copy"}, FACT)
    async with opened(postgres, one) as first:
        # The same opening of the same client, and the same number of its queue.
        await first.store_persistent_memory("ada", {"text": "of the first"}, FACT)
        await drained(first)
    async with opened(postgres, two) as second:
        await drained(second)
        assert not await second.dead_letters.list()
    assert await texts(admin) == [*BEFORE, "of the first", "of the copy"]


async def opened_and_closed(data_dir: Path, times: int) -> None:
    for _ in range(times):
        async with HybridMemoryManager.open(postgres="off", data_dir=data_dir):
            pass


@pytest.mark.parametrize("times", [1, 2, 4])
async def test_what_a_copy_queued_apart_is_sent_though_the_original_was_opened_more_often_when_it_sent(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection, times: int
) -> None:
    one, two = await twins(tmp_path, postgres)
    async with HybridMemoryManager.open(postgres="off", data_dir=two) as second:
        await second.store_persistent_memory("ada", {"text": "of the copy"}, FACT)
    await opened_and_closed(one, times)
    async with opened(postgres, one) as first:
        # The same number of the same client's queue, in an opening whose number the copy will have passed.
        await first.store_persistent_memory("ada", {"text": "of the first"}, FACT)
        await drained(first)
    await opened_and_closed(two, times + 1)
    async with opened(postgres, two) as second:
        await drained(second)
        assert not await second.dead_letters.list()
    assert await texts(admin) == [*BEFORE, "of the first", "of the copy"]


async def test_a_copy_that_sent_before_the_original_takes_nothing_from_it_either(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    one, two = await twins(tmp_path, postgres)
    for text in ("of the first", "of the first again"):
        async with HybridMemoryManager.open(postgres="off", data_dir=one) as first:
            await first.store_persistent_memory("ada", {"text": text}, FACT)
    for text in ("of the copy", "of the copy again", "of the copy at last"):
        # Each in an opening of its own, which has carried all that was queued.
        async with opened(postgres, two) as second:
            await second.store_persistent_memory("ada", {"text": text}, FACT)
            await drained(second)
    await opened_and_closed(one, 4)
    async with opened(postgres, one) as first:
        await drained(first)
    apart = ["of the copy", "of the copy again", "of the copy at last", "of the first", "of the first again"]
    assert await texts(admin) == [*BEFORE, *apart]


async def test_a_deletion_that_the_original_has_sent_is_not_repeated_by_a_copy_of_its_queue(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    one = tmp_path / "one"
    async with opened(postgres, one) as first:
        ticket = await first.user("ada").store_entity("jira", "A-1", "ticket", {"n": 1})
    async with HybridMemoryManager.open(postgres="off", data_dir=one) as first:
        await first.user("ada").delete(ticket.node_id)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    async with HybridMemoryManager.open(postgres="off", data_dir=two) as second:
        await second.store_persistent_memory("ada", {"text": "of the copy"}, FACT)
    await opened_and_closed(one, 2)
    async with opened(postgres, one) as first:
        await first.user("ada").store_entity("jira", "A-1", "ticket", {"n": 2})
        await drained(first)
    await opened_and_closed(two, 3)
    async with opened(postgres, two) as second:
        await drained(second)
    rows = await admin.fetch("select entity_id, content::text from memory.nodes where deleted_at is null order by rev")
    assert [row["entity_id"] for row in rows] == ["A-1", None]
    assert '"n":2' in rows[0]["content"]


async def test_whoever_opens_a_copied_file_alone_just_goes_on(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    one, two = await twins(tmp_path, postgres)
    shutil.rmtree(one)
    async with opened(postgres, two) as manager:
        await drained(manager)
        receipt = await manager.store_persistent_memory("ada", {"text": "after"}, FACT)
        assert receipt.rev == len(BEFORE) + 1
    assert await texts(admin) == [*BEFORE, "after"]
