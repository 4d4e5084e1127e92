"""A server that has lost some of its past: what it had acknowledged comes back from the copies, erasures first."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from hybrid_memory import HybridMemoryManager, Receipt, Status
from hybrid_memory.embedded.binaries import usable_programs
from hybrid_memory.embedded.place import server_account
from hybrid_memory.events import Buried, Rewritten
from hybrid_memory.health import Condition
from hybrid_memory.restorer import Restorer
from hybrid_memory.testing.failover import Pair
from hybrid_memory.testing.postgres import short_folder
from tests.faults.conftest import Sick
from tests.plugins.postgres import Database, connected
from tests.support.beneath import staff, tiers
from tests.support.managers import BRISK, FACT, Ears, both_tiers_agree, contents, drained, opened
from tests.support.waiting import eventually, until

SECONDS = 30.0
SECRET = "the lilac door code"


async def stored(manager: HybridMemoryManager, user: str, *numbers: int) -> list[Receipt]:
    receipts = [
        await manager.user(user).store({"n": number}, context_type=FACT, key=f"k{number}", wait=SECONDS)
        for number in numbers
    ]
    assert {receipt.status for receipt in receipts} == {Status.DURABLE}
    return receipts


async def restored(manager: HybridMemoryManager, since: str | None) -> None:
    """Wait until another server than that of a lineage was met, nothing is in doubt, and all of it is carried."""
    file = tiers(manager).file
    await until(lambda: file.binding.lineage != since, seconds=SECONDS)
    past = file.past
    await until(lambda: not past.users_in_doubt() and not past.erasures_in_doubt(), seconds=SECONDS)
    await drained(manager)


async def all_is_applied(manager: HybridMemoryManager) -> None:
    """Wait until nothing is queued and nothing is dead."""

    async def nothing_is_left() -> bool:
        return manager.queue().entries == 0 and await manager.dead_letters.list() == []

    await eventually(nothing_is_left, seconds=SECONDS)


def lineage(manager: HybridMemoryManager) -> str | None:
    return tiers(manager).file.binding.lineage


async def numbers_at(pair: Pair, user: str) -> list[int]:
    async with connected(pair.admin_dsn) as admin:
        rows = await admin.fetch(
            "select (content->>'n')::int as n from memory.nodes where user_id = $1"
            " and deleted_at is null and content->>'n' is not null",
            user,
        )
    return sorted(row["n"] for row in rows)


async def test_what_a_failover_lost_comes_back_from_the_copy_of_an_open_user(failover: Pair, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(failover.dsn, tmp_path / "data", ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        kept = await stored(manager, "ada", *range(5))
        await failover.catch_up()
        await failover.lag()
        lost = await stored(manager, "ada", *range(5, 20))
        changed = await memory.store({"n": 100}, context_type=FACT, node_id=kept[0].node_id, wait=SECONDS)
        await memory.relate(kept[1].node_id, lost[0].node_id, "led_to", wait=SECONDS)
        gone = await memory.delete(kept[2].node_id, wait=SECONDS)
        assert {changed.status, gone.status} == {Status.DURABLE}
        before, since = await contents(memory), lineage(manager)
        await failover.promote(lose_tail=True)
        rewritten = await ears.hear(Rewritten, seconds=SECONDS)
        # 15 lost nodes, one lost change, one lost relationship, one lost deletion.
        assert [event.queued_again for event in rewritten] == [18]
        await restored(manager, since)
        await both_tiers_agree(manager, memory)
        assert await contents(memory) == before
        assert [n.node.node_id for n in await memory.neighbours(kept[1].node_id)] == [lost[0].node_id]
    assert await numbers_at(failover, "ada") == sorted([1, 3, 4, 100, *range(5, 20)])


async def test_what_died_for_want_of_a_node_that_a_failover_lost_is_queued_again_behind_it(
    failover: Pair, tmp_path: Path
) -> None:
    ears = Ears()
    async with opened(failover.dsn, tmp_path / "data", ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        (kept,) = await stored(manager, "ada", 1)
        await failover.catch_up()
        await failover.lag()
        (lost,) = await stored(manager, "ada", 2)
        # Queued before anybody knows of the loss, so it goes before the node comes back.
        failover.proxy.shut()
        await memory.relate(kept.node_id, lost.node_id, "led_to", wait=0)
        since = lineage(manager)
        await failover.promote(lose_tail=True)
        await restored(manager, since)
        assert {event.sqlstate for event in ears.all(Buried)} <= {"23503"}
        await all_is_applied(manager)
        await both_tiers_agree(manager, memory)
        assert [n.node.node_id for n in await memory.neighbours(kept.node_id)] == [lost.node_id]
    async with connected(failover.admin_dsn) as admin:
        assert await admin.fetchval("select count(*) from memory.relationships where deleted_at is null") == 1


async def test_what_dies_late_for_want_of_a_node_that_a_failover_lost_is_queued_again_too(
    failover: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    look = cast("Callable[[Restorer], Awaitable[None]]", vars(Restorer)["_retry_for_missing_rows"])

    async def looking(restorer: Restorer) -> None:
        looks.append("looked")
        await look(restorer)

    monkeypatch.setattr(Restorer, "_retry_for_missing_rows", looking)
    monkeypatch.setattr("hybrid_memory.restorer._AMEND_SECONDS", 0.01)
    ears = Ears()
    settings = BRISK.model_copy(update={"batch_size": 1})
    async with opened(failover.dsn, tmp_path / "data", ears=ears, settings=settings) as manager:
        memory = await manager.ensure_user_memories("ada")
        (kept,) = await stored(manager, "ada", 1)
        await failover.catch_up()
        await failover.lag()
        (lost,) = await stored(manager, "ada", 2)
        relay = staff(manager).relay_service
        await relay.stop()
        await memory.relate(kept.node_id, lost.node_id, "led_to", wait=0)
        await failover.promote(lose_tail=True)
        # All was compared long ago when the relationship is sent.
        await until(lambda: len(looks) > 20, seconds=SECONDS)
        relay.start()
        await ears.hear(Buried)
        await all_is_applied(manager)
        await both_tiers_agree(manager, memory)
        assert [n.node.node_id for n in await memory.neighbours(kept.node_id)] == [lost.node_id]


async def test_what_dies_so_after_a_restart_in_the_middle_of_comparing_is_queued_again_too(
    failover: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def not_yet(_: Restorer) -> None:
        """Ended before it had compared anything."""

    with monkeypatch.context() as before:
        before.setattr(Restorer, "run_once", not_yet)
        async with opened(failover.dsn, tmp_path / "data") as manager:
            await manager.ensure_user_memories("bo")  # so that the feed asks
            (kept,) = await stored(manager, "ada", 1)
            await failover.catch_up()
            await failover.lag()
            (lost,) = await stored(manager, "ada", 2)
            await staff(manager).relay_service.stop()
            await manager.user("ada").relate(kept.node_id, lost.node_id, "led_to", wait=0)
            await failover.promote(lose_tail=True)
            await until(lambda: "ada" in tiers(manager).file.past.users_in_doubt(), seconds=SECONDS)
    ears = Ears()
    settings = BRISK.model_copy(update={"batch_size": 1})
    async with opened(failover.dsn, tmp_path / "data", ears=ears, settings=settings) as manager:
        await ears.hear(Buried)
        await all_is_applied(manager)
        memory = await manager.ensure_user_memories("ada")
        await both_tiers_agree(manager, memory)
        assert [n.node.node_id for n in await memory.neighbours(kept.node_id)] == [lost.node_id]


async def test_reads_show_what_was_lost_all_the_time(failover: Pair, tmp_path: Path) -> None:
    async with opened(failover.dsn, tmp_path / "data") as manager:
        memory = await manager.ensure_user_memories("ada")
        await stored(manager, "ada", 1)
        await failover.catch_up()
        await failover.lag()
        (lost,) = await stored(manager, "ada", 2)
        seen: list[bool] = []

        async def look() -> bool:
            seen.append(await memory.get(lost.node_id) is not None)
            return not tiers(manager).file.past.users_in_doubt() and manager.queue().entries == 0

        await failover.promote(lose_tail=True)
        await until(lambda: bool(tiers(manager).file.past.users_in_doubt()), seconds=SECONDS)
        await eventually(look, seconds=SECONDS)
        assert all(seen)


async def test_what_was_lost_of_a_user_whom_nobody_has_open_comes_back_too(failover: Pair, tmp_path: Path) -> None:
    async with opened(failover.dsn, tmp_path / "data") as manager:
        await stored(manager, "bo", 1)
        await failover.catch_up()
        await failover.lag()
        await stored(manager, "bo", 2)
        since = lineage(manager)
    await failover.promote(lose_tail=True)
    async with opened(failover.dsn, tmp_path / "data") as manager:
        await restored(manager, since)
    assert await numbers_at(failover, "bo") == [1, 2]


async def test_two_copies_that_both_hold_what_was_lost_agree(failover: Pair, tmp_path: Path) -> None:
    async with opened(failover.dsn, tmp_path / "one") as one, opened(failover.dsn, tmp_path / "two") as two:
        here, there = await one.ensure_user_memories("ada"), await two.ensure_user_memories("ada")
        await stored(one, "ada", 1, 2)
        await failover.catch_up()
        await failover.lag()
        await stored(one, "ada", 3, 4)
        await stored(two, "ada", 5)
        await one.user("ada").store_entity("jira", "T-1", "ticket", {"status": "open"}, wait=SECONDS)

        async def same() -> bool:
            return await here.digest() == await there.digest()

        await eventually(same, seconds=SECONDS)
        since = lineage(one)
        await failover.promote(lose_tail=True)
        await two.user("ada").store_entity("jira", "T-1", "ticket", {"owner": "bo"}, wait=0)
        await restored(one, since)
        await restored(two, since)
        await both_tiers_agree(one, here)
        await both_tiers_agree(two, there)
        await eventually(same, seconds=SECONDS)
        tickets = [found["entity_data"] for found in (await contents(here)).values() if "entity_data" in found]
        assert tickets == [{"status": "open", "owner": "bo"}]
    assert await numbers_at(failover, "ada") == [1, 2, 3, 4, 5]


async def test_an_erasure_that_was_lost_is_done_again_and_nothing_of_it_comes_back(
    failover: Pair, tmp_path: Path
) -> None:
    async with opened(failover.dsn, tmp_path / "one") as one:
        async with opened(failover.dsn, tmp_path / "two") as two:
            # This one holds a copy, and is gone for as long as all the rest takes.
            await two.ensure_user_memories("eve")
            await two.user("eve").store({"text": SECRET}, context_type=FACT, wait=SECONDS)
        await one.ensure_user_memories("eve")
        await failover.catch_up()
        await failover.lag()
        await one.forget("eve")
        await drained(one)
        await stored(one, "eve", 7)
        since = lineage(one)
        await failover.promote(lose_tail=True)
        await restored(one, since)
        assert list((await contents(one.user("eve"))).values()) == [{"n": 7}]
        async with opened(failover.dsn, tmp_path / "two") as two:
            memory = await two.ensure_user_memories("eve")
            await restored(two, since)

            async def only_seven() -> bool:
                return list((await contents(memory)).values()) == [{"n": 7}]

            await eventually(only_seven, seconds=SECONDS)
    assert await numbers_at(failover, "eve") == [7]
    async with connected(failover.admin_dsn) as admin:
        assert await admin.fetchval("select count(*) from memory.node_history where user_id = 'eve'") == 0


async def test_a_failover_that_lost_nothing_queues_nothing_again(failover: Pair, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(failover.dsn, tmp_path / "data", ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await stored(manager, "ada", *range(5))
        since = lineage(manager)
        await failover.promote(lose_tail=False)
        await restored(manager, since)
        await both_tiers_agree(manager, memory)
        assert ears.all(Rewritten) == []
        await stored(manager, "ada", 5)
    assert await numbers_at(failover, "ada") == list(range(6))


async def test_what_was_stored_since_a_backup_comes_back_when_the_backup_has_taken_the_servers_place(
    sick: Sick, tmp_path: Path
) -> None:
    ears = Ears()
    async with opened(sick.database, tmp_path / "data", ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await stored(manager, "ada", 1, 2)
        backup = await sick.server.backup()
        await stored(manager, "ada", 3, 4)
        await memory.store({"n": 20}, context_type=FACT, key="k2", wait=SECONDS)
        await sick.server.restore(backup)
        # Cluster and timeline are as they were: that its past is shorter than ours is all that tells.
        assert (await ears.hear(Rewritten, seconds=SECONDS))[0].queued_again == 3
        await drained(manager)
        await both_tiers_agree(manager, memory)
    async with connected(sick.database.admin_dsn) as admin:
        rows = await admin.fetch("select (content->>'n')::int as n from memory.nodes where deleted_at is null")
        assert sorted(row["n"] for row in rows) == [1, 3, 4, 20]


async def test_what_was_stored_since_a_dump_comes_back_when_the_database_was_made_of_it(
    postgres: Database, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "data") as manager:
        await stored(manager, "ada", 1)
        with short_folder() as folder:
            run("pg_dump", "--format=custom", f"--file={folder}/dump", postgres.admin_dsn)
            await stored(manager, "ada", 2)
            since = lineage(manager)
            await manager.close()
            async with connected(postgres.server.admin_dsn()) as admin:
                await admin.execute(f"drop database {postgres.name} with (force)")
                await admin.execute(f"create database {postgres.name}")
            run("pg_restore", f"--dbname={postgres.admin_dsn}", f"{folder}/dump")
    async with opened(postgres, tmp_path / "data") as manager:
        await restored(manager, since)
        memory = await manager.ensure_user_memories("ada")
        await both_tiers_agree(manager, memory)
        assert {str(found["n"]) for found in (await contents(memory)).values()} == {"1", "2"}


def run(program: str, *arguments: str) -> None:
    account = server_account()
    subprocess.run([usable_programs(account) / program, *arguments], check=True, capture_output=True)


async def test_health_says_how_much_is_still_to_be_compared(failover: Pair, tmp_path: Path) -> None:
    async with opened(failover.dsn, tmp_path / "data", settings=BRISK) as manager:
        await manager.ensure_user_memories("ada")
        await stored(manager, "ada", 1)
        await failover.catch_up()
        await failover.lag()
        await stored(manager, "ada", 2)
        told: list[str] = []

        async def degraded() -> bool:
            health = await manager.health()
            told.extend(health.causes)
            return any("still to be compared" in cause for cause in health.causes)

        since = lineage(manager)
        await failover.promote(lose_tail=True)
        await eventually(degraded, seconds=SECONDS)
        await restored(manager, since)

        async def well() -> bool:
            return (await manager.health()).condition is Condition.OK

        await eventually(well, seconds=SECONDS)
