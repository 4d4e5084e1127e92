"""Who waits for Postgres' decision hears it, or that time is up, and is not kept any longer."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.deliveries import Deliveries
from hybrid_memory.errors import Closed
from hybrid_memory.graph import Verdict
from hybrid_memory.messages import Accepted, Applied

LONG = 30.0
SHORT = 0.001


def _accepted(seq: int) -> Accepted:
    return Accepted(seq, f"op-{seq}", "ada", f"node-{seq}")


def _operation(seq: int) -> Operation:
    return Operation(seq, f"op-{seq}", "ada", Kind.NODE, f"node-{seq}", 0, 1, 1, "{}", 1)


def _applied(seq: int) -> Applied:
    return Applied(_operation(seq), Verdict.APPLIED, 7)


def _told(deliveries: Deliveries, seq: int, timeout_seconds: float) -> asyncio.Future[Accepted]:
    future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
    deliveries.tell(_operation(seq), future, timeout_seconds)
    return future


async def test_a_decision_reaches_everybody_who_waits_for_it_and_nobody_else() -> None:
    deliveries = Deliveries()
    held, other = _told(deliveries, 1, LONG), _told(deliveries, 2, LONG)

    async def decide() -> None:
        deliveries.resolve(_applied(1))

    heard, _ = await asyncio.gather(deliveries.wait(_accepted(1), None), decide())
    assert (await held).applied == heard == _applied(1)
    assert not other.done()
    deliveries.close()


@pytest.mark.parametrize("seconds", [SHORT, 2 * SHORT])
async def test_who_has_waited_long_enough_is_told_what_was_accepted(seconds: float) -> None:
    deliveries = Deliveries()
    patient = _told(deliveries, 1, LONG)
    assert await _told(deliveries, 1, seconds) == _accepted(1)
    assert await deliveries.wait(_accepted(1), seconds) is None
    assert not patient.done()
    deliveries.resolve(_applied(1))
    assert (await patient).applied == _applied(1)


async def test_many_with_one_time_out_are_let_go_together_and_the_next_ones_later() -> None:
    deliveries = Deliveries()
    first = [_told(deliveries, seq, SHORT) for seq in range(1, 9)]
    assert await asyncio.gather(*first) == [_accepted(seq) for seq in range(1, 9)]
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    assert await _told(deliveries, 9, SHORT) == _accepted(9)
    assert loop.time() - asked_at >= SHORT


@pytest.mark.parametrize("end", ["resolved", "released", "timed out", "cancelled"])
async def test_nothing_is_kept_of_who_no_longer_waits(end: str) -> None:
    deliveries = Deliveries()
    future = _told(deliveries, 1, SHORT if end in {"timed out", "cancelled"} else LONG)
    if end == "resolved":
        deliveries.resolve(_applied(1))
    elif end == "released":
        deliveries.release()
    elif end == "cancelled":
        future.cancel()
        await _told(deliveries, 2, SHORT)
    await asyncio.wait([future])
    kept = weakref.ref(future)
    del future
    gc.collect()
    assert kept() is None


async def test_a_waiter_that_is_cancelled_leaves_the_others_waiting() -> None:
    deliveries = Deliveries()
    patient = _told(deliveries, 1, LONG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SHORT):
            await deliveries.wait(_accepted(1), LONG)
    deliveries.resolve(_applied(1))
    assert (await patient).applied == _applied(1)


async def test_after_the_end_everybody_is_answered_at_once() -> None:
    deliveries = Deliveries()
    before = _told(deliveries, 1, LONG)
    deliveries.check_open()
    deliveries.close()
    assert await before == _accepted(1)
    assert await _told(deliveries, 2, LONG) == _accepted(2)
    assert await deliveries.wait(_accepted(3), None) is None
    with pytest.raises(Closed):
        deliveries.check_open()
