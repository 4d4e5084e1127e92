"""Stamps never go back, ids are well formed and derived ids never collide."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory.clock import (
    MAX_SKEW,
    MICROSECOND,
    IdSource,
    StampClock,
    SteadyClock,
    SystemClock,
    check_skew,
    entity_node_id,
    from_us,
    keyed_node_id,
    relationship_id,
    to_us,
)
from hybrid_memory.errors import InvalidInput
from tests.support.clocks import NOON, HandClock

# A stamp has 51 bits for microseconds, which last until the year 2041.
_MOMENTS = st.integers(min_value=0, max_value=to_us(datetime(2040, 12, 31, tzinfo=UTC)))


@given(
    st.datetimes(
        datetime(1, 1, 3),  # noqa: DTZ001 - bounds are given without a zone
        datetime(9999, 12, 28),  # noqa: DTZ001 - as above
        timezones=st.just(UTC) | st.just(timezone(timedelta(hours=-11, minutes=-30))),
    )
)
def test_a_moment_survives_the_way_to_microseconds_and_back(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment
    assert from_us(to_us(moment)).tzinfo is UTC


@given(st.integers(min_value=-(2**55), max_value=2**57))
def test_microseconds_survive_the_way_to_a_moment_and_back(moment_us: int) -> None:
    assert to_us(from_us(moment_us)) == moment_us


@given(st.integers(min_value=2**52 - 10**6, max_value=2**52 + 10**6))
def test_no_microsecond_is_lost_where_doubles_become_coarse(moment_us: int) -> None:
    assert to_us(from_us(moment_us)) == moment_us


def test_the_systems_clock_is_the_systems() -> None:
    clock = SystemClock()
    before = time.time_ns() // 1000
    assert before <= clock.now_us() <= time.time_ns() // 1000
    assert clock.monotonic() <= time.monotonic()


@given(st.lists(_MOMENTS, min_size=1, max_size=30))
def test_stamps_grow_whatever_the_wall_clock_does(settings_of_the_clock: list[int]) -> None:
    clock = HandClock()
    stamps = StampClock(clock)
    made: list[int] = []
    for moment_us in settings_of_the_clock:
        clock.jump(moment_us)
        made += [stamps.next(), stamps.next()]
    assert made == sorted(set(made))
    assert all(stamp < 2**63 for stamp in made)
    assert stamps.last == made[-1]


@given(st.lists(st.tuples(st.booleans(), _MOMENTS), min_size=1, max_size=30))
def test_a_stamp_is_later_than_every_stamp_made_or_taken_in_before(steps: list[tuple[bool, int]]) -> None:
    clock = HandClock()
    stamps = StampClock(clock)
    for is_seen, moment_us in steps:
        before = stamps.last
        if is_seen:
            stamps.observe(moment_us << 8)
        else:
            clock.jump(moment_us)
            assert stamps.next() > before
        assert stamps.last >= before


def test_a_stamp_from_a_clock_a_little_ahead_is_overtaken() -> None:
    clock = HandClock()
    stamps = StampClock(clock)
    ahead = (clock.now_us() + MAX_SKEW // MICROSECOND) << 8
    stamps.observe(ahead)
    assert stamps.next() == ahead + 1


def test_a_stamp_from_a_clock_gone_wild_does_not_drag_this_one_along() -> None:
    clock = HandClock()
    stamps = StampClock(clock)
    stamps.observe((clock.now_us() + MAX_SKEW // MICROSECOND + 1) << 8)
    assert stamps.next() == clock.now_us() << 8


def test_a_clock_goes_on_from_the_last_stamp_it_is_given() -> None:
    clock = HandClock()
    later = (clock.now_us() << 8) + 10**9
    assert StampClock(clock, last=later).next() == later + 1


@given(_MOMENTS, st.integers(min_value=0, max_value=2**76 - 1))
def test_a_new_id_is_a_uuid_of_version_7_made_of_time_and_chance(moment_us: int, bits: int) -> None:
    clock = HandClock()
    clock.jump(moment_us)
    asked: list[int] = []

    def chance(size: int) -> int:
        asked.append(size)
        return bits

    text = IdSource(clock, chance).new()
    made = uuid.UUID(text)
    assert str(made) == text
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == moment_us // 1000
    # The two bits between the random parts are the variant's.
    assert made.int >> 64 & 0xFFF == bits >> 64
    assert made.int & (2**62 - 1) == bits & (2**62 - 1)
    assert asked == [76]


@given(st.lists(_MOMENTS.map(lambda us: us // 1000), min_size=2, max_size=20, unique=True))
def test_ids_sort_by_the_millisecond_they_were_made_in(moments_ms: list[int]) -> None:
    clock = HandClock()
    ids = IdSource(clock)
    made: list[str] = []
    for moment_ms in sorted(moments_ms):
        clock.jump(moment_ms * 1000)
        made.append(ids.new())
    assert made == sorted(made)


def test_ids_of_one_moment_differ() -> None:
    ids = IdSource(HandClock())
    assert len({ids.new() for _ in range(1000)}) == 1000


_PARTS = st.text(max_size=6)


@given(st.tuples(_PARTS, _PARTS, _PARTS), st.tuples(_PARTS, _PARTS, _PARTS))
def test_derived_ids_are_equal_exactly_when_their_parts_are(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    for derive in (entity_node_id, keyed_node_id):
        assert (derive(*one) == derive(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("u", "ab", "c"), ("u", "a", "bc")),
        (("u", "", "abc"), ("u", "abc", "")),
        (("ua", "b", "c"), ("u", "ab", "c")),
        (("u", "a|1:b", "c"), ("u", "a", "b|1:c")),
        (("u", "1:a", ""), ("u", "", "1:a")),
        (("u", "a\x00", "b"), ("u", "a", "\x00b")),
        (("u", "A", "b"), ("u", "a", "b")),
    ],
)
def test_parts_that_look_alike_when_joined_stay_apart(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert keyed_node_id(*one) != keyed_node_id(*other)
    assert entity_node_id(*one) != entity_node_id(*other)


def test_an_entity_and_a_key_of_the_same_parts_are_two_nodes() -> None:
    derived = {
        entity_node_id("ann", "crm", "7"),
        keyed_node_id("ann", "crm", "7"),
        relationship_id("ann", "crm", "7", ""),
        relationship_id("ann", "crm", "", "7"),
    }
    assert len(derived) == 4


def test_derived_ids_never_change() -> None:
    # Stored rows carry them: another value here would double every entity there is.
    assert entity_node_id("ann", "crm", "7") == "d304500f-4359-5faa-be0c-d0e7c5f962a0"
    assert keyed_node_id("ann", "default", "home") == "9be51ca1-142f-5a2f-83b4-f939312297b5"
    assert relationship_id("ann", "a", "led_to", "b") == "81a72417-a3a7-5e53-a434-8553b79cd6c3"


def test_a_direction_makes_another_relationship() -> None:
    assert relationship_id("ann", "a", "led_to", "b") != relationship_id("ann", "b", "led_to", "a")


def test_a_time_up_to_a_day_ahead_is_taken() -> None:
    clock = HandClock()
    check_skew("created_at", to_us(NOON + MAX_SKEW), clock)
    with pytest.raises(InvalidInput, match="created_at"):
        check_skew("created_at", to_us(NOON + MAX_SKEW) + 1, clock)


@given(st.lists(st.tuples(st.integers(-(10**13), 10**13), st.floats(0, 10**6)), max_size=30))
def test_a_steady_clock_never_goes_back_and_passes_as_time_does(steps: list[tuple[int, float]]) -> None:
    clock = HandClock()
    steady = SteadyClock(clock)
    begun_us, begun = steady.now_us(), clock.monotonic()
    for jump_us, seconds in steps:
        before_us = steady.now_us()
        clock.jump(to_us(NOON) + jump_us)
        assert steady.now_us() == before_us
        clock.advance(timedelta(seconds=seconds))
        assert steady.now_us() >= before_us
    passed_us = (clock.monotonic() - begun) * 1e6
    assert abs(steady.now_us() - begun_us - passed_us) <= passed_us / 1000 + len(steps) + 1


def test_a_steady_clock_comes_up_with_one_that_was_set_a_little() -> None:
    clock = HandClock()
    steady = SteadyClock(clock)
    clock.jump(to_us(NOON) + 500_000)
    clock.advance(timedelta(minutes=10))
    assert steady.now_us() == clock.now_us()
