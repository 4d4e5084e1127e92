"""A network cable is really pulled out, between two network stacks: the kernel gives the peer up within seconds."""

from __future__ import annotations

import pytest

from tests.plugins.postgres import Database
from tests.support.cable import DEADLINE, pulled, way_in

# Eight seconds by the kernel's timers, and what a busy machine takes beside.
SECONDS = 20.0


async def test_a_pulled_cable_ends_a_call_that_waits_and_one_just_sent_long_before_their_deadline(
    postgres: Database,
) -> None:
    way = way_in()
    if isinstance(way, str):
        # Named in README.md, row 12: the one claim here that needs rights of the machine.
        pytest.skip(f"NOT RUN: no network of one's own can be made here: {way}")
    ends = await pulled(way, postgres.direct_dsn)
    assert set(ends) == {"waits", "sends"}
    for seconds, end in ends.values():
        assert end == "unreachable"
        assert seconds < SECONDS < DEADLINE.total_seconds()
