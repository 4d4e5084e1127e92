"""A filter as an SQL expression of SQLite over the rows of `nodes n`.

Each condition is 1 or 0 and never NULL. Text of the statement comes from the tables below alone; operands and the
keys of paths are bound. A path step is the key spelt as a JSON string, which is how SQLite takes it literally (old
libraries, 3.40.1 among them, do not find a key that holds a double quote; 3.53.4 does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString, TypeAlias, assert_never

from hybrid_memory.filters.tree import All, AnyOf, Column, Condition, JsonPath, Not, Op, Predicate, Scalar
from hybrid_memory.jsontext import encode

Bind: TypeAlias = int | float | str

_COLUMNS: Final[dict[Column, LiteralString]] = {
    Column.NAMESPACE: "n.namespace",
    Column.KEY: "n.key",
    Column.CONTEXT_TYPE: "n.context_type",
    Column.SUMMARY: "n.summary",
    Column.TAGS: "n.tags",
    Column.IMPORTANCE: "n.importance",
    Column.ENTITY_SYSTEM: "n.entity_system",
    Column.ENTITY_ID: "n.entity_id",
    Column.ENTITY_TYPE: "n.entity_type",
    Column.SESSION_ID: "n.session_id",
    Column.SOURCE_AGENT: "n.source_agent",
    Column.CREATED_AT: "n.created_at",
    Column.UPDATED_AT: "n.updated_at",
    Column.EXPIRES_AT: "n.expires_at",
    Column.TEXT_CONTENT: "n.text_content",
}
_ORDERS: Final[dict[Op, LiteralString]] = {Op.GT: " > ?", Op.GTE: " >= ?", Op.LT: " < ?", Op.LTE: " <= ?"}
_TYPE: Final = "coalesce(json_type(n.content, ?), 'null')"
_VALUE: Final = "json_extract(n.content, ?)"
# Told apart by JSON type, as json_extract gives 1 for `true` and text for lists and objects.
_STRINGS: Final = " = 'text'"
_NUMBERS: Final = " in ('integer', 'real')"
# json_each walks objects and single values too, hence the look at the type first.
_ELEMENT: Final = " = 'array' and exists (select 1 from json_each(n.content, ?) as e where e.type"
# One bound list, however long: the number of question marks in a statement is limited.
_AMONG: Final = " in (select value from json_each(?))"


def to_sqlite(predicate: Predicate) -> tuple[LiteralString, list[Bind]]:
    """A boolean expression over the alias `n`, and what is bound to its question marks in order."""
    binds: list[Bind] = []
    return _sql(predicate, binds), binds


def _sql(predicate: Predicate, binds: list[Bind]) -> LiteralString:
    match predicate:
        case Condition():
            if isinstance(predicate.target, JsonPath):
                return _content_condition(_path(predicate.target), predicate, binds)
            return _column_condition(predicate.target, predicate, binds)
        case All(parts=parts):
            return "(" + " and ".join([_sql(part, binds) for part in parts]) + ")" if parts else "1"
        case AnyOf(parts=parts):
            return "(" + " or ".join([_sql(part, binds) for part in parts]) + ")"
        case Not(part=part):
            return "(not " + _sql(part, binds) + ")"
        case _:
            assert_never(predicate)


def _path(path: JsonPath) -> str:
    return "$" + "".join(["." + encode(key) for key in path.keys])


def _column_condition(column: Column, condition: Condition, binds: list[Bind]) -> LiteralString:
    name = _COLUMNS[column]
    if column is Column.TAGS:
        return _tags_condition(condition, binds)
    if condition.op is Op.EXISTS:
        return "(" + name + " is not null)"
    # A plain comparison beside `is not null`, so that an index, a partial one too, can serve it.
    return "(" + name + " is not null and " + _comparison(name, condition.op, condition.operands, binds) + ")"


def _tags_condition(condition: Condition, binds: list[Bind]) -> LiteralString:
    if condition.op is Op.EXISTS:
        return "(exists (select 1 from json_each(n.tags)))"
    binds.extend(condition.operands)
    return "(exists (select 1 from json_each(n.tags) as e where e.atom = ?))"


def _content_condition(path: str, condition: Condition, binds: list[Bind]) -> LiteralString:
    if condition.op is Op.EXISTS:
        binds.append(path)
        return "(" + _TYPE + " <> 'null')"
    if condition.op is Op.CONTAINS:
        return _content_contains(path, condition.operands[0], binds)
    strings = [operand for operand in condition.operands if isinstance(operand, str)]
    numbers = [operand for operand in condition.operands if type(operand) is int or type(operand) is float]
    tests: list[LiteralString] = []
    if strings:
        binds.extend((path, path))
        tests.append("(" + _TYPE + _STRINGS + " and " + _comparison(_VALUE, condition.op, strings, binds) + ")")
    if numbers:
        binds.extend((path, path))
        tests.append("(" + _TYPE + _NUMBERS + " and " + _comparison(_VALUE, condition.op, numbers, binds) + ")")
    for boolean in sorted({operand for operand in condition.operands if isinstance(operand, bool)}):
        binds.append(path)
        tests.append(_TYPE + _boolean(boolean))
    return "(" + " or ".join(tests) + ")"


def _content_contains(path: str, operand: Scalar, binds: list[Bind]) -> LiteralString:
    binds.extend((path, path))
    element: LiteralString = _TYPE + _ELEMENT
    if isinstance(operand, bool):
        return "(" + element + _boolean(operand) + "))"
    binds.append(operand)
    if not isinstance(operand, str):
        return "(" + element + _NUMBERS + " and e.atom = ?))"
    binds.extend((path, path, operand))
    part: LiteralString = _TYPE + _STRINGS + " and instr(" + _VALUE + ", ?) > 0"
    return "((" + element + _STRINGS + " and e.atom = ?)) or (" + part + "))"


def _boolean(value: bool) -> LiteralString:  # noqa: FBT001 - an operand, not an option
    return " = 'true'" if value else " = 'false'"


def _comparison(value: LiteralString, op: Op, operands: Sequence[Scalar], binds: list[Bind]) -> LiteralString:
    operand = operands[0]
    match op:
        case Op.IN if len(operands) > 1:
            binds.append(encode(operands))
            return value + _AMONG
        case Op.IN:
            binds.append(operand)
            return value + " = ?"
        case Op.CONTAINS:
            binds.append(operand)
            return "instr(" + value + ", ?) > 0"
        case Op.PREFIX:
            binds.extend((len(str(operand)), operand))
            return "substr(" + value + ", 1, ?) = ?"
        case _:
            binds.append(operand)
            return value + _ORDERS[op]
