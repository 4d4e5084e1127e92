"""Takes one batch to Postgres: in parts where it must be, deciding disputes, burying what Postgres will never take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from hybrid_memory.batching import halves
from hybrid_memory.caution import Blame, Caution
from hybrid_memory.changes import Kind, Operation
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.errors import Contended, DurableTierError, Overloaded, PoisonOperation, Unforeseen
from hybrid_memory.events import Buried, Persisted, PersistFailed, Sink
from hybrid_memory.graph import Verdict
from hybrid_memory.messages import Applied, BatchApplied, Disputed, Opening
from hybrid_memory.ports import DurableTier, Outbox
from hybrid_memory.retry import Backoff

T = TypeVar("T")

# So many callers, each with its next write, keep the event loop busy for longer than it takes to send a batch.
MANY_CALLERS = 8
# Refusals that do not say whether the server, a user's rows or one operation is the cause.
_DOUBTFUL: Final = (Contended, Overloaded, Unforeseen)
# After a deadlock the same work goes through at once; a lock that was waited for in vain is another matter.
_TRIES_AT_ONCE: Final = 3
_LOCK_NOT_HAD: Final = "55P03"
AT_ONCE: Final = Backoff(first_seconds=0.01, cap_seconds=0.05)
# What takes too long alone, while all else gets through, is the operation's own doing, unlike a full disk.
_TOO_SLOW: Final = "57014"


class Carrier:
    """Carries batches for a relay. What it could not carry is still queued; it tells `caution` what happened."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        durable: DurableTier,
        opening: Opening,
        deliveries: Deliveries,
        caution: Caution,
        events: Sink,
        erased_rev: Callable[[str], int],
        on_decided: Callable[[BatchApplied], None],
        monotonic: Callable[[], float],
        uniform: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._durable = durable
        self._opening = opening
        self._deliveries = deliveries
        self._caution = caution
        self._events = events
        self._erased_rev = erased_rev
        self._on_decided = on_decided
        self._monotonic = monotonic
        self._uniform = uniform
        # Operations of this batch that were buried with one they depend on.
        self._buried: set[int] = set()
        # The erasures known when this batch was claimed. One that is obeyed while it is on its way takes its operations
        # out of the queue; sent with that one known they would pass for written after it.
        self._erased: dict[str, int] = {}
        self._freed = False

    async def carry(self, operations: list[Operation]) -> bool:
        """Carry one batch; in it, a user's operations are in order and no entity comes twice.

        True when a user who was set aside is not any more: what was passed over is to be looked at again. Raises the
        `DurableTierError`s that may be everybody's trouble; then some of the batch may have been carried.
        """
        self._buried.clear()
        self._freed = False
        self._erased = {operation.user_id: self._erased_rev(operation.user_id) for operation in operations}
        erasures = [operation for operation in operations if operation.kind is Kind.ERASE]
        for erasure in erasures:
            await self._erase(erasure)
        changes = operations
        if erasures:
            changes = [operation for operation in operations if operation.kind is not Kind.ERASE]
        if changes:
            await self._apply(changes)
        return self._freed

    async def _erase(self, erasure: Operation) -> None:
        try:
            erased_rev = await self._patiently(partial(self._durable.erase, self._opening, erasure))
        except _DOUBTFUL as refusal:
            await self._doubt([erasure], refusal)
            return
        applied = Applied(operation=erasure, verdict=Verdict.APPLIED, rev=erased_rev)
        # What the user stores after it is sent with the erasure known, so that must be written down before.
        await self._decided(BatchApplied(operations=(applied,), users=()))

    async def _apply(self, operations: list[Operation]) -> None:
        apply = partial(self._durable.apply, self._opening, operations, self._erasures(operations))
        try:
            self._decided(await self._patiently(apply))
        except Disputed as disputed:
            await self._settle_dispute(operations, disputed.users)
        except PoisonOperation as poison:
            await self._bisect(operations, poison, self._apply)
        except _DOUBTFUL as refusal:
            await self._doubt(operations, refusal)

    async def _patiently(self, send: Callable[[], Awaitable[T]]) -> T:
        for failures in range(1, _TRIES_AT_ONCE):
            try:
                return await send()
            except Contended as refusal:
                if refusal.sqlstate == _LOCK_NOT_HAD:
                    raise
                await asyncio.sleep(AT_ONCE.pause(failures, self._uniform))
        return await send()

    async def _bisect(
        self, operations: list[Operation], poison: PoisonOperation, send: Callable[[list[Operation]], Awaitable[None]]
    ) -> None:
        """Find the operation that Postgres will never take, and bury it; the others are sent, none past one left."""
        if len(operations) == 1:
            await self._bury(operations[0], poison)
            return
        for part in halves(operations):
            free = [operation for operation in part if self._may_follow(operation)]
            if free:
                await send(free)

    def _may_follow(self, operation: Operation) -> bool:
        # What follows one that stays queued must stay behind it: the user's mark would pass over it.
        return operation.seq not in self._buried and not self._caution.is_aside(operation.user_id)

    async def _doubt(self, operations: list[Operation], refusal: DurableTierError) -> None:
        """Leave a user alone whose trouble is its own. Raises what may be everybody's."""
        judgement = self._caution.failed(operations, _reason(refusal), self._monotonic())
        if judgement.blame is Blame.OPEN:
            raise refusal
        (operation,) = operations
        may_be_cause = isinstance(refusal, Unforeseen) or refusal.sqlstate == _TOO_SLOW
        if judgement.blame is Blame.PROVED and may_be_cause and operation.kind is not Kind.ERASE:
            await self._bury(operation, refusal)
            return
        self._events.emit(
            PersistFailed(
                code=refusal.code,
                failures=judgement.strikes,
                retry_in_seconds=round(judgement.pause_seconds, 3),
            )
        )

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
        erased_rev = self._erased[operations[0].user_id]
        try:
            self._decided(await self._patiently(partial(self._durable.decide, self._opening, operations, erased_rev)))
        except PoisonOperation as poison:
            await self._bisect(operations, poison, self._decide)
        except _DOUBTFUL as refusal:
            await self._doubt(operations, refusal)

    def _erasures(self, operations: Sequence[Operation]) -> dict[str, int]:
        users = {operation.user_id for operation in operations}
        return {user_id: max(0, self._erased[user_id]) for user_id in users}

    def _decided(self, batch: BatchApplied) -> Awaitable[None]:
        settled = self._outbox.settle(batch)
        self._freed |= self._caution.got_through(applied.operation for applied in batch.operations)
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

    async def _bury(self, operation: Operation, cause: DurableTierError) -> None:
        buried = await self._outbox.bury(operation, sqlstate=cause.sqlstate, reason=cause.message)
        self._buried |= {one.seq for one in buried}
        self._freed |= self._caution.free(operation.user_id)
        dead = tuple(Applied(operation=one, verdict=Verdict.DEAD, rev=None) for one in buried)
        for one in buried:
            self._events.emit(Buried(user_id=one.user_id, op_id=one.op_id, sqlstate=cause.sqlstate))
        for applied in dead:
            self._deliveries.resolve(applied)
        self._on_decided(BatchApplied(operations=dead, users=()))


def _reason(refusal: DurableTierError) -> str:
    """What keeps a user waiting, for health."""
    held_by = refusal.held_by if isinstance(refusal, Contended) else ""
    return f"{refusal.code}, {held_by}" if held_by else refusal.code
