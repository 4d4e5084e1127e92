"""When to try again: exponential backoff with full jitter, and a breaker with one probe at a time. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Full jitter (Brooker, "Exponential Backoff And Jitter", 2015): uniform in 0..min(cap, first * 2^n) seconds."""

    first_seconds: float = 0.05
    cap_seconds: float = 5.0

    def ceiling(self, failures: int) -> float:
        """The longest pause after so many failures in a row (from 1), in seconds."""
        # Beyond 2^30 the cap has long been reached; the bound keeps the power finite.
        return min(self.cap_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30))

    def pause(self, failures: int, uniform: Callable[[], float]) -> float:
        """A pause in seconds; `uniform` gives numbers in 0..1."""
        return self.ceiling(failures) * uniform()


class BreakerState(StrEnum):
    """Whether Postgres is tried."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens at the first failure, lets one probe through after each pause, closes at the first success."""

    def __init__(self, backoff: Backoff, uniform: Callable[[], float]) -> None:
        self._backoff = backoff
        self._uniform = uniform
        self._failures = 0
        self._probing = False

    @property
    def state(self) -> BreakerState:
        """Closed while all is well; half-open while a probe is out."""
        if self._failures == 0:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._probing else BreakerState.OPEN

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def trying(self) -> None:
        """A try begins; after failures it is the probe."""
        self._probing = self._failures > 0

    def succeeded(self) -> None:
        """Close."""
        self._failures = 0
        self._probing = False

    def failed(self) -> float:
        """Open, and say for how many seconds to leave Postgres alone."""
        self._failures += 1
        self._probing = False
        return self._backoff.pause(self._failures, self._uniform)
