"""How soon a user's memory is here: all of it, unchanged after a restart, and with a server to be started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import asyncpg

from benchmarks import references
from benchmarks.figures import Figure
from benchmarks.memories import FlatRow, Memories
from benchmarks.plan import Plan
from benchmarks.stand import Stand, connection, folder, stand
from hybrid_memory import HybridMemoryManager
from hybrid_memory.connect import EMBEDDED_LOGIN
from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.sqlite.driver import choose_driver

_FIRST = "somebody-else"
_WARM_NODES = 100
# One load of the small graph is over in the time that one hiccup of the machine takes.
_SMALL_LOADS = 4
_PER_TRANSACTION = 4_000
_ALL = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A user's graph as it lies in Postgres."""

    user_id: str
    nodes: list[FlatRow]
    edges: list[FlatRow]


async def run(plan: Plan) -> list[Figure]:
    """Measure."""
    small, large, searchable, warm = _figures()
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(stand(plan))
        admin = await stack.enter_async_context(connection(place.admin_dsn))
        await references.make_twin(admin, EMBEDDED_LOGIN)
        bare = await stack.enter_async_context(connection(place.app_dsn))
        memories = Memories(plan.random("preload"))
        graphs = [
            await _fill(admin, memories, "small", plan.sizes.preload_small),
            await _fill(admin, memories, "large", plan.sizes.preload_large),
        ]
        few = [await _fill(admin, memories, f"warm-{n:02d}", _WARM_NODES) for n in range(plan.sizes.warm_users)]
        await _fill(admin, memories, _FIRST, _WARM_NODES)
        await admin.execute("vacuum analyze")
        await _meet_heads(admin)
        for number in range(plan.rounds):
            plan.say(f"preload: round {number + 1} of {plan.rounds}")
            name = f"hot-{number}"
            async with place.manager(name) as manager:
                await manager.ensure_user_memories(_FIRST)
                for figure, graph in zip((small, large), graphs, strict=True):
                    seconds = await _ensure(manager, graph)
                    if graph is graphs[1]:
                        searchable.add(await _first_search(manager, graph))
                    figure.add(seconds * 1000, await _at_least(place, bare, graph) * 1000)
                for graph in few:
                    await manager.ensure_user_memories(graph.user_id)
            for again in range(_SMALL_LOADS - 1):
                async with place.manager(f"{name}-{again}") as manager:
                    await manager.ensure_user_memories(_FIRST)
                    small.add(await _ensure(manager, graphs[0]) * 1000, await _at_least(place, bare, graphs[0]) * 1000)
            calls, trips = await _warm(place, name, bare, [*few, *graphs])
            warm.add(median(calls), median(trips), calls=calls)
    return [small, large, searchable, warm, *await _starts(plan)]


def _figures() -> tuple[Figure, Figure, Figure, Figure]:
    raw = (
        "COPY of the same columns and casts to nowhere, then a raw executemany of the same rows into a new SQLite file "
        f"of the same schema and settings ({_PER_TRANSACTION:,} rows or all in a transaction, whichever is faster)"
    )
    return (
        Figure(name="preload.n10k", unit="ms", reference=raw, limit=1.4),
        Figure(name="preload.n100k", unit="ms", reference=raw, limit=1.4),
        Figure(
            name="preload.searchable_n100k",
            unit="s",
            reference="none: the first search after the load has returned",
            limit=1.0,
            limit_on="value",
        ),
        Figure(
            name="preload.warm",
            unit="ms",
            reference="one asyncpg round trip: a row by its key, prepared, on a warm connection of the same role; ours "
            "is the first ensure_user_memories, after open, of a user the file holds; another user warmed the link",
            limit=2.0,
        ),
    )


async def _fill(admin: asyncpg.Connection, memories: Memories, user_id: str, count: int) -> Graph:
    nodes = list(memories.nodes(count))
    edges = list(memories.relationships([str(row[0]) for row in nodes], count + 1))
    await references.fill(admin, user_id, nodes, edges)
    return Graph(user_id=user_id, nodes=nodes, edges=edges)


async def _meet_heads(admin: asyncpg.Connection) -> None:
    await admin.execute("insert into bench.heads select * from memory.heads")


async def _ensure(manager: HybridMemoryManager, graph: Graph) -> float:
    started = time.perf_counter()
    handle = await manager.ensure_user_memories(graph.user_id)
    seconds = time.perf_counter() - started
    held = await handle.digest()
    assert (held.nodes, held.relationships) == (len(graph.nodes), len(graph.edges))
    return seconds


async def _first_search(manager: HybridMemoryManager, graph: Graph) -> float:
    word = str(graph.nodes[0][6]).split()[0]
    started = time.perf_counter()
    hits = await manager.user(graph.user_id).search(word)
    seconds = time.perf_counter() - started
    assert hits
    return seconds


async def _at_least(place: Stand, bare: asyncpg.Connection, graph: Graph) -> float:
    """Seconds of the reference: out of Postgres, and into SQLite."""
    seconds = await references.copy_to_nowhere(bare, graph.user_id)
    return seconds + _insert_raw(place.folder / "raw", graph)


def _insert_raw(path: Path, graph: Graph) -> float:
    driver = choose_driver()
    seconds: list[float] = []
    for step in (_PER_TRANSACTION, _ALL):
        seconds.append(references.bulk_insert(driver, path, graph.nodes, graph.edges, step))
        path.unlink()
    return min(seconds)


async def _warm(
    place: Stand, name: str, bare: asyncpg.Connection, graphs: Sequence[Graph]
) -> tuple[list[float], list[float]]:
    by_key = await bare.prepare("select rev from bench.heads where user_id = $1")
    calls: list[float] = []
    trips: list[float] = []
    async with place.manager(name) as manager:
        await manager.ensure_user_memories(_FIRST)
        await by_key.fetchval(_FIRST)
        for graph in graphs:
            started = time.perf_counter_ns()
            handle = await manager.ensure_user_memories(graph.user_id)
            between = time.perf_counter_ns()
            rev = await by_key.fetchval(graph.user_id)
            ended = time.perf_counter_ns()
            assert handle.freshness().rev == rev
            calls.append((between - started) / 1e6)
            trips.append((ended - between) / 1e6)
    return calls, trips


async def _starts(plan: Plan) -> list[Figure]:
    start = Figure(
        name="preload.embedded_start",
        unit="s",
        reference="none: EmbeddedPostgres.start on existing data until it takes sessions",
        limit=2.0,
        limit_on="value",
    )
    initdb = Figure(
        name="preload.embedded_initdb",
        unit="s",
        reference="none: EmbeddedPostgres.start on an empty directory, initdb included",
        limit=5.0,
        limit_on="value",
    )
    for _ in range(plan.rounds):
        with folder() as place:
            initdb.add(await _start(place / "postgres"))
            start.add(await _start(place / "postgres"))
            await EmbeddedPostgres.erase(place / "postgres")
    return [start, initdb]


async def _start(data_dir: Path) -> float:
    started = time.perf_counter()
    server = await EmbeddedPostgres.start(data_dir)
    seconds = time.perf_counter() - started
    await server.stop()
    return seconds
