"""One text for one value, and back."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory.errors import InvalidInput
from hybrid_memory.graph import JsonValue
from hybrid_memory.jsontext import Json, decode, encode

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
_VALUES: st.SearchStrategy[JsonValue] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab\ue000\U0001f600"), inner, max_size=4),
)


def _same(one: JsonValue, other: JsonValue) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other


@given(_VALUES)
def test_what_is_encoded_comes_back_with_the_same_types_and_signs(value: JsonValue) -> None:
    text = encode(value)
    assert _same(decode(text), value)
    assert encode(decode(text)) == text


@given(_VALUES)
def test_any_json_reader_reads_the_same_value(value: JsonValue) -> None:
    assert _same(json.loads(encode(value)), value)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 9)))
def test_the_order_of_insertion_leaves_no_trace(value: dict[str, int]) -> None:
    assert encode(value) == encode(dict(reversed(value.items())))


def test_keys_are_sorted_by_code_point() -> None:
    assert encode({"\U0001f600": 1, "\ue000": 2, "b": 3, "B": 4}) == '{"B":4,"b":3,"\ue000":2,"\U0001f600":1}'


@pytest.mark.parametrize("value", [-0.0, 1.0, 1e22, 1e300, 5e-324, 0.1, 2**63 - 1, -(2**63), 123456789012345680.0])
def test_numbers_keep_type_value_and_sign(value: float) -> None:
    back = decode(encode(value))
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_strings_are_escaped_only_where_json_demands_it() -> None:
    assert encode('"\\\b\t\n\f\r\x01\x7f/\u2028é') == r'"\"\\\b\t\n\f\r\u0001' + '\x7f/\u2028é"'


@pytest.mark.parametrize("value", [{"a": "\ud800"}, {"\ud800": 1}, {"a": 2**64}])
def test_what_has_no_json_text_is_refused_by_the_encoder(value: Json) -> None:
    with pytest.raises(TypeError):
        encode(value)


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", "1e999", '"\\ud800"', "{} {}", "'a'", "\ufeff{}", b"\xff"]
)
def test_what_is_not_json_is_refused_without_a_word_of_it(text: str | bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(text)
    assert caught.value.reason == "is not well-formed JSON"
    assert caught.value.__suppress_context__


def test_the_last_of_repeated_keys_counts() -> None:
    assert decode('{"a":1,"a":2}') == {"a": 2}
