"""Callers waiting to hear what Postgres decided on their operations."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import NamedTuple

from hybrid_memory.changes import Operation
from hybrid_memory.errors import Closed
from hybrid_memory.messages import Accepted, Applied

# Time-outs that fall close together are looked at together, at most so much late: a timer for each would cost as much
# as all else that waiting does.
LATE_SECONDS = 0.005
LATE_SHARE = 0.005


class _Waiter(NamedTuple):
    waited: Operation | Accepted
    future: asyncio.Future[Accepted]
    moment: float | None
    """When it is let go, on the event loop's clock; None: never."""


class Deliveries:
    """Futures by operation. Nothing is kept for an operation that nobody waits for."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[_Waiter]] = {}
        # In order of their enlisting, so that callers let go together go on in that order.
        self._due: dict[float, dict[str, None]] = {}
        self._closed = False

    def tell(self, operation: Operation, future: asyncio.Future[Accepted], timeout_seconds: float) -> None:
        """Answer `future` with the decision on an operation still queued.

        When the time, or the manager's life, is over before, the answer is that it was accepted.
        """
        self._enlist(operation, future, timeout_seconds)

    async def wait(self, accepted: Accepted, timeout_seconds: float | None) -> Applied | None:
        """The decision on an operation still queued, or None when the time, or the manager's life, is over first."""
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        waiter = self._enlist(accepted, future, timeout_seconds)
        try:
            return (await future).applied
        finally:
            self._strike(waiter)

    def _enlist(
        self, waited: Operation | Accepted, future: asyncio.Future[Accepted], timeout_seconds: float | None
    ) -> _Waiter:
        moment = None
        if timeout_seconds is not None and not self._closed:
            moment = self._moment_after(timeout_seconds)
            self._due[moment][waited.op_id] = None
        waiter = _Waiter(waited, future, moment)
        if self._closed:
            _give_up(waiter)
        else:
            self._waiting.setdefault(waited.op_id, []).append(waiter)
        return waiter

    def _moment_after(self, timeout_seconds: float) -> float:
        loop = asyncio.get_running_loop()
        grain = max(LATE_SECONDS, LATE_SHARE * timeout_seconds)
        moment = ceil((loop.time() + timeout_seconds) / grain) * grain
        if moment not in self._due:
            self._due[moment] = {}
            loop.call_at(moment, self._time_out, moment)
        return moment

    def _time_out(self, moment: float) -> None:
        for op_id in self._due.pop(moment):
            for waiter in [one for one in self._waiting.get(op_id, ()) if one.moment == moment]:
                _give_up(waiter)
                self._strike(waiter)

    def check_open(self) -> None:
        """Raise `Closed` once the manager is closed: what is undecided by then, the next opening will hear."""
        if self._closed:
            raise Closed("the manager was closed before Postgres decided", fix="open it again: the write is queued")

    def _strike(self, waiter: _Waiter) -> None:
        """Take a waiter off the list, if it still is on it."""
        op_id = waiter.waited.op_id
        left = [one for one in self._waiting.get(op_id, ()) if one.future is not waiter.future]
        if left:
            self._waiting[op_id] = left
        else:
            self._waiting.pop(op_id, None)
        if waiter.moment in self._due and all(one.moment != waiter.moment for one in left):
            self._due[waiter.moment].pop(op_id, None)

    def resolve(self, applied: Applied) -> None:
        """Tell whoever waits for this operation."""
        op_id = applied.operation.op_id
        for _, future, moment in self._waiting.pop(op_id, ()):
            if moment in self._due:
                self._due[moment].pop(op_id, None)
            if not future.done():
                future.set_result(Accepted.of(applied.operation, applied))

    def release(self) -> None:
        """Postgres is known to be away: nobody need wait out the time."""
        waiting, self._waiting = self._waiting, {}
        for op_ids in self._due.values():
            op_ids.clear()
        for waiters in waiting.values():
            for waiter in waiters:
                _give_up(waiter)

    def close(self) -> None:
        """Nothing will be decided any more."""
        self._closed = True
        self.release()


def _give_up(waiter: _Waiter) -> None:
    if not waiter.future.done():
        waited = waiter.waited
        waiter.future.set_result(waited if isinstance(waited, Accepted) else Accepted.of(waited))
