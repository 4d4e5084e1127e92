"""The server around the model: transactions that take time and locks, and the weather that spoils them."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from hybrid_memory.changes import Operation
from hybrid_memory.errors import (
    Contended,
    DurableTierError,
    Misconfigured,
    OutcomeUnknown,
    Overloaded,
    PoisonOperation,
    ReadOnly,
    Unforeseen,
    Unreachable,
)
from hybrid_memory.messages import Identity
from tests.simulation.loop import WORLD, SimulatedLoop, context_of
from tests.simulation.postgres import Postgres, written_by

T = TypeVar("T")

LOCK_TIMEOUT: Final = 0.4
STATEMENT: Final = 0.008
COMMIT: Final = 0.01
UNLIMITED: Final = 10_000


@dataclass(slots=True)
class Weather:
    """What is wrong just now. `poisonous` and `failing` are values that lie in operations and do not heal."""

    down: bool = False
    cut_off: set[str] = field(default_factory=set[str])
    read_only: bool = False
    misconfigured: bool = False
    full: bool = False
    locked: set[str] = field(default_factory=set[str])
    most_at_once: int = UNLIMITED
    lossy: float = 0.0
    deadlocks: float = 0.0
    slow: float = 1.0
    poisonous: set[str] = field(default_factory=set[str])
    failing: set[str] = field(default_factory=set[str])

    def heal(self) -> None:
        """Everything but what lies in operations themselves."""
        self.down = self.read_only = self.misconfigured = self.full = False
        self.cut_off.clear()
        self.locked.clear()
        self.most_at_once, self.lossy, self.deadlocks, self.slow = UNLIMITED, 0.0, 0.0, 1.0


class Server:
    """Runs transactions on the model, in its own time, whatever becomes of who asked."""

    def __init__(self, loop: SimulatedLoop, chance: random.Random, postgres: Postgres) -> None:
        self.loop = loop
        self.chance = chance
        self.postgres = postgres
        self.weather = Weather()
        self.context = context_of(WORLD)
        self.boots = 0
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.listeners: dict[object, tuple[str, Callable[[], None], asyncio.Future[None]]] = {}

    def delay(self, most: float) -> float:
        """How long something takes in this weather."""
        return self.loop.delay(most * self.weather.slow)

    def restart(self) -> None:
        """Every connection is lost, and what was not committed."""
        self.boots += 1
        self.drop_listeners(None)

    def drop_listeners(self, process: str | None) -> None:
        """Cut the listening connections of one process, or of all."""
        for name, _, lost in list(self.listeners.values()):
            if process in {None, name} and not lost.done():
                lost.set_result(None)

    def identity(self) -> Identity:
        """What the server says of itself. A standby has no lineage of its own."""
        lineage = None if self.weather.read_only else f"lineage {self.postgres.timeline}"
        return Identity(installation="the model", lineage=lineage)

    def reaches(self, process: str) -> bool:
        """Whether that process has a way here."""
        return not self.weather.down and process not in self.weather.cut_off

    async def transact(self, users: Collection[str], operations: Sequence[Operation], change: Callable[[], T]) -> T:
        """Run one transaction on those users' heads. Raises what Postgres would, and then nothing was done."""
        boots = self.boots
        held: list[asyncio.Lock] = []
        try:
            for user_id in sorted(users):
                held.append(await self._lock(user_id))  # noqa: PERF401 - those had are let go when one is not
            await self.loop.pause(self.delay(STATEMENT))
            self._refuse(operations)
            await self.loop.pause(self.delay(COMMIT))
            if self.boots != boots:
                raise Unreachable("the server went away")
            before = len(self.postgres.ledger)
            result = change()
            for entry in self.postgres.ledger[before:]:
                what = (entry.user_id, entry.rev, entry.verdict, entry.value, entry.operation)
                self.loop.trace("server", " ".join(map(str, what)))
            return result
        finally:
            for lock in reversed(held):
                lock.release()

    async def _lock(self, user_id: str) -> asyncio.Lock:
        lock = self._locks[user_id]
        try:
            async with asyncio.timeout(LOCK_TIMEOUT):
                await lock.acquire()
        except TimeoutError:
            raise Contended("a lock was not had", sqlstate="55P03") from None
        return lock

    def _refuse(self, operations: Sequence[Operation]) -> None:
        weather = self.weather
        if weather.read_only:
            raise ReadOnly("a standby", sqlstate="25006")
        if weather.misconfigured:
            raise Misconfigured("a table is missing", sqlstate="42P01")
        values: set[str | None] = set()
        if weather.poisonous or weather.failing:
            values = {written_by(one) for one in operations}
            if values & weather.poisonous:
                raise PoisonOperation("poison", sqlstate="22P02")
        if {one.user_id for one in operations} & weather.locked:
            raise Contended("somebody holds a lock", sqlstate="55P03")
        if weather.full and operations:
            raise Overloaded("no room", sqlstate="53100")
        if len(operations) > weather.most_at_once:
            raise Overloaded("too slow", sqlstate="57014")
        if values & weather.failing:
            raise Unforeseen("nobody knows", sqlstate="XX000")
        if self.chance.random() < weather.deadlocks:
            raise Contended("deadlock", sqlstate="40P01")

    def hint(self, sender: str, lost: float) -> None:
        """Pass a hint on to everybody else: late, twice or not at all."""
        for name, on_hint, _ in list(self.listeners.values()):
            if name == sender or not self.reaches(name):
                continue
            for _ in range(self.chance.choice((1, 1, 1, 2))):
                if self.chance.random() >= lost:
                    self.loop.call_later(self.delay(0.05), on_hint)


def lost_connection(*, writes: bool) -> DurableTierError:
    """What a client makes of a connection that broke."""
    return OutcomeUnknown("no answer came") if writes else Unreachable("the connection was lost")
