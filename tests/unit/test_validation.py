"""What may enter and what may not; rows of the catalogue of bad inputs, each at its limit and one beyond."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory import validation
from hybrid_memory.errors import InvalidInput

SECRET = "s3cret"


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Moment(datetime):
    pass


def _refused(check: Callable[[object], object], value: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        check(value)
    assert SECRET not in str(caught.value)
    return caught.value


# Identifiers

_IDENTIFIERS: list[Callable[[object], str]] = [
    validation.user_id,
    validation.namespace,
    validation.context_type,
    validation.relationship_type,
    validation.entity_system,
    lambda value: validation.identifier("key", value),
]
identifiers = pytest.mark.parametrize("check", _IDENTIFIERS)


@identifiers
@pytest.mark.parametrize("value", ["a", "alice", "a b", "%", "_", "*", "..", "a/../b", "alice' or '1'='1", "x" * 512])
@pytest.mark.parametrize("more", ["", "é", "\u3000x", "日本", "İß"])
def test_an_identifier_is_opaque_and_kept(check: Callable[[object], str], value: str, more: str) -> None:
    if len((value + more).encode()) <= 512:
        assert check(value + more) == value + more


@identifiers
@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        " a",
        "a ",
        "a\n",
        "\ta",
        "a\u00a0",
        "\u3000a",
        "a\0b",
        "a\x7fb",
        "a\u200bb",
        "a\u202eb",
        "\ufeffa",
        "a\ud800",
        "a\ue000",
        "a\U000e0001",
        "a\u0378b",
        "x" * 513,
        "é" * 257,
        "日" * 171,
        "x" * 10_000_000,
        None,
        1,
        True,
        b"a",
        Text("a"),
    ],
)
def test_an_identifier_that_could_deceive_or_not_be_stored_is_refused(
    check: Callable[[object], str], value: object
) -> None:
    _refused(check, value)


@identifiers
def test_spellings_of_one_character_are_one_identifier(check: Callable[[object], str]) -> None:
    assert check("cafe\u0301") == check("caf\u00e9") == "caf\u00e9"
    assert check("ABC") != check("abc")


def test_the_limit_of_an_identifier_counts_bytes_before_and_after_normalising() -> None:
    assert validation.user_id("é" * 256)
    _refused(validation.user_id, "e\u0301" * 171)  # 513 bytes, 342 in NFC
    _refused(validation.user_id, "\u0958" * 100)  # 300 bytes, 600 in NFC


@given(st.text(max_size=20))
def test_an_accepted_identifier_is_accepted_again_unchanged(value: str) -> None:
    try:
        name = validation.user_id(value)
    except InvalidInput:
        return
    assert validation.user_id(name) == name
    assert name.encode()


def test_a_node_id_is_uuid_text_in_lower_case() -> None:
    text = "5F94966B-544d-4eca-acaf-fc8e1ff69ed9"
    assert validation.node_id("node_id", text) == text.lower()


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "x",
        "5f94966b544d4ecaacaffc8e1ff69ed9",
        "{5f94966b-544d-4eca-acaf-fc8e1ff69ed9}",
        uuid.UUID(int=5),
        5,
        "5f94966b-544d-4eca-acaf-fc8e1ff69ed9\n",
        "5f94966b-544d-4eca-acaf-fc8e1ff69ed\u0669",
        "urn:uuid:" + str(uuid.UUID(int=5)),
    ],
)
def test_other_forms_of_a_node_id_are_refused(value: object) -> None:
    assert _refused(lambda given: validation.node_id("source_id", given), value).field == "source_id"


# Tags and texts


def test_tags_keep_their_order_and_lose_repeats() -> None:
    assert validation.tags(["b", "a", "b", "e\u0301", "\u00e9"]) == ("b", "a", "\u00e9")
    assert validation.tags(iter(("b", "a"))) == ("b", "a")
    assert validation.tags(()) == validation.tags([]) == ()


def test_tags_of_a_set_come_in_one_order_in_every_process() -> None:
    assert validation.tags({"c", "a", "b"}) == validation.tags(frozenset("bca")) == ("a", "b", "c")


def test_tags_are_bounded_in_number_and_bytes() -> None:
    assert len(validation.tags([str(number) for number in range(64)])) == 64
    assert validation.tags(["x" * 128]) == ("x" * 128,)
    _refused(validation.tags, [str(number) for number in range(65)])
    _refused(validation.tags, (str(number) for number in itertools.count()))
    assert _refused(validation.tags, ["a", "x" * 129]).field == "tags[1]"


@pytest.mark.parametrize("value", [None, "abc", b"abc", {"a": 1}, 5, [None], [1], ["a", ""], [Text("a")], ["a\0"]])
def test_what_is_no_list_of_tags_is_refused(value: object) -> None:
    _refused(validation.tags, value)


def test_a_text_is_kept_and_bounded_in_bytes() -> None:
    for value in ("", "  e\u0301\u200b\n", "é" * 5, "x" * 10):
        assert validation.text("name", value, max_bytes=10) == value
    for value in ("x" * 11, "é" * 5 + "x", "x" * 9 + "é"):
        assert _refused(lambda given: validation.text("name", given, max_bytes=10), value).field == "name"


@pytest.mark.parametrize("value", [1, b"a", Text("a"), SECRET + "\0", SECRET + "\ud800", "\udfff", SECRET * 65536])
def test_a_text_that_a_database_would_refuse_or_change_is_refused(value: object) -> None:
    _refused(validation.summary, value)


def test_a_summary_may_be_left_out() -> None:
    assert validation.summary(None) is None
    assert validation.summary("x" * 65536) == "x" * 65536


# Numbers and times


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (1, 1.0), (0.5, 0.5), (-0.0, 0.0), (5e-324, 5e-324)])
def test_importance_is_a_float_from_0_to_1(value: object, expected: float) -> None:
    assert repr(validation.importance(value)) == repr(expected)


@pytest.mark.parametrize(
    "value",
    [True, False, -1e-9, 1.0000001, 2, -1, float("nan"), float("inf"), "0.5", None, Real(0.5), Whole(1), Decimal(1)],
)
def test_importance_beyond_is_refused(value: object) -> None:
    _refused(validation.importance, value)


@pytest.mark.parametrize("value", [-5.5, 0, 1, 1e300, 2**62])
def test_a_weight_is_any_finite_number(value: float) -> None:
    assert validation.weight(value) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), True, 10**400, 2**63, "1", None, Real(1)])
def test_a_weight_that_no_database_holds_is_refused(value: object) -> None:
    _refused(validation.weight, value)


def test_a_time_to_live_is_counted_in_microseconds() -> None:
    assert validation.ttl(timedelta(microseconds=1)) == 1
    assert validation.ttl(timedelta(days=3653)) == 3653 * 86_400_000_000


@pytest.mark.parametrize(
    "value",
    [timedelta(0), timedelta(seconds=-1), timedelta(days=3653, microseconds=1), timedelta.max, 60, 1.5, True, None],
)
def test_a_time_to_live_of_nothing_or_for_ever_is_refused(value: object) -> None:
    _refused(validation.ttl, value)


@pytest.mark.parametrize("value", [0, 0.0, 0.25, 3600])
def test_a_wait_is_seconds_up_to_an_hour(value: float) -> None:
    assert validation.wait(value) == value


@pytest.mark.parametrize("value", [-0.1, 3600.5, float("nan"), float("inf"), True, None, "1", timedelta(seconds=1)])
def test_a_wait_beyond_is_refused(value: object) -> None:
    _refused(validation.wait, value)


def test_a_limit_is_at_least_one_and_at_most_the_maximum() -> None:
    assert [validation.limit(1), validation.limit(1000), validation.limit(5, maximum=5)] == [1, 1000, 5]


@pytest.mark.parametrize("value", [0, -1, 1001, 2**63, True, 1.0, "1; drop", None, Whole(5)])
def test_a_limit_beyond_is_refused(value: object) -> None:
    _refused(validation.limit, value)


def test_an_expected_revision_is_an_int_or_none() -> None:
    assert [validation.expected_rev(value) for value in (None, 0, 7, -1)] == [None, 0, 7, -1]
    for value in (True, 1.0, "1", 2**63, Whole(1)):
        _refused(validation.expected_rev, value)


@given(
    st.datetimes(
        datetime(1, 1, 3),  # noqa: DTZ001 - bounds are given without a zone
        datetime(9999, 12, 28),  # noqa: DTZ001 - as above
        timezones=st.timezones() | st.just(UTC),
    )
)
def test_an_aware_time_is_exact_to_the_microsecond(value: datetime) -> None:
    moment_us = validation.aware_datetime("valid_from", value)
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment_us) == value.astimezone(UTC)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 1, 1),  # noqa: DTZ001 - the case
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        date(2024, 1, 1),
        None,
        0,
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        Moment(2024, 1, 1, tzinfo=UTC),
        "2024-01-01T00:00:00Z",
    ],
)
def test_a_time_without_zone_or_out_of_bounds_is_refused(value: object) -> None:
    assert _refused(lambda given: validation.aware_datetime("valid_to", given), value).field == "valid_to"
