"""Callers waiting to hear what Postgres decided on their operations."""

from __future__ import annotations

import asyncio

from hybrid_memory.errors import Closed
from hybrid_memory.ports import Accepted, Applied


class Deliveries:
    """Futures by queue number. Nothing is kept for an operation that nobody waits for."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[asyncio.Future[Applied | None]]] = {}
        self._closed = False

    async def wait(self, accepted: Accepted, timeout_seconds: float | None) -> Applied | None:
        """The decision on an operation still queued, or None when the time, or the manager's life, is over first."""
        if self._closed:
            return None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Applied | None] = loop.create_future()
        self._waiting.setdefault(accepted.seq, []).append(future)
        # A plain timer: a time-out context costs three times as much, and every write waits here.
        timer = None if timeout_seconds is None else loop.call_later(timeout_seconds, _give_up, future)
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            self._forget(accepted.seq, future)

    def check_open(self) -> None:
        """Raise `Closed` once the manager is closed: what is undecided by then, the next opening will hear."""
        if self._closed:
            raise Closed("the manager was closed before Postgres decided", fix="open it again: the write is queued")

    def _forget(self, seq: int, future: asyncio.Future[Applied | None]) -> None:
        futures = self._waiting.get(seq)
        if futures is not None:
            futures.remove(future)
            if not futures:
                del self._waiting[seq]

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


def _give_up(future: asyncio.Future[Applied | None]) -> None:
    if not future.done():
        future.set_result(None)
