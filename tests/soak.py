"""Many open sessions under steady load with a fault every ten seconds, measured from inside.

    python -m tests.soak --minutes 10 --seed 1 [--users 1000] [--rate 500] [--json FILE]

Exit 0 when every limit was kept and nothing was lost, doubled, put out of order or left different, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.campaigns.soak import Plan, rows, soak


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--users", type=int, default=1_000)
    options.add_argument("--rate", type=int, default=500, help="writes a second")
    options.add_argument("--json", type=Path, default=None)
    asked = options.parse_args(arguments)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    plan = Plan(seconds=asked.minutes * 60, seed=asked.seed, users=asked.users, writes_per_second=asked.rate)
    report = asyncio.run(soak(plan))
    sys.stdout.write("".join(f"{name:<32} {told}\n" for name, told in rows(report)))
    if asked.json is not None:
        asked.json.write_text(json.dumps(report.figures()), encoding="utf-8")
    return 1 if report.missed() or report.complaints() else 0


if __name__ == "__main__":
    sys.exit(main())
