"""Carries to Postgres what dead owners left queued in other files of the data directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from hybrid_memory.errors import Fenced, HybridMemoryError
from hybrid_memory.events import Adopted, PersistFailed, Sink
from hybrid_memory.files import OpenFile, Orphans
from hybrid_memory.graph import Verdict
from hybrid_memory.messages import BatchApplied
from hybrid_memory.retry import Backoff

# A look costs some system calls for each slot, a queue left behind has waited for a death already.
ADOPT_INTERVAL_SECONDS = 10.0
# The first look comes sooner, but when many processes are started again each should have found its slot by then.
FIRST_LOOK_SHARE = 0.1


class Carrier(Protocol):
    """What carries one queue: a relay."""

    async def run_once(self) -> float | None:
        """Carry some of it; 0 when there may be more, else nothing is left that may be carried now."""
        ...


class Adopter:
    """Looks at the other slots now and then; holds one only while its queue moves."""

    name = "adopter"

    def __init__(
        self,
        *,
        orphans: Orphans,
        reach: Callable[[], Awaitable[None]],
        carrier: Callable[[OpenFile, Callable[[BatchApplied], None]], Carrier],
        is_persistent: Callable[[str], bool],
        events: Sink,
        interval_seconds: float,
        uniform: Callable[[], float],
    ) -> None:
        self._orphans = orphans
        self._reach = reach
        self._carrier = carrier
        self._is_persistent = is_persistent
        self._events = events
        self._interval_seconds = interval_seconds
        self._uniform = uniform
        self._backoff = Backoff(first_seconds=interval_seconds * FIRST_LOOK_SHARE, cap_seconds=interval_seconds)
        self._just_opened = True
        self._failures = 0
        self._told: HybridMemoryError | None = None
        # Slots and clients. Each try would raise the opening's number, in the end above that of whoever took over.
        self._fenced: set[tuple[int, str]] = set()

    async def run_once(self) -> float | None:
        """Look at every other slot once. Trouble with one does not keep the others waiting; it is raised at the end."""
        if self._just_opened:
            self._just_opened = False
            return self._pause() * FIRST_LOOK_SHARE
        troubles: list[HybridMemoryError] = []
        for slot in self._orphans.slots():
            if await self._has_work(slot, troubles):
                # Asked before the slot is taken: in an outage it stays free for a process that wants it.
                await self._reach()
                await self._adopt(slot, troubles)
        if troubles:
            raise troubles[0]
        self._failures = 0
        self._told = None
        return self._pause()

    def failed(self, error: HybridMemoryError) -> float:
        """Seconds to the next look; what could not be carried stays queued where it is."""
        self._failures += 1
        pause = self._backoff.pause(self._failures, self._uniform)
        if error is not self._told:
            # A file beyond use raises the same error at every look: told once.
            self._told = error
            self._events.emit(PersistFailed(code=error.code, failures=self._failures, retry_in_seconds=round(pause, 3)))
        return pause

    def _pause(self) -> float:
        """An interval, with jitter so that processes do not look in step."""
        return self._interval_seconds * (0.75 + self._uniform() / 2)

    async def _has_work(self, slot: int, troubles: list[HybridMemoryError]) -> bool:
        try:
            left = await self._orphans.look(slot)
        except HybridMemoryError as trouble:
            troubles.append(trouble)
            return False
        if left is None or (slot, left.client_id) in self._fenced:
            return False
        return any(map(self._is_persistent, left.users))

    async def _adopt(self, slot: int, troubles: list[HybridMemoryError]) -> None:
        try:
            file = await self._orphans.open(slot)
            if file is not None:
                await self._carry(slot, file)
        except HybridMemoryError as trouble:
            troubles.append(trouble)

    async def _carry(self, slot: int, file: OpenFile) -> None:
        operations = 0

        def count(batch: BatchApplied) -> None:
            nonlocal operations
            operations += sum(applied.verdict is not Verdict.DEAD for applied in batch.operations)

        try:
            carrier = self._carrier(file, count)
            # The first failure ends it: the slot is not kept through an outage.
            more = True
            while more:
                more = await carrier.run_once() == 0
                await asyncio.sleep(0)
        except Fenced:
            self._fenced.add((slot, file.opening.client_id))
            raise
        finally:
            await file.close()
            if operations:
                # By the loop: an observer that raises must not take the place of what ended this.
                told = Adopted(slot=slot, operations=operations)
                asyncio.get_running_loop().call_soon(self._events.emit, told)
