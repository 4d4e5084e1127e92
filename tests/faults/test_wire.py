"""A manager on a slow, rough and lossy wire: order is kept, nothing is done twice, and the queue's bound holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import Backpressure, Receipt, Settings, Status, Verdict
from hybrid_memory.testing.proxy import Loss, Notices, Proxy, Weather
from tests.plugins.postgres import Database
from tests.support.managers import BRISK, FACT, both_tiers_agree, contents, drained, head_rev, opened
from tests.support.waiting import until

APPLY = "memory.apply"
SECONDS = 20.0
CUTS = (Loss.REQUEST, Loss.COMMIT, Loss.REPLY)


@pytest.fixture
async def proxy(postgres: Database, socket_folder: Path) -> AsyncIterator[Proxy]:
    async with Proxy.before(postgres.app_dsn, socket_folder, seed=1) as proxy:
        yield proxy


async def numbers_in_order(admin: asyncpg.Connection) -> list[int]:
    rows = await admin.fetch("select content->>'n' as n from memory.nodes order by rev")
    return [int(row["n"]) for row in rows]


@pytest.mark.parametrize("loss", CUTS)
async def test_the_commit_that_a_proxy_loses_is_the_one_that_counts(
    admin: asyncpg.Connection, proxy: Proxy, loss: Loss
) -> None:
    await admin.execute("create table public.proof (n integer); grant all on public.proof to public")
    connection = await asyncpg.connect(proxy.dsn)
    proxy.lose("into public.proof", loss)
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await connection.execute("insert into public.proof values ($1)", 1)
    connection.terminate()

    proxy.lose("commit", loss)
    connection = await asyncpg.connect(proxy.dsn)
    await connection.execute("begin")
    await connection.execute("insert into public.proof values ($1)", 2)
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await connection.execute("commit")
    connection.terminate()
    # Whoever was cut off is gone, so what it may still have committed is there.
    async with admin.transaction():
        await admin.execute("lock table public.proof in access exclusive mode")
        there = [row["n"] for row in await admin.fetch("select n from public.proof order by n")]
    assert there == ([1, 2] if loss is Loss.REPLY else [])
    assert proxy.losses == [loss] * 2


@pytest.mark.parametrize("loss", [Loss.HANG, Loss.REPLY, Loss.COMMIT])
async def test_a_manager_closed_in_the_middle_of_a_commit_lets_go_and_the_next_one_applies_it_once(
    admin: asyncpg.Connection, proxy: Proxy, tmp_path: Path, loss: Loss
) -> None:
    at_once = Settings(drain_on_close=timedelta(0))
    async with opened(proxy.dsn, tmp_path, settings=at_once) as manager:
        memory = manager.user("ada")
        await memory.store({"n": 0}, context_type=FACT, wait=SECONDS)
        proxy.lose(APPLY, loss)
        await memory.store({"n": 1}, context_type=FACT, wait=0)
        async with asyncio.timeout(SECONDS):
            await proxy.struck(1)
        began = time.monotonic()
        await manager.close()
        assert time.monotonic() - began < 3, "the polite goodbyes take one second"
    await until(lambda: proxy.connections == 0)
    async with opened(proxy.dsn, tmp_path) as manager:
        await drained(manager)
        await both_tiers_agree(manager, await manager.ensure_user_memories("ada"))
    assert await numbers_in_order(admin) == [0, 1]
    assert await head_rev(admin, "ada") == 2


@pytest.mark.parametrize(
    "weather",
    [Weather(latency_seconds=0.1, jitter_seconds=0.05), Weather.narrow(20_000), Weather.sliced(7)],
    ids=["latency and jitter", "20 kB/s", "sliced"],
)
async def test_a_slow_and_rough_wire_costs_time_and_nothing_else(
    admin: asyncpg.Connection, proxy: Proxy, tmp_path: Path, weather: Weather
) -> None:
    async with opened(proxy.dsn, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        proxy.weather = weather
        receipts = [await memory.store({"n": n}, context_type=FACT, wait=0) for n in range(60)]
        finals = await asyncio.gather(*(receipt.durable(SECONDS) for receipt in receipts))
        assert {final.verdict for final in finals} == {Verdict.APPLIED}
        proxy.weather = Weather()
        await both_tiers_agree(manager, memory)
    assert await numbers_in_order(admin) == list(range(60))


async def test_writes_faster_than_the_wire_are_pushed_back_at_the_bound_and_none_accepted_is_lost(
    admin: asyncpg.Connection, proxy: Proxy, tmp_path: Path
) -> None:
    bounded = Settings(poll_interval=BRISK.poll_interval, queue_entries=20, batch_size=8)
    async with opened(proxy.dsn, tmp_path, settings=bounded) as manager:
        memory = await manager.ensure_user_memories("ada")
        proxy.weather = Weather(latency_seconds=0.1)
        accepted: list[int] = []
        refused = 0
        while refused < 30 or len(accepted) < 60:
            try:
                await memory.store({"n": len(accepted)}, context_type=FACT, wait=0)
                accepted.append(len(accepted))
            except Backpressure:
                refused += 1
                await asyncio.sleep(0)
            assert manager.queue().entries <= 20
        proxy.weather = Weather()
        await drained(manager)
        await both_tiers_agree(manager, memory)
    assert await numbers_in_order(admin) == accepted


@pytest.mark.parametrize("notices", [Notices.SWALLOWED, Notices.TWICE])
async def test_hints_lost_or_heard_twice_change_nothing_that_is_read(
    postgres: Database, proxy: Proxy, tmp_path: Path, notices: Notices
) -> None:
    async with opened(postgres, tmp_path / "one") as one, opened(proxy.dsn, tmp_path / "other") as other:
        writing, reading = await one.ensure_user_memories("ada"), await other.ensure_user_memories("ada")
        proxy.notices = notices
        for number in range(20):
            await writing.store({"n": number}, context_type=FACT, key=f"k{number % 3}", wait=0)
        await drained(one)
        await until(lambda: reading.freshness().rev == 20, seconds=5)
        assert await contents(reading) == await contents(writing)
        await both_tiers_agree(other, reading)


async def test_a_receipts_wait_that_ends_while_the_commit_does_says_pending_or_durable_and_both_are_true(
    admin: asyncpg.Connection, proxy: Proxy, tmp_path: Path
) -> None:
    async with opened(proxy.dsn, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        proxy.weather = Weather(latency_seconds=0.01, jitter_seconds=0.01)
        seen: set[Status] = set()
        receipts: list[Receipt] = []
        for step in range(40):
            receipt = await memory.store({"n": step}, context_type=FACT, wait=0.0015 * step)
            seen.add(receipt.status)
            assert (receipt.rev is None) == (receipt.status is Status.PENDING)
            receipts.append(receipt)
        assert seen == {Status.PENDING, Status.DURABLE}
        finals = [await receipt.durable(SECONDS) for receipt in receipts]
        assert [final.rev for final in finals] == list(range(1, 41))
    assert await numbers_in_order(admin) == list(range(40))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("loss", CUTS)
async def test_what_belongs_together_keeps_its_order_when_it_is_cut_into_batches_that_fail(
    admin: asyncpg.Connection, proxy: Proxy, tmp_path: Path, batch_size: int, loss: Loss
) -> None:
    small = Settings(poll_interval=BRISK.poll_interval, batch_size=batch_size)
    async with opened(proxy.dsn, tmp_path, settings=small) as manager:
        memory = await manager.ensure_user_memories("ada")
        for passes in (0, 1, 0, 2, 1):
            proxy.lose(APPLY, loss, passes=passes)
        first = await memory.store({"n": 1}, context_type=FACT, key="k", wait=0)
        await memory.delete(first.node_id, wait=0)
        again = await memory.store({"n": 2}, context_type=FACT, key="k", wait=0)
        ends = [await memory.store({"n": n}, context_type=FACT, wait=0) for n in (3, 4)]
        edge = await memory.relate(ends[0].node_id, ends[1].node_id, "led_to", wait=0)
        await memory.delete(ends[1].node_id, wait=0)
        last = await memory.store({"n": 5}, context_type=FACT, key="k", wait=0)
        finals = [await receipt.durable(SECONDS) for receipt in (first, again, *ends, edge, last)]
        assert {final.verdict for final in finals} == {Verdict.APPLIED}
        await drained(manager)
        assert await manager.dead_letters.list() == []
        assert sorted(str(content["n"]) for content in (await contents(memory)).values()) == ["3", "5"]
        await both_tiers_agree(manager, memory)
    assert proxy.losses == [loss] * len(proxy.losses)
    assert proxy.losses
    # A store, its burial, its revival, two ends, an edge, the burial of an end and of the edge, one more store.
    assert await head_rev(admin, "ada") == 9
