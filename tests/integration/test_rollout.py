"""Persistence rolled out gradually: users denied stay local and queued, and flow once they are allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, Status
from hybrid_memory.events import LoadStarted, Persisted
from tests.plugins.postgres import Database
from tests.support.managers import BRISK, Ears, both_tiers_agree, drained

FACT = "conversation_fact"
LONG = 20.0
# These tests look at what is queued when it closes.
AT_ONCE = BRISK.model_copy(update={"drain_on_close": timedelta(0)})


def _opened(
    postgres: Database, folder: Path, allows: Callable[[str], bool], ears: Ears | None = None
) -> AbstractAsyncContextManager[HybridMemoryManager]:
    return HybridMemoryManager.open(
        dsn=postgres.app_dsn, data_dir=folder, persistent_users=allows, observer=ears, settings=AT_ONCE
    )


def _only_ann(user_id: str) -> bool:
    return user_id == "ann"


async def _users(admin: asyncpg.Connection) -> set[str]:
    return {row[0] for row in await admin.fetch("select user_id from memory.heads")}


async def test_a_user_denied_stays_local_and_queued_while_others_flow(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    ears = Ears()
    async with _opened(postgres, tmp_path, _only_ann, ears) as manager:
        ann, bea = await manager.ensure_user_memories("ann"), await manager.ensure_user_memories("bea")
        for number in range(5):
            denied = await bea.store({"text": f"tea {number}"}, context_type=FACT, wait=0)
            allowed = await ann.store({"text": f"tea {number}"}, context_type=FACT, wait=LONG)
            assert (denied.status, allowed.status) == (Status.PENDING, Status.DURABLE)
        assert len(await bea.search("tea")) == len(await ann.search("tea")) == 5
        assert (bea.freshness().queued, ann.freshness().queued) == (5, 0)
        assert await manager.drain(timedelta(0)) == 5
    assert await _users(admin) == {"ann"}
    assert {event.user_id for event in ears.all(Persisted)} == {"ann"}
    assert {event.user_id for event in ears.all(LoadStarted)} == {"ann"}


async def test_neither_draining_nor_closing_waits_for_what_may_not_flow(postgres: Database, tmp_path: Path) -> None:
    patient = BRISK.model_copy(update={"drain_on_close": timedelta(hours=1)})
    async with (
        asyncio.timeout(LONG),
        HybridMemoryManager.open(
            dsn=postgres.app_dsn, data_dir=tmp_path, persistent_users=_only_ann, settings=patient
        ) as manager,
    ):
        await manager.user("bea").store({"text": "tea"}, context_type=FACT, wait=0)
        await manager.user("ann").store({"text": "tea"}, context_type=FACT, wait=0)
        assert await manager.drain(timedelta(hours=1)) == 1


async def test_a_user_allowed_at_a_later_opening_flows_in_order(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with _opened(postgres, tmp_path, _only_ann) as manager:
        bea = await manager.ensure_user_memories("bea")
        first = await bea.store({"n": 1}, context_type=FACT, key="k", wait=0)
        await bea.store({"n": 2}, context_type=FACT, key="k", wait=0)
        gone = await bea.store({"n": 3}, context_type=FACT, wait=0)
        await bea.relate(first.node_id, gone.node_id, "led_to", wait=0)
        await bea.delete(gone.node_id, wait=0)
    async with _opened(postgres, tmp_path, _only_ann) as manager:
        assert manager.queue().entries == 6
    async with _opened(postgres, tmp_path, lambda _: True) as manager:
        await drained(manager)
        bea = await manager.ensure_user_memories("bea")
        assert [node.content for node in (await bea.list()).items] == [{"n": 2}]
        await both_tiers_agree(manager, bea)
    assert await _users(admin) == {"bea"}


async def test_nobody_allowed_means_nothing_is_sent(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with _opened(postgres, tmp_path, lambda _: False) as manager:
        receipts = [await manager.store_persistent_memory(user, {}, FACT, wait=0) for user in ("ann", "bea")]
        with pytest.raises(TimeoutError):
            await receipts[0].durable(0.2)
        assert manager.queue().entries == 2
    assert await _users(admin) == set()


async def test_a_long_queue_of_a_denied_user_does_not_stand_in_the_way(postgres: Database, tmp_path: Path) -> None:
    async with _opened(postgres, tmp_path, _only_ann) as manager:
        bea = manager.user("bea")
        for number in range(BRISK.batch_size + 5):
            await bea.store({"n": number}, context_type=FACT, wait=0)
        receipt = await manager.store_persistent_memory("ann", {}, FACT, wait=LONG)
        assert receipt.status is Status.DURABLE
