"""The cost of a point read: alone, under concurrency, and among a million nodes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import orjson

from benchmarks.figures import Figure
from benchmarks.memories import FlatRow, Memories
from benchmarks.plan import Plan
from benchmarks.redis import Redis, redis
from benchmarks.stand import folder
from hybrid_memory import HybridMemoryManager, UserMemory
from hybrid_memory.clock import IdSource, SystemClock
from hybrid_memory.connect import connect
from hybrid_memory.messages import Head
from hybrid_memory.ports import Replica
from hybrid_memory.settings import Settings, read_environment
from hybrid_memory.sqlite.driver import choose_driver, configure_reader
from hybrid_memory.sqlite.slots import slot_path

CONCURRENCY = 100
EPOCH = "00000000-0000-4000-8000-000000000001"
_RAW = "select content from nodes where user_no = ? and node_id = ?"

Loads = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A node to be read, by handle and by raw statement."""

    handle: UserMemory
    user_no: int
    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A file that holds nodes: open in a manager, and beside it a raw read-only connection with the same settings."""

    raw: sqlite3.Connection
    targets: Sequence[Target]
    cached: dict[str, object]
    """All targets' contents, decoded, as a process without a file would hold them."""


async def run(plan: Plan) -> list[Figure]:
    """Measure."""
    figures = _Figures(plan)
    async with AsyncExitStack() as stack:
        place = stack.enter_context(folder())
        few = await stack.enter_async_context(_held(plan, place / "small", plan.sizes.small_users))
        many = await stack.enter_async_context(_held(plan, place / "large", plan.sizes.large_users))
        server = await stack.enter_async_context(redis(place))
        if server is not None:
            for node_id, content in few.cached.items():
                await server.set(node_id, orjson.dumps(content))
        # As in a process that has run for a while: each node that will be asked for was asked for once before.
        for held in (few, many):
            await _gets(held.targets)
        for number in range(plan.rounds):
            plan.say(f"read_path: round {number + 1} of {plan.rounds}")
            await _round(plan, number, figures, few, many, server)
    return figures.all()


class _Figures:
    """What is asked."""

    def __init__(self, plan: Plan) -> None:
        sizes = plan.sizes
        small, large = sizes.small_users * sizes.nodes_per_user, sizes.large_users * sizes.nodes_per_user
        raw = f"raw sqlite3 + json.loads on the same file ({small:,} nodes), by (user, id), same library and settings"
        self.single = Figure(name="read_path.get.c1", unit="µs", reference=f"{raw}; one caller", limit=2.0)
        self.crowd = Figure(name="read_path.get.c100", unit="µs", reference=f"{raw}; in {CONCURRENCY} tasks", limit=2.0)
        self.million = Figure(
            name="read_path.get.n1m",
            unit="µs",
            reference=f"the same read among {small:,} nodes; value: among {large:,} of {sizes.large_users:,} users, of "
            f"which {sizes.large_users * _kept_of_each(plan, sizes.large_users):,} are asked for, each once before",
            limit=1.4,
        )
        self.faster = Figure(
            name="read_path.get.orjson", unit="µs", reference="raw sqlite3 + orjson.loads on the same file; one caller"
        )
        self.memory = Figure(
            name="read_path.get.dict", unit="µs", reference="a dict of decoded contents, in a coroutine; one caller"
        )
        self.redis = Figure(
            name="read_path.get.redis",
            unit="µs",
            reference="Redis over a unix socket + orjson.loads; one caller on a connection of its own",
        )

    def all(self) -> list[Figure]:
        """Those that were measured."""
        figures = [self.single, self.crowd, self.million, self.faster, self.memory, self.redis]
        return [figure for figure in figures if figure.samples]


async def _round(plan: Plan, number: int, figures: _Figures, few: Held, many: Held, server: Redis | None) -> None:
    chosen = plan.random(f"reads {number}")
    near = chosen.choices(few.targets, k=plan.sizes.reads)
    far = chosen.choices(many.targets, k=plan.sizes.reads)
    ours = await _gets(near)
    raw = _raw_reads(few.raw, near, json.loads)
    figures.single.add(median(ours), median(raw), calls=ours)
    among_many = await _gets(far)
    # Before and after, so that a change of the machine's mood in between hits both.
    figures.million.add(median(among_many), median(ours + await _gets(near)), calls=among_many)
    figures.faster.add(median(ours), median(_raw_reads(few.raw, near, orjson.loads)), calls=ours)
    figures.memory.add(median(ours), median(await _awaited_reads(few.cached, near)), calls=ours)
    if server is not None:
        figures.redis.add(median(ours), median(await _redis_reads(server, near)), calls=ours)
    together = await _in_tasks(near, _crowded_gets)
    raw_together = await _in_tasks(near, lambda part: _crowded_raw(few.raw, part))
    figures.crowd.add(median(together), median(raw_together), calls=together)


