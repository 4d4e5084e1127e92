"""Callers waiting to hear what Postgres decided on their operations."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import TypeAlias

from hybrid_memory.errors import Closed
from hybrid_memory.ports import Accepted, Applied

# Time-outs that fall close together are looked at together, at most so much late: a timer for each would cost as much
# as all else that waiting does.
LATE_SECONDS = 0.005
LATE_SHARE = 0.005

_Waiter: TypeAlias = "asyncio.Future[Applied | None]"


class Deliveries:
    """Futures by queue number. Nothing is kept for an operation that nobody waits for."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[_Waiter]] = {}
        self._due: dict[float, set[_Waiter]] = {}
        self._closed = False

    async def wait(self, accepted: Accepted, timeout_seconds: float | None) -> Applied | None:
        """The decision on an operation still queued, or None when the time, or the manager's life, is over first."""
        if self._closed:
            return None
        loop = asyncio.get_running_loop()
        future: _Waiter = loop.create_future()
        self._waiting.setdefault(accepted.seq, []).append(future)
        due = None if timeout_seconds is None else self._due_after(loop, timeout_seconds)
        if due is not None:
            due.add(future)
        try:
            return await future
        finally:
            if due is not None:
                due.discard(future)
            self._forget(accepted.seq, future)

    def _due_after(self, loop: asyncio.AbstractEventLoop, timeout_seconds: float) -> set[_Waiter]:
        grain = max(LATE_SECONDS, LATE_SHARE * timeout_seconds)
        moment = ceil((loop.time() + timeout_seconds) / grain) * grain
        due = self._due.get(moment)
        if due is None:
            due = self._due[moment] = set()
            loop.call_at(moment, self._time_out, moment)
        return due

    def _time_out(self, moment: float) -> None:
        for future in self._due.pop(moment):
            _give_up(future)

    def check_open(self) -> None:
        """Raise `Closed` once the manager is closed: what is undecided by then, the next opening will hear."""
        if self._closed:
            raise Closed("the manager was closed before Postgres decided", fix="open it again: the write is queued")

    def _forget(self, seq: int, future: _Waiter) -> None:
        futures = self._waiting[seq]
        if len(futures) == 1:
            del self._waiting[seq]
        else:
            futures.remove(future)

    def resolve(self, applied: Applied) -> None:
        """Tell whoever waits for this operation."""
        for future in self._waiting.get(applied.operation.seq, ()):
            if not future.done():
                future.set_result(applied)

    def release(self) -> None:
        """Postgres is known to be away: nobody need wait out the time."""
        for futures in self._waiting.values():
            for future in futures:
                _give_up(future)

    def close(self) -> None:
        """Nothing will be decided any more."""
        self._closed = True
        self.release()


def _give_up(future: _Waiter) -> None:
    if not future.done():
        future.set_result(None)
