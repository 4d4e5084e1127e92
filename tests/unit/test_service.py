"""One supervised task: it runs again and again, backs off when it fails, and its death is seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from hybrid_memory.errors import HybridMemoryError, Unreachable
from hybrid_memory.events import Event, EventLog, ServiceFailed
from hybrid_memory.service import Service

FOREVER = 3600.0


@dataclass(slots=True)
class Rounds:
    """Work that does at each round what the script says, and then rests."""

    script: list[Callable[[], float | None]]
    pause_after_failure: float = 0.0
    done: int = 0
    failures: list[HybridMemoryError] = field(default_factory=list[HybridMemoryError])
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = "rounds"

    async def run_once(self) -> float | None:
        self.done += 1
        self.changed.set()
        return self.script.pop(0)() if self.script else FOREVER

    def failed(self, error: HybridMemoryError) -> float:
        self.failures.append(error)
        return self.pause_after_failure

    async def reach(self, rounds: int) -> None:
        async with asyncio.timeout(5):
            while self.done < rounds:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def _running(work: Rounds, heard: list[Event] | None = None) -> AsyncGenerator[Service]:
    service = Service(work, EventLog(None if heard is None else heard.append))
    service.start()
    try:
        yield service
    finally:
        await service.stop()


def _raiser(error: BaseException) -> Callable[[], float | None]:
    def work() -> float | None:
        raise error

    return work


async def _let_others_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_it_goes_on_at_once_when_there_may_be_more() -> None:
    work = Rounds([lambda: 0.0, lambda: 0.0, lambda: 0.0])
    async with _running(work):
        await work.reach(4)


async def test_it_goes_on_after_the_pause_its_work_asked_for() -> None:
    work = Rounds([lambda: 0.001, lambda: 0.001])
    async with _running(work):
        await work.reach(3)


@pytest.mark.parametrize("pause", [None, FOREVER])
async def test_a_wake_up_ends_its_rest(pause: float | None) -> None:
    work = Rounds([lambda: pause, lambda: pause])
    async with _running(work) as service:
        await work.reach(1)
        await _let_others_run()
        assert work.done == 1
        service.wake()
        await work.reach(2)


async def test_a_wake_up_during_a_round_is_not_lost() -> None:
    services: list[Service] = []

    def woken_meanwhile() -> float | None:
        services[0].wake()
        return None

    work = Rounds([woken_meanwhile])
    async with _running(work) as service:
        services.append(service)
        await work.reach(2)


async def test_a_known_error_is_kept_as_the_last_one_until_a_round_goes_well() -> None:
    error = Unreachable("away")
    work = Rounds([_raiser(error)])
    async with _running(work) as service:
        await work.reach(2)
        await _let_others_run()
        assert work.failures == [error]
        assert service.last_error is None
        assert service.alive


async def test_a_wake_up_does_not_shorten_the_pause_after_a_failure() -> None:
    work = Rounds([_raiser(Unreachable("away"))], pause_after_failure=FOREVER)
    async with _running(work) as service:
        await work.reach(1)
        service.wake()
        await _let_others_run()
        assert (work.done, service.last_error, service.alive) == (1, "unreachable", True)


async def test_an_error_nobody_foresaw_is_reported_by_its_class_alone_and_survived() -> None:
    heard: list[Event] = []
    work = Rounds([_raiser(LookupError("s3cret"))])
    async with _running(work, heard) as service:
        await work.reach(1)
        await _let_others_run()
        assert heard == [ServiceFailed(service="rounds", error="LookupError")]
        assert (service.alive, service.last_error) == (True, "LookupError")
        assert work.failures == []


async def test_it_ends_when_it_is_stopped() -> None:
    work = Rounds([])
    async with _running(work) as service:
        await work.reach(1)
        assert service.alive
    assert not service.alive


async def test_it_may_be_stopped_before_it_was_started() -> None:
    service = Service(Rounds([]), EventLog())
    assert not service.alive
    await service.stop()
    assert service.name == "rounds"


async def test_a_cancelled_round_ends_the_task() -> None:
    work = Rounds([_raiser(asyncio.CancelledError())])
    async with _running(work) as service:
        await work.reach(1)
        await _let_others_run()
        assert not service.alive
