"""Power cuts: processes are recorded beneath their disk, and images of cuts at random places are opened and judged.

In each round several processes follow one another on one disk: one that ends well, one that is killed, one of whose
fsyncs fails, one more that ends well; in every other round with a Postgres, so that they settle and erase there too. A
few images of each round are carried on to Postgres and judged there.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hybrid_memory.testing.postgres import short_folder
from hybrid_memory.testing.power import Cut, Survival
from tests.campaigns.tally import Tally
from tests.plugins.postgres import Database
from tests.support.own_server import OwnServer
from tests.support.power_campaign import Recording, carried, fsync_fails, recording, spread
from tests.support.power_judge import complaints
from tests.support.witness import Verdict

# A round records for some seconds; so many images of it take as long again.
IMAGES_A_ROUND = 600
CARRIED_A_ROUND = 2
LOG_BYTES = (16 * 1024, 64 * 1024, 16 * 1024 * 1024)


@dataclass(slots=True, kw_only=True)
class Campaign:
    """Rounds on one server, until the time is over."""

    server: OwnServer
    folder: Path
    seed: int
    images: Tally = field(default_factory=lambda: Tally(fault="power cut, image judged"))
    carried: Tally = field(default_factory=lambda: Tally(fault="power cut, image carried to Postgres"))
    wrong: list[str] = field(default_factory=list[str])

    async def round(self, number: int, *, until: float) -> None:
        """Record, cut, judge."""
        chance = random.Random(f"{self.seed} {number}")
        seed = chance.randrange(2**32)
        folder = self.folder / str(number)
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(self.server.database()) if number % 2 else None
            made = await stack.enter_async_context(self._recording(folder, database, chance))
            await made.take()
            await made.take(kill_after=spread(2 * 6 * made.work.writes, chance))
            await made.take(fault=fsync_fails(chance.randint(1, 12), of=chance.choice(("-wal", "-wal", ".db"))))
            await made.take()
            self._judge(made, seed, until)
            await self._carry(made, database, chance, until)
        shutil.rmtree(folder, ignore_errors=True)

    def _recording(
        self, folder: Path, database: Database | None, chance: random.Random
    ) -> AbstractAsyncContextManager[Recording]:
        dsn = None if database is None else database.app_dsn
        # Erased operations never arrive: whose images are counted against Postgres erases nothing.
        erasures = chance.choice((0, 4)) if database is None else 4
        return recording(folder, dsn=dsn, writes=20, erasures=erasures, log_bytes=chance.choice(LOG_BYTES))

    def _judge(self, made: Recording, seed: int, until: float) -> None:
        cuts = sorted(made.random_cuts(IMAGES_A_ROUND, seed=seed) + made.last_cuts())
        judgement = made.judged(cuts, seed=seed, until=until)
        self.images.injected += judgement.images.total()
        self.images.acked += judgement.acked
        _add(self.images, judgement.verdict)
        self.wrong += [f"seed {seed}, {cut}: {one}" for cut, one in judgement.wrong]

    async def _carry(self, made: Recording, database: Database | None, chance: random.Random, until: float) -> None:
        if database is not None:
            # Only the last state of the disk fits the state of its Postgres.
            await self._carry_one(made, Cut(len(made.lines), chance.choice(list(Survival))), database, exact=False)
            return
        for cut in made.random_cuts(CARRIED_A_ROUND, seed=chance.randrange(2**32)):
            if time.monotonic() < until:
                async with self.server.database() as empty:
                    await self._carry_one(made, cut, empty, exact=not made.work.erasures)

    async def _carry_one(self, made: Recording, cut: Cut, database: Database, *, exact: bool) -> None:
        began = time.monotonic()
        verdict = await carried(made, cut, database, seed=self.seed, exact=exact)
        self.carried.injected += 1
        self.carried.recovered_in(time.monotonic() - began)
        _add(self.carried, verdict)
        self.wrong += [f"carried, {cut}: {one}" for one in complaints(verdict)]


def _add(tally: Tally, verdict: Verdict) -> None:
    tally.lost += len(verdict.lost)
    tally.doubled += len(verdict.doubled)
    tally.reordered += len(verdict.reordered)
    tally.diverged += len(verdict.diverged)


async def _run(seconds: float, seed: int) -> Campaign:
    until = time.monotonic() + seconds
    with short_folder() as folder:
        server = await OwnServer.start(folder / "server")
        campaign = Campaign(server=server, folder=folder / "disks", seed=seed)
        try:
            number = 0
            while number == 0 or time.monotonic() < until:
                await campaign.round(number, until=until)
                number += 1
        finally:
            await server.postgres.stop()
    return campaign


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Cut the power for about so long; a round that has begun is ended. What was found wrong is told on stderr."""
    campaign = asyncio.run(_run(seconds, seed))
    sys.stderr.writelines(f"{one}\n" for one in campaign.wrong[:50])
    return [campaign.images, campaign.carried]
