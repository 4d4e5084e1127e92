"""A filter's answer for a node at hand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, assert_never, cast

from hybrid_memory.changes import searchable_text
from hybrid_memory.clock import to_us
from hybrid_memory.filters.tree import All, AnyOf, Column, Condition, JsonPath, Not, Op, Predicate, Scalar, Target
from hybrid_memory.graph import JsonValue, MemoryNode

_ORDERS: Final[dict[Op, Callable[[Any, Any], bool]]] = {
    Op.GT: operator.gt,
    Op.GTE: operator.ge,
    Op.LT: operator.lt,
    Op.LTE: operator.le,
}


def matches(predicate: Predicate, node: MemoryNode) -> bool:
    """Whether the node passes."""
    match predicate:
        case Condition():
            return _holds(predicate, _read(predicate.target, node))
        case All(parts=parts):
            return all(matches(part, node) for part in parts)
        case AnyOf(parts=parts):
            return any(matches(part, node) for part in parts)
        case Not(part=part):
            return not matches(part, node)
        case _:
            assert_never(predicate)


def _read(target: Target, node: MemoryNode) -> object:
    if isinstance(target, JsonPath):
        return _inside(target.keys, node.content)
    value: object = searchable_text(node.content) if target is Column.TEXT_CONTENT else getattr(node, target.value)
    return to_us(value) if isinstance(value, datetime) else value


def _inside(keys: tuple[str, ...], value: JsonValue) -> JsonValue:
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _holds(condition: Condition, value: object) -> bool:
    if value is None or value == ():
        return False
    match condition.op:
        case Op.EXISTS:
            return True
        case Op.IN:
            return any(_equal(value, operand) for operand in condition.operands)
        case Op.CONTAINS:
            return _contains(value, condition.operands[0])
        case Op.PREFIX:
            return isinstance(value, str) and value.startswith(str(condition.operands[0]))
        case Op.GT | Op.GTE | Op.LT | Op.LTE:
            operand = condition.operands[0]
            return _sort(value) is _sort(operand) and _ORDERS[condition.op](value, operand)
        case _:
            assert_never(condition.op)


def _contains(value: object, operand: Scalar) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_equal(element, operand) for element in cast("Sequence[object]", value))
    return isinstance(value, str) and isinstance(operand, str) and operand in value


def _equal(value: object, operand: Scalar) -> bool:
    return _sort(value) is _sort(operand) and value == operand


def _sort(value: object) -> type:
    return float if type(value) is int else type(value)
