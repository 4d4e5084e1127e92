"""What a caller notices while Postgres is dead or frozen, and how fast the queue is carried afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure
from benchmarks.memories import Memories
from benchmarks.plan import Plan
from benchmarks.stand import Stand, stand
from benchmarks.write_path import CALLERS, store_together
from hybrid_memory import UserMemory
from hybrid_memory.events import Event, Persisted, Recovered
from hybrid_memory.graph import NodeId, Status

_WAIT_SECONDS = 0.25
# What the system may take to come back to a caller whose time is over.
_SCHEDULING_MS = 50
_READ_NODES = 1_000
_LONG = timedelta(seconds=60)


class Carried:
    """Counts what Postgres decides, and knows when it came back."""

    def __init__(self) -> None:
        self.count = 0
        self.last_at = 0.0
        self.at_recovery = 0
        self.recovered_at = 0.0
        self.recovered = asyncio.Event()
        self._goal = -1
        self._reached = asyncio.Event()

    async def reaches(self, goal: int) -> None:
        """Wait until so many operations were decided. Raises `TimeoutError`."""
        self._goal = goal
        self._reached.clear()
        if self.count < goal:
            async with asyncio.timeout(_LONG.total_seconds()):
                await self._reached.wait()

    def __call__(self, event: Event) -> None:
        """Observe."""
        match event:
            case Persisted():
                self.count += 1
                self.last_at = time.perf_counter()
                if self.count == self._goal:
                    self._reached.set()
            case Recovered():
                self.at_recovery, self.recovered_at = self.count, time.perf_counter()
                self.recovered.set()
            case _:
                return


async def run(plan: Plan) -> list[Figure]:
    """Measure."""
    read, pending, drain, comeback = _figures(plan)
    carried = Carried()
    async with stand(plan) as place, place.manager("hot", carried) as manager:
        memories = Memories(plan.random("outage"))
        handle = await manager.ensure_user_memories("reader")
        writer = await manager.ensure_user_memories("writer")
        await store_together(manager, [handle], memories, _READ_NODES)
        ids = [node.node_id for node in (await handle.list(limit=_READ_NODES)).items]
        for number in range(plan.rounds):
            plan.say(f"outage: round {number + 1} of {plan.rounds}")
            targets = plan.random(f"outage {number}").choices(ids, k=plan.sizes.reads)
            healthy_rate = await store_together(manager, [writer], memories, plan.sizes.concurrent_writes)
            with frozen(place):
                slowest = await _slowest_pending(writer, memories, plan.sizes.frozen_calls)
            pending.add(max(slowest), calls=slowest)
            await carried.reaches(carried.count + manager.queue().entries)
            healthy = await _reads(handle, targets)
            await place.postgres.kill()
            await writer.store(memories.content(), context_type="conversation_fact", wait=_WAIT_SECONDS)
            dead = await _reads(handle, targets)
            read.add(median(dead), median(healthy), calls=dead)
            await store_together(manager, [writer], memories, plan.sizes.drained, wait=0)
            rate, seconds = await _come_back(place, carried, carried.count + manager.queue().entries)
            drain.add(rate, healthy_rate)
            comeback.add(seconds)
    return [read, pending, drain, comeback]


def _figures(plan: Plan) -> tuple[Figure, Figure, Figure, Figure]:
    return (
        Figure(
            name="outage.read_p50",
            unit="µs",
            reference="the same reads while Postgres is healthy, just before; ours: it is killed, the relay tries on",
            limit=1.1,
        ),
        Figure(
            name="outage.pending_wait",
            unit="ms",
            reference=f"none: the slowest store(wait={_WAIT_SECONDS}) while every process of Postgres is stopped "
            f"(SIGSTOP); its wait plus {_SCHEDULING_MS} ms for the system to come back to the caller",
            limit=_WAIT_SECONDS * 1000 + _SCHEDULING_MS,
            limit_on="value",
            summary=max,
        ),
        Figure(
            name="outage.drain",
            unit="rows/s",
            reference=f"{CALLERS} callers storing durably on one user while healthy, same round (write_path's "
            f"c64_1user); ours: {plan.sizes.drained:,} queued operations, from the first batch to the last",
            better="higher",
            limit=0.333,
        ),
        Figure(
            name="outage.comeback",
            unit="s",
            reference=f"none: from the server's start to {plan.sizes.drained:,} queued operations carried, pause of "
            "the backoff included",
        ),
    )


async def _reads(handle: UserMemory, ids: Sequence[NodeId]) -> list[float]:
    calls: list[float] = []
    for node_id in ids:
        started = time.perf_counter_ns()
        node = await handle.get(node_id)
        calls.append((time.perf_counter_ns() - started) / 1000)
        assert node is not None
        # Between two reads everything else gets its turn: the relay tries to reach Postgres.
        await asyncio.sleep(0)
    return calls


async def _slowest_pending(handle: UserMemory, memories: Memories, count: int) -> list[float]:
    calls: list[float] = []
    for _ in range(count):
        content = memories.content()
        started = time.perf_counter_ns()
        receipt = await handle.store(content, context_type="conversation_fact", wait=_WAIT_SECONDS)
        calls.append((time.perf_counter_ns() - started) / 1e6)
        assert receipt.status is Status.PENDING
    return calls


async def _come_back(place: Stand, carried: Carried, goal: int) -> tuple[float, float]:
    """Start the server again. Rows a second from the first batch to the last, and seconds from the start on."""
    carried.recovered.clear()
    started = time.perf_counter()
    await place.postgres.ensure_running()
    await carried.recovered.wait()
    await carried.reaches(goal)
    rows = carried.count - carried.at_recovery
    return rows / (carried.last_at - carried.recovered_at), carried.last_at - started


@contextmanager
def frozen(place: Stand) -> Generator[None]:
    """Stop every process of the server for the length of the block, as a machine that hangs does."""
    postmaster = place.postgres.pid
    assert postmaster is not None
    # The postmaster first, so that it makes no new ones.
    os.kill(postmaster, signal.SIGSTOP)
    stopped = [postmaster]
    try:
        for child in _children(postmaster):
            os.kill(child, signal.SIGSTOP)
            stopped.append(child)
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


def _children(parent: int) -> list[int]:
    """The pids below a process, as /proc tells them."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended meanwhile
        # The name in brackets may hold anything, so count from the last bracket: state, parent.
        if int(status.rpartition(")")[2].split()[1]) == parent:
            found.append(int(entry.name))
    return found
