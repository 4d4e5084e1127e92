"""Seeded schedules of the whole core: whatever fails and in whatever order, nothing is lost, doubled or left apart."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.simulation.options import Options
from tests.simulation.schedule import Ground, Outcome, run

LINES = 40


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    found = Ground()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


def told(outcome: Outcome) -> str:
    lines = "\n".join(outcome.lines[-LINES:])
    return f"{outcome.options}\n{lines}\n" + "\n".join(outcome.findings)


@pytest.mark.parametrize("first_seed", range(0, 160, 20))
def test_every_rule_holds_whatever_fails_and_in_whatever_order(ground: Ground, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        outcome = run(Options.of(seed), ground)
        assert not outcome.findings, told(outcome)


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_every_rule_holds_where_a_lagging_standby_takes_over(ground: Ground, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        outcome = run(Options.of(seed, rewinds=True), ground)
        assert outcome.counts["failover"] == outcome.options.rewinds
        assert not outcome.findings, told(outcome)


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(100044, id="a merge was lost, and what was queued behind it moved the mark past it"),
        pytest.param(100462, id="a relationship was lost, and the deletion of its end came back before it"),
        pytest.param(200291, id="an entity is held against an erasure, and others have added to it"),
        pytest.param(201284, id="a queued deletion beats what came back, and its caller begins anew behind it"),
        pytest.param(203162, id="a relationship of an expired node came back elsewhere while it was queued again"),
        pytest.param(203763, id="an operation was queued on a revision that was given to another write"),
        pytest.param(205638, id="a standby was reached, and promoted under the connection"),
        pytest.param(201788, id="a deletion died and is shown, and a relationship of its node came back elsewhere"),
    ],
)
def test_a_failover_that_once_broke_a_rule_keeps_them_all(ground: Ground, seed: int) -> None:
    outcome = run(Options.of(seed, rewinds=True), ground)
    assert not outcome.findings, told(outcome)


@pytest.mark.parametrize("first_seed", range(0, 12, 4))
def test_every_rule_holds_in_long_schedules(ground: Ground, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 4):
        outcome = run(Options.of(seed, long=True), ground)
        assert not outcome.findings, told(outcome)


def test_the_faults_are_all_reached_within_a_few_seeds() -> None:
    chosen = [Options.of(seed) for seed in range(160)]
    assert any(one.crashes and one.stops and one.storms for one in chosen)
    assert {one.processes for one in chosen} == {1, 2, 3}
    assert {one.shuffles for one in chosen} == {True, False}
    assert any(one.refused for one in chosen)
    assert any(any(one.skews_seconds) for one in chosen)


_TRACES = """
from tests.simulation.options import Options
from tests.simulation.schedule import Ground, run
ground = Ground()
print([run(Options.of(seed), ground).digest for seed in range(40, 52)])
ground.close()
"""


def test_a_seed_gives_the_same_trace_again_in_any_process() -> None:
    traces = [
        subprocess.run(
            [sys.executable, "-c", _TRACES],
            env={**os.environ, "PYTHONHASHSEED": hashing},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashing in ("1", "2")
    ]
    assert traces[0] == traces[1]


def test_two_seeds_give_two_traces(ground: Ground) -> None:
    assert run(Options.of(1), ground).digest != run(Options.of(2), ground).digest
