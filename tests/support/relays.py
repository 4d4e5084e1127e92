"""A relay as a manager wires it, between a hot-tier file and whatever stands for Postgres."""

from __future__ import annotations

from collections.abc import Callable

from hybrid_memory.absent import AbsentPostgres
from hybrid_memory.clock import Clock
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.events import EventLog
from hybrid_memory.relay import Relay
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.staff import make_relay


def relay_between(
    file: HotFile,
    postgres: AbsentPostgres,
    *,
    clock: Clock,
    uniform: Callable[[], float],
    batch_size: int,
    events: EventLog,
) -> Relay:
    return make_relay(
        file=file,
        durable=postgres,
        deliveries=Deliveries(),
        batch_size=batch_size,
        clock=clock,
        uniform=uniform,
        events=events,
        is_persistent=lambda _: True,
        on_decided=lambda _: None,
        on_rest=lambda: None,
    )
