"""What a part of a campaign reports: a line for each kind of fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CALL_DEADLINE_SECONDS: Final = 5.0
"""A write that waits for nothing but the local disk; the machine may be busy with several parts of a campaign."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """One kind of fault: how often it was injected, and what became of the writes acknowledged around it."""

    fault: str
    injected: int = 0
    acked: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    diverged: int = 0
    slowest_recovery_s: float = 0.0
    """From the end of the fault until everything acknowledged was where it belongs."""

    slowest_call_s: float = 0.0
    """By how much the slowest call of the API went beyond the time that its caller gave it."""

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        wrong = self.lost or self.doubled or self.reordered or self.diverged
        return not wrong and self.slowest_call_s <= CALL_DEADLINE_SECONDS

    def add(self, other: Tally) -> None:
        """Count in what another run says of the same fault."""
        self.injected += other.injected
        self.acked += other.acked
        self.lost += other.lost
        self.doubled += other.doubled
        self.reordered += other.reordered
        self.diverged += other.diverged
        self.slowest_recovery_s = max(self.slowest_recovery_s, other.slowest_recovery_s)
        self.slowest_call_s = max(self.slowest_call_s, other.slowest_call_s)

    def recovered_in(self, seconds: float) -> None:
        """Note a recovery."""
        self.slowest_recovery_s = max(self.slowest_recovery_s, seconds)
