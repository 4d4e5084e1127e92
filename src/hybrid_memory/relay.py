"""The one road to Postgres: claims what is queued, applies it many users at a time, settles what was decided."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache

from hybrid_memory.batching import cut, halves
from hybrid_memory.changes import Kind, Operation
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.errors import Fenced, HybridMemoryError, Misconfigured, PoisonOperation
from hybrid_memory.events import Buried, Persisted, PersistFailed, Recovered, Sink
from hybrid_memory.graph import Verdict
from hybrid_memory.messages import Applied, BatchApplied, Disputed, Opening
from hybrid_memory.ports import DurableTier, Outbox
from hybrid_memory.retry import Breaker, BreakerState

# A wrong password or a missing table is mended by a person; looking again this often costs nothing.
MISCONFIGURED_PAUSE_SECONDS = 5.0
# Below this a batch's fixed cost outweighs what working in parallel gains (measured at 64 callers).
LEAST_SHARE = 32
# So many callers, each with its next write, keep the event loop busy for longer than it takes to send a batch.
MANY_CALLERS = 8


class Relay:
    """Carries the queue. First in, first out for each user; nothing leaves the queue before its commit is known."""

    name = "relay"

    def __init__(
        self,
        *,
        outbox: Outbox,
        durable: DurableTier,
        opening: Opening,
        deliveries: Deliveries,
        breaker: Breaker,
        events: Sink,
        erased_rev: Callable[[str], int],
        is_persistent: Callable[[str], bool],
        on_decided: Callable[[BatchApplied], None],
        on_rest: Callable[[], None],
        batch_size: int,
    ) -> None:
        self._outbox = outbox
        self._durable = durable
        self._erased_rev = erased_rev
        self._opening = opening
        self._deliveries = deliveries
        self._breaker = breaker
        self._events = events
        # Asked once a user: were the answer to change, later operations would overtake those that were passed over.
        self._is_persistent = cache(is_persistent)
        self._on_decided = on_decided
        self._on_rest = on_rest
        self._batch_size = batch_size
        self._shaken_hands = False
        self._fenced = False
        self._resting = False
        # Something may have been queued since it last looked.
        self._asked = False
        self._after_seq = 0
        # Users with operations at or below _after_seq that still wait.
        self._left_behind: set[str] = set()
        # What was carried of such users from beyond _after_seq, not to be carried again when the tail gets there.
        self._ahead: set[int] = set()

    @property
    def away(self) -> bool:
        """Postgres is known not to take anything now."""
        return self._breaker.state is not BreakerState.CLOSED or self._fenced

    @property
    def fenced(self) -> bool:
        """A later opening of the file, or of a copy of it, has taken over."""
        return self._fenced

    @property
    def breaker_state(self) -> BreakerState:
        """Whether Postgres is tried."""
        return self._breaker.state

    @property
    def resting(self) -> bool:
        """It looked, and nothing is queued that it may carry; what users not persistent yet have queued stays."""
        return self._resting and not self._asked

    def look_again(self) -> None:
        """Something may be queued that was not when it last looked."""
        self._asked = True

    async def run_once(self) -> float | None:
        """Carry one batch. Returns 0 when there may be more, None when nothing is queued that may be carried."""
        self._resting = self._asked = False
        if await self._round():
            return 0.0
        self._resting = True
        self._on_rest()
        return None

    async def _round(self) -> bool:
        """Whether there may be more than was carried, of what was there to be looked at."""
        if self._fenced:
            return False
        self._breaker.trying()
        if not self._shaken_hands:
            await self._durable.handshake(self._opening)
            self._shaken_hands = True
            self._start_over()
        batch, more = self._next_batch()
        if batch:
            carried = False
            try:
                await self._carry(batch)
                carried = True
            finally:
                if not carried:
                    # Whatever it was: what stays queued must go first, or the user's mark would pass over it.
                    self._start_over()
        self._reachable()
        return more

    def failed(self, error: HybridMemoryError) -> float:
        """Seconds to leave Postgres alone after an error; everything stays queued."""
        self._shaken_hands = False
        self._start_over()
        pause = self._breaker.failed()
        if isinstance(error, Fenced):
            self._fenced = True
        elif isinstance(error, Misconfigured):
            pause = MISCONFIGURED_PAUSE_SECONDS
        self._events.emit(
            PersistFailed(code=error.code, failures=self._breaker.failures, retry_in_seconds=round(pause, 3))
        )
        self._deliveries.release()
        return pause

    def _reachable(self) -> None:
        failures = self._breaker.failures
        self._breaker.succeeded()
        if failures:
            self._events.emit(Recovered(failures=failures))

    def _start_over(self) -> None:
        self._after_seq = 0
        self._left_behind.clear()
        self._ahead.clear()

    def _next_batch(self) -> tuple[list[Operation], bool]:
        """What to carry next, and whether there may be more behind it."""
        found: list[Operation] = []
        full: set[str] = set()
        for user_id in sorted(self._left_behind):
            theirs = self._outbox.claim(after_seq=0, limit=self._batch_size, user_id=user_id)
            found += theirs
            if len(theirs) >= self._batch_size:
                full.add(user_id)
            if len(found) >= self._batch_size:
                break
        revisited, self._left_behind = self._left_behind, set()
        tail: list[Operation] = []
        exhausted = False
        if len(found) < self._batch_size:
            waiting_behind = self._outbox.claim(after_seq=self._after_seq, limit=self._batch_size)
            tail = self._share(waiting_behind)
            exhausted = len(tail) == len(waiting_behind) < self._batch_size
        passed_over: set[str] = set()
        for operation in tail:
            self._after_seq = operation.seq
            if operation.seq in self._ahead or not self._is_persistent(operation.user_id):
                self._ahead.discard(operation.seq)
                continue
            if operation.user_id in revisited:
                passed_over.add(operation.user_id)
            else:
                found.append(operation)
        batch, waiting = cut(found)
        self._ahead |= {operation.seq for operation in batch if operation.seq > self._after_seq}
        served = {operation.user_id for operation in found}
        # Users revisited but not reached this time keep their place.
        self._left_behind = (
            waiting | full | passed_over | (revisited - served if len(found) >= self._batch_size else set())
        )
        return batch, bool(self._left_behind) or not exhausted

    def _share(self, waiting: list[Operation]) -> list[Operation]:
        """What to carry of what waits: all of a backlog, half of little.

        Callers who wait for their receipts store again when they have them. Carrying all of them at once would have the
        two tiers take turns; in two parts, one is stored here while the other is applied there.
        """
        if len(waiting) >= self._batch_size:
            return waiting
        return waiting[: max(LEAST_SHARE, (len(waiting) + 1) // 2)]

    async def _carry(self, operations: list[Operation]) -> None:
        erasures = [operation for operation in operations if operation.kind is Kind.ERASE]
        for erasure in erasures:
            await self._erase(erasure)
        changes = operations
        if erasures:
            changes = [operation for operation in operations if operation.kind is not Kind.ERASE]
        if changes:
            await self._apply(changes)

    async def _erase(self, erasure: Operation) -> None:
        erased_rev = await self._durable.erase(self._opening, erasure)
        applied = Applied(operation=erasure, verdict=Verdict.APPLIED, rev=erased_rev)
        # What the user stores after it is sent with the erasure known, so that must be written down before.
        await self._decided(BatchApplied(operations=(applied,), users=()))

    async def _apply(self, operations: list[Operation]) -> None:
        try:
            self._decided(await self._durable.apply(self._opening, operations, self._erasures(operations)))
        except Disputed as disputed:
            await self._settle_dispute(operations, disputed.users)
        except PoisonOperation as poison:
            if len(operations) == 1:
                await self._bury(operations[0], poison)
                return
            for part in halves(operations):
                await self._apply(part)

    async def _settle_dispute(self, operations: list[Operation], disputed: frozenset[str]) -> None:
        users = disputed or {operation.user_id for operation in operations}
        calm = [operation for operation in operations if operation.user_id not in users]
        for user_id in sorted(users):
            await self._decide([operation for operation in operations if operation.user_id == user_id])
        if calm:
            await self._apply(calm)

    async def _decide(self, operations: list[Operation]) -> None:
        if not operations:
            return
        erased_rev = self._erased_rev(operations[0].user_id)
        try:
            self._decided(await self._durable.decide(self._opening, operations, erased_rev))
        except PoisonOperation as poison:
            if len(operations) == 1:
                await self._bury(operations[0], poison)
                return
            for part in halves(operations):
                await self._decide(part)

    def _erasures(self, operations: Sequence[Operation]) -> dict[str, int]:
        users = {operation.user_id for operation in operations}
        return {user_id: max(0, self._erased_rev(user_id)) for user_id in users}

    def _decided(self, batch: BatchApplied) -> Awaitable[None]:
        settled = self._outbox.settle(batch)
        if len(batch.operations) < MANY_CALLERS:
            self._deliver(batch)
        else:
            # They run when the next batch is on its way: until all had their turn Postgres would have nothing to do.
            asyncio.get_running_loop().call_soon(self._deliver, batch)
        self._on_decided(batch)
        # Last, for an observer may raise.
        if self._events.attentive:
            for applied in batch.operations:
                self._tell(applied)
        return settled

    def _deliver(self, batch: BatchApplied) -> None:
        for applied in batch.operations:
            self._deliveries.resolve(applied)

    def _tell(self, applied: Applied) -> None:
        operation = applied.operation
        self._events.emit(
            Persisted(
                user_id=operation.user_id,
                node_id=operation.entity_id,
                op_id=operation.op_id,
                rev=applied.rev,
                verdict=applied.verdict,
            )
        )

    async def _bury(self, operation: Operation, poison: PoisonOperation) -> None:
        await self._outbox.bury(operation, sqlstate=poison.sqlstate, reason=poison.message)
        self._events.emit(Buried(user_id=operation.user_id, op_id=operation.op_id, sqlstate=poison.sqlstate))
        dead = Applied(operation=operation, verdict=Verdict.DEAD, rev=None)
        self._deliveries.resolve(dead)
        self._on_decided(BatchApplied(operations=(dead,), users=()))
