"""The queue under load and under poison: what is queued flows, in order, and only what can never flow is buried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, Settings, Status, Verdict
from hybrid_memory.changes import Operation
from hybrid_memory.events import Buried, Persisted
from hybrid_memory.messages import BatchApplied, Opening
from hybrid_memory.relay import LEAST_SHARE
from tests.plugins.postgres import Database, connected
from tests.support.beneath import tiers
from tests.support.managers import FACT, Ears, both_tiers_agree, drained, head_rev, opened
from tests.support.poison import poison, queued
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("one_place")

SECONDS = 20.0


@asynccontextmanager
async def in_an_outage(tmp_path: Path) -> AsyncGenerator[HybridMemoryManager]:
    """A manager that cannot reach Postgres, to fill its queue."""
    async with opened(f"postgresql://nobody@/none?host={tmp_path}", tmp_path / "data") as manager:
        yield manager


async def test_a_hot_user_loses_nothing_when_a_long_queue_is_drained(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with in_an_outage(tmp_path) as manager:
        memory = manager.user("ada")
        writes = [memory.store({"n": n}, context_type=FACT, key="hot", wait=0) for n in range(40)]
        writes += [memory.store({"n": n}, context_type=FACT, wait=0) for n in range(1500)]
        await asyncio.gather(*writes)
    async with opened(postgres, tmp_path / "data") as manager:
        await drained(manager)
        memory = await manager.ensure_user_memories("ada")
        later = await memory.store({"n": -1}, context_type=FACT, wait=SECONDS)
        assert later.rev == 1541
        assert await admin.fetchval("select count(*) from memory.nodes") == 1502
        await both_tiers_agree(manager, memory)


async def test_many_users_with_hot_keys_are_drained_in_their_order(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    users = [f"user-{number}" for number in range(25)]
    async with in_an_outage(tmp_path) as manager:
        for round_number in range(20):
            for user in users:
                memory = manager.user(user)
                await asyncio.gather(
                    memory.store({"n": round_number}, context_type=FACT, key="hot", wait=0),
                    memory.store({"n": round_number}, context_type=FACT, wait=0),
                )
    async with opened(postgres, tmp_path / "data") as manager:
        await drained(manager)
    for user in users:
        assert await head_rev(admin, user) == 40
        stands = await admin.fetchval("select content->>'n' from memory.nodes where user_id = $1 and key = 'hot'", user)
        assert stands == "19"
    out_of_order = await admin.fetch(
        "select from (select rev, writer_seq, lag(writer_seq) over (partition by user_id order by rev) as before"
        " from memory.nodes) as rows where before > writer_seq"
    )
    assert out_of_order == []


@pytest.mark.parametrize("place", [0, 4, 9])
@pytest.mark.parametrize(
    ("members", "sqlstate"),
    [
        ({"text_content": "a\0b"}, "22P05"),
        ({"importance": 7.0}, "23514"),
        ({"node_id": "not a uuid"}, "22P02"),
        ({"namespace": None}, "23502"),
    ],
)
async def test_poison_alone_is_buried_wherever_it_stands(
    postgres: Database,
    admin: asyncpg.Connection,
    tmp_path: Path,
    place: int,
    members: dict[str, object],
    sqlstate: str,
) -> None:
    async with in_an_outage(tmp_path) as manager:
        memory = manager.user("ada")
        receipts = [await memory.store({"n": n}, context_type=FACT, wait=0) for n in range(10)]
        await poison(manager, receipts[place].op_id, **members)
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears) as manager:
        await ears.hear(Buried)
        await drained(manager, seconds=5)
        (letter,) = await manager.dead_letters.list()
        assert (letter.operation.op_id, letter.sqlstate) == (receipts[place].op_id, sqlstate)
        assert (await manager.health()).dead_letters == 1
    assert [event.op_id for event in ears.all(Buried)] == [letter.operation.op_id]
    there = {row["n"] for row in await admin.fetch("select content->>'n' as n from memory.nodes")}
    assert there == {str(n) for n in range(10) if n != place}
    assert await head_rev(admin, "ada") == 9


async def test_a_queue_of_nothing_but_poison_is_buried_and_rests(postgres: Database, tmp_path: Path) -> None:
    async with in_an_outage(tmp_path) as manager:
        memory = manager.user("ada")
        receipts = [await memory.store({"n": n}, context_type=FACT, wait=0) for n in range(8)]
        for receipt in receipts:
            await poison(manager, receipt.op_id, importance=7.0)
    async with opened(postgres, tmp_path / "data") as manager:
        await drained(manager, seconds=5)
        assert len(await manager.dead_letters.list()) == 8
        assert (await manager.user("bo").store({"n": 1}, context_type=FACT, wait=SECONDS)).status is Status.DURABLE


async def test_an_edge_to_a_buried_node_is_buried_with_it_and_both_can_be_retried(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with in_an_outage(tmp_path) as manager:
        memory = manager.user("ada")
        nodes = [await memory.store({"n": n}, context_type=FACT, wait=0) for n in range(2)]
        await memory.relate(nodes[0].node_id, nodes[1].node_id, "led_to", wait=0)
        await poison(manager, nodes[0].op_id, importance=7.0)
    async with opened(postgres, tmp_path / "data") as manager:
        await drained(manager, seconds=5)
        letters = await manager.dead_letters.list()
        assert [letter.sqlstate for letter in letters] == ["23514", "23514"]
        assert nodes[0].op_id in letters[1].reason
        async with connected(postgres.admin_dsn) as connection:
            await connection.execute("alter table memory.nodes drop constraint nodes_importance_check")
        assert await manager.dead_letters.retry(None) == 2
        await drained(manager, seconds=5)
        assert await manager.dead_letters.list() == []
        assert await admin.fetchval("select count(*) from memory.relationships") == 1


async def test_what_depends_on_a_buried_operation_is_buried_with_it_and_nothing_else(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    ears = Ears()
    async with in_an_outage(tmp_path) as manager:
        memory = manager.user("ada")
        bad, good, other = [await memory.store({"n": n}, context_type=FACT, key=f"k{n}", wait=0) for n in range(3)]
        to_bad = await memory.relate(good.node_id, bad.node_id, "led_to", wait=0)
        to_good = await memory.relate(good.node_id, other.node_id, "led_to", wait=0)
        changed = await memory.store({"n": "changed"}, context_type=FACT, key="k0", wait=0)
        from_bad = await memory.relate(bad.node_id, other.node_id, "led_to", wait=0)
        last = await memory.store({"n": "last"}, context_type=FACT, key="k1", wait=0)
        await poison(manager, bad.op_id, importance=7.0)
    async with opened(postgres, tmp_path / "data", ears=ears) as manager:
        await drained(manager, seconds=5)
        letters = [letter.operation.op_id for letter in await manager.dead_letters.list()]
        assert letters == [one.op_id for one in (bad, to_bad, changed, from_bad)]
        assert [event.op_id for event in ears.all(Buried)] == letters
        assert {event.op_id for event in ears.all(Persisted)} == {one.op_id for one in (good, other, to_good, last)}
        assert manager.queue().dead_letters == 4
        await admin.execute("alter table memory.nodes drop constraint nodes_importance_check")
        await manager.dead_letters.retry(None)
        await drained(manager, seconds=5)
        assert (await manager.dead_letters.list(), manager.queue().dead_letters) == ([], 0)
        assert await admin.fetchval("select content->>'n' from memory.nodes where key = 'k0'") == "changed"
        assert await admin.fetchval("select count(*) from memory.relationships") == 3


async def test_a_poisoned_change_of_a_node_that_stands_leaves_its_relationships_alone(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "data") as manager:
        memory = await manager.ensure_user_memories("ada")
        nodes = [await memory.store({"n": n}, context_type=FACT, key=f"k{n}", wait=SECONDS) for n in range(2)]
    async with in_an_outage(tmp_path) as manager:
        memory = manager.user("ada")
        bad = await memory.store({"n": "changed"}, context_type=FACT, key="k0", wait=0)
        await memory.relate(nodes[0].node_id, nodes[1].node_id, "led_to", wait=0)
        await poison(manager, bad.op_id, importance=7.0)
    async with opened(postgres, tmp_path / "data") as manager:
        await drained(manager, seconds=5)
        assert [letter.operation.op_id for letter in await manager.dead_letters.list()] == [bad.op_id]
        assert await admin.fetchval("select count(*) from memory.relationships") == 1


async def test_what_depends_on_it_is_buried_from_beyond_the_batch_too(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await admin.execute("alter table memory.nodes add constraint picky check (text_content <> $$poison$$)")
        # From the second time on it takes what was queued last from memory.
        before = await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)
        stores = [memory.store({"n": n}, context_type=FACT, wait=SECONDS) for n in range(2 * LEAST_SHARE)]
        stores.insert(0, memory.store({"text": "poison"}, context_type=FACT, key="k", wait=SECONDS))
        stores.append(memory.store({"text": "fine"}, context_type=FACT, key="k", wait=SECONDS))
        receipts = await asyncio.gather(*stores)
        assert [n for n, receipt in enumerate(receipts) if receipt.verdict is Verdict.DEAD] == [0, len(receipts) - 1]
        await drained(manager, seconds=5)
        assert {event.op_id for event in ears.all(Persisted)} == {one.op_id for one in [before, *receipts[1:-1]]}
        assert await admin.fetchval("select count(*) from memory.nodes") == 1 + 2 * LEAST_SHARE


async def test_whoever_waits_for_what_is_buried_with_another_is_told(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await admin.execute("alter table memory.nodes add constraint picky check (context_type <> $$poison$$)")
        stores = [memory.store({"n": n}, context_type="poison", key="k", wait=SECONDS) for n in range(6)]
        receipts = await asyncio.gather(*stores)
        assert {receipt.verdict for receipt in receipts} == {Verdict.DEAD}
        assert manager.queue().dead_letters == len(receipts)
        fine = await memory.store({"n": 1}, context_type=FACT, wait=SECONDS)
        assert fine.status is Status.DURABLE


async def test_the_receipt_of_a_buried_operation_says_so_and_a_retried_one_flows_at_once(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await admin.execute("alter table memory.nodes add constraint picky check (context_type <> $$poison$$)")
        dead = await memory.store({"n": 1}, context_type="poison", wait=SECONDS)
        assert (dead.status, dead.verdict) == (Status.PENDING, Verdict.DEAD)
        assert (await dead.durable(1)).verdict is Verdict.DEAD
        await admin.execute("alter table memory.nodes drop constraint picky")
        assert await manager.dead_letters.retry([dead.op_id]) == 1
        await until(lambda: manager.queue().entries == 0, seconds=5)
        await both_tiers_agree(manager, memory)


async def test_discarded_dead_letters_are_gone_and_others_stay(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await admin.execute("alter table memory.nodes add constraint picky check (context_type <> $$poison$$)")
        dead = [await memory.store({"n": n}, context_type="poison", wait=SECONDS) for n in range(3)]
        assert await manager.dead_letters.discard([dead[0].op_id]) == 1
        left = [letter.operation.op_id for letter in await manager.dead_letters.list()]
        assert left == [receipt.op_id for receipt in dead[1:]]
        assert manager.queue().dead_letters == 2


async def test_an_error_nobody_foresaw_leaves_the_queue_whole_and_in_order(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        tier = tiers(manager).durable.tier
        apply, failing = tier.apply, asyncio.Event()

        async def fail_once(
            opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]
        ) -> BatchApplied:
            if not failing.is_set():
                failing.set()
                raise RuntimeError("nobody foresaw this")
            return await apply(opening, operations, erased)

        monkeypatch.setattr(tier, "apply", fail_once)
        first = await memory.store({"n": 1}, context_type=FACT, wait=0)
        await failing.wait()
        second = await memory.store({"n": 2}, context_type=FACT, wait=0)
        outcomes = [await receipt.durable(SECONDS) for receipt in (first, second)]
        assert [(outcome.verdict, outcome.rev) for outcome in outcomes] == [(Verdict.APPLIED, 1), (Verdict.APPLIED, 2)]
        await both_tiers_agree(manager, memory)


async def test_operations_of_users_not_yet_persistent_wait_and_are_never_overtaken(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection
) -> None:
    allowed: set[str] = set()
    asked: list[str] = []
    patience = Settings(drain_on_close=timedelta())

    def is_persistent(user_id: str) -> bool:
        asked.append(user_id)
        return user_id in allowed

    async with opened(postgres, tmp_path, persistent_users=is_persistent, settings=patience) as manager:
        memory = manager.user("ada")
        await memory.store({"n": 1}, context_type=FACT, wait=0)
        await manager.user("bo").store({"n": 1}, context_type=FACT, wait=0)
        await until(lambda: "bo" in asked)
        allowed.add("ada")  # a changed answer counts from the next opening on
        await memory.store({"n": 2}, context_type=FACT, wait=0)
        assert await manager.drain(timedelta(milliseconds=100)) == 3
    async with opened(postgres, tmp_path, persistent_users=is_persistent, settings=patience) as manager:
        await until(lambda: manager.queue().entries == 1)
        assert [operation.user_id for operation in queued(manager)] == ["bo"]
    rows = await admin.fetch("select content->>'n' as n from memory.nodes order by rev")
    assert [row["n"] for row in rows] == ["1", "2"]


@pytest.mark.parametrize("backlog", [20, 600])
async def test_what_is_not_yet_persistent_does_not_hold_up_what_is(
    postgres: Database, tmp_path: Path, backlog: int
) -> None:
    patience = Settings(drain_on_close=timedelta())
    async with in_an_outage(tmp_path) as manager:
        denied = manager.user("bo")
        await asyncio.gather(*(denied.store({"n": n}, context_type=FACT, wait=0) for n in range(backlog)))
        allowed = await manager.user("ada").store({"n": 1}, context_type=FACT, wait=0)
    ears = Ears()
    async with opened(
        postgres, tmp_path / "data", persistent_users="ada".__eq__, settings=patience, ears=ears
    ) as manager:
        (persisted,) = await ears.hear(Persisted, seconds=5)
        assert persisted.op_id == allowed.op_id
        assert manager.queue().entries == backlog
