"""What the feed and the preload may rely on when they ask what others wrote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from hybrid_memory.changes import NodeRow, Operation
from hybrid_memory.clock import SystemClock
from hybrid_memory.errors import Unreachable
from hybrid_memory.messages import FlatRow
from hybrid_memory.ports import ChangeFeed, DurableTier, Snapshot
from hybrid_memory.postgres.change_feed import PostgresChangeFeed
from hybrid_memory.postgres.database import PostgresSettings
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from tests.plugins.author import Author
from tests.plugins.postgres import Database

PATIENCE = 10.0


@pytest.fixture
def tier(durable_tier: PostgresDurableTier) -> DurableTier:
    return durable_tier


@pytest.fixture
async def feed(postgres: Database) -> AsyncIterator[ChangeFeed]:
    # Small chunks, so that the seams between them are tested.
    settings = replace(postgres.settings, chunk_rows=3, loads_at_once=2)
    feed = PostgresChangeFeed(settings, SystemClock())
    yield feed
    await feed.close()


@pytest.fixture
def author() -> Author:
    return Author()


async def gathered(chunks: AsyncIterator[Sequence[FlatRow]]) -> list[tuple[object, ...]]:
    return [tuple(row) async for chunk in chunks for row in chunk]


async def nodes_of(feed: ChangeFeed, user_id: str, after_rev: int | None = None) -> list[tuple[object, ...]]:
    async with feed.snapshot(user_id, after_rev=after_rev) as snapshot:
        return await gathered(snapshot.nodes())


async def store(tier: DurableTier, author: Author, count: int, user_id: str = "u") -> list[Operation]:
    operations = [author.store(user_id, text=f"text {number}") for number in range(count)]
    await tier.apply(author.opening, operations, {})
    return operations


async def test_heads_are_told_of_users_that_have_one(feed: ChangeFeed, tier: DurableTier, author: Author) -> None:
    await store(tier, author, 2)
    (head,) = await feed.heads(["u", "nobody", "it's {odd},\"user\\"])
    assert (head.user_id, head.rev, head.erased_rev, head.timeline) == ("u", 2, 0, 1)
    assert await feed.heads([]) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7, 10])
async def test_a_load_brings_every_row_once_whatever_the_chunk(
    feed: ChangeFeed, tier: DurableTier, author: Author, count: int
) -> None:
    operations = await store(tier, author, count) if count else []
    rows = await nodes_of(feed, "u")
    assert sorted(str(row[0]) for row in rows) == sorted(operation.entity_id for operation in operations)


async def test_a_row_comes_out_as_its_writer_made_it(feed: ChangeFeed, tier: DurableTier, author: Author) -> None:
    made = author.store(
        "u", text='line\n"quoted" \\ ünïcødé 🐘', importance=0.7, tags=['q"uote', "back\\slash", "é", ""]
    )
    await tier.apply(author.opening, [made], {})
    (row,) = await nodes_of(feed, "u")
    expected = author.rows[made.entity_id]
    assert isinstance(expected, NodeRow)
    assert row == (*expected[:-1], 1)


async def test_a_load_brings_relationships_and_leaves_out_the_dead_and_the_expired(
    feed: ChangeFeed, tier: DurableTier, author: Author
) -> None:
    one, two, three = await store(tier, author, 3)
    expired = author.store("u", expires_at=1)
    knows = author.relate("u", one.entity_id, two.entity_id)
    doomed = author.relate("u", one.entity_id, three.entity_id)
    await tier.apply(author.opening, [expired, knows, doomed], {})
    await tier.apply(author.opening, [author.bury("u", three)], {})
    async with feed.snapshot("u", after_rev=None) as snapshot:
        nodes = await gathered(snapshot.nodes())
        relationships = await gathered(snapshot.relationships())
    assert {row[0] for row in nodes} == {one.entity_id, two.entity_id}
    assert [row[0] for row in relationships] == [knows.entity_id]


async def test_the_difference_holds_what_is_newer_and_the_tombstones(
    feed: ChangeFeed, tier: DurableTier, author: Author
) -> None:
    one, _two, _three = await store(tier, author, 3)
    await tier.apply(author.opening, [author.bury("u", one)], {})
    async with feed.snapshot("u", after_rev=2) as snapshot:
        assert (snapshot.head.rev, snapshot.expected) == (4, 2)
        rows = await gathered(snapshot.nodes())
    deleted_at = {row[-1]: row[-3] for row in rows}
    assert deleted_at.keys() == {3, 4}
    assert deleted_at[3] is None
    assert deleted_at[4] is not None


async def test_a_snapshot_does_not_see_what_comes_while_it_is_read(
    feed: ChangeFeed, tier: DurableTier, author: Author
) -> None:
    await store(tier, author, 7)
    async with feed.snapshot("u", after_rev=None) as snapshot:
        one, two = await store(tier, author, 2)
        seen = 0
        async for chunk in snapshot.nodes():
            seen += len(chunk)
            await tier.apply(author.opening, [author.store("u")], {})
        assert seen == 7
        assert snapshot.head.rev == 7
        await tier.apply(author.opening, [author.relate("u", one.entity_id, two.entity_id)], {})
        assert await gathered(snapshot.relationships()) == []


async def test_a_user_without_a_head_is_given_one_that_stays(feed: ChangeFeed) -> None:
    async with feed.snapshot("new", after_rev=None) as snapshot:
        head = snapshot.head
        assert await gathered(snapshot.nodes()) == []
    assert await feed.heads(["new"]) == [head]


async def test_a_load_given_up_half_way_frees_its_connection(
    feed: ChangeFeed, tier: DurableTier, author: Author
) -> None:
    await store(tier, author, 10)

    async def give_up(snapshot: Snapshot) -> None:
        async for _chunk in snapshot.nodes():
            raise InterruptedLoad

    for _ in range(4):
        with pytest.raises(InterruptedLoad):
            async with feed.snapshot("u", after_rev=None) as snapshot:
                await give_up(snapshot)
        # The fetch that was on its way is over, not forgotten.
        assert asyncio.all_tasks() == {asyncio.current_task()}
    for _ in range(4):
        async with feed.snapshot("u", after_rev=None) as snapshot:
            async for _chunk in snapshot.nodes():
                break
    async with asyncio.timeout(PATIENCE):
        assert len(await nodes_of(feed, "u")) == 10


async def test_a_cancelled_load_frees_its_connection(feed: ChangeFeed, tier: DurableTier, author: Author) -> None:
    await store(tier, author, 10)
    for _ in range(3):
        begun = asyncio.Event()

        async def load(begun: asyncio.Event) -> None:
            async with feed.snapshot("u", after_rev=None) as snapshot:
                async for _chunk in snapshot.nodes():
                    begun.set()
                    await asyncio.Event().wait()

        task = asyncio.create_task(load(begun))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert len(await nodes_of(feed, "u")) == 10


async def test_loads_beyond_the_limit_wait_for_a_connection(
    feed: ChangeFeed, tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    await store(tier, author, 5)
    counts = await asyncio.gather(*(nodes_of(feed, "u") for _ in range(6)))
    assert [len(rows) for rows in counts] == [5] * 6
    loaders = "select count(*) from pg_stat_activity where application_name = 'hybrid_memory load'"
    assert await admin.fetchval(loaders) <= 2


async def test_the_digest_tells_what_differs_and_leaves_out_the_dead(
    feed: ChangeFeed, tier: DurableTier, author: Author
) -> None:
    empty = await feed.digest("u")
    assert (empty.value, empty.nodes, empty.relationships) == (0, 0, 0)
    one, two = await store(tier, author, 2)
    before = await feed.digest("u")
    assert before.nodes == 2
    await tier.apply(author.opening, [author.relate("u", one.entity_id, two.entity_id)], {})
    related = await feed.digest("u")
    assert related.relationships == 1
    assert related.value != before.value
    await tier.apply(author.opening, [author.bury("u", one), author.bury("u", two)], {})
    buried = await feed.digest("u")
    assert (buried.value, buried.nodes, buried.relationships) == (0, 0, 0)


async def test_a_hint_reaches_the_others_and_not_its_sender(feed: ChangeFeed, postgres: Database) -> None:
    other = PostgresChangeFeed(postgres.settings, SystemClock())
    heard, echoed = asyncio.Event(), asyncio.Event()
    async with listening(feed, heard), listening(other, echoed):
        await other.hint()
        async with asyncio.timeout(PATIENCE):
            await heard.wait()
        assert not echoed.is_set()
        await feed.hint()
        async with asyncio.timeout(PATIENCE):
            await echoed.wait()
    await other.close()


async def test_a_listener_whose_connection_is_killed_says_so(feed: ChangeFeed, admin: asyncpg.Connection) -> None:
    async with listening(feed, asyncio.Event()) as task:
        kill = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'hybrid_memory hints'"
        await admin.fetch(kill)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(Unreachable):
                await task
    # The next one goes through a new connection.
    heard = asyncio.Event()
    async with listening(feed, heard):
        await admin.execute("notify memory_changed")
        async with asyncio.timeout(PATIENCE):
            await heard.wait()


async def test_a_killed_connection_is_replaced_at_the_next_use(
    feed: ChangeFeed, tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    await store(tier, author, 1)
    await feed.heads(["u"])
    await admin.fetch("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'hybrid%'")
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert len(await feed.heads(["u"])) == 1
                break
            except Unreachable:
                continue


async def test_a_server_that_is_not_there_is_told_as_unreachable_in_time() -> None:
    nowhere = PostgresSettings(dsn="postgresql://u:sesame@127.0.0.1:1/db", connect_deadline=timedelta(seconds=2))
    feed = PostgresChangeFeed(nowhere, SystemClock())
    with pytest.raises(Unreachable) as unreachable:
        await feed.heads(["u"])
    assert "sesame" not in f"{unreachable.value} {unreachable.value.__cause__} {nowhere}"
    await feed.close()


class InterruptedLoad(Exception):
    pass


class listening:  # noqa: N801 - used as a function
    """Listen for the length of a block, which begins when the server has taken the subscription."""

    def __init__(self, feed: ChangeFeed, heard: asyncio.Event) -> None:
        self._feed = feed
        self._heard = heard

    async def __aenter__(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._feed.listen(self._heard.set))
        # A hint of our own goes over the same connection, after the subscription.
        await asyncio.wait([asyncio.ensure_future(_settled())])
        await self._feed.hint()
        return self._task

    async def __aexit__(self, *_error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def _settled() -> None:
    """Let the task just made come to its first wait, where it holds the connection's lock."""
    await asyncio.sleep(0)
