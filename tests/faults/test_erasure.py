"""Erased stays erased: it beats what is queued, loading, in flight and late, and leaves no byte behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, Status, Verdict
from hybrid_memory.events import Persisted
from hybrid_memory.messages import FlatRow, Head
from hybrid_memory.sqlite import replica
from hybrid_memory.sqlite.quarantine import remove_finished
from tests.faults.conftest import Sick
from tests.plugins.postgres import Database
from tests.support.beneath import staff, tiers
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, drained, opened
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("one_place")

SECONDS = 20.0
CANARY = "canary-5e1f"


def canaries_in(data_dir: Path) -> int:
    """How often the canary stands in the files of a closed data directory."""
    return sum(path.read_bytes().count(CANARY.encode()) for path in data_dir.rglob("*") if path.is_file())


def knows_an_erasure(manager: HybridMemoryManager, user_id: str) -> bool:
    cursor = tiers(manager).file.hot.cursor(user_id)
    return cursor is not None and cursor.complete and cursor.erased_rev > 0


async def tell_secrets(manager: HybridMemoryManager, user_id: str, *, wait: float) -> None:
    memory = manager.user(user_id)
    for number in range(20):
        content = {"text": f"{CANARY} {number}" * 20}
        await memory.store(content, context_type=FACT, key=f"{CANARY}-{number % 7}", tags=[CANARY], wait=wait)
    first = await memory.store_entity(CANARY, "1", "thing", {CANARY: 1}, name=CANARY, wait=wait)
    second = await memory.store({"text": CANARY}, context_type=FACT, summary=CANARY, wait=wait)
    await memory.relate(first.node_id, second.node_id, "led_to", properties={CANARY: 1}, wait=wait)


async def forgotten_elsewhere(
    postgres: Database, folder: Path, *, meanwhile: Callable[[HybridMemoryManager], Awaitable[None]]
) -> None:
    """One process forgets a user whom another holds, which has done something `meanwhile` with Postgres out of reach.

    Their files lie in `one` and `two`.
    """
    async with opened(postgres, folder / "one") as one:
        await tell_secrets(one, "ada", wait=SECONDS)
        async with opened(postgres, folder / "two") as two:
            await two.ensure_user_memories("ada")
        async with opened(f"postgresql://nobody@/none?host={folder}", folder / "two") as two:
            await meanwhile(two)
        await one.forget("ada")
        await drained(one)


async def test_forgetting_leaves_no_byte_in_the_file_and_no_row_in_postgres(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await tell_secrets(manager, "ada", wait=SECONDS)
        await memory.search(CANARY)
        await manager.forget("ada")
        assert await contents(memory) == {}
        await drained(manager)
    assert canaries_in(tmp_path) == 0
    for table in ("nodes", "relationships", "node_history", "relationship_history", "vectors"):
        assert await admin.fetchval(f"select count(*) from memory.{table}") == 0


async def test_an_erasure_is_acknowledged_only_when_what_was_set_aside_is_gone(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    def remove_when_told(data_dir: Path) -> int:
        begun.set()
        assert go_on.wait(SECONDS)
        removed = remove_finished(data_dir)
        told.append("removed")
        return removed

    monkeypatch.setattr(replica, "remove_finished", remove_when_told)
    async with opened(postgres, tmp_path) as manager:
        await manager.user("ada").store({"text": CANARY}, context_type=FACT, wait=SECONDS)
        erasing = asyncio.create_task(manager.forget("ada"))
        erasing.add_done_callback(lambda _: told.append("acknowledged"))
        await until(begun.is_set)
        # Whoever did not wait for it would have been answered before this is.
        await manager.user("bo").store({"n": 1}, context_type=FACT, wait=SECONDS)
        go_on.set()
        await erasing
        await until(lambda: len(told) == 2)
    assert told == ["removed", "acknowledged"]


async def test_forgetting_leaves_no_byte_of_a_copy_that_a_reload_has_replaced(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path) as manager:
        await manager.ensure_user_memories("ada")
        await tell_secrets(manager, "ada", wait=SECONDS)
        await admin.execute("update memory.heads set epoch = gen_random_uuid()")
        await staff(manager).preload.bring_up_to_date("ada")
        await manager.forget("ada")
        await drained(manager)
    assert canaries_in(tmp_path) == 0


async def test_forgetting_beats_what_is_queued_while_postgres_is_away(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with opened(f"postgresql://nobody@/none?host={tmp_path}", tmp_path / "data") as manager:
        await tell_secrets(manager, "ada", wait=0)
        await manager.user("bo").store({"n": 1}, context_type=FACT, wait=0)
        await manager.forget("ada")
        after = await manager.user("ada").store({"text": "a new life"}, context_type=FACT, key="new", wait=0)
        assert manager.queue().entries == 3
    assert canaries_in(tmp_path) == 0
    async with opened(postgres, tmp_path / "data") as manager:
        await drained(manager)
        memory = await manager.ensure_user_memories("ada")
        assert await contents(memory) == {after.node_id: {"text": "a new life"}}
        await both_tiers_agree(manager, memory)
        assert (await manager.user("bo").list()).items
    assert await admin.fetchval("select count(*) from memory.nodes where user_id = 'ada'") == 1


async def test_whoever_waits_for_an_erased_write_is_told_that_it_was_rejected(sick: Sick, tmp_path: Path) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        sick.server.freeze()
        try:
            waiting = asyncio.create_task(memory.store({"n": 1}, context_type=FACT, wait=60))
            later = await memory.store({"n": 2}, context_type=FACT, wait=0)
            outcome = asyncio.create_task(later.durable())
            await until(lambda: manager.queue().entries == 2)
            await manager.forget("ada")
            assert (await waiting).verdict is Verdict.REJECTED
            assert (await outcome).verdict is Verdict.REJECTED
            assert (await later.durable(1)).verdict is Verdict.REJECTED
        finally:
            sick.server.thaw()
        await drained(manager)


async def test_another_process_that_holds_the_user_lets_go_of_every_byte(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "one") as one, opened(postgres, tmp_path / "two") as two:
        await tell_secrets(one, "ada", wait=SECONDS)
        copy = await two.ensure_user_memories("ada")
        assert len(await contents(copy)) == 9
        await one.forget("ada")
        await drained(one)
        await until(lambda: knows_an_erasure(two, "ada"))
        assert await contents(copy) == {}
        fresh = await copy.store({"text": "a new life"}, context_type=FACT, wait=SECONDS)
        assert fresh.verdict is Verdict.APPLIED
    assert canaries_in(tmp_path) == 0
    assert await admin.fetchval("select count(*) from memory.nodes") == 1


async def test_a_copy_that_nobody_has_open_is_let_go_of_as_well(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path / "one") as one:
        await tell_secrets(one, "ada", wait=SECONDS)
        async with opened(postgres, tmp_path / "two") as two:
            await two.ensure_user_memories("ada")
        async with opened(postgres, tmp_path / "two") as two:
            assert len(await contents(two.user("ada"))) == 9
            await one.forget("ada")
            await until(lambda: tiers(two).file.hot.cursor("ada") is None)
            assert await contents(two.user("ada")) == {}
    assert canaries_in(tmp_path) == 0


async def test_writes_that_another_process_queued_before_it_heard_of_the_erasure_are_rejected(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async def write_on(two: HybridMemoryManager) -> None:
        await tell_secrets(two, "ada", wait=0)

    await forgotten_elsewhere(postgres, tmp_path, meanwhile=write_on)
    ears = Ears()
    async with opened(postgres, tmp_path / "two", ears=ears) as two:
        await drained(two)
        copy = await two.ensure_user_memories("ada")
        assert await contents(copy) == {}
        await both_tiers_agree(two, copy)
    assert await admin.fetchval("select count(*) from memory.nodes") == 0
    assert {event.verdict for event in ears.all(Persisted)} <= {Verdict.REJECTED}
    assert canaries_in(tmp_path) == 0


async def test_an_erasure_that_another_process_has_not_heard_of_beats_what_that_stored_behind_its_own(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async def forget_and_write_on(two: HybridMemoryManager) -> None:
        for _ in range(2):
            await two.forget("ada")
            await tell_secrets(two, "ada", wait=0)

    await forgotten_elsewhere(postgres, tmp_path, meanwhile=forget_and_write_on)
    async with opened(postgres, tmp_path / "two") as two:
        await drained(two)
        copy = await two.ensure_user_memories("ada")
        assert await contents(copy) == {}
        await both_tiers_agree(two, copy)
        # It has heard of both by now.
        await two.user("ada").store({"text": "anew"}, context_type=FACT, wait=SECONDS)
    assert await admin.fetchval("select count(*) from memory.nodes") == 1
    assert canaries_in(tmp_path) == 0


async def test_a_session_that_starts_before_the_erasure_has_arrived_does_not_bring_it_back(
    sick: Sick, tmp_path: Path
) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await tell_secrets(manager, "ada", wait=SECONDS)
        relay = staff(manager).relay_service
        await relay.stop()  # so that the erasure stays queued while the feed and loads go on
        await manager.forget("ada")
        again = await manager.ensure_user_memories("ada")
        assert await contents(again) == {}
        assert not again.freshness().complete
        relay.start()
        await drained(manager)
        await until(lambda: memory.freshness().complete)
        assert await contents(memory) == {}
        await both_tiers_agree(manager, memory)
    assert canaries_in(tmp_path) == 0


async def test_a_load_from_before_an_erasure_that_begins_when_it_has_arrived_brings_nothing_back(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres, tmp_path) as manager:
        await tell_secrets(manager, "ada", wait=SECONDS)
        relay = staff(manager).relay_service
        await relay.stop()  # so that the snapshot is taken before the erasure arrives
        await manager.forget("ada")
        replica = tiers(manager).file.replica
        begin, beginning, go_on = replica.begin_load, asyncio.Event(), asyncio.Event()

        async def begin_late(head: Head) -> int | None:
            beginning.set()
            await go_on.wait()
            return await begin(head)

        monkeypatch.setattr(replica, "begin_load", begin_late)
        loading = asyncio.create_task(manager.ensure_user_memories("ada"))
        await beginning.wait()
        relay.start()
        await drained(manager)
        go_on.set()
        memory = await loading
        assert await contents(memory) == {}
        assert not memory.freshness().complete
    assert canaries_in(tmp_path) == 0


async def test_a_load_under_way_does_not_bring_back_what_is_forgotten(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres, tmp_path / "one") as one:
        await tell_secrets(one, "ada", wait=SECONDS)
    async with opened(postgres, tmp_path / "two") as two:
        replica = tiers(two).file.replica
        add_relationships, streaming, go_on = replica.add_relationships, asyncio.Event(), asyncio.Event()

        async def add_slowly(generation: int, rows: Sequence[FlatRow]) -> None:
            streaming.set()
            await go_on.wait()
            await add_relationships(generation, rows)

        monkeypatch.setattr(replica, "add_relationships", add_slowly)
        loading = asyncio.create_task(two.ensure_user_memories("ada"))
        await streaming.wait()
        await two.forget("ada")
        go_on.set()
        memory = await loading
        assert await contents(memory) == {}
        await drained(two)
    assert canaries_in(tmp_path / "two") == 0


async def test_a_difference_under_way_does_not_bring_back_what_is_forgotten(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres, tmp_path / "one") as one, opened(postgres, tmp_path / "two") as two:
        memory = await two.ensure_user_memories("ada")
        replica = tiers(two).file.replica
        absorb, absorbing, go_on = replica.absorb, asyncio.Event(), asyncio.Event()

        async def absorb_slowly(head: Head, nodes: Sequence[FlatRow], relationships: Sequence[FlatRow]) -> int:
            absorbing.set()
            await go_on.wait()
            return await absorb(head, nodes, relationships)

        monkeypatch.setattr(replica, "absorb", absorb_slowly)
        await tell_secrets(one, "ada", wait=SECONDS)
        await absorbing.wait()
        await two.forget("ada")
        go_on.set()
        await drained(two)
        assert await contents(memory) == {}
    assert canaries_in(tmp_path / "two") == 0


async def test_an_erasure_taken_back_by_nothing_survives_a_restart_before_it_was_sent(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "data") as manager:
        await tell_secrets(manager, "ada", wait=SECONDS)
    async with opened(f"postgresql://nobody@/none?host={tmp_path}", tmp_path / "data") as manager:
        await manager.forget("ada")
    async with opened(postgres, tmp_path / "data") as manager:
        memory = await manager.ensure_user_memories("ada")
        await manager.drain(timedelta(seconds=SECONDS))
        await both_tiers_agree(manager, memory)
        assert await contents(memory) == {}
        receipt = await memory.store({"text": "a new life"}, context_type=FACT, wait=SECONDS)
        assert (receipt.status, receipt.verdict) == (Status.DURABLE, Verdict.APPLIED)
    assert await admin.fetchval("select count(*) from memory.nodes") == 1
