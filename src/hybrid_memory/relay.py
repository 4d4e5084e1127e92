"""The one road to Postgres: claims what is queued and has it carried, many users at a time, as Postgres can take it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cache

from hybrid_memory.batching import cut
from hybrid_memory.carrying import Carrier
from hybrid_memory.caution import Caution
from hybrid_memory.changes import Operation
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.errors import Fenced, HybridMemoryError, Misconfigured, NumbersReused
from hybrid_memory.events import PersistFailed, QueueRenumbered, Recovered, Sink
from hybrid_memory.messages import Opening
from hybrid_memory.pace import Pace
from hybrid_memory.ports import DurableTier, Outbox
from hybrid_memory.retry import Breaker, BreakerState

# A wrong password or a missing table is mended by a person; looking again this often costs nothing.
MISCONFIGURED_PAUSE_SECONDS = 5.0
# Below this a batch's fixed cost outweighs what working in parallel gains (measured at 64 callers).
LEAST_SHARE = 32


class Relay:
    """Carries the queue. First in, first out for each user; nothing leaves the queue before its commit is known."""

    name = "relay"

    def __init__(
        self,
        *,
        outbox: Outbox,
        durable: DurableTier,
        opening: Opening,
        carrier: Carrier,
        caution: Caution,
        deliveries: Deliveries,
        breaker: Breaker,
        events: Sink,
        is_persistent: Callable[[str], bool],
        renumber: Callable[[NumbersReused], Awaitable[QueueRenumbered]],
        on_rest: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._durable = durable
        self._opening = opening
        self._carrier = carrier
        self._caution = caution
        self._deliveries = deliveries
        self._breaker = breaker
        self._events = events
        # Asked once a user: were the answer to change, later operations would overtake those that were passed over.
        self._is_persistent = cache(is_persistent)
        self._renumber = renumber
        self._on_rest = on_rest
        self._monotonic = monotonic
        self._shaken_hands = False
        self._fenced = False
        self._resting = False
        # Something may have been queued since it last looked.
        self._asked = False
        self._after_seq = 0
        # Users with operations at or below _after_seq that still wait.
        self._left_behind: set[str] = set()
        self._last_reached = ""
        self._pace = Pace()
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
    def set_aside(self) -> Mapping[str, str]:
        """Users whose operations are refused for now, tried alone now and then, each with the last refusal's code."""
        return self._caution.codes

    @property
    def resting(self) -> bool:
        """It looked, and nothing is queued that it may carry; what users not persistent yet have queued stays."""
        return self._resting and not self._asked

    def seconds_for(self, operations: int) -> float | None:
        """How long so many queued operations will take, at the pace of those carried last.

        None while that is not known: nothing was carried yet, Postgres is away, or all that waits is to stay.
        """
        if operations == 0:
            return 0.0
        return None if self.away or self.resting else self._pace.seconds_for(operations)

    def look_again(self) -> None:
        """Something may be queued that was not when it last looked."""
        self._asked = True

    async def run_once(self) -> float | None:
        """Carry one batch. Returns 0 when there may be more, None when nothing is queued that may be carried.

        When all that is queued is of users set aside, it returns the seconds until one of them is tried again.
        """
        self._resting = self._asked = False
        if await self._round():
            return 0.0
        due = self._caution.next_due()
        if due is not None and not self._fenced:
            return max(0.0, due - self._monotonic())
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
        batch, more = self._suspected(others_wait=True), True
        if not batch:
            batch, more = self._next_batch()
        if not batch and not more:
            batch = self._suspected(others_wait=False)
        freed = False
        if batch:
            carried = False
            began = self._monotonic()
            try:
                freed = await self._carrier.carry(batch)
                carried = True
                self._pace.carried(len(batch), self._monotonic() - began)
            except NumbersReused as reused:
                self._events.emit(await self._renumber(reused))
                freed = True
            finally:
                if not carried:
                    # Whatever it was: what stays queued must go first, or the user's mark would pass over it.
                    self._start_over()
        self._reachable()
        if freed:
            self._start_over()
        return freed or more

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

    def _suspected(self, *, others_wait: bool) -> list[Operation]:
        """The first operation of a user set aside whose turn it is, to go alone."""
        while (user_id := self._caution.due(self._monotonic(), others_wait=others_wait)) is not None:
            first = self._outbox.claim(after_seq=0, limit=1, user_id=user_id)
            if first:
                return first
            self._caution.free(user_id)
        return []

    def _next_batch(self) -> tuple[list[Operation], bool]:
        """What to carry next, and whether there may be more behind it."""
        limit, page = self._caution.limit, self._caution.most
        found: list[Operation] = []
        full: set[str] = set()
        # One who was set aside since is looked for from the start when that is over.
        revisited = {user_id for user_id in self._left_behind if not self._caution.is_aside(user_id)}
        # Of many operations on one row only one goes at a time: they may not take the places of everybody else.
        half = (limit + 1) // 2
        share = max(1, half // max(1, len(revisited)))
        reached: set[str] = set()
        # In turn: were it always from the first, the last of many would never be reached.
        for user_id in sorted(revisited, key=lambda user_id: (user_id <= self._last_reached, user_id)):
            if len(found) >= half:
                break
            reached.add(user_id)
            self._last_reached = user_id
            theirs = self._outbox.claim(after_seq=0, limit=share, user_id=user_id)
            found += theirs
            if len(theirs) >= share:
                full.add(user_id)
        tail: list[Operation] = []
        exhausted = False
        if len(found) < limit:
            # A page, however little may go at once: of a user set aside there may be a lot to pass over.
            waiting_behind = self._outbox.claim(after_seq=self._after_seq, limit=page)
            tail = self._share(waiting_behind, page)
            exhausted = len(tail) == len(waiting_behind) < page
        passed_over: set[str] = set()
        for operation in tail:
            if len(found) >= limit:
                exhausted = False
                break
            self._after_seq = operation.seq
            if operation.seq in self._ahead or not self._may_go(operation.user_id):
                self._ahead.discard(operation.seq)
                continue
            if operation.user_id in revisited:
                passed_over.add(operation.user_id)
            else:
                found.append(operation)
        batch, waiting = cut(found)
        self._ahead |= {operation.seq for operation in batch if operation.seq > self._after_seq}
        # Users revisited but not reached this time keep their place.
        self._left_behind = waiting | full | passed_over | (revisited - reached)
        return batch, bool(self._left_behind) or not exhausted

    def _may_go(self, user_id: str) -> bool:
        return self._is_persistent(user_id) and not self._caution.is_aside(user_id)

    @staticmethod
    def _share(waiting: list[Operation], page: int) -> list[Operation]:
        """What to carry of what waits: all of a backlog, half of little.

        Callers who wait for their receipts store again when they have them. Carrying all of them at once would have the
        two tiers take turns; in two parts, one is stored here while the other is applied there.
        """
        if len(waiting) >= page:
            return waiting
        return waiting[: max(LEAST_SHARE, (len(waiting) + 1) // 2)]
