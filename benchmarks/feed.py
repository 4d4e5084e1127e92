"""How soon one process reads what another has stored, with hints and without, and what hints cost the writers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from statistics import median

from benchmarks import references
from benchmarks.figures import Figure
from benchmarks.memories import Memories
from benchmarks.other_process import HINT, OtherProcess, other_process
from benchmarks.plan import Plan
from benchmarks.stand import Stand, connection, stand
from benchmarks.write_path import CALLERS, store_together
from hybrid_memory import Settings, UserMemory
from hybrid_memory.connect import EMBEDDED_LOGIN
from hybrid_memory.events import Event, LoadFinished

_WATCHED, _LOUD, _QUIET = "watched", "writes-with-hints", "writes-without"
_DEAF = Settings(hints=False)
_POLL_MS = _DEAF.poll_interval / timedelta(milliseconds=1)
# Random moments: some writes come when no hint was sent for long, some within the pause that follows each.
_HINTED_PAUSE_SECONDS = 0.1
_POLLED_PAUSE_SECONDS = 0.05
_BARE_WRITES = 20
_PATIENCE_SECONDS = 30.0
# Long enough that the first and the last calls of a turn, with fewer under way, count for little.
_TURN = 15 * CALLERS


class Sightings:
    """Notes when each of the nodes that are awaited can first be read here.

    They are written one after the other, so that they come into sight in this order.
    """

    def __init__(self, is_there: Callable[[str], Awaitable[bool]]) -> None:
        self._is_there = is_there
        self._news = asyncio.Event()

    def look(self) -> None:
        """Something may have come."""
        self._news.set()

    def observe(self, event: Event) -> None:
        """Observe a manager."""
        if isinstance(event, LoadFinished):
            self.look()

    async def of(self, ids: Sequence[str]) -> list[int]:
        """When each came into sight, in nanoseconds of `time.monotonic_ns`. Raises `TimeoutError`."""
        seen: list[int] = []
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while len(seen) < len(ids):
                self._news.clear()
                while len(seen) < len(ids) and await self._is_there(ids[len(seen)]):
                    seen.append(time.monotonic_ns())
                if len(seen) < len(ids):
                    await self._news.wait()
        return seen


async def run(plan: Plan) -> list[Figure]:
    """Measure."""
    hinted, polled, cost = _figures(plan)
    async with stand(plan) as place:
        async with connection(place.admin_dsn) as admin:
            await references.make_twin(admin, EMBEDDED_LOGIN)
        async with other_process(place.app_dsn, place.folder / "other", [_WATCHED]) as other:
            memories = Memories(plan.random("feed"))
            await _lags(plan, place, other, memories, hinted, polled)
            await _costs(plan, place, memories, cost)
    return [hinted, polled, cost]


def _figures(plan: Plan) -> tuple[Figure, Figure, Figure]:
    turns = plan.rounds * plan.sizes.hint_turns
    return (
        Figure(
            name="feed.lag_hint",
            unit="ms",
            reference="bare asyncpg between the same two processes: from a row's commit to the end of the listener's "
            "select, NOTIFY sent right after the commit; ours: from the writer's DURABLE to the reader's first local "
            "read that sees it",
            limit=10.0,
            limit_on="value",
        ),
        Figure(
            name="feed.lag_poll",
            unit="ms",
            reference="the poll interval as configured; ours: the same lag without hints, a round's 99th percentile",
            limit=1.2,
        ),
        Figure(
            name="feed.write_cost",
            unit="rows/s",
            reference=f"the same without hints, in turn: {turns} turns of {_turn(plan):,} rows each; {CALLERS} callers "
            "storing durably on one user; another process listens and asks for its own user's head at every hint",
            better="higher",
            limit=0.95,
        ),
    )


async def _lags(
    plan: Plan, place: Stand, other: OtherProcess, memories: Memories, hinted: Figure, polled: Figure
) -> None:
    random = plan.random("feed pauses")

    async def lags(sightings: Sightings, count: int, longest_pause: float, *, bare: bool = False) -> list[float]:
        ids = [memories.node_id(place) for place in range(count)]
        pauses = [random.uniform(0, longest_pause) for _ in ids]
        safe, seen = await asyncio.gather(other.store(ids, pauses, bare=bare), sightings.of(ids))
        return [(there - here) / 1e6 for here, there in zip(safe, seen, strict=True)]

    async with AsyncExitStack() as stack:
        hearing = await stack.enter_async_context(_watching(place, "hearing", Settings()))
        deaf = await stack.enter_async_context(_watching(place, "deaf", _DEAF))
        listening = await stack.enter_async_context(_bare_watch(place))
        for number in range(plan.rounds):
            plan.say(f"feed: lag, round {number + 1} of {plan.rounds}")
            least = await lags(listening, _BARE_WRITES, _HINTED_PAUSE_SECONDS, bare=True)
            calls = await lags(hearing, plan.sizes.hinted_writes, _HINTED_PAUSE_SECONDS)
            hinted.add(median(calls), median(least), calls=calls)
            calls = await lags(deaf, plan.sizes.polled_writes, _POLLED_PAUSE_SECONDS)
            polled.add(_percentile(calls, 0.99), _POLL_MS, calls=calls)


@asynccontextmanager
async def _watching(place: Stand, name: str, settings: Settings) -> AsyncGenerator[Sightings]:
    """A manager here that holds the user whom the other process writes for."""
    handles: list[UserMemory] = []

    async def is_there(node_id: str) -> bool:
        return await handles[0].get(node_id) is not None

    sightings = Sightings(is_there)
    async with place.manager(name, sightings.observe, settings) as manager:
        handles.append(await manager.ensure_user_memories(_WATCHED))
        yield sightings


@asynccontextmanager
async def _bare_watch(place: Stand) -> AsyncGenerator[Sightings]:
    """A bare connection that listens, and another that reads the row then."""
    async with connection(place.app_dsn) as listening, connection(place.app_dsn) as reading:

        async def is_there(node_id: str) -> bool:
            found = await reading.fetchval("select content from bench.plain where node_id = $1", node_id)
            return found is not None

        sightings = Sightings(is_there)

        def heard(_connection: object, _pid: int, _channel: str, _payload: object) -> None:
            sightings.look()

        await listening.add_listener(HINT, heard)
        yield sightings
        await listening.remove_listener(HINT, heard)


async def _costs(plan: Plan, place: Stand, memories: Memories, cost: Figure) -> None:
    async with AsyncExitStack() as stack:
        loud = await stack.enter_async_context(place.manager("loud"))
        quiet = await stack.enter_async_context(place.manager("quiet", None, _DEAF))
        sides = [
            (loud, [await loud.ensure_user_memories(_LOUD)]),
            (quiet, [await quiet.ensure_user_memories(_QUIET)]),
        ]
        for manager, handles in sides:
            await store_together(manager, handles, memories, 2 * CALLERS)
        for number in range(plan.rounds):
            plan.say(f"feed: cost, round {number + 1} of {plan.rounds}")
            for turn in range(plan.sizes.hint_turns):
                rates: list[float] = [0.0, 0.0]
                # Who goes first changes, so that what is left over of one side's turn burdens both alike.
                for side in (0, 1) if turn % 2 else (1, 0):
                    manager, handles = sides[side]
                    rates[side] = await store_together(manager, handles, memories, _turn(plan))
                cost.add(rates[0], rates[1])


def _turn(plan: Plan) -> int:
    return min(_TURN, plan.sizes.concurrent_writes)


def _percentile(calls: Sequence[float], share: float) -> float:
    return sorted(calls)[min(len(calls) - 1, int(share * len(calls)))]
