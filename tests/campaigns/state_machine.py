"""Calls and faults in any order, as Hypothesis thinks them up: two managers, their wires and one real Postgres."""

from __future__ import annotations

import sys
import time
from itertools import count
from typing import Final

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from tests.campaigns.tally import Tally
from tests.support.memory_machine import Ground, machine_on, on_ground

SEQUENCES: Final = "sequences of calls and faults"
AT_ONCE: Final = 10
STEPS: Final = 60


# `seed` is what the campaigns call it; here it is Hypothesis' decorator.
_start_from = seed


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Try sequences until the time is over; one that breaks a promise is told on stderr."""
    until = time.monotonic() + seconds

    def drive(ground: Ground) -> list[Tally]:
        tally = Tally(fault=SEQUENCES)
        for number in count(seed * 100_000):
            if time.monotonic() >= until:
                break
            try:
                run_state_machine_as_test(_start_from(number)(machine_on(ground)), settings=_settings())
            except (AssertionError, Flaky) as broken:
                sys.stderr.write(f"sequences from {number}: {broken}\n{''.join(_steps(broken))}")
                tally.lost += 1
        tally.injected = next(ground.numbers)
        tally.acked = ground.acked
        tally.recovered_in(ground.slowest_rest_s)
        return [tally, *(Tally(fault=f"in sequences: {name}", injected=n) for name, n in ground.injected.items())]

    return on_ground(drive)


def _settings() -> settings:
    return settings(
        max_examples=AT_ONCE,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


def _steps(broken: BaseException) -> list[str]:
    return [f"{note}\n" for note in getattr(broken, "__notes__", ())]
