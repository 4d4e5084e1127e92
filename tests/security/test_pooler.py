"""Tenants who share a pooler's few connections, transaction by transaction, never meet; nor when the pooler dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, Settings, UserMemory
from hybrid_memory.clock import SystemClock
from hybrid_memory.errors import DurableTierError
from hybrid_memory.postgres.change_feed import PostgresChangeFeed
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose, transaction
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from hybrid_memory.testing.postgres import short_folder
from tests.plugins.author import Author
from tests.plugins.postgres import APP_ROLE, Database, Server
from tests.support.managers import FACT, both_tiers_agree, contents, drained, opened
from tests.support.pooler import MISSING, PROGRAM, Pooler, pooler
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason=MISSING),
    pytest.mark.direct("it has a pooler of its own"),
]

REQUESTS = 10_000
TENANTS = ("alice", "bob")
# Of each tenant at once; all of them share two connections to the server.
CALLERS = 4
POOL_SIZE = 2
DEATHS = 5
PURPOSE = Purpose(name="look", deadline=timedelta(seconds=10), statement_timeout=timedelta(seconds=5))
POOLED = Settings(pooler="transaction", poll_interval=timedelta(milliseconds=100))


@pytest.fixture(scope="module")
def narrow(postgres_server: Server) -> Iterator[Pooler]:
    with (
        short_folder() as folder,
        pooler(folder, server=postgres_server.socket_dir, roles=(APP_ROLE,), pool_size=POOL_SIZE) as made,
    ):
        yield made


@pytest.fixture
def pooled(postgres: Database, narrow: Pooler) -> Iterator[Database]:
    yield replace(postgres, pooler=narrow)
    narrow.revive()


@dataclass(slots=True, kw_only=True)
class Caller:
    """One of a tenant's callers: its requests, each of which looks for whatever is not the tenant's."""

    tenant: str
    author: Author
    tier: PostgresDurableTier
    feed: PostgresChangeFeed
    link: Link
    chance: random.Random

    @property
    def users(self) -> list[str]:
        return [self.tenant, f"{self.tenant}-too"]

    async def request(self) -> None:
        match self.chance.randrange(10):
            case 0 | 1:
                await self._write()
            case 2:
                await self._decide()
            case 3 | 4:
                heads = await self.feed.heads(self.chance.choice([self.users, self.users[:1]]))
                assert {head.user_id for head in heads} <= set(self.users)
            case 5:
                await self.feed.digest(self.tenant)
            case 6:
                await self._read_all()
            case 7 | 8:
                assert await self.link.run(_seen_by_nobody) == set()
            case _:
                assert await self.link.run(self._seen_as_tenant) <= {self.tenant}

    async def _write(self) -> None:
        users = self.chance.choice([self.users, self.users[:1], self.users[1:]])
        await self.tier.apply(self.author.opening, [self.author.store(user, text=self.tenant) for user in users], {})

    async def _decide(self) -> None:
        made = self.author.store(self.tenant, text=self.tenant)
        await self.tier.decide(self.author.opening, [made], 0)

    async def _read_all(self) -> None:
        heads = await self.feed.heads([self.tenant])
        after = max(0, heads[0].rev - 20) if heads and self.chance.random() < 0.8 else None
        async with self.feed.snapshot(self.tenant, after_rev=after) as snapshot:
            assert snapshot.head.user_id == self.tenant
            rows = [row async for chunk in snapshot.nodes() for row in chunk]
        assert all(self.tenant in str(row[4]) for row in rows)

    async def _seen_as_tenant(self, connection: Connection) -> set[str]:
        async with transaction(connection):
            await connection.execute("select set_config('memory.user_id', $1, true)", self.tenant)
            return await _seen_by_nobody(connection)


async def _seen_by_nobody(connection: Connection) -> set[str]:
    """Everybody whose rows are shown to who did not say for whom it asks; only the policy stands before them."""
    found = await connection.ask("select user_id from memory.heads union select user_id from memory.nodes")
    return {record["user_id"] for record in found}


@asynccontextmanager
async def caller(settings: PostgresSettings, tenant: str, chance: random.Random) -> AsyncGenerator[Caller]:
    tier, link = PostgresDurableTier(settings), Link(settings, PURPOSE)
    feed = PostgresChangeFeed(replace(settings, chunk_rows=50, loads_at_once=1), SystemClock())
    try:
        yield Caller(tenant=tenant, author=Author(), tier=tier, feed=feed, link=link, chance=chance)
    finally:
        for each in (tier, feed, link):
            await each.close()


async def test_ten_thousand_interleaved_requests_of_two_tenants_never_meet(
    pooled: Database, admin: asyncpg.Connection
) -> None:
    async def work(one: Caller) -> None:
        for _ in range(REQUESTS // (CALLERS * len(TENANTS))):
            await one.request()

    async with AsyncExitStack() as stack:
        callers = [
            await stack.enter_async_context(caller(pooled.settings, tenant, random.Random(f"{tenant} {number}")))
            for tenant in TENANTS
            for number in range(CALLERS)
        ]
        await asyncio.gather(*map(work, callers))
    strays = "select count(*) from memory.nodes where split_part(user_id, '-', 1) <> content->>'text'"
    assert await admin.fetchval(strays) == 0
    assert await admin.fetchval("select count(distinct user_id) from memory.nodes") == 2 * len(TENANTS)


async def test_a_load_in_chunks_leaves_no_statement_behind_for_another_client_to_stumble_over(pooled: Database) -> None:
    async def left_behind(connection: Connection) -> int:
        (found,) = await connection.ask("select count(*) from pg_prepared_statements where name <> ''")
        count: int = found["count"]
        return count

    async with (
        caller(pooled.settings, "alice", random.Random(1)) as one,
        caller(pooled.settings, "bob", random.Random(2)) as other,
    ):
        await one.tier.apply(one.author.opening, [one.author.store("alice") for _ in range(120)], {})
        for each in (one, other, one):
            async with each.feed.snapshot("alice", after_rev=None) as snapshot:
                assert sum([len(chunk) async for chunk in snapshot.nodes()]) == 120
                # Meanwhile, and on the other connection to the server.
                assert await other.link.run(left_behind) == 0
            assert await other.link.run(left_behind) == 0


@pytest.fixture
async def pair(pooled: Database, tmp_path: Path) -> AsyncIterator[list[tuple[HybridMemoryManager, UserMemory]]]:
    """A manager for each tenant, as two processes would have."""
    async with AsyncExitStack() as stack:
        managers = [
            await stack.enter_async_context(opened(pooled, tmp_path / tenant, settings=POOLED)) for tenant in TENANTS
        ]
        yield [
            (manager, await manager.ensure_user_memories(tenant))
            for manager, tenant in zip(managers, TENANTS, strict=True)
        ]


async def test_tenants_stay_apart_and_lose_nothing_while_the_pooler_is_killed_again_and_again(
    pair: list[tuple[HybridMemoryManager, UserMemory]], narrow: Pooler, admin: asyncpg.Connection
) -> None:
    acknowledged: dict[str, set[str]] = {tenant: set() for tenant in TENANTS}
    over = asyncio.Event()

    async def write(memory: UserMemory) -> None:
        while not over.is_set():
            receipt = await memory.store({"of": memory.user_id}, context_type=FACT, wait=0.02)
            acknowledged[memory.user_id].add(receipt.node_id)

    async def carried() -> int:
        count: int = await admin.fetchval("select count(*) from memory.nodes")
        return count

    async def under_way(before: int) -> bool:
        return await carried() >= before + 50

    writers = [asyncio.create_task(write(memory)) for _, memory in pair for _ in range(8)]
    try:
        for _ in range(DEATHS):
            # Under way again, so that transactions are open when it dies.
            await eventually(partial(under_way, await carried()), seconds=20)
            narrow.kill()
            await asyncio.sleep(0)
            narrow.start()
    finally:
        over.set()
        await asyncio.gather(*writers)
    for manager, memory in pair:
        await drained(manager)
        await both_tiers_agree(manager, memory)
        held = await contents(memory)
        assert held.keys() == acknowledged[memory.user_id]
        assert all(content["of"] == memory.user_id for content in held.values())
    assert await admin.fetchval("select count(*) from memory.nodes where content->>'of' <> user_id") == 0
    assert await carried() == sum(map(len, acknowledged.values()))


async def test_hints_come_by_a_direct_way_beside_the_pooler(pooled: Database, tmp_path: Path) -> None:
    # No poll within the test: what is seen was hinted at.
    settings = Settings(pooler="transaction", listen_dsn=pooled.direct_dsn, poll_interval=timedelta(minutes=5))
    async with (
        opened(pooled, tmp_path / "here", settings=settings) as first,
        opened(pooled, tmp_path / "there", settings=settings) as second,
    ):
        here, there = [await each.ensure_user_memories("alice") for each in (first, second)]

        async def hinted_at() -> bool:
            # Again and again, as the other may not be listening yet.
            receipt = await here.store({}, context_type=FACT, wait=20)
            return await there.get(receipt.node_id) is not None or len(await contents(there)) > 0

        await eventually(hinted_at)


async def test_of_a_transaction_in_which_the_pooler_died_nothing_stays_neither_rows_nor_the_tenant(
    pooled: Database, narrow: Pooler, admin: asyncpg.Connection
) -> None:
    async def interrupted(connection: Connection) -> None:
        async with transaction(connection):
            await connection.execute("select set_config('memory.user_id', 'alice', true)")
            await connection.execute("insert into memory.heads (user_id) values ('alice')")
            narrow.kill()

    link = Link(pooled.settings, PURPOSE)
    try:
        with pytest.raises(DurableTierError) as lost:
            await link.run(interrupted, writes=True)
        assert lost.value.retryable
        narrow.start()
        for _ in range(2 * POOL_SIZE):
            assert await link.run(_seen_by_nobody) == set()
        assert await admin.fetchval("select count(*) from memory.heads") == 0
    finally:
        await link.close()
