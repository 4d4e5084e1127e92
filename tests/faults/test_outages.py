"""Postgres killed, frozen, restarted and refused: the caller sees another word on the receipt, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from hybrid_memory import Closed, Condition, HybridMemoryManager, Receipt, Settings, Status, UserMemory, Verdict
from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.embedded.place import read_place
from hybrid_memory.embedded.postmaster import read_postmaster
from hybrid_memory.events import PersistFailed, Recovered
from tests.faults.conftest import Sick
from tests.plugins.postgres import connected
from tests.support.managers import BRISK, FACT, Ears, both_tiers_agree, contents, drained, head_rev, opened
from tests.support.waiting import eventually, until

SECONDS = 30.0
# Half a second is what a caller gives up of patience at the most; the machine may be busy.
SLACK_SECONDS = 0.5


def postmaster_of(data_dir: Path) -> int:
    """The pid of the embedded server of a data directory."""
    place = read_place((data_dir / "postgres").resolve())
    assert place is not None
    postmaster = read_postmaster(place.cluster)
    assert postmaster is not None
    return postmaster.pid


async def read_all(memory: UserMemory, receipts: list[Receipt]) -> float:
    """Read every write back; gives the longest time one read took."""
    longest = 0.0
    for receipt in receipts:
        began = time.perf_counter()
        assert await memory.get(receipt.node_id) is not None
        longest = max(longest, time.perf_counter() - began)
    return longest


async def is_well(manager: HybridMemoryManager) -> bool:
    return (await manager.health()).condition is Condition.OK


async def shown(manager: HybridMemoryManager) -> float:
    """Seconds until health says that Postgres is away."""
    began = time.monotonic()

    async def names_it() -> bool:
        health = await manager.health()
        return health.condition is Condition.DEGRADED and any("Postgres" in cause for cause in health.causes)

    await eventually(names_it, seconds=SECONDS)
    return time.monotonic() - began


async def test_killed_in_the_middle_of_writes_postgres_has_all_of_them_in_order_once_it_is_back(
    sick: Sick, tmp_path: Path
) -> None:
    ears = Ears()
    async with opened(sick.database, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        receipts = [await memory.store({"n": n}, context_type=FACT, wait=SECONDS) for n in range(10)]
        await sick.server.kill()
        began = time.monotonic()
        during = [await memory.store({"n": n}, context_type=FACT, wait=0.2) for n in range(10, 40)]
        assert time.monotonic() - began < 0.2 + SLACK_SECONDS, "known to be away, it was waited for all the same"
        assert {receipt.status for receipt in during} == {Status.PENDING}
        await read_all(memory, receipts + during)
        assert (await manager.health()).condition is Condition.DEGRADED
        await sick.server.heal()
        final = [await receipt.durable(SECONDS) for receipt in during]
        assert [receipt.verdict for receipt in final] == [Verdict.APPLIED] * 30
        await ears.hear(Recovered)
        await drained(manager)
        await eventually(lambda: is_well(manager), seconds=6)
        await both_tiers_agree(manager, memory)
    async with connected(sick.database.admin_dsn) as admin:
        rows = await admin.fetch("select content->>'n' as n from memory.nodes order by rev")
        assert [int(row["n"]) for row in rows] == list(range(40))
        assert await head_rev(admin, "ada") == 40


@pytest.mark.parametrize("users", [(), ("ada",)])
async def test_an_outage_is_shown_within_two_seconds_though_nothing_is_to_be_written(
    sick: Sick, tmp_path: Path, users: tuple[str, ...]
) -> None:
    async with opened(sick.database, tmp_path, settings=Settings()) as manager:
        for user in users:
            await manager.ensure_user_memories(user)
        await eventually(lambda: is_well(manager))
        sick.server.freeze()
        try:
            frozen = await shown(manager)
        finally:
            sick.server.thaw()
        await eventually(lambda: is_well(manager))
        await sick.server.kill()
        killed = await shown(manager)
        await sick.server.heal()
        await eventually(lambda: is_well(manager))
        assert max(frozen, killed) < 2 + 2 * SLACK_SECONDS


async def test_frozen_postgres_costs_a_store_its_wait_and_a_read_nothing(sick: Sick, tmp_path: Path) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        before = [await memory.store({"n": n}, context_type=FACT, wait=SECONDS) for n in range(50)]
        sick.server.freeze()
        try:
            began = time.monotonic()
            stuck = await memory.store({"n": 50}, context_type=FACT, wait=0.1)
            took = time.monotonic() - began
            assert stuck.status is Status.PENDING
            assert 0.09 < took < 0.1 + SLACK_SECONDS
            assert await read_all(memory, [*before, stuck]) < SLACK_SECONDS
            with pytest.raises(TimeoutError):
                await stuck.durable(0.05)
        finally:
            sick.server.thaw()
        assert (await stuck.durable(5)).status is Status.DURABLE
        await both_tiers_agree(manager, memory)


async def test_frozen_for_longer_than_every_deadline_postgres_is_taken_up_again_in_seconds(
    sick: Sick, tmp_path: Path
) -> None:
    ears = Ears()
    async with opened(sick.database, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)
        sick.server.freeze()
        try:
            stuck = [await memory.store({"n": n}, context_type=FACT, wait=0) for n in range(1, 5)]
            await ears.hear(PersistFailed)  # its deadline of 11 s has passed
            began = time.monotonic()
            assert (await memory.store({"n": 5}, context_type=FACT, wait=5)).status is Status.PENDING
            assert time.monotonic() - began < SLACK_SECONDS, "known to be away, it was waited for all the same"
        finally:
            sick.server.thaw()
        # The breaker's longest pause is 5 s, a connection's deadline another 5.
        outcomes = [await receipt.durable(11) for receipt in stuck]
        assert [outcome.status for outcome in outcomes] == [Status.DURABLE] * 4
        await drained(manager)
        await both_tiers_agree(manager, memory)
    async with connected(sick.database.admin_dsn) as admin:
        assert await head_rev(admin, "ada") == 6


async def test_restarted_again_and_again_postgres_gets_every_write_once(sick: Sick, tmp_path: Path) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        numbers = itertools.count()

        async def write(count: int) -> None:
            for number in itertools.islice(numbers, count):
                await memory.store({"n": number}, context_type=FACT, key=f"k{number % 5}", wait=0.02)

        for _ in range(4):
            writing = asyncio.create_task(write(40))
            await sick.server.kill()
            await sick.server.heal()
            await writing
            await write(10)
        await drained(manager)
        await both_tiers_agree(manager, memory)
        assert {str(content["n"]) for content in (await contents(memory)).values()} == {str(n) for n in range(195, 200)}
    async with connected(sick.database.admin_dsn) as admin:
        assert await head_rev(admin, "ada") == 200


async def test_refused_at_opening_a_manager_works_says_so_and_loads_once_postgres_is_there(
    sick: Sick, tmp_path: Path
) -> None:
    async with opened(sick.database, tmp_path / "other") as other:
        theirs = await other.user("ada").store({"by": "other"}, context_type=FACT, wait=SECONDS)
    await sick.server.kill()
    async with opened(sick.database, tmp_path / "data") as manager:
        memory = await manager.ensure_user_memories("ada")
        ours = await memory.store({"by": "us"}, context_type=FACT, wait=SECONDS)
        assert ours.status is Status.PENDING

        async def degraded() -> bool:
            return (await manager.health()).condition is Condition.DEGRADED

        await eventually(degraded, seconds=2)
        assert any("Postgres" in cause for cause in (await manager.health()).causes)
        assert memory.freshness().degraded
        assert not memory.freshness().complete
        await sick.server.heal()
        await until(lambda: memory.freshness().complete)
        await drained(manager)
        assert set(await contents(memory)) == {ours.node_id, theirs.node_id}
        await both_tiers_agree(manager, memory)
        assert not memory.freshness().degraded


async def test_one_backend_killed_is_no_more_than_a_short_failure(sick: Sick, tmp_path: Path) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        for number in range(6):
            async with connected(sick.database.admin_dsn) as admin:
                await admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
            receipt = await memory.store({"n": number}, context_type=FACT, wait=SECONDS)
            assert (await receipt.durable(5)).rev == number + 1
        await both_tiers_agree(manager, memory)


async def test_a_read_only_primary_is_waited_for(sick: Sick, tmp_path: Path) -> None:
    async with opened(sick.database, tmp_path) as manager, connected(sick.database.server.admin_dsn()) as admin:
        memory = await manager.ensure_user_memories("ada")
        await admin.execute(f"alter database {sick.database.name} set default_transaction_read_only = on")
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", sick.database.name
        )
        receipt = await memory.store({"n": 1}, context_type=FACT, wait=0.3)
        assert receipt.status is Status.PENDING
        assert await manager.dead_letters.list() == []
        await admin.execute(f"alter database {sick.database.name} set default_transaction_read_only = off")
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", sick.database.name
        )
        assert (await receipt.durable(SECONDS)).verdict is Verdict.APPLIED


async def test_a_missing_table_buries_nothing_and_is_waited_for(sick: Sick, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(sick.database, tmp_path, ears=ears) as manager, connected(sick.database.admin_dsn) as admin:
        memory = await manager.ensure_user_memories("ada")
        await admin.execute("alter table memory.nodes rename to nodes_gone")
        receipt = await memory.store({"n": 1}, context_type=FACT, wait=0.3)
        await ears.hear(PersistFailed)
        assert (receipt.status, await manager.dead_letters.list()) == (Status.PENDING, [])
        await admin.execute("alter table memory.nodes_gone rename to nodes")
        assert (await receipt.durable(SECONDS)).verdict is Verdict.APPLIED


async def test_a_row_locked_by_somebody_else_holds_its_user_up_and_is_overcome(sick: Sick, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(sick.database, tmp_path, ears=ears) as manager, connected(sick.database.admin_dsn) as admin:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)
        async with admin.transaction():
            await admin.execute("select from memory.heads where user_id = 'ada' for update")
            receipt = await memory.store({"n": 1}, context_type=FACT, wait=0.1)
            await ears.hear(PersistFailed)  # the lock's time-out
        assert (await receipt.durable(SECONDS)).verdict is Verdict.APPLIED


async def test_closed_while_postgres_is_away_nobody_waits_for_ever(sick: Sick, tmp_path: Path) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await sick.server.kill()
        receipt = await memory.store({"n": 1}, context_type=FACT, wait=0.1)
        waiting = asyncio.create_task(receipt.durable())
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        with pytest.raises(Closed):
            await waiting
        with pytest.raises(Closed):
            await receipt.durable()
    await sick.server.heal()
    async with opened(sick.database, tmp_path) as manager:
        await drained(manager)
        await both_tiers_agree(manager, await manager.ensure_user_memories("ada"))


async def test_an_embedded_server_that_was_killed_is_brought_back_by_its_manager(tmp_path: Path) -> None:
    ears = Ears()
    async with HybridMemoryManager.open(
        data_dir=tmp_path, postgres="embedded", settings=BRISK, observer=ears
    ) as manager:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"n": 1}, context_type=FACT, wait=SECONDS)
        killed = postmaster_of(tmp_path)
        os.kill(killed, signal.SIGKILL)  # a child of our own keeper
        during = await memory.store({"n": 2}, context_type=FACT, wait=0.1)
        assert (await during.durable(SECONDS)).verdict is Verdict.APPLIED
        await both_tiers_agree(manager, memory)
        assert postmaster_of(tmp_path) != killed
    await EmbeddedPostgres.erase(tmp_path / "postgres")


async def test_an_operation_that_postgres_never_answers_does_not_hold_up_a_close(sick: Sick, tmp_path: Path) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        sick.server.freeze()
        await memory.store({"n": 1}, context_type=FACT, wait=0)
        began = time.monotonic()
        await manager.close()
        took = time.monotonic() - began
        sick.server.thaw()
    assert took < 5 + 3, "longer than the drain on close and the polite goodbyes"
