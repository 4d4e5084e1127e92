"""The command: which benchmarks, how many rounds, where the report goes."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import orjson
from rich.console import Console

from benchmarks import feed, outage, preload, read_path, report, write_path
from benchmarks.figures import Figure
from benchmarks.plan import TINY, Plan, Sizes

Benchmark = Callable[[Plan], Awaitable[list[Figure]]]

BENCHMARKS: dict[str, Benchmark] = {
    "read_path": read_path.run,
    "write_path": write_path.run,
    "preload": preload.run,
    "outage": outage.run,
    "feed": feed.run,
}

KEPT, MISSED = 0, 1
_WIDTH = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for. 0: all limits are kept, 1: one is missed; argparse leaves with 2 on wrong usage."""
    asked = _parser().parse_args(arguments)
    # Tables and progress never mix with a document on standard output.
    console = Console(stderr=asked.json == "-")
    if not console.is_terminal:
        console.width = _WIDTH
    plan = Plan(rounds=asked.rounds, seed=asked.seed, console=console, sizes=TINY if asked.tiny else Sizes())
    with redirect_stdout(sys.stderr):  # what the package logs unasked
        figures = asyncio.run(_measure(plan, list(dict.fromkeys(asked.benchmarks))))
    made = report.Report(
        seed=plan.seed,
        rounds=plan.rounds,
        machine=report.machine(plan.postgres_version),
        commit=report.commit(),
        figures=figures,
    )
    made.show(console)
    _write(asked.json, orjson.dumps(made.document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return KEPT if made.kept else MISSED


async def _measure(plan: Plan, names: Sequence[str]) -> list[Figure]:
    figures: list[Figure] = []
    for name in names:
        figures += await BENCHMARKS[name](plan)
    return figures


def _write(where: str | None, document: bytes) -> None:
    if where == "-":
        sys.stdout.buffer.write(document)
    elif where is not None:
        Path(where).write_bytes(document)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the tiers against references in the same run."
    )
    parser.add_argument("benchmarks", nargs="+", choices=sorted(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", metavar="FILE", help="write the report there, - for standard output")
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="5 by default")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="1 by default")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that everything runs")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
