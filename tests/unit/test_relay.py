"""What the relay decides by itself: when to leave Postgres alone, and when never to come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybrid_memory.absent import AbsentPostgres
from hybrid_memory.clock import IdSource
from hybrid_memory.errors import Fenced, HybridMemoryError, Misconfigured, RoleRefused, SchemaMismatch, Unreachable
from hybrid_memory.events import Event, EventLog, PersistFailed
from hybrid_memory.messages import Opening
from hybrid_memory.relay import MISCONFIGURED_PAUSE_SECONDS, Relay
from hybrid_memory.retry import BreakerState
from hybrid_memory.sqlite.accepting import QueueBounds
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.slots import take_slot
from tests.support.clocks import HandClock
from tests.support.relays import relay_between


class Postgres(AbsentPostgres):
    """Is away, unless it is said what happens while hands are shaken."""

    def __init__(self) -> None:
        super().__init__("none in this test")
        self.meanwhile: Callable[[], None] | None = None

    async def handshake(self, opening: Opening) -> None:
        if self.meanwhile is None:
            await super().handshake(opening)
        else:
            self.meanwhile()


@dataclass(frozen=True, slots=True)
class Bench:
    relay: Relay
    durable: Postgres
    heard: list[Event]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    clock = HandClock()
    bounds = QueueBounds(entries=10, payload_bytes=10**6)
    file = await HotFile.open(take_slot(tmp_path), clock=clock, ids=IdSource(clock), bounds=bounds, index_bytes=10**6)
    heard: list[Event] = []
    durable = Postgres()
    relay = relay_between(file, durable, clock=clock, uniform=lambda: 1.0, batch_size=5, events=EventLog(heard.append))
    yield Bench(relay, durable, heard)
    await file.close()


async def _fail(bench: Bench) -> HybridMemoryError:
    with pytest.raises(Unreachable) as caught:
        await bench.relay.run_once()
    return caught.value


def _told(bench: Bench) -> tuple[bool, BreakerState]:
    return bench.relay.away, bench.relay.breaker_state


async def test_it_leaves_a_postgres_that_is_away_alone_for_longer_and_longer(bench: Bench) -> None:
    pauses = [bench.relay.failed(await _fail(bench)) for _ in range(9)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.05)
    assert pauses[-1] == pytest.approx(5.0)
    assert [event.failures for event in bench.heard if isinstance(event, PersistFailed)] == list(range(1, 10))
    assert {event.code for event in bench.heard if isinstance(event, PersistFailed)} == {"unreachable"}


async def test_it_is_away_from_the_first_failure_on(bench: Bench) -> None:
    assert _told(bench) == (False, BreakerState.CLOSED)
    bench.relay.failed(await _fail(bench))
    assert _told(bench) == (True, BreakerState.OPEN)
    await _fail(bench)
    assert _told(bench) == (True, BreakerState.HALF_OPEN)


@pytest.mark.parametrize("error", [Misconfigured("x"), RoleRefused("x"), SchemaMismatch("x")])
async def test_what_a_person_must_mend_is_looked_at_at_a_steady_pace(bench: Bench, error: Misconfigured) -> None:
    assert [bench.relay.failed(error) for _ in range(3)] == [MISCONFIGURED_PAUSE_SECONDS] * 3


async def test_one_that_was_fenced_off_never_tries_again(bench: Bench) -> None:
    bench.relay.failed(Fenced("another opener of this file has taken over"))
    assert await bench.relay.run_once() is None
    assert bench.relay.away


async def test_it_rests_when_it_found_nothing_unless_something_came_meanwhile(bench: Bench) -> None:
    async def rests_after_a_look() -> bool:
        assert await bench.relay.run_once() is None
        return bench.relay.resting

    bench.durable.meanwhile = bench.relay.look_again
    assert [await rests_after_a_look(), await rests_after_a_look()] == [False, True]
    bench.relay.look_again()
    assert not bench.relay.resting
