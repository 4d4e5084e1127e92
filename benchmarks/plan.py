"""What a run is asked for: rounds, seed and sizes; shared by all benchmarks of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured. The defaults are those that the limits are stated for."""

    reads: int = 2_000
    small_users: int = 10
    large_users: int = 1_000
    nodes_per_user: int = 1_000
    single_writes: int = 500
    concurrent_writes: int = 9_600
    preload_small: int = 10_000
    preload_large: int = 100_000
    warm_users: int = 40
    drained: int = 10_000
    frozen_calls: int = 8
    hinted_writes: int = 40
    polled_writes: int = 120
    hint_turns: int = 12


TINY = Sizes(
    reads=50,
    small_users=2,
    large_users=4,
    nodes_per_user=50,
    single_writes=10,
    concurrent_writes=128,
    preload_small=300,
    preload_large=900,
    warm_users=5,
    drained=600,
    frozen_calls=1,
    hinted_writes=5,
    polled_writes=5,
    hint_turns=1,
)
"""To see that everything runs; the figures mean nothing."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """One run."""

    rounds: int
    seed: int
    console: Console
    sizes: Sizes = field(default_factory=Sizes)
    postgres_version: str | None = None
    """Known once a benchmark has started a server."""

    def random(self, salt: str) -> Random:
        """Random numbers that are the same for the same seed."""
        return Random(f"{self.seed} {salt}")

    def say(self, text: str) -> None:
        """Tell how far the run has come."""
        self.console.print(f"[dim]{text}[/]", highlight=False)
