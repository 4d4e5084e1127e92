"""Writing processes killed with -9 one after the other, some while they open their file, some with Postgres dead."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import count
from typing import Final

from hybrid_memory.testing.postgres import short_folder
from tests.campaigns.tally import Tally
from tests.kill_loop import campaign
from tests.support.own_server import OwnServer

# So many generations share a file and a database; then both are judged.
ROUNDS: Final = 60


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Kill processes until the time is over; whom, when and beside which outage follows the seed."""
    return asyncio.run(_run(seconds, seed))


async def _run(seconds: float, seed: int) -> list[Tally]:
    killed = Tally(fault="process killed")
    opening = Tally(fault="process killed while opening")
    beside = Tally(fault="process killed beside a dead Postgres")
    until = time.monotonic() + seconds
    with short_folder() as folder:
        server = await OwnServer.start(folder)
        try:
            for number in count():
                began = time.monotonic()
                outcome = await campaign(
                    rounds=ROUNDS, seed=seed * 1_000 + number, server=server, folder=folder / str(number)
                )
                verdict, witness, made = outcome.verdict, outcome.campaign.witness, outcome.campaign
                sys.stderr.write("".join(f"{complaint}\n" for complaint in outcome.complaints()[:20]))
                opening.injected += made.kills_while_opening
                beside.injected += made.rounds_without_postgres
                killed.add(
                    Tally(
                        fault=killed.fault,
                        injected=made.kills,
                        acked=witness.acks,
                        lost=len(verdict.lost),
                        doubled=len(verdict.doubled),
                        reordered=len(verdict.reordered),
                        diverged=len(verdict.diverged),
                        slowest_call_s=witness.slowest_call_s,
                    )
                )
                took = time.monotonic() - began
                if time.monotonic() + took > until:
                    break
        finally:
            await server.stop()
    return [killed, opening, beside]
