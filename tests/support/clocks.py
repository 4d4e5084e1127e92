"""Time that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hybrid_memory.clock import MICROSECOND, SystemClock, to_us

NOON = datetime(2026, 5, 17, 12, tzinfo=UTC)


class HandClock:
    """A clock moved by hand; both its hands stand until then."""

    def __init__(self, start: datetime = NOON) -> None:
        self._now_us = to_us(start)
        self._monotonic = 1000.0

    def now_us(self) -> int:
        return self._now_us

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Time passes."""
        self._now_us += by // MICROSECOND
        self._monotonic += by.total_seconds()

    def jump(self, to_now_us: int) -> None:
        """The wall clock is set, forwards or backwards; the other hand does not mind."""
        self._now_us = to_now_us


class SetClock:
    """The machine's clock, whose wall clock somebody sets, or that stands still; the other hand does not mind."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._offset_us = 0
        self._frozen_us: int | None = None

    def now_us(self) -> int:
        return self._clock.now_us() + self._offset_us if self._frozen_us is None else self._frozen_us

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def set(self, by: timedelta) -> None:
        self._offset_us += by // MICROSECOND

    def freeze(self) -> None:
        self._frozen_us = self.now_us()
