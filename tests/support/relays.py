"""A relay as a manager wires it, between a hot-tier file and whatever stands for Postgres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hybrid_memory.absent import AbsentPostgres
from hybrid_memory.clock import Clock
from hybrid_memory.connect import Durable, PostgresMode, Tiers
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.events import EventLog
from hybrid_memory.relay import Relay
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.staff import make_relay


async def _nothing() -> None:
    pass


def relay_between(
    file: HotFile,
    postgres: AbsentPostgres,
    *,
    clock: Clock,
    uniform: Callable[[], float],
    batch_size: int,
    events: EventLog,
) -> Relay:
    durable = Durable(
        mode=PostgresMode.EXTERNAL, reason="a test", tier=postgres, feed=postgres, keep_up=_nothing, close=_nothing
    )
    return make_relay(
        tiers=Tiers(data_dir=Path(), file=file, durable=durable, temporary=None),
        deliveries=Deliveries(),
        batch_size=batch_size,
        clock=clock,
        uniform=uniform,
        events=events,
        is_persistent=lambda _: True,
        on_decided=lambda _: None,
        on_rest=lambda: None,
    )
