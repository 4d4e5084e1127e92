"""How fast the queue has been carried lately, and how long what waits will take at that pace: pure."""

from __future__ import annotations

from typing import Final

# So many operations later, what was measured before counts half: the first full batch of a backlog outweighs the single
# writes before it, which cost Postgres as much for each as a batch does for many.
HALF_LIFE_OPERATIONS: Final = 256


class Pace:
    """Operations a second, measured while they are carried: pauses with nothing to carry do not slow it down."""

    def __init__(self) -> None:
        self._operations = 0.0
        self._seconds = 0.0

    def carried(self, operations: int, seconds: float) -> None:
        """Note that so many operations took so long."""
        kept = 0.5 ** (operations / HALF_LIFE_OPERATIONS)
        self._operations = self._operations * kept + operations
        self._seconds = self._seconds * kept + seconds

    def seconds_for(self, operations: int) -> float | None:
        """How long so many operations will take; None while nothing was carried yet."""
        if self._seconds <= 0:
            return None
        return operations * self._seconds / self._operations
