"""Every kind of fault this repository can inject, side by side, against acknowledged writes.

    python -m tests.campaign --minutes 30 --seed 1 [--json FILE] [--only kills,network]

Each part runs in a process of its own, some at a time; what one finds wrong it tells on standard error as soon as it
does. At the end there is one table, a line for each fault. Exit 0 when nothing acknowledged was lost, doubled, put out
of order or left different between the tiers, and every call came back in time; else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import structlog

from tests.campaigns import (
    disk_errors,
    file_damage,
    kills,
    network,
    outages,
    power_cuts,
    sharing,
    simulation,
    state_machine,
)
from tests.campaigns.tally import Tally


class Run(Protocol):
    """One part of the campaign."""

    def __call__(self, *, seconds: float, seed: int) -> list[Tally]:
        """Inject faults for so long, by that seed; a line for each kind."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part, in which lane it runs, and which share of the lane's time it has."""

    lane: int
    share: float
    run: Run
    patient: bool = True
    """Whether it lets others go first: its writers, without an end, would take all there is."""


# Three lanes, for most faults are waited out: two cores are busy with that.
PARTS: Final[Mapping[str, Part]] = {
    "simulation": Part(lane=0, share=1.0, run=simulation.run, patient=False),
    "commits": Part(lane=1, share=0.22, run=partial(network.run, only=network.COMMITS)),
    "network": Part(lane=1, share=0.28, run=partial(network.run, only=network.OTHERS)),
    "outages": Part(lane=1, share=0.26, run=outages.run),
    "disk-errors": Part(lane=1, share=0.07, run=disk_errors.run),
    "file-damage": Part(lane=1, share=0.08, run=file_damage.run),
    "sharing": Part(lane=2, share=0.1, run=sharing.run),
    "sequences": Part(lane=2, share=0.1, run=state_machine.run),
    "kills": Part(lane=2, share=0.15, run=kills.run),
    "power-cuts": Part(lane=2, share=0.09, run=power_cuts.run),
    "failovers": Part(lane=2, share=0.14, run=partial(outages.run_failovers, lose_tail=True)),
    "more simulation": Part(lane=2, share=0.55, run=partial(simulation.run, half=2), patient=False),
}
NICE: Final = 5
COLUMNS: Final[Mapping[str, Callable[[Tally], str]]] = {
    "injected": lambda tally: f"{tally.injected:,}",
    "acked": lambda tally: f"{tally.acked:,}",
    "lost": lambda tally: f"{tally.lost:,}",
    "doubled": lambda tally: f"{tally.doubled:,}",
    "reordered": lambda tally: f"{tally.reordered:,}",
    "diverged": lambda tally: f"{tally.diverged:,}",
    "slowest recovery": lambda tally: f"{tally.slowest_recovery_s:.1f} s" if tally.slowest_recovery_s else "",
    "slowest call": lambda tally: f"{tally.slowest_call_s:.2f} s" if tally.slowest_call_s else "",
}


def table(tallies: Sequence[Tally]) -> str:
    """The tallies as Markdown, with their sum."""
    whole = Tally(fault="all")
    for tally in tallies:
        whole.add(tally)
    names = " | ".join(["fault", *COLUMNS])
    rows = [f"| {' | '.join([one.fault, *(show(one) for show in COLUMNS.values())])} |" for one in (*tallies, whole)]
    return "\n".join([f"| {names} |", f"|{'---|' * (len(COLUMNS) + 1)}", *rows, ""])


@dataclass(slots=True, kw_only=True)
class Campaign:
    """The parts as they run, and what came of them."""

    seconds: float
    seed: int
    folder: Path
    began: float
    broken: list[str]

    async def lane(self, names: Sequence[str]) -> None:
        """Run parts one after the other."""
        whole = sum(PARTS[name].share for name in names)
        for name in names:
            await self._part(name, self.seconds * PARTS[name].share / whole)

    async def _part(self, name: str, seconds: float) -> None:
        self._say(f"{name}: {seconds:.0f} s")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.campaign", "--part", name, "--seconds", str(seconds),
            "--seed", str(self.seed), "--json", str(self.folder / name), stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if await process.wait() != 0:
                self.broken.append(name)
        finally:
            if process.returncode is None:
                process.terminate()
        self._say(f"{name}: done" if name not in self.broken else f"{name}: broke off")

    def _say(self, text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - self.began:6.0f} s] {text}\n")

    def tallies(self) -> list[Tally]:
        """Everything that the parts which ended have counted, a line for each fault."""
        found: dict[str, Tally] = {}
        for name in PARTS:
            path = self.folder / name
            for words in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
                tally = Tally(**words)
                found.setdefault(tally.fault, Tally(fault=tally.fault)).add(tally)
        return list(found.values())


async def run(minutes: float, seed: int, only: Sequence[str]) -> tuple[list[Tally], list[str]]:
    """Run the parts named; what they counted, and which of them broke off."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        campaign = Campaign(seconds=minutes * 60, seed=seed, folder=Path(folder), began=time.monotonic(), broken=[])
        lanes: dict[int, list[str]] = {}
        for name in only:
            lanes.setdefault(PARTS[name].lane, []).append(name)
        async with asyncio.TaskGroup() as running:
            for names in lanes.values():
                running.create_task(campaign.lane(names))
        return campaign.tallies(), campaign.broken


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", type=Path, default=None)
    options.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    asked = options.parse_args(arguments)
    if asked.part is not None:
        # What is told of outages would bury what is found wrong.
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
        part = PARTS[asked.part]
        os.nice(NICE if part.patient else 0)
        counted = part.run(seconds=asked.seconds, seed=asked.seed)
        asked.json.write_text(json.dumps([asdict(tally) for tally in counted]), encoding="utf-8")
        return 0
    only = [name.strip() for name in asked.only.split(",")]
    if unknown := sorted(set(only) - PARTS.keys()):
        options.error(f"no such part: {', '.join(unknown)}")
    tallies, broken = asyncio.run(run(asked.minutes, asked.seed, only))
    passed = not broken and all(tally.clean for tally in tallies)
    sys.stdout.write(table(tallies))
    sys.stdout.write("".join(f"{name} broke off\n" for name in broken) + ("pass\n" if passed else "FAIL\n"))
    if asked.json is not None:
        report = {
            "seed": asked.seed,
            "minutes": asked.minutes,
            "faults": [asdict(tally) for tally in tallies],
            "broken_off": broken,
            "pass": passed,
        }
        asked.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
