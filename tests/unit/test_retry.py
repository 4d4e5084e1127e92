"""When Postgres is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory.retry import Backoff, Breaker, BreakerState


@pytest.mark.parametrize(
    ("failures", "ceiling"), [(1, 0.05), (2, 0.1), (3, 0.2), (7, 3.2), (8, 5.0), (50, 5.0), (10**9, 5.0)]
)
def test_the_longest_pause_doubles_up_to_the_cap(failures: int, ceiling: float) -> None:
    assert Backoff().ceiling(failures) == pytest.approx(ceiling)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_pause_lies_between_nothing_and_its_ceiling(failures: int, chance: float) -> None:
    backoff = Backoff(first_seconds=0.01, cap_seconds=2.0)
    assert 0.0 <= backoff.pause(failures, lambda: chance) <= backoff.ceiling(failures) <= 2.0


def _told(breaker: Breaker) -> tuple[BreakerState, int]:
    return breaker.state, breaker.failures


def test_a_breaker_opens_at_the_first_failure_and_closes_at_the_first_success() -> None:
    breaker = Breaker(Backoff(), lambda: 1.0)
    assert _told(breaker) == (BreakerState.CLOSED, 0)
    breaker.trying()
    assert _told(breaker) == (BreakerState.CLOSED, 0)
    assert breaker.failed() == pytest.approx(0.05)
    assert _told(breaker) == (BreakerState.OPEN, 1)
    breaker.trying()
    assert _told(breaker) == (BreakerState.HALF_OPEN, 1)
    assert breaker.failed() == pytest.approx(0.1)
    assert _told(breaker) == (BreakerState.OPEN, 2)
    breaker.trying()
    breaker.succeeded()
    assert _told(breaker) == (BreakerState.CLOSED, 0)


def test_after_a_success_the_pauses_begin_anew() -> None:
    breaker = Breaker(Backoff(), lambda: 1.0)
    for _ in range(20):
        breaker.failed()
    breaker.succeeded()
    assert breaker.failed() == pytest.approx(0.05)


@given(st.lists(st.sampled_from(["trying", "failed", "succeeded"])))
def test_the_breaker_is_closed_exactly_when_nothing_failed_since_the_last_success(steps: list[str]) -> None:
    breaker = Breaker(Backoff(), lambda: 0.5)
    failures = 0
    for step in steps:
        getattr(breaker, step)()
        failures = {"trying": failures, "failed": failures + 1, "succeeded": 0}[step]
        assert breaker.failures == failures
        assert (breaker.state is BreakerState.CLOSED) == (failures == 0)
        assert breaker.state is not BreakerState.HALF_OPEN or step == "trying"
