"""`python -m tests.simulation --seeds A..B`: run schedules, and print those that break a rule with their last lines."""

from __future__ import annotations

import argparse
import gc
import sys
import time

from tests.simulation.options import Options
from tests.simulation.schedule import Ground, Outcome, run

SHOWN = 60


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def seeds(text: str) -> range:
    """`7` or `0..1000`, the end not included."""
    first, dots, last = text.partition("..")
    return range(int(first), int(last) if dots else int(first) + 1)


def tell(outcome: Outcome, lines: int) -> None:
    """The seed, what follows from it, how it ended, and what was wrong."""
    say(f"seed {outcome.options.seed}: {outcome.options}")
    for line in outcome.lines[-lines:]:
        say(f"    {line}")
    say(f"trace {outcome.digest}")
    for finding in outcome.findings:
        say(f"BROKEN {finding}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=seeds, default=range(1000), metavar="A..B")
    parser.add_argument("--long", action="store_true", help="several times as many calls and faults")
    parser.add_argument("--failover", action="store_true", help="a lagging standby takes over now and then")
    parser.add_argument("--first", action="store_true", help="end with the first schedule that breaks a rule")
    parser.add_argument("--trace", action="store_true", help="show every schedule, not only those that fail")
    parser.add_argument("--lines", type=int, default=SHOWN, help="how many lines of a trace to show")
    chosen = parser.parse_args()
    ground, broken, began = Ground(), 0, time.monotonic()
    try:
        for seed in chosen.seeds:
            outcome = run(Options.of(seed, long=chosen.long, rewinds=chosen.failover), ground)
            broken += bool(outcome.findings)
            if outcome.findings or chosen.trace:
                tell(outcome, chosen.lines)
            if outcome.findings and chosen.first:
                break
            if seed % 64 == 0:
                gc.collect()
    finally:
        ground.close()
    seconds = time.monotonic() - began
    count = len(chosen.seeds)
    say(f"{count} schedules, {broken} broken, {seconds:.1f} s, {60 * count / seconds:.0f} a minute")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
