"""A Postgres that is killed in part, restarted, closed to us or altered: nothing is lost, and it is told of."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest

from hybrid_memory import Condition, HybridMemoryManager, Receipt, Status, UserMemory, Verdict
from hybrid_memory import staff as staff_module
from hybrid_memory.events import PersistFailed
from hybrid_memory.retry import Backoff
from hybrid_memory.testing.proxy import Proxy
from tests.faults.conftest import Sick
from tests.faults.test_links import descriptors
from tests.plugins.postgres import APP_ROLE, connected
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, drained, head_rev, opened
from tests.support.waiting import eventually, until

SECONDS = 30.0


async def is_well(manager: HybridMemoryManager) -> bool:
    return (await manager.health()).condition is Condition.OK


async def numbers_in_order(sick: Sick) -> list[int]:
    async with connected(sick.database.admin_dsn) as admin:
        rows = await admin.fetch("select content->>'n' as n from memory.nodes order by rev")
    return [int(row["n"]) for row in rows]


async def caught_up(memory: UserMemory, stored: Receipt) -> None:
    """What another has stored is there within two seconds."""
    await until(lambda: memory.freshness().rev == stored.rev, seconds=2)


@pytest.mark.parametrize("purpose", ["relay", "feed", "hints"])
async def test_one_backend_killed_with_9_costs_every_connection_and_no_write(
    sick: Sick, tmp_path: Path, purpose: str
) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        receipts = [await memory.store({"n": n}, context_type=FACT, wait=0 if n else SECONDS) for n in range(20)]

        async def killed() -> bool:
            return await sick.server.kill_backend(purpose) == 1

        await eventually(killed)
        receipts += [await memory.store({"n": n}, context_type=FACT, wait=0) for n in range(20, 40)]
        finals = [await receipt.durable(SECONDS) for receipt in receipts]
        assert {final.verdict for final in finals} == {Verdict.APPLIED}
        await both_tiers_agree(manager, memory)
        await eventually(lambda: is_well(manager), seconds=10)
    assert await numbers_in_order(sick) == list(range(40))


@pytest.mark.parametrize("immediate", [False, True], ids=["fast", "immediate"])
async def test_restarts_during_writes_lose_nothing_and_leave_no_descriptor(
    sick: Sick, tmp_path: Path, *, immediate: bool
) -> None:
    async with opened(sick.database, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        numbers = itertools.count()

        async def write(count: int) -> None:
            for number in itertools.islice(numbers, count):
                await memory.store({"n": number}, context_type=FACT, wait=0.01)

        await write(10)
        await eventually(lambda: is_well(manager))
        # Both readers of the file are open then, and every link to the server that loads can need.
        await asyncio.gather(*(memory.digest() for _ in range(8)))
        await asyncio.gather(*(manager.durable_digest("ada") for _ in range(16)))
        before = descriptors()
        for _ in range(3):
            writing = asyncio.create_task(write(30))
            await sick.server.restart(immediate=immediate)
            await writing
        await drained(manager)
        await eventually(lambda: is_well(manager), seconds=10)
        await both_tiers_agree(manager, memory)
        await until(lambda: descriptors() <= before)
    assert await numbers_in_order(sick) == list(range(100))


async def test_with_the_listening_backend_frozen_the_feed_is_not_more_than_two_seconds_late(
    sick: Sick, tmp_path: Path
) -> None:
    async with opened(sick.database, tmp_path / "one") as one, opened(sick.database, tmp_path / "other") as other:
        writing, reading = await one.ensure_user_memories("ada"), await other.ensure_user_memories("ada")
        await until(lambda: reading.freshness().complete)

        async def both_listeners_are_frozen() -> bool:
            return await sick.server.freeze_backend("hints") == 2

        await eventually(both_listeners_are_frozen)
        for number in range(5):
            stored = await writing.store({"n": number}, context_type=FACT, wait=SECONDS)
            assert stored.status is Status.DURABLE
            await caught_up(reading, stored)


Trouble = Callable[[Sick], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def too_few_connections(sick: Sick) -> AsyncGenerator[None]:
    await sick.server.limit_connections(sick.database.name, 0)
    for purpose in ("relay", "feed", "hints", "load"):
        await sick.server.terminate(purpose)
    yield
    await sick.server.limit_connections(sick.database.name, -1)


@asynccontextmanager
async def no_descriptor_left(sick: Sick) -> AsyncGenerator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    async with too_few_connections(sick):  # so that it has to connect anew
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in taken:
                os.close(one)


@asynccontextmanager
async def read_only(sick: Sick) -> AsyncGenerator[None]:
    await sick.server.set("default_transaction_read_only", "on")
    yield
    await sick.server.set("default_transaction_read_only", "off")


@pytest.mark.parametrize("trouble", [too_few_connections, no_descriptor_left, read_only])
async def test_a_server_that_cannot_be_used_is_waited_for_with_everything_kept(
    sick: Sick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    brisk = Backoff(first_seconds=0.1, cap_seconds=0.2)
    monkeypatch.setattr(staff_module, "Backoff", lambda: brisk)
    ears = Ears()
    async with opened(sick.database, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)
        async with trouble(sick):
            stuck = [await memory.store({"n": n}, context_type=FACT, wait=0.1) for n in range(1, 6)]
            assert {receipt.status for receipt in stuck} == {Status.PENDING}
            await ears.hear(PersistFailed, times=2)
            assert (await manager.health()).condition is Condition.DEGRADED
            assert (manager.queue().entries, manager.queue().dead_letters) == (5, 0)
        finals = [await receipt.durable(SECONDS) for receipt in stuck]
        assert [final.rev for final in finals] == [2, 3, 4, 5, 6]
        await eventually(lambda: is_well(manager), seconds=10)
        await both_tiers_agree(manager, memory)


async def test_a_password_that_was_changed_is_a_matter_for_a_person_and_all_goes_on_when_it_is_mended(
    sick: Sick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid_memory.relay.MISCONFIGURED_PAUSE_SECONDS", 0.1)
    rules = sick.server.postgres.cluster_dir / "pg_hba.conf"
    before = rules.read_text()
    dsn = sick.database.app_dsn.replace(f"//{APP_ROLE}@", f"//{APP_ROLE}:one@")
    async with connected(sick.database.server.admin_dsn()) as admin:
        try:
            await admin.execute(f"alter role {APP_ROLE} password 'one'")
            rules.write_text(f"local all {APP_ROLE} scram-sha-256\n{before}")
            await admin.execute("select pg_reload_conf()")
            async with opened(dsn, tmp_path) as manager:
                memory = await manager.ensure_user_memories("ada")
                await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)
                await admin.execute(f"alter role {APP_ROLE} password 'two'")
                await sick.server.terminate("relay")
                stuck = await memory.store({"n": 1}, context_type=FACT, wait=0.1)
                assert stuck.status is Status.PENDING

                async def failed() -> bool:
                    health = await manager.health()
                    return health.condition is Condition.FAILED and any("misconfigured" in one for one in health.causes)

                await eventually(failed)
                assert await manager.dead_letters.list() == []
                await admin.execute(f"alter role {APP_ROLE} password 'one'")
                assert (await stuck.durable(SECONDS)).rev == 2
                await eventually(lambda: is_well(manager), seconds=10)
        finally:
            rules.write_text(before)
            await admin.execute(f"alter role {APP_ROLE} password null")
            await admin.execute("select pg_reload_conf()")


async def test_a_long_transaction_elsewhere_and_one_prepared_and_forgotten_hold_no_feed_up(
    sick: Sick, tmp_path: Path
) -> None:
    server = sick.database.server
    async with (
        opened(sick.database, tmp_path / "one") as one,
        opened(sick.database, tmp_path / "other") as other,
        connected(server.admin_dsn()) as elsewhere,
        connected(sick.database.admin_dsn) as admin,
    ):
        writing, reading = await one.ensure_user_memories("ada"), await other.ensure_user_memories("ada")
        await elsewhere.execute("create table if not exists long_ago (n integer)")
        await elsewhere.execute("begin; insert into long_ago values (1)")
        await admin.execute("begin; insert into memory.heads (user_id) values ('eve'); prepare transaction 'forgotten'")
        try:
            for number in range(5):
                stored = await writing.store({"n": number}, context_type=FACT, wait=SECONDS)
                await caught_up(reading, stored)
            eve = await one.user("eve").store({"n": 0}, context_type=FACT, wait=0)

            async def it_is_named() -> bool:
                health = await one.health()
                return any("a prepared transaction has held a lock" in cause for cause in health.causes)

            await eventually(it_is_named, seconds=SECONDS)
        finally:
            await admin.execute("rollback prepared 'forgotten'")
            await elsewhere.execute("rollback")
        assert (await eve.durable(SECONDS)).verdict is Verdict.APPLIED


async def test_a_schema_that_is_altered_during_writes_and_loads_costs_nobody_anything(
    sick: Sick, tmp_path: Path
) -> None:
    ears = Ears()
    async with (
        opened(sick.database, tmp_path / "one", ears=ears) as one,
        opened(sick.database, tmp_path / "other", ears=ears) as other,
        connected(sick.database.admin_dsn) as admin,
    ):
        mine, theirs = await one.ensure_user_memories("ada"), await other.ensure_user_memories("ada")
        for round_number in range(6):
            # Both write the same entity, so that rows are read for a decision by statements that were planned before.
            stored = [
                await memory.store_entity("crm", "7", "customer", {f"{name}{round_number}": 1}, wait=0)
                for name, memory in (("a", mine), ("b", theirs))
            ]
            for receipt in stored:
                assert (await receipt.durable(SECONDS)).status is Status.DURABLE
            kind = "varchar(2000)" if round_number % 2 else "text"
            await admin.execute(f"alter table memory.nodes alter column summary type {kind}")
        await drained(one)
        await drained(other)
        await both_tiers_agree(one, mine)
        await both_tiers_agree(other, theirs)
        assert one.queue().dead_letters + other.queue().dead_letters == 0
        (content,) = (await contents(mine)).values()
        assert isinstance(content["entity_data"], dict)
        assert len(content["entity_data"]) == 12
        assert await head_rev(admin, "ada") >= 12


async def test_after_ten_seconds_of_refusals_a_process_knocks_no_more_than_once_a_second(
    tmp_path: Path, socket_folder: Path
) -> None:
    nowhere = f"postgresql://nobody@/none?host={socket_folder}&port=1"
    loop = asyncio.get_running_loop()
    async with Proxy.before(nowhere, socket_folder) as proxy:
        proxy.shut()
        async with opened(proxy.dsn, tmp_path) as manager:
            await manager.user("ada").store({"n": 1}, context_type=FACT, wait=0)
            began = loop.time()
            while loop.time() < began + 15:
                # An application that starts sessions all the while.
                await manager.ensure_user_memories("bo")
                await asyncio.sleep(0.05)
            later = [at for at in proxy.made_at if at > began + 10]
            assert len(later) <= 5
            assert len(proxy.made_at) > 3, "it has not even tried"
