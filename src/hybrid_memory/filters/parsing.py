"""From a caller's filter to a checked tree."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime
from enum import Enum, auto
from typing import Final, cast

from hybrid_memory.errors import InvalidInput
from hybrid_memory.filters.builder import Filter, Where
from hybrid_memory.filters.tree import (
    MAX_CONDITIONS,
    MAX_KEY_BYTES,
    MAX_NESTING,
    MAX_OPERAND_BYTES,
    MAX_OPERANDS,
    All,
    AnyOf,
    Column,
    Condition,
    JsonPath,
    Not,
    Op,
    Predicate,
    Scalar,
    Target,
)
from hybrid_memory.validation import INT_MAX, INT_MIN, MAX_DEPTH, aware_datetime, number, shown_key, text


class _Kind(Enum):
    NAME = auto()
    TEXT = auto()
    NUMBER = auto()
    TIME = auto()
    TAGS = auto()
    JSON = auto()


_KINDS: Final = {
    Column.SUMMARY: _Kind.TEXT,
    Column.TEXT_CONTENT: _Kind.TEXT,
    Column.TAGS: _Kind.TAGS,
    Column.IMPORTANCE: _Kind.NUMBER,
    Column.CREATED_AT: _Kind.TIME,
    Column.UPDATED_AT: _Kind.TIME,
    Column.EXPIRES_AT: _Kind.TIME,
}
_NO_STRING: Final = frozenset({Op.CONTAINS, Op.PREFIX})
_REFUSED: Final = {
    _Kind.NUMBER: _NO_STRING,
    _Kind.TIME: _NO_STRING,
    _Kind.TAGS: frozenset(Op) - {Op.CONTAINS, Op.EXISTS},
}
_COLUMNS: Final = {column.value: column for column in Column}


def parse(where: Filter | None) -> Predicate:
    """The checked tree of a filter; None matches everything. Raises `InvalidInput` naming the place."""
    if where is None:
        return All(parts=())
    return _Parser().filter("where", where, 0)


class _Parser:
    # Counts as it goes: lists that hold each other would otherwise unfold without end.

    def __init__(self) -> None:
        self._conditions = 0

    def filter(self, place: str, given: object, depth: int) -> Predicate:
        if type(given) is Where:
            given = given.given
        if type(given) is not dict or not given:
            raise InvalidInput(place, "must be a dict with at least one test")
        if depth > MAX_NESTING:
            raise InvalidInput(place, f"must not be nested deeper than {MAX_NESTING} levels")
        entries = cast("dict[object, object]", given)
        if "path" in entries:
            return self._explicit(place, entries)
        return _all([self._entry(place, name, value, depth) for name, value in entries.items()])

    def _entry(self, place: str, name: object, value: object, depth: int) -> Predicate:
        if type(name) is not str:
            raise InvalidInput(place, "each name must be a str")
        place = f"{place}.{'.'.join(map(shown_key, name.split('.')))}"
        if name == "not":
            return Not(part=self.filter(place, value, depth + 1))
        if name in {"and", "or"}:
            listed = _listed(place, value, MAX_CONDITIONS)
            parts = [self.filter(f"{place}[{index}]", part, depth + 1) for index, part in enumerate(listed)]
            return _all(parts) if name == "and" else AnyOf(parts=tuple(parts))
        return self._tests(place, name, value)

    def _tests(self, place: str, name: str, value: object) -> Predicate:
        keys = name.split(".")
        if "" in keys:
            raise InvalidInput(place, "must not have an empty part; name such a key in a `path`")
        target = _target(place, keys)
        if type(value) is not dict:
            return self._test(place, target, "eq", value)
        tests = cast("dict[object, object]", value)
        if not tests:
            raise InvalidInput(place, "must have at least one operator")
        return _all([self._test(f"{place}.{shown_key(op)}", target, op, operand) for op, operand in tests.items()])

    def _explicit(self, place: str, entries: dict[object, object]) -> Predicate:
        if set(entries) != {"path", "op", "value"}:
            raise InvalidInput(place, "must have exactly `path`, `op` and `value`")
        target = _target(f"{place}.path", _listed(f"{place}.path", entries["path"], MAX_DEPTH + 1))
        return self._test(f"{place}.value", target, entries["op"], entries["value"])

    def _test(self, place: str, target: Target, op: object, value: object) -> Predicate:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidInput(place, f"is one of more than {MAX_CONDITIONS} tests")
        match op:
            case "eq":
                return _among(target, [(place, value)])
            case "ne":
                return Not(part=_among(target, [(place, value)]))
            case "in":
                return _among(target, _placed(place, value))
            case "nin":
                return Not(part=_among(target, _placed(place, value)))
            case "exists":
                return _existence(place, target, value)
            case "gt" | "gte" | "lt" | "lte" | "contains" | "prefix":
                return _compared(place, target, Op(op), value)
            case _:
                raise InvalidInput(place, "is not a known operator")


def _all(parts: list[Predicate]) -> Predicate:
    return parts[0] if len(parts) == 1 else All(parts=tuple(parts))


def _listed(place: str, value: object, maximum: int) -> Sequence[object]:
    if type(value) is not list and type(value) is not tuple:
        raise InvalidInput(place, "must be a list")
    listed = cast("Sequence[object]", value)
    if not 0 < len(listed) <= maximum:
        raise InvalidInput(place, f"must have 1 to {maximum} elements")
    return listed


def _placed(place: str, value: object) -> list[tuple[str, object]]:
    return [(f"{place}[{index}]", one) for index, one in enumerate(_listed(place, value, MAX_OPERANDS))]


def _target(place: str, path: Sequence[object]) -> Target:
    first, *rest = path
    if type(first) is str and first in _COLUMNS and not rest:
        return _COLUMNS[first]
    if first != "content" or type(first) is not str:
        raise InvalidInput(place, "is not a known name")
    if not 0 < len(rest) <= MAX_DEPTH:
        raise InvalidInput(place, f"must name 1 to {MAX_DEPTH} keys of the content")
    return JsonPath(keys=tuple(text(place, key, max_bytes=MAX_KEY_BYTES) for key in rest))


def _kind(target: Target) -> _Kind:
    return _Kind.JSON if isinstance(target, JsonPath) else _KINDS.get(target, _Kind.NAME)


def _existence(place: str, target: Target, value: object) -> Predicate:
    if type(value) is not bool:
        raise InvalidInput(place, "must be a bool")
    there = Condition(target=target, op=Op.EXISTS)
    return there if value else Not(part=there)


def _among(target: Target, values: list[tuple[str, object]]) -> Predicate:
    kind = _kind(target)
    if kind is _Kind.TAGS:
        raise InvalidInput(values[0][0], "tags take `contains` and `exists` only")
    operands = tuple(_operand(place, kind, value) for place, value in values if value is not None)
    absent = Not(part=Condition(target=target, op=Op.EXISTS))
    if not operands:
        return absent
    known = Condition(target=target, op=Op.IN, operands=operands)
    return known if len(operands) == len(values) else AnyOf(parts=(absent, known))


def _compared(place: str, target: Target, op: Op, value: object) -> Condition:
    kind = _kind(target)
    if op in _REFUSED.get(kind, ()):
        raise InvalidInput(place, f"{kind.name.lower()} columns do not take `{op}`")
    operand = _operand(place, kind, value)
    if op is Op.PREFIX and type(operand) is not str:
        raise InvalidInput(place, "must be a str")
    if op is not Op.CONTAINS and type(operand) is bool:
        raise InvalidInput(place, "must be a number or a str, booleans have no order")
    return Condition(target=target, op=op, operands=(operand,))


def _operand(place: str, kind: _Kind, value: object) -> Scalar:
    match kind:
        case _Kind.JSON:
            return _json_scalar(place, value)
        case _Kind.NUMBER:
            return number(place, value)
        case _Kind.TIME:
            return _moment(place, value)
        case _Kind.TEXT:
            return text(place, value, max_bytes=MAX_OPERAND_BYTES)
        case _Kind.NAME | _Kind.TAGS:
            return unicodedata.normalize("NFC", text(place, value, max_bytes=MAX_OPERAND_BYTES))


def _json_scalar(place: str, value: object) -> Scalar:
    if type(value) is bool:
        return value
    if type(value) is str:
        return text(place, value, max_bytes=MAX_OPERAND_BYTES)
    if type(value) is int:
        if INT_MIN <= value <= INT_MAX:
            return value
        raise InvalidInput(place, "must be an int of 64 bits")
    if type(value) is float:
        return number(place, value)
    raise InvalidInput(place, "must be a bool, int, float or str")


def _moment(place: str, value: object) -> int:
    if type(value) is not str:
        return aware_datetime(place, value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        # Not chained: the parser's message repeats the value.
        raise InvalidInput(place, "must be an ISO 8601 time") from None
    return aware_datetime(place, moment)
