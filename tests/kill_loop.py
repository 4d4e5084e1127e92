"""Kills a writing process with -9 again and again, and holds what it had acknowledged against Postgres.

    python -m tests.kill_loop --rounds 200 --seed 1 [--json FILE]

In some rounds Postgres is dead all the while, in some the kill comes while the process is still opening its file.
Exit 0 when nothing was lost, doubled, put out of order or left different between the tiers, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

from hybrid_memory import HybridMemoryManager
from hybrid_memory.testing.postgres import short_folder
from tests.plugins.postgres import Database, connected
from tests.support.kill_worker import Task
from tests.support.own_server import OwnServer
from tests.support.witness import Verdict, Witness, numbers_given_out

USERS = ("ada", "bo", "cy")
REPOSITORY = Path(__file__).parents[1]
# A worker writes some hundred operations a second while it lives; a drain of all of them is a matter of seconds.
DRAIN = timedelta(seconds=120)


@dataclass(slots=True, kw_only=True)
class Campaign:
    """One data directory, one database, many processes one after the other."""

    server: OwnServer
    database: Database
    data_dir: Path
    random: random.Random
    witness: Witness = field(default_factory=Witness)
    kills: int = 0
    kills_while_opening: int = 0
    rounds_without_postgres: int = 0
    nursery: asyncio.subprocess.Process

    async def round(self, generation: int) -> None:
        """One process: begun, left to write for a moment, killed."""
        without_postgres = self.random.random() < 0.35
        while_opening = generation > 0 and self.random.random() < 0.3
        if without_postgres:
            self.rounds_without_postgres += 1
            await self.server.kill()
        self._tell(generation)
        begun = await self._hear_until("opening")
        try:
            if not while_opening:
                await self._hear_until("ok")
            seconds = self.random.uniform(0, 0.05) if while_opening else self.random.uniform(0.01, 0.2)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._hear_until("ended")
                    raise AssertionError("the worker ended by itself")
        finally:
            os.kill(int(str(begun["pid"])), signal.SIGKILL)
        self.kills += 1
        self.kills_while_opening += while_opening
        await self._hear_until("ended")  # what it had said before it died is still in the pipe
        await self.server.heal()

    def _tell(self, generation: int) -> None:
        assert self.nursery.stdin is not None
        task = Task(dsn=self.database.app_dsn, data_dir=str(self.data_dir), users=USERS, generation=generation)
        self.nursery.stdin.write(f"{task.text()}\n".encode())

    async def _hear_until(self, wanted: str) -> dict[str, object]:
        """Take in what the process says, up to the word wanted; gives all of the line it stands in."""
        assert self.nursery.stdout is not None
        while line := await self.nursery.stdout.readline():
            if self.witness.hear(line) == wanted:
                return cast("dict[str, object]", json.loads(line))
        raise AssertionError("there is nobody left to begin another")

    async def settle(self) -> Verdict:
        """Open the file once more, let everything run out, and judge."""
        diverged: list[str] = []
        async with HybridMemoryManager.open(dsn=self.database.app_dsn, data_dir=self.data_dir) as manager:
            left = await manager.drain(DRAIN)
            for user_id in USERS:
                memory = await manager.ensure_user_memories(user_id)
                hot, durable = await memory.digest(), await manager.durable_digest(user_id)
                if hot != durable:
                    diverged.append(f"{user_id}: {hot} here, {durable} there")
            dead = await manager.dead_letters.list()
        async with connected(self.database.admin_dsn) as admin:
            verdict = await self.witness.judge(admin, operations=numbers_given_out(self.data_dir))
        verdict.diverged += diverged
        verdict.lost += [f"{left} operations are still queued"] if left else []
        verdict.lost += [f"dead: {letter.sqlstate} {letter.operation.kind}" for letter in dead]
        return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a campaign came to."""

    campaign: Campaign
    verdict: Verdict
    seconds: float

    def figures(self) -> dict[str, object]:
        witness, verdict = self.campaign.witness, self.verdict
        return {
            "kills": self.campaign.kills,
            "kills_while_opening": self.campaign.kills_while_opening,
            "rounds_without_postgres": self.campaign.rounds_without_postgres,
            "tried": witness.tries,
            "acknowledged": witness.acks,
            "lost": len(verdict.lost),
            "doubled": len(verdict.doubled),
            "reordered": len(verdict.reordered),
            "diverged": len(verdict.diverged),
            "seconds": round(self.seconds, 1),
            "pass": verdict.clean,
        }

    def complaints(self) -> list[str]:
        verdict = self.verdict
        named = (("lost", verdict.lost), ("doubled", verdict.doubled), ("reordered", verdict.reordered))
        return [f"{name}: {one}" for name, found in (*named, ("diverged", verdict.diverged)) for one in found]


@asynccontextmanager
async def _nursery() -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process with its modules loaded, of which the workers are forks."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.kill_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env=os.environ,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with whichever worker is not dead yet
        await process.wait()


async def campaign(*, rounds: int, seed: int, server: OwnServer, folder: Path) -> Outcome:
    """Kill a writing process so many times, then judge."""
    began = time.monotonic()
    async with server.database() as database, _nursery() as nursery:
        running = Campaign(
            server=server, database=database, data_dir=folder / "data", random=random.Random(seed), nursery=nursery
        )
        for generation in range(rounds):
            await running.round(generation)
        verdict = await running.settle()
    return Outcome(campaign=running, verdict=verdict, seconds=time.monotonic() - began)


async def _run(rounds: int, seed: int) -> Outcome:
    with short_folder() as folder:
        server = await OwnServer.start(folder)
        try:
            return await campaign(rounds=rounds, seed=seed, server=server, folder=folder)
        finally:
            await server.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.kill_loop", description=__doc__)
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", type=Path, default=None)
    asked = options.parse_args(arguments)
    outcome = asyncio.run(_run(asked.rounds, asked.seed))
    figures = {"rounds": asked.rounds, "seed": asked.seed, **outcome.figures()}
    sys.stdout.write("".join(f"{name:<24} {value}\n" for name, value in figures.items()))
    sys.stdout.write("".join(f"{complaint}\n" for complaint in outcome.complaints()[:50]))
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures), encoding="utf-8")
    return 0 if outcome.verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
