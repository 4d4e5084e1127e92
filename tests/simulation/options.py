"""What a schedule is made of, all of it derived from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

USERS = ("ada", "bo", "cy")
KEYS = ("tea", "rye")
ENTITIES = ("e1",)
FIELDS = ("name", "age")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One schedule's measure of everything."""

    seed: int
    processes: int
    callers: int
    calls: int
    """Calls by all callers of a process, all its lives together."""
    users: tuple[str, ...]
    shuffles: bool
    batch_size: int
    poll_seconds: float
    skews_seconds: tuple[float, ...]
    crashes: int
    stops: int
    storms: int
    """How often something goes wrong with Postgres or the network."""
    lossy: float
    """The chance that a message is lost while a storm of that kind lasts."""
    hints_lost: float
    refused: float
    """The chance that an operation is one that Postgres will not take."""
    cancels: float
    rewinds: int = 0
    """How often a lagging standby takes over."""

    @classmethod
    def of(cls, seed: int, *, long: bool = False, rewinds: bool = False) -> Options:
        """The options of a seed; `long` has several times the calls."""
        chance = random.Random(f"options {seed}")
        processes = chance.choice((1, 2, 2, 2, 3, 4) if long else (1, 1, 1, 2, 2, 2, 2, 3))
        skewed = chance.random() < 0.3
        standby = random.Random(f"standby {seed}")
        lost = standby.randint(1, 2) if rewinds else 0
        return cls(
            seed=seed,
            processes=processes,
            callers=chance.choice((1, 2, 3)),
            calls=chance.randint(15, 60) if long else chance.randint(3, 10),
            users=USERS[: chance.choice((1, 1, 2, 3))],
            shuffles=chance.random() < 0.75,
            batch_size=chance.choice((1, 2, 4, 8, 256)),
            poll_seconds=chance.choice((0.3, 1.0, 3.0)),
            skews_seconds=tuple(chance.uniform(-30.0, 30.0) if skewed else 0.0 for _ in range(processes)),
            crashes=chance.choice((0, 0, 1, 1, 2)) * (3 if long else 1),
            stops=chance.choice((0, 0, 0, 1)),
            storms=max(lost, chance.choice((0, 1, 2, 3)) * (3 if long else 1)),
            lossy=chance.choice((0.1, 0.3, 0.6)),
            hints_lost=chance.choice((0.0, 0.3, 1.0)),
            refused=chance.choice((0.0, 0.0, 0.0, 0.08, 0.15)),
            cancels=chance.choice((0.0, 0.1, 0.3)),
            rewinds=lost,
        )
