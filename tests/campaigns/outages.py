"""Postgres itself made sick again and again while many users write: killed, restarted, frozen, starved, failed over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Final

from hybrid_memory.testing.failover import failing_over
from hybrid_memory.testing.postgres import short_folder
from tests.campaigns.tally import Tally
from tests.plugins.postgres import Database
from tests.support.load import Turn, in_turn, under_load
from tests.support.own_server import OwnServer

Fault = Callable[[OwnServer, Database, Random], Awaitable[None]]

LINKS: Final = ("relay", "feed", "hints")


async def killed(server: OwnServer, _database: Database, random: Random) -> None:
    """The postmaster is killed with -9 and stays away for a moment."""
    await server.kill()
    await asyncio.sleep(random.uniform(0.0, 0.3))
    await server.heal()


async def restarted_fast(server: OwnServer, _database: Database, _random: Random) -> None:
    """Sessions are cut off, all is written."""
    await server.restart()


async def restarted_at_once(server: OwnServer, _database: Database, _random: Random) -> None:
    """Nothing is written; the log tells."""
    await server.restart(immediate=True)


async def frozen(server: OwnServer, _database: Database, random: Random) -> None:
    """Every process stands still for a moment."""
    server.freeze()
    await asyncio.sleep(random.uniform(0.01, 0.5))
    server.thaw()


async def one_killed(server: OwnServer, _database: Database, random: Random) -> None:
    """One backend is killed with -9, so all the others end too."""
    await server.kill_backend(random.choice(LINKS))


async def one_terminated(server: OwnServer, _database: Database, random: Random) -> None:
    """One session is ended by an administrator."""
    await server.terminate(random.choice(LINKS))


async def one_frozen(server: OwnServer, _database: Database, random: Random) -> None:
    """One backend stands still for a moment."""
    await server.freeze_backend(random.choice(LINKS))
    await asyncio.sleep(random.uniform(0.01, 0.5))
    server.thaw()


async def read_only(server: OwnServer, _database: Database, random: Random) -> None:
    """Writes are refused for a moment."""
    await server.set("default_transaction_read_only", "on")
    await asyncio.sleep(random.uniform(0.01, 0.3))
    await server.set("default_transaction_read_only", "off")


async def starved(server: OwnServer, database: Database, random: Random) -> None:
    """The sessions are ended and no new ones taken for a moment."""
    await server.limit_connections(database.name, 0)
    for link in LINKS:
        await server.terminate(link)
    await asyncio.sleep(random.uniform(0.01, 0.3))
    await server.limit_connections(database.name, -1)


FAULTS: Final[dict[str, Fault]] = {
    "postmaster killed": killed,
    "restarted, fast": restarted_fast,
    "restarted, immediate": restarted_at_once,
    "server frozen": frozen,
    "backend killed": one_killed,
    "backend terminated": one_terminated,
    "backend frozen": one_frozen,
    "read-only": read_only,
    "no connections left": starved,
}


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Inject every kind of fault in turn for so many seconds in all; the kinds' order and moments follow the seed."""
    return asyncio.run(campaign(seconds=seconds, seed=seed))


async def campaign(*, seconds: float, seed: int) -> list[Tally]:
    """`run` for who has an event loop."""
    with short_folder() as folder:
        server = await OwnServer.start(folder)
        try:

            async def inject(turn: Turn) -> None:
                await _inject(server, folder / str(turn.number), turn)

            return await in_turn(FAULTS, inject, seconds=seconds, seed=seed)
        finally:
            await server.stop()


async def _inject(server: OwnServer, data_dir: Path, turn: Turn) -> None:
    fault, tally = FAULTS[turn.tally.fault], turn.tally
    async with (
        server.database() as database,
        under_load(database.app_dsn, lambda: database.admin_dsn, data_dir, tally) as load,
    ):
        await load.probe()
        while not turn.over():
            await fault(server, database, turn.random)
            tally.injected += 1
            tally.recovered_in(await load.probe())


def run_failovers(*, seconds: float, seed: int, lose_tail: bool) -> list[Tally]:
    """Fail over again and again. With `lose_tail` the product must find the lost tail and push it again."""
    return asyncio.run(failovers(seconds=seconds, seed=seed, lose_tail=lose_tail))


async def failovers(*, seconds: float, seed: int, lose_tail: bool) -> list[Tally]:
    """`run_failovers` for who has an event loop."""
    with short_folder() as folder:

        async def inject(turn: Turn) -> None:
            async with (
                failing_over() as pair,
                under_load(
                    pair.dsn, lambda: pair.admin_dsn, folder / str(turn.number), turn.tally, rewound=lose_tail
                ) as load,
            ):
                await load.probe()
                while not turn.over():
                    await pair.lag()
                    await asyncio.sleep(turn.random.uniform(0.0, 0.5))
                    await pair.promote(lose_tail=lose_tail)
                    turn.tally.injected += 1
                    turn.tally.recovered_in(await load.probe())
                    await pair.add_standby()

        return await in_turn(
            ["failover with a lost tail" if lose_tail else "failover"], inject, seconds=seconds, seed=seed
        )
