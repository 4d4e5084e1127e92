"""What content may hold, how deep and how large it may be, and how a refusal names the place."""

from __future__ import annotations

import enum
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory import validation
from hybrid_memory.changes import searchable_text
from hybrid_memory.errors import InvalidInput
from hybrid_memory.jsontext import decode, encode

SECRET = "s3cret"


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Colour(enum.IntEnum):
    RED = 1


@dataclass
class Point:
    x: int = 1


def _refused(check: Callable[[object], object], value: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        check(value)
    assert SECRET not in str(caught.value)
    return caught.value


def _nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


_circle: list[object] = []
_circle.append(_circle)
_twin_circle: list[object] = []
_twin_circle.extend([_twin_circle, _twin_circle])


_PLAIN: list[dict[str, object]] = [
    {},
    {"": ""},
    {"a": None},
    {"a": "x\x01\x7f\u200b\ue000"},
    {"a": "\\u0000"},
    {"a": 2**63 - 1, "b": -(2**63)},
    {"a": [-0.0, 1e22, 1e300, True, [], {}]},
    {"a.b": 1, '"': 2, "e\u0301": 3, "\u00e9": 4},
    _nested(64),
]


@pytest.mark.parametrize("value", _PLAIN)
def test_plain_content_is_kept_to_the_letter(value: dict[str, object]) -> None:
    assert decode(validation.content(value)) == value


_BAD_VALUES: list[tuple[object, str]] = [
    (float("nan"), "finite"),
    (float("inf"), "finite"),
    (-float("inf"), "finite"),
    (2**63, "64 bits"),
    (-(2**63) - 1, "64 bits"),
    (2**64 + 1, "64 bits"),
    (SECRET + "\0", "NUL"),
    (SECRET + "\ud800", "surrogates"),
    (_circle, "itself"),
    (_twin_circle, "itself"),
    (_nested(64), "64 levels"),
    *(
        (bad, "no subclass")
        for bad in [
            (1, 2),
            {1},
            frozenset({1}),
            b"x",
            bytearray(b"x"),
            datetime(2024, 1, 1, tzinfo=UTC),
            date(2024, 1, 1),
            timedelta(1),
            Decimal(1),
            uuid.UUID(int=1),
            Colour.RED,
            Point(),
            Text("x"),
            Whole(1),
            Real(1),
            OrderedDict[str, int](),
            object(),
            orjson.Fragment(b"{"),
            int,
            1j,
            range(3),
            iter([1]),
        ]
    ),
]


@pytest.mark.parametrize(("bad", "reason"), _BAD_VALUES)
@pytest.mark.parametrize("check", [validation.content, validation.properties])
def test_content_that_would_be_changed_or_refused_later_is_refused_with_its_place(
    check: Callable[[object], str], bad: object, reason: str
) -> None:
    field = check.__name__
    for holder, place in (
        ({"ok": 1, "a": bad}, ".a"),
        ({"a": [0, {"b-1": bad}]}, ".a[1].b-1"),
        ({"x y": [bad]}, ".?[0]"),
    ):
        error = _refused(check, holder)
        assert reason in error.reason
        if not reason.startswith(("itself", "64 levels")):
            assert error.field == field + place


@pytest.mark.parametrize("key", [1, None, True, (1, 2), b"a", 1.5, Text("a"), "a\0", "a\ud800", Colour.RED])
def test_keys_are_plain_strings(key: object) -> None:
    error = _refused(validation.content, {"a": {key: SECRET}})
    assert error.field == "content.a"
    assert "each key" in error.reason


_NO_DICTS: list[object] = [None, [], "{}", 1, OrderedDict[str, int](), [("a", 1)]]


@pytest.mark.parametrize("value", _NO_DICTS)
def test_content_is_a_dict(value: object) -> None:
    assert _refused(validation.content, value).field == "content"


def test_properties_may_be_left_out() -> None:
    assert validation.properties(None) == validation.properties({}) == "{}"


def test_the_depth_of_content_is_bounded() -> None:
    assert validation.content(_nested(64))
    assert "64 levels" in _refused(validation.content, _nested(65)).reason
    assert "64 levels" in _refused(validation.content, _nested(5000)).reason


@pytest.mark.parametrize("text", ["x", "é", "日", "\U0001f600", '"', "\n", "\x01"])
def test_the_size_of_content_is_bounded_in_bytes_of_its_text(text: str) -> None:
    value: dict[str, object] = {"a": text * 100}
    size = len(encode({"a": text * 100}).encode())
    assert validation.content(value, max_bytes=size)
    assert str(size - 1) in _refused(lambda given: validation.content(given, max_bytes=size - 1), value).reason


def test_a_megabyte_passes_and_a_byte_more_does_not() -> None:
    assert len(validation.content({"a": "x" * (2**20 - 8)})) == 2**20
    _refused(validation.content, {"a": "x" * (2**20 - 7)})


def test_content_that_unfolds_beyond_all_bounds_is_refused_soon() -> None:
    folded: list[object] = [1]
    for _ in range(60):
        folded = [folded, folded]
    for value in (folded, ["x" * 2**15] * 2**20, [{"x" * 2**15: 1}] * 2**20):
        error = _refused(lambda given: validation.content({"a": given}, max_bytes=2**16), value)
        assert error.reason == "must be JSON of at most 65536 bytes"


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([(), b"x", "\0", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 1), inner, max_size=3)
    ),
)


@given(st.dictionaries(st.text(max_size=3), _JSON, max_size=4))
def test_content_comes_back_equal_or_is_refused_by_name(value: dict[str, object]) -> None:
    try:
        text = validation.content(value)
    except InvalidInput as error:
        place = error.field
    else:
        place = "content"
        assert decode(text) == value
        assert text.encode()
        assert validation.searchable_content(value) == (text, searchable_text(decode(text)))
    assert place.startswith("content")
