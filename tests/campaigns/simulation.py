"""Seeded schedules of the whole core on one thread, one after the other, for as long as is wished."""

from __future__ import annotations

import gc
import sys
import time

from tests.campaigns.tally import Tally
from tests.simulation import schedule
from tests.simulation.options import Options
from tests.simulation.schedule import Ground, Outcome

SCHEDULES = "simulated schedules"
# One in so many schedules is a long one, which takes as long as five others.
LONG_EVERY = 32
# And in one of so many a standby that lags behind takes over, once or twice.
FAILOVER_EVERY = 8
# Seeds of two campaigns do not meet before one has run for days.
APART = 10_000_000
COLLECT_EVERY = 64

_DOUBLED = ("times", "revisions of", "failed and was applied")
_REORDERED = ("came after number", "applied before it")
_DIVERGED = ("rule 3", "rule 4", "rule 9")


def _is_long(seed: int) -> bool:
    return seed % LONG_EVERY == 0


def _fails_over(seed: int) -> bool:
    # Never a long one, so that each is told by one option.
    return seed % FAILOVER_EVERY == 1


def run_one(seed: int, ground: Ground) -> Outcome:
    """One schedule of a campaign, as its seed says."""
    return schedule.run(Options.of(seed, long=_is_long(seed), rewinds=_fails_over(seed)), ground)


def add(tallies: dict[str, Tally], outcome: Outcome) -> None:
    """Count one schedule, and each kind of fault that was injected in it."""
    whole = tallies.setdefault(SCHEDULES, Tally(fault=SCHEDULES))
    whole.injected += 1
    whole.acked += outcome.acknowledged
    whole.recovered_in(outcome.recovery_seconds)
    for finding in outcome.findings:
        # What is neither doubled nor out of order nor apart is counted as lost: a rule was broken.
        if any(part in finding for part in _DOUBLED):
            whole.doubled += 1
        elif any(part in finding for part in _REORDERED):
            whole.reordered += 1
        elif finding.startswith(_DIVERGED):
            whole.diverged += 1
        else:
            whole.lost += 1
    for fault, times in outcome.counts.items():
        tallies.setdefault(fault, Tally(fault=f"simulated: {fault}")).injected += times


def run(*, seconds: float, seed: int, half: int = 1) -> list[Tally]:
    """Schedules from one seed on until the time is over. Broken ones are told on standard error, to be run again.

    Two that run for the same seed at once take a half of its schedules each.
    """
    tallies: dict[str, Tally] = {}
    ground, until, number = Ground(), time.monotonic() + seconds, seed * APART + (half - 1) * APART // 2
    try:
        while time.monotonic() < until:
            outcome = run_one(number, ground)
            add(tallies, outcome)
            if outcome.findings:
                form = " --long" if _is_long(number) else " --failover" if _fails_over(number) else ""
                sys.stderr.write(f"python -m tests.simulation --seeds {number}{form}: {outcome.findings[0]}\n")
            number += 1
            if number % COLLECT_EVERY == 0:
                gc.collect()
    finally:
        ground.close()
    return list(tallies.values())
