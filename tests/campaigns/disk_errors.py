"""Disk errors: every call of a short scenario fails, one after the other, once and for ever, by several errors.

The calls are taken in a random order, so that a short campaign is a sample of the whole; a long one begins anew when
all have been.
"""

from __future__ import annotations

import asyncio
import errno
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hybrid_memory.testing.disk import Call, DiskFault, FaultDisk
from hybrid_memory.testing.postgres import short_folder
from tests.campaigns.tally import Tally
from tests.support.sick_disk import Puppet, attempt, puppet

NEVER = 10**9
WRITES = frozenset({Call.WRITE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to fail."""

    name: str
    fault: DiskFault

    def at(self, nth: int) -> DiskFault:
        fault = self.fault
        return DiskFault(error=fault.error, calls=fault.calls, nth=nth, times=fault.times, half_first=fault.half_first)


KINDS = (
    Kind(name="nth call EIO, once", fault=DiskFault()),
    Kind(name="nth call EIO, for ever", fault=DiskFault(times=None)),
    Kind(name="nth call ENOSPC, once", fault=DiskFault(error=errno.ENOSPC)),
    Kind(name="nth call ENOSPC, for ever", fault=DiskFault(error=errno.ENOSPC, times=None)),
    Kind(name="half a write, then EIO", fault=DiskFault(calls=WRITES, half_first=True)),
    Kind(name="half a write, then ENOSPC", fault=DiskFault(error=errno.ENOSPC, calls=WRITES, half_first=True)),
)


@dataclass(slots=True, kw_only=True)
class Campaign:
    """One puppet on one disk."""

    player: Puppet
    disk: FaultDisk
    tallies: dict[str, Tally] = field(default_factory=lambda: {kind.name: Tally(fault=kind.name) for kind in KINDS})
    wrong: list[str] = field(default_factory=list[str])

    async def trials(self, chance: random.Random) -> list[tuple[Kind, int]]:
        """Every call by every kind, shuffled."""
        every = [(kind, nth) for kind in KINDS for nth in range(1, await self._calls(kind) + 1)]
        chance.shuffle(every)
        return every

    async def _calls(self, kind: Kind) -> int:
        healthy = await attempt(self.player, self.disk, kind.at(NEVER))
        self.wrong += healthy.wrong
        return self.disk.matched

    async def trial(self, kind: Kind, nth: int) -> None:
        """One call fails."""
        began = time.monotonic()
        trial = await attempt(self.player, self.disk, kind.at(nth))
        tally = self.tallies[kind.name]
        tally.injected += trial.struck > 0
        tally.acked += trial.acked
        tally.lost += sum("lost" in one for one in trial.wrong)
        tally.diverged += sum("lost" not in one for one in trial.wrong)
        tally.recovered_in(time.monotonic() - began)
        self.wrong += [f"{kind.name}, n = {nth}: {one}" for one in trial.wrong]


def _again_and_again(trials: list[tuple[Kind, int]], until: float) -> Iterator[tuple[Kind, int]]:
    while True:
        for trial in trials:
            if time.monotonic() > until:
                return
            yield trial


async def _run(seconds: float, seed: int, folder: Path) -> Campaign:
    until = time.monotonic() + seconds
    with FaultDisk(folder / "disk", folder=folder) as disk:
        async with puppet(disk) as player:
            campaign = Campaign(player=player, disk=disk)
            for kind, nth in _again_and_again(await campaign.trials(random.Random(seed)), until):
                await campaign.trial(kind, nth)
    return campaign


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Let calls fail for so long. What was found wrong is told on stderr."""
    with short_folder() as folder:
        campaign = asyncio.run(_run(seconds, seed, folder))
    sys.stderr.writelines(f"{one}\n" for one in campaign.wrong[:50])
    return list(campaign.tallies.values())
