"""The cost of a durable write to one caller, and how many come through for 64."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from statistics import median

import asyncpg

from benchmarks import references
from benchmarks.figures import Figure
from benchmarks.memories import Memories
from benchmarks.plan import Plan
from benchmarks.stand import connection, stand
from hybrid_memory import HybridMemoryManager, UserMemory
from hybrid_memory.connect import EMBEDDED_LOGIN
from hybrid_memory.graph import Status

CALLERS = 64
POOL = 10
_LONG = 30.0
_QUIET = timedelta(seconds=1)
_TURN = 50
# Long enough that the first and the last calls of a turn, with fewer under way, count for little.
_TURN_TOGETHER = 30 * CALLERS


async def run(plan: Plan) -> list[Figure]:
    """Measure."""
    alone, one_user, many_users = _figures("", _SEARCHABLE, limits=(3.5, 2.0, 1.5))
    plain_alone, plain_one_user, plain_many_users = _figures("_plain", _PLAIN, limits=(None, None, None))
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(stand(plan))
        admin = await stack.enter_async_context(connection(place.admin_dsn))
        await references.make_twin(admin, EMBEDDED_LOGIN)
        bare = await stack.enter_async_context(connection(place.app_dsn))
        pool = await stack.enter_async_context(asyncpg.create_pool(place.app_dsn, min_size=POOL, max_size=POOL))
        manager = await stack.enter_async_context(place.manager("hot"))
        users = [f"user-{number:02d}" for number in range(CALLERS)]
        handles = [await manager.ensure_user_memories(user) for user in users]
        memories = Memories(plan.random("write_path"))
        await _warm_up(manager, handles, bare, pool, memories)
        for number in range(plan.rounds):
            plan.say(f"write_path: round {number + 1} of {plan.rounds}")
            calls, bare_calls, plain_calls = await _one_by_one(
                manager, handles[0], bare, memories, plan.sizes.single_writes
            )
            alone.add(median(calls), median(bare_calls), calls=calls)
            plain_alone.add(median(calls), median(plain_calls), calls=calls)
            for figure, plain, whose, names in (
                (one_user, plain_one_user, handles[:1], users[:1]),
                (many_users, plain_many_users, handles, users),
            ):
                rates = await _together(manager, whose, names, pool, memories, plan.sizes.concurrent_writes)
                for ours, searchable, bare_rate in rates:
                    figure.add(ours, searchable)
                    plain.add(ours, bare_rate)
    return [alone, one_user, many_users, plain_alone, plain_one_user, plain_many_users]


_TABLE = "a table with the columns and b-tree indexes of memory.nodes, no row-level security"
_SEARCHABLE = f"{_TABLE}, and with the text index (tsvector, GIN) that searching it takes, as ours is searchable too"
_PLAIN = f"{_TABLE}, and with nothing to search it by"


def _figures(suffix: str, table: str, *, limits: tuple[float | None, ...]) -> tuple[Figure, Figure, Figure]:
    one, alike, apart = limits
    pooled = (
        f"{CALLERS} callers on a {POOL}-connection asyncpg pool, each upserting single rows of the same columns into "
        f"{table}; each of our stores waits for DURABLE"
    )
    return (
        Figure(
            name=f"write_path.store.c1{suffix}",
            unit="ms",
            reference=f"one bare asyncpg connection upserting the same columns into {table}; each of our stores waits "
            "for DURABLE",
            limit=one,
        ),
        Figure(
            name=f"write_path.store.c64_1user{suffix}",
            unit="rows/s",
            reference=f"{pooled}; all rows are one user's",
            better="higher",
            limit=alike,
        ),
        Figure(
            name=f"write_path.store.c64_64users{suffix}",
            unit="rows/s",
            reference=f"{pooled}; each caller has a user of its own",
            better="higher",
            limit=apart,
        ),
    )


async def _warm_up(
    manager: HybridMemoryManager,
    handles: Sequence[UserMemory],
    bare: asyncpg.Connection,
    pool: asyncpg.Pool,
    memories: Memories,
) -> None:
    await store_together(manager, handles, memories, 2 * CALLERS)
    users = [handle.user_id for handle in handles]
    for upsert in (references.SEARCHABLE_UPSERT, references.PLAIN_UPSERT):
        await references.upsert_one_by_one(bare, references.records(memories, users, CALLERS), upsert)
        await references.upsert_together(pool, references.records(memories, users, 4 * CALLERS), CALLERS, upsert)


async def _one_by_one(
    manager: HybridMemoryManager, handle: UserMemory, bare: asyncpg.Connection, memories: Memories, count: int
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of each store and of each upsert of both kinds, in short turns: moods of the machine hit all."""
    calls: list[float] = []
    bare_calls: list[float] = []
    plain_calls: list[float] = []
    while len(calls) < count:
        turn = min(_TURN, count - len(calls))
        rows = references.records(memories, [handle.user_id], turn)
        calls += await _store_one_by_one(manager, handle, memories, turn)
        bare_calls += await references.upsert_one_by_one(bare, rows)
        plain_calls += await references.upsert_one_by_one(bare, rows, references.PLAIN_UPSERT)
    return calls, bare_calls, plain_calls


async def _store_one_by_one(
    manager: HybridMemoryManager, handle: UserMemory, memories: Memories, count: int
) -> list[float]:
    contents = [memories.content() for _ in range(count)]
    calls: list[float] = []
    for content in contents:
        started = time.perf_counter_ns()
        receipt = await handle.store(content, context_type="conversation_fact", tags=("benchmark",), wait=_LONG)
        calls.append((time.perf_counter_ns() - started) / 1e6)
        assert receipt.status is Status.DURABLE
    await manager.drain(_QUIET)
    return calls


async def _together(
    manager: HybridMemoryManager,
    handles: Sequence[UserMemory],
    users: Sequence[str],
    pool: asyncpg.Pool,
    memories: Memories,
    count: int,
) -> list[tuple[float, float, float]]:
    """Rows a second of our stores and of upserts of both kinds, in short turns of as many rows each."""
    rates: list[tuple[float, float, float]] = []
    for _ in range(max(1, count // _TURN_TOGETHER)):
        turn = min(_TURN_TOGETHER, count)
        rows = references.records(memories, users, turn)
        ours = await store_together(manager, handles, memories, turn)
        searchable = await references.upsert_together(pool, rows, CALLERS)
        plain = await references.upsert_together(pool, rows, CALLERS, references.PLAIN_UPSERT)
        rates.append((ours, searchable, plain))
    return rates


async def store_together(
    manager: HybridMemoryManager, handles: Sequence[UserMemory], memories: Memories, count: int, wait: float = _LONG
) -> float:
    """Rows a second of 64 callers, each storing one memory at a time and waiting until it is durable."""
    contents = [memories.content() for _ in range(count)]

    async def call(place: int) -> None:
        handle = handles[place % len(handles)]
        for content in contents[place::CALLERS]:
            receipt = await handle.store(content, context_type="conversation_fact", tags=("benchmark",), wait=wait)
            assert receipt.status is Status.DURABLE or wait == 0

    started = time.perf_counter()
    await asyncio.gather(*map(call, range(CALLERS)))
    rate = count / (time.perf_counter() - started)
    if wait:
        # What still works in the background would slow down what is measured next.
        await manager.drain(_QUIET)
    return rate
