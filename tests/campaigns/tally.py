"""What a part of a campaign reports: a line for each kind of fault."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.reordered or self.diverged)

    def recovered_in(self, seconds: float) -> None:
        """Note a recovery."""
        self.slowest_recovery_s = max(self.slowest_recovery_s, seconds)
