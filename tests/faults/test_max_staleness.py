"""A read never sees a copy older than it allows: the copy is renewed first, or the read says that it could not be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import InvalidInput, NodeId, Settings, TooStale, UserMemory
from tests.faults.conftest import Sick
from tests.faults.test_two_managers import paired
from tests.plugins.postgres import Database
from tests.support.managers import FACT
from tests.support.waiting import eventually

# Nothing comes but what is asked for: no poll, no hint.
DEAF = Settings(poll_interval=timedelta(minutes=5), hints=False)
LONG = timedelta(hours=1)


async def listed(memory: UserMemory, node_id: NodeId, limit: float | timedelta | None) -> bool:
    return node_id in {node.node_id for node in (await memory.list(max_staleness=limit)).items}


async def gotten(memory: UserMemory, node_id: NodeId, limit: float | timedelta | None) -> bool:
    return await memory.get(node_id, max_staleness=limit) is not None


async def gotten_among_many(memory: UserMemory, node_id: NodeId, limit: float | timedelta | None) -> bool:
    return await memory.get_many([node_id], max_staleness=limit) != [None]


async def found(memory: UserMemory, node_id: NodeId, limit: float | timedelta | None) -> bool:
    return node_id in {hit.node.node_id for hit in await memory.search("marmalade", max_staleness=limit)}


async def reached(memory: UserMemory, node_id: NodeId, limit: float | timedelta | None) -> bool:
    return bool(await memory.neighbours(node_id, max_staleness=limit))


@pytest.mark.parametrize("read", [listed, gotten, gotten_among_many, found, reached])
@pytest.mark.parametrize("none_at_all", [0, timedelta(0)])
async def test_every_read_brings_the_copy_up_to_date_first_only_if_it_is_older_than_allowed(
    postgres: Database,
    tmp_path: Path,
    read: Callable[[UserMemory, NodeId, float | timedelta | None], Awaitable[bool]],
    none_at_all: float | timedelta,
) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair:
        stored = await pair.here.store({"text": "marmalade"}, context_type=FACT, wait=20)
        other = await pair.here.store({"text": "toast"}, context_type=FACT, wait=20)
        await pair.here.relate(stored.node_id, other.node_id, "is on", wait=20)
        assert not await read(pair.there, stored.node_id, None)
        assert not await read(pair.there, stored.node_id, LONG), "it was confirmed within the hour"
        assert await read(pair.there, stored.node_id, none_at_all)
        assert await read(pair.there, stored.node_id, None)


async def test_an_answer_to_somebody_elses_earlier_question_is_not_taken_for_one_to_ours(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = $1"

    async def somebody_waits() -> bool:
        return bool(await admin.fetchval(blocked, postgres.name))

    async with paired(postgres, tmp_path, DEAF) as pair:
        first = await pair.here.store({}, context_type=FACT, wait=20)
        async with admin.transaction():
            # The rows of the answer wait for this, when what they are as of is settled.
            await admin.execute("lock table memory.relationships in access exclusive mode")
            earlier = asyncio.create_task(pair.there.get(first.node_id, max_staleness=0))
            await eventually(somebody_waits)
            second = await pair.here.store({}, context_type=FACT, wait=20)
            later = asyncio.create_task(pair.there.get(second.node_id, max_staleness=0))
            await asyncio.sleep(0)
        assert await earlier is not None
        assert await later is not None


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_with_postgres_away_it_says_in_time_how_old_the_copy_is(sick: Sick, tmp_path: Path, fault: str) -> None:
    async with paired(sick.database, tmp_path, DEAF) as pair:
        stored = await pair.there.store({}, context_type=FACT, wait=20)
        await pair.there.get(stored.node_id, max_staleness=0)
        if fault == "killed":
            await sick.server.kill()
        else:
            sick.server.freeze()
        began = time.monotonic()
        with pytest.raises(TooStale) as refused:
            await pair.there.get(stored.node_id, max_staleness=0)
        assert time.monotonic() - began < 8
        assert refused.value.age is not None
        assert refused.value.age < timedelta(seconds=20)
        assert await pair.there.get(stored.node_id, max_staleness=LONG) is not None
        assert await pair.there.get(stored.node_id) is not None
        await sick.server.heal()
        assert await pair.there.get(stored.node_id, max_staleness=1.5) is not None


@pytest.mark.parametrize("limit", [-1, -0.001, float("nan"), float("inf"), True, "1", timedelta(seconds=-1)])
async def test_an_age_that_is_none_is_refused(postgres: Database, tmp_path: Path, limit: float) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair:
        with pytest.raises(InvalidInput, match="max_staleness"):
            await pair.here.list(max_staleness=limit)