async def _gets(targets: Sequence[Target]) -> list[float]:
    clock = time.perf_counter_ns
    calls: list[float] = []
    for target in targets:
        handle, node_id = target.handle, target.node_id
        started = clock()
        node = await handle.get(node_id)
        ended = clock()
        assert node is not None
        calls.append((ended - started) / 1000)
    return calls


async def _crowded_gets(targets: Sequence[Target]) -> list[float]:
    calls: list[float] = []
    for target in targets:
        calls += await _gets([target])
        await asyncio.sleep(0)
    return calls


def _raw_reads(connection: sqlite3.Connection, targets: Sequence[Target], loads: Loads) -> list[float]:
    clock = time.perf_counter_ns
    calls: list[float] = []
    for target in targets:
        user_no, node_id = target.user_no, target.node_id
        started = clock()
        content = loads(connection.execute(_RAW, (user_no, node_id)).fetchone()[0])
        ended = clock()
        assert content
        calls.append((ended - started) / 1000)
    return calls


async def _crowded_raw(connection: sqlite3.Connection, targets: Sequence[Target]) -> list[float]:
    calls: list[float] = []
    for target in targets:
        calls += _raw_reads(connection, [target], json.loads)
        await asyncio.sleep(0)
    return calls


async def _awaited_reads(cached: dict[str, object], targets: Sequence[Target]) -> list[float]:
    async def get(node_id: str) -> object | None:
        return cached.get(node_id)

    return await _timed([target.node_id for target in targets], get)


async def _redis_reads(server: Redis, targets: Sequence[Target]) -> list[float]:
    async def get(node_id: str) -> object:
        return orjson.loads(await server.get(node_id))

    return await _timed([target.node_id for target in targets], get)


async def _timed(node_ids: Sequence[str], get: Callable[[str], Awaitable[object]]) -> list[float]:
    clock = time.perf_counter_ns
    calls: list[float] = []
    for node_id in node_ids:
        started = clock()
        content = await get(node_id)
        ended = clock()
        assert content
        calls.append((ended - started) / 1000)
    return calls


async def _in_tasks(
    targets: Sequence[Target], read: Callable[[Sequence[Target]], Awaitable[list[float]]]
) -> list[float]:
    parts = [targets[start::CONCURRENCY] for start in range(CONCURRENCY)]
    return [call for calls in await asyncio.gather(*map(read, parts)) for call in calls]


@asynccontextmanager
async def _held(plan: Plan, data_dir: Path, users: int) -> AsyncGenerator[Held, None]:
    started = time.monotonic()
    numbers, kept = await _build(plan, data_dir, users)
    plan.say(f"read_path: {users * plan.sizes.nodes_per_user:,} nodes loaded in {time.monotonic() - started:.1f} s")
    async with HybridMemoryManager.open(postgres="off", data_dir=data_dir) as manager:
        raw = choose_driver().connect(slot_path(data_dir, 0), read_only=True)
        configure_reader(raw)
        handles = {user_id: manager.user(user_id) for user_id in numbers}
        targets = [
            Target(handle=handles[user_id], user_no=numbers[user_id], node_id=node_id) for user_id, node_id, _ in kept
        ]
        try:
            yield Held(raw=raw, targets=targets, cached={node_id: json.loads(text) for _, node_id, text in kept})
        finally:
            raw.close()


def _kept_of_each(plan: Plan, users: int) -> int:
    """Of how many nodes of each user reads are chosen: twice as many in all as there will be reads, if there are."""
    return min(plan.sizes.nodes_per_user, max(1, 2 * plan.sizes.reads * plan.rounds // users))


async def _build(plan: Plan, data_dir: Path, users: int) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """Fill a file as a load from Postgres does: the users' numbers in it, and a sample of (user, id, content)."""
    clock = SystemClock()
    tiers = await connect(
        dsn=None,
        data_dir=data_dir,
        postgres="off",
        environment=read_environment({}),
        settings=Settings(),
        clock=clock,
        ids=IdSource(clock),
    )
    memories = Memories(plan.random("memories"))
    per_user = plan.sizes.nodes_per_user
    share = _kept_of_each(plan, users)
    numbers: dict[str, int] = {}
    kept: list[tuple[str, str, str]] = []
    try:
        for place in range(users):
            user_id = f"user-{place:04d}"
            rows = list(memories.nodes(per_user))
            numbers[user_id] = await _load(tiers.file.replica, user_id, rows)
            kept += [(user_id, str(row[0]), str(row[4])) for row in plan.random(user_id).sample(rows, share)]
    finally:
        await tiers.close()
    return numbers, kept


async def _load(replica: Replica, user_id: str, rows: Sequence[FlatRow]) -> int:
    head = Head(user_id=user_id, epoch=EPOCH, rev=len(rows), erased_rev=0, timeline=1)
    generation = await replica.begin_load(head)
    assert generation is not None
    await replica.add_nodes(generation, rows)
    await replica.show_load(generation, complete=True)
    return generation
