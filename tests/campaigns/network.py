"""The wire to Postgres made sick again and again while many users write: commits and replies lost, resets, stalls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

from hybrid_memory.testing.postgres import short_folder
from hybrid_memory.testing.proxy import Loss, Notices, Proxy, Weather
from tests.campaigns.tally import Tally
from tests.support.load import Turn, in_turn, under_load
from tests.support.own_server import OwnServer

Fault = Callable[[Proxy, Random], Awaitable[None]]

# Under load a batch goes every few milliseconds.
STRIKE_SECONDS: Final = 20.0
# So many strike before it is waited for that all is well again: the next one may meet what the last one left.
FAULTS_IN_A_ROW: Final = 4


def losing(loss: Loss) -> Fault:
    """One statement of the relay loses what is said, after a few that pass."""

    async def fault(proxy: Proxy, random: Random) -> None:
        proxy.lose("memory.apply", loss, passes=random.randrange(4))
        async with asyncio.timeout(STRIKE_SECONDS):
            await proxy.struck(len(proxy.losses) + 1)

    return fault


async def resetting(proxy: Proxy, random: Random) -> None:
    """Every connection is reset at any moment."""
    await asyncio.sleep(random.uniform(0.0, 0.05))
    proxy.cut()


async def stalling(proxy: Proxy, random: Random) -> None:
    """Nothing passes for a moment."""
    proxy.stall()
    await asyncio.sleep(random.uniform(0.01, 0.3))
    await proxy.heal()


async def pulling_the_cable(proxy: Proxy, random: Random) -> None:
    """What is on its way is lost and nobody is told for a moment; then the system notices and resets."""
    proxy.go_silent()
    await asyncio.sleep(random.uniform(0.01, 0.3))
    proxy.cut()
    await proxy.heal()


async def refusing(proxy: Proxy, random: Random) -> None:
    """Cut off and refused for a moment."""
    proxy.refuse()
    proxy.cut()
    await asyncio.sleep(random.uniform(0.0, 0.2))
    await proxy.heal()


async def roughing(proxy: Proxy, random: Random) -> None:
    """Torn into pieces, late, with hints lost or doubled; cut off while it is so."""
    proxy.weather = Weather(
        latency_seconds=random.uniform(0.0, 0.05), jitter_seconds=0.02, piece_bytes=random.choice([0, 1400, 64])
    )
    proxy.notices = random.choice(list(Notices))
    await asyncio.sleep(random.uniform(0.05, 0.2))
    proxy.cut()
    await proxy.heal()


FAULTS: Final[dict[str, Fault]] = {
    "COMMIT reply lost": losing(Loss.REPLY),
    "COMMIT lost": losing(Loss.COMMIT),
    "request lost": losing(Loss.REQUEST),
    "connections reset": resetting,
    "stalled": stalling,
    "cable pulled": pulling_the_cable,
    "refused": refusing,
    "rough wire, cut": roughing,
}


COMMITS: Final = ("COMMIT reply lost", "COMMIT lost")
OTHERS: Final = tuple(name for name in FAULTS if name not in COMMITS)


def run(*, seconds: float, seed: int, only: Sequence[str] = tuple(FAULTS)) -> list[Tally]:
    """Inject kinds of fault in turn for so many seconds in all; the kinds' order and moments follow the seed."""
    return asyncio.run(campaign(seconds=seconds, seed=seed, only=only))


async def campaign(*, seconds: float, seed: int, only: Sequence[str] = tuple(FAULTS)) -> list[Tally]:
    """`run` for who has an event loop."""
    with short_folder() as folder:
        server = await OwnServer.start(folder)
        try:

            async def inject(turn: Turn) -> None:
                await _inject(server, folder / str(turn.number), turn)

            return await in_turn(only, inject, seconds=seconds, seed=seed)
        finally:
            await server.stop()


async def _inject(server: OwnServer, folder: Path, turn: Turn) -> None:
    """One kind of fault on a database of its own until the turn is over, and the judgement on it."""
    fault, tally, random = FAULTS[turn.tally.fault], turn.tally, turn.random
    folder.mkdir(mode=0o755)
    async with (
        server.database() as database,
        Proxy.before(database.app_dsn, folder, seed=turn.number) as proxy,
        under_load(proxy.dsn, lambda: database.admin_dsn, folder / "data", tally) as load,
    ):
        await load.probe()
        while not turn.over():
            for _ in range(FAULTS_IN_A_ROW):
                await fault(proxy, random)
                tally.injected += 1
            tally.recovered_in(await load.probe())
