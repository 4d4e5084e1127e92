"""A small soak, held to what must hold at any size; `python -m tests.soak` runs the large one with its limits."""

from __future__ import annotations

import asyncio
import gc
import json
import time

from tests.campaigns.soak import Plan, rows, soak
from tests.support.gauges import Callbacks, Latencies, slope


def busy_for(cpu_seconds: float) -> None:
    until = time.thread_time() + cpu_seconds
    while time.thread_time() < until:
        pass


async def test_open_sessions_under_steady_load_and_faults_lose_nothing_and_are_reported_on_in_full() -> None:
    plan = Plan(seconds=3, seed=3, users=40, writes_per_second=120, nodes_each=50, fault_every_seconds=0.5)
    report = await soak(plan)
    assert report.complaints() == []
    assert [tally for tally in report.tallies() if not tally.clean] == []
    assert report.acknowledged > 100
    assert sum(tally.injected for tally in report.faults.values()) >= 1
    assert report.load.get.count > 300
    assert all(latencies.count for latencies in report.load.scans.values())
    assert report.lag.count > 100
    assert len(report.samples) >= 2
    assert json.loads(json.dumps(report.figures()))["acknowledged"] == report.acknowledged
    assert "acknowledged" in "".join(name for name, _ in rows(report))


async def test_a_callback_that_keeps_the_event_loop_busy_is_told_by_its_name() -> None:
    callbacks, done = Callbacks(), asyncio.Event()

    async def slow_in_a_task() -> None:
        busy_for(0.03)
        await asyncio.sleep(0)
        done.set()

    with callbacks.timed():
        asyncio.get_running_loop().call_soon(busy_for, 0.06)
        task = asyncio.create_task(slow_in_a_task())
        await done.wait()
    await task
    first, second = callbacks.longest[:2]
    assert first.what == "busy_for"
    assert first.cpu_ms >= 60
    assert "slow_in_a_task" in second.what
    assert callbacks.over[50] >= 1


async def test_the_time_that_a_collection_of_garbage_took_is_told_apart() -> None:
    callbacks = Callbacks(noted_from_ms=0.0)
    with callbacks.timed():
        asyncio.get_running_loop().call_soon(gc.collect)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert callbacks.collections.count >= 1
    assert any(0 < one.garbage_ms <= one.cpu_ms for one in callbacks.longest)


async def test_callbacks_that_only_wait_are_not_told_of() -> None:
    callbacks = Callbacks()
    with callbacks.timed():
        await asyncio.sleep(0.02)
    assert callbacks.longest == []


def test_latencies_are_told_to_two_percent_and_the_longest_exactly() -> None:
    latencies = Latencies()
    for number in range(1, 10_001):
        latencies.add(number / 1e6)
    assert abs(latencies.quantile(0.5) / 5e-3 - 1) < 0.03
    assert abs(latencies.quantile(0.99) / 9.9e-3 - 1) < 0.03
    assert latencies.longest == 0.01


def test_growth_is_the_slope_of_what_was_sampled() -> None:
    assert abs(slope([(float(x), 3.0 * x + 7.0) for x in range(10)]) - 3.0) < 1e-9
    assert slope([]) == 0.0
