"""Removes what has expired, threads nobody uses, and rows nobody sees."""

from __future__ import annotations

from datetime import timedelta

from hybrid_memory.clock import Clock
from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.ports import Replica, Scratch


class Sweeper:
    """Sweeps in small steps, so that no write waits for it."""

    name = "sweeper"

    def __init__(
        self,
        *,
        scratch: Scratch,
        replica: Replica,
        clock: Clock,
        idle: timedelta,
        receipts_kept: timedelta,
        interval: timedelta,
    ) -> None:
        self._scratch = scratch
        self._replica = replica
        self._clock = clock
        self._idle = idle
        self._receipts_kept = receipts_kept
        self._interval = interval

    async def run_once(self) -> float | None:
        """Sweep until nothing is left to sweep."""
        await self._scratch.sweep(now_us=self._clock.now_us(), idle=self._idle, receipts_kept=self._receipts_kept)
        while await self._replica.sweep_generations():
            pass
        return self._interval.total_seconds()

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - the next round tries again
        """Seconds to the next try."""
        return self._interval.total_seconds()
