"""How long a queue will take is told by how fast it was carried lately."""

from __future__ import annotations

import pytest

from hybrid_memory.pace import Pace


def test_before_anything_was_carried_nothing_is_known() -> None:
    assert Pace().seconds_for(100) is None
    unmeasured = Pace()
    unmeasured.carried(5, 0.0)
    assert unmeasured.seconds_for(100) is None


def test_at_a_steady_pace_so_many_operations_take_so_long() -> None:
    pace = Pace()
    for _ in range(20):
        pace.carried(50, 0.1)
    assert pace.seconds_for(1_000) == pytest.approx(2.0)


def test_the_first_full_batches_of_a_backlog_outweigh_all_single_writes_before_it() -> None:
    pace = Pace()
    for _ in range(1_000):
        pace.carried(1, 0.002)
    assert pace.seconds_for(10_000) == pytest.approx(20.0)
    for _ in range(3):
        pace.carried(512, 0.0512)
    taken = pace.seconds_for(10_000)
    assert taken is not None
    assert 1.0 < taken < 1.5


def test_where_it_slows_down_the_prediction_follows() -> None:
    pace = Pace()
    pace.carried(1_000, 0.1)
    for _ in range(20):
        pace.carried(100, 1.0)
    assert pace.seconds_for(100) == pytest.approx(1.0, rel=0.05)
