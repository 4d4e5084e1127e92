"""Many users' writers on one manager while faults are injected, and what is held against Postgres afterwards."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from random import Random

from hybrid_memory import HybridMemoryManager, Receipt, Settings
from tests.campaigns.tally import Tally
from tests.plugins.postgres import connected
from tests.support.kill_worker import KIND, Lane
from tests.support.managers import both_tiers_agree
from tests.support.witness import Verdict, Witness, numbers_given_out

USERS = tuple(f"user-{number}" for number in range(8))
# Most writers wait for Postgres before their next write, so that the queue stays short and a probe soon tells.
WAITS = (0.2, 1.0, 0.0)
PROBE = "probe"
DRAIN = timedelta(seconds=120)
PROBE_SECONDS = 60.0
TURN_SECONDS = 15.0
CONVERGED_SECONDS = 10.0
"""From the end of all writes until every copy is what Postgres has."""
SETTINGS = Settings(poll_interval=timedelta(milliseconds=200), drain_on_close=timedelta(0))


@dataclass(slots=True, kw_only=True)
class Load:
    """The manager, its writers and their witness."""

    manager: HybridMemoryManager
    witness: Witness = field(default_factory=Witness)
    probes: Lane

    async def probe(self) -> float:
        """Seconds until a write made now is in Postgres: what was accepted before it is there too, or set aside."""
        began = time.monotonic()
        mark = f"probe {self.probes.number}"

        async def write(_wait: float) -> Receipt:
            memory = self.probes.memory
            receipt = await memory.store({"mark": mark}, context_type=KIND, wait=0)
            with suppress(TimeoutError):  # the time it took says so, and the judgement whether it is lost
                return await receipt.durable(PROBE_SECONDS)
            return receipt

        await self.probes.attempt("mark", mark, write)
        return time.monotonic() - began


@asynccontextmanager
async def under_load(
    dsn: str, admin_dsn: Callable[[], str], data_dir: Path, tally: Tally, *, rewound: bool = False
) -> AsyncGenerator[Load]:
    """Write for all users as long as the block lasts; then let the queue run out, judge, and add it to the tally.

    Where the server is `rewound`, revisions are taken twice or not at all, so they are not counted.
    """
    witness = Witness()

    def hear(**words: object) -> None:
        if words["user"] == PROBE:
            words.pop("over", None)  # it waits for Postgres as long as that takes
        # As it would come from another process: what was heard is what was said, whatever becomes of it here.
        witness.hear(json.dumps(words).encode())

    async with HybridMemoryManager.open(dsn=dsn, data_dir=data_dir, settings=SETTINGS) as manager:
        memories = [await manager.ensure_user_memories(user) for user in USERS]
        probes = Lane(memory=await manager.ensure_user_memories(PROBE), number=0, say=hear)
        writers = [
            asyncio.create_task(kind(Lane(memory=memory, number=0, say=hear, waits=WAITS)))
            for memory in memories
            for kind in (Lane.keyed, Lane.fresh, Lane.entities)
        ]
        try:
            yield Load(manager=manager, witness=witness, probes=probes)
        finally:
            for writer in writers:
                writer.cancel()
            ended = await asyncio.gather(*writers, return_exceptions=True)
        for error in ended:
            # A writer ends by our doing and no other.
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                raise error
        verdict = await _run_out(manager)
    async with connected(admin_dsn()) as admin:
        judged = await witness.judge(admin, operations=None if rewound else numbers_given_out(data_dir))
    complaints = [*verdict.lost, *verdict.diverged, *judged.lost, *judged.doubled, *judged.reordered]
    if complaints:
        text = "\n".join(f"{tally.fault}: {complaint}" for complaint in complaints[:20])
        sys.stderr.write(f"{text}\n")
    tally.acked += witness.acks
    tally.slowest_call_s = max(tally.slowest_call_s, witness.slowest_call_s)
    tally.lost += len(verdict.lost) + len(judged.lost)
    tally.doubled += len(judged.doubled)
    tally.reordered += len(judged.reordered)
    tally.diverged += len(verdict.diverged)


async def _run_out(manager: HybridMemoryManager) -> Verdict:
    """Let the queue run out and compare the tiers."""
    verdict = Verdict()
    left = await manager.drain(DRAIN)
    verdict.lost += [f"{left} operations are still queued"] if left else []
    verdict.lost += [f"dead: {letter.sqlstate}" for letter in await manager.dead_letters.list()]
    quiet_by = time.monotonic() + CONVERGED_SECONDS
    for user in (*USERS, PROBE):
        memory = await manager.ensure_user_memories(user)
        try:
            await both_tiers_agree(manager, memory, seconds=max(0.2, quiet_by - time.monotonic()))
        except AssertionError:
            hot, durable = await memory.digest(), await manager.durable_digest(user)
            verdict.diverged.append(f"{user}: {hot} here, {durable} there")
    return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One kind of fault's turn; what it does follows from the campaign's seed and the turn's number alone."""

    number: int
    tally: Tally
    random: Random
    until: float

    def over(self) -> bool:
        return time.monotonic() >= self.until


async def in_turn(
    faults: Iterable[str], inject: Callable[[Turn], Awaitable[None]], *, seconds: float, seed: int
) -> list[Tally]:
    """Give each kind of fault a turn, in an order by the seed, again and again until the time is over.

    A turn has a database of its own, so that what is found wrong in the end is known to be that fault's doing.
    """
    tallies = [Tally(fault=fault) for fault in faults]
    end = time.monotonic() + seconds
    share = min(TURN_SECONDS, seconds / len(tallies))
    numbers = count()
    for lap in count():
        if lap and time.monotonic() >= end:
            break
        for tally in Random(f"{seed} lap {lap}").sample(tallies, len(tallies)):
            number = next(numbers)
            random = Random(f"{seed} turn {number}")
            await inject(Turn(number=number, tally=tally, random=random, until=time.monotonic() + share))
    return tallies
