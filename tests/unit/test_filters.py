"""What a filter means for a node at hand, and which filters are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from hybrid_memory.errors import InvalidInput
from hybrid_memory.filters import Filter, field, matches, parse
from hybrid_memory.graph import MemoryNode, NodeId

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NODE = MemoryNode(
    node_id=NodeId("5f94966b-544d-4eca-acaf-fc8e1ff69ed9"),
    user_id="alice",
    namespace="default",
    key="caf\u00e9",
    context_type="task",
    content={
        "title": "Write the report",
        "status": "open",
        "priority": 3,
        "score": 0.5,
        "done": False,
        "one": 1,
        "nothing": None,
        "owner": {"name": "Ada", "0": "zero"},
        "labels": ["a", 1, True, None, ["x"]],
        "a.b": "dotted",
        "": "empty",
        "q\"\\'": "quoted",
    },
    summary=None,
    tags=("urgent", "caf\u00e9"),
    importance=0.5,
    entity_system=None,
    entity_id=None,
    entity_type=None,
    session_id="s-1",
    source_agent=None,
    created_at=NOON,
    updated_at=NOON + timedelta(microseconds=1),
    expires_at=None,
    rev=1,
)


def _passes(where: Filter | None, node: MemoryNode = NODE) -> bool:
    return matches(parse(where), node)


def _path(*keys: str, op: str = "eq", value: object) -> dict[str, object]:
    return {"path": ["content", *keys], "op": op, "value": value}


TRUE: list[dict[str, Any]] = [
    {"context_type": "task"},
    {"context_type": {"ne": "note"}},
    {"context_type": {"in": ["note", "task"]}},
    {"context_type": {"prefix": "ta", "contains": "as", "gt": "taa", "lte": "task"}},
    {"key": "cafe\u0301"},
    {"tags": {"contains": "cafe\u0301"}},
    {"tags": {"exists": True}},
    {"summary": None},
    {"summary": {"ne": "x"}},
    {"summary": {"nin": ["x", "y"]}},
    {"summary": {"in": ["x", None]}},
    {"summary": {"exists": False}},
    {"text_content": {"contains": "the rep"}},
    {"importance": 0.5},
    {"importance": {"gte": 0.5, "lt": 1}},
    {"created_at": NOON},
    {"created_at": NOON.astimezone(timezone(timedelta(hours=5)))},
    {"created_at": "2024-05-01T14:00:00+02:00"},
    {"updated_at": {"gt": NOON}},
    {"expires_at": None},
    {"content.status": "open"},
    {"content.owner.name": "Ada"},
    {"content.owner.0": "zero"},
    {"content.priority": 3.0},
    {"content.priority": {"gt": 2.5, "lt": 2**63 - 1}},
    {"content.one": {"ne": True}},
    {"content.done": False},
    {"content.done": {"ne": 0}},
    {"content.nothing": None},
    {"content.nothing": {"exists": False}},
    {"content.nothing": {"ne": 1}},
    {"content.absent.deeper": None},
    {"content.status.deeper": None},
    {"content.labels": {"contains": 1.0}},
    {"content.labels": {"contains": True}},
    {"content.labels": {"exists": True}},
    {"content.labels": {"ne": "a"}},
    {"content.owner": {"exists": True}},
    {"content.status": {"contains": ""}},
    {"content.status": {"nin": [1, True, "closed", None]}},
    _path("a.b", value="dotted"),
    _path("", value="empty"),
    _path("q\"\\'", value="quoted"),
    {"path": ["importance"], "op": "gte", "value": 0.5},
    {"not": {"content.status": "closed"}},
    {"or": [{"context_type": "note"}, {"content.priority": 3}]},
    {"and": [{"context_type": "task"}, {"not": {"and": [{"importance": 1}, {"importance": 0.5}]}}]},
]

FALSE: list[dict[str, Any]] = [
    {"context_type": "Task"},
    {"context_type": {"prefix": "T"}},
    {"context_type": "task", "importance": 0.4},
    {"tags": {"contains": "urg"}},
    {"summary": {"gt": ""}},
    {"summary": {"contains": ""}},
    {"summary": {"prefix": ""}},
    {"importance": {"ne": 0.5}},
    {"importance": None},
    {"created_at": {"gt": NOON}},
    {"expires_at": {"lt": NOON}},
    {"content.priority": "3"},
    {"content.priority": {"gt": "2"}},
    {"content.status": {"gt": 1}},
    {"content.one": True},
    {"content.done": 0},
    {"content.done": {"lt": 5}},
    {"content.nothing": {"lt": 5}},
    {"content.absent": {"contains": "a"}},
    {"content.labels": {"contains": "x"}},
    {"content.labels": {"contains": 0}},
    {"content.labels": {"prefix": "a"}},
    {"content.labels.0": "a"},
    {"content.owner": {"contains": "Ada"}},
    {"content.a.b": "dotted"},
    {"content.priority": {"contains": 3}},
]


@pytest.mark.parametrize("where", TRUE, ids=repr)
def test_a_filter_lets_pass_what_it_describes(where: dict[str, object]) -> None:
    assert _passes(where)
    assert not _passes({"not": where})


@pytest.mark.parametrize("where", FALSE, ids=repr)
def test_a_filter_holds_back_what_it_does_not_describe(where: dict[str, object]) -> None:
    assert not _passes(where)
    assert _passes({"not": where})


def test_no_filter_lets_everything_pass() -> None:
    assert _passes(None)


def test_a_node_without_tags_has_them_absent() -> None:
    bare = replace(NODE, tags=())
    assert _passes({"tags": {"exists": False}}, bare)
    assert not _passes({"tags": {"contains": "urgent"}}, bare)


def test_integers_beyond_53_bits_are_told_apart() -> None:
    node = replace(NODE, content={"n": 2**53 + 1, "f": float(2**53)})
    assert not _passes({"content.n": float(2**53)}, node)
    assert _passes({"content.n": {"gt": float(2**53)}, "content.f": {"lt": 2**53 + 1}}, node)


def test_the_builder_says_what_the_dict_says() -> None:
    built = (
        field("context_type").eq("task")
        & (field("importance") >= 0.5)
        & (field("importance") < 1)
        & ~(field("content.priority") > 3)
        & (field("content", "a.b").prefix("dot") | (field("updated_at") <= NOON))
        & field("tags").contains("urgent")
        & field("content.status").is_in(["open", None])
        & field("content.status").not_in(["closed"])
        & field("summary").ne("x")
        & field("session_id").exists()
    )
    written: dict[str, object] = {
        "and": [
            {"context_type": "task"},
            {"importance": {"gte": 0.5}},
            {"importance": {"lt": 1}},
            {"not": {"content.priority": {"gt": 3}}},
            {"or": [_path("a.b", op="prefix", value="dot"), {"updated_at": {"lte": NOON}}]},
            {"tags": {"contains": "urgent"}},
            {"content.status": {"in": ["open", None]}},
            {"content.status": {"nin": ["closed"]}},
            {"summary": {"ne": "x"}},
            {"session_id": {"exists": True}},
        ]
    }
    assert parse(built) == parse(written)
    assert _passes(built)


def test_built_parts_stand_in_a_dict() -> None:
    assert parse({"or": [field("importance") > 1, {"key": None}]}) == parse(
        (field("importance") > 1) | field("key").eq(None)
    )


def test_a_long_chain_of_one_operator_is_no_nesting() -> None:
    chain = field("content.n").eq(0)
    for number in range(1, 256):
        chain |= field("content.n").eq(number)
    assert not _passes(chain)
    with pytest.raises(InvalidInput):
        parse(chain | chain)


def _nested(levels: int) -> dict[str, object]:
    where: dict[str, object] = {"key": "x"}
    for _ in range(levels):
        where = {"not": where}
    return where


def test_limits_hold_to_the_last_one() -> None:
    parse(_nested(16))
    parse({"and": [{"key": "x"}] * 256})
    parse({"content.a": {"in": list(range(1000))}})
    parse(_path(*["k"] * 64, value=1))
    parse({"key": "x" * 65536})


_circle: dict[str, object] = {}
_circle["or"] = [_circle, _circle]

REFUSED: list[tuple[object, str]] = [
    ({}, "where"),
    ([], "where"),
    ("key", "where"),
    (field, "where"),
    ({"and": []}, "where.and"),
    ({"or": {}}, "where.or"),
    ({"or": [{"key": "x"}, {}]}, "where.or[1]"),
    ({"or": [None]}, "where.or[0]"),
    ({"not": None}, "where.not"),
    ({"not": [{"key": "x"}]}, "where.not"),
    (_nested(17), "where" + ".not" * 17),
    (_circle, "where" + ".or[0]" * 17),
    ({"and": [{"key": "x"}] * 257}, "where.and"),
    ({"and": [{"and": [{"key": "x"}] * 200}] * 2}, "where.and[1].and[56].key"),
    ({1: 2}, "where"),
    ({"user_id": "x"}, "where.user_id"),
    ({"deleted_at": None}, "where.deleted_at"),
    ({"Key": "x"}, "where.Key"),
    ({"x') or '1'='1": 1}, "where.?"),
    ({"content": {"a": 1}}, "where.content"),
    ({"content": None}, "where.content"),
    ({"content.": 1}, "where.content.?"),
    ({"content..a": 1}, "where.content.?.a"),
    ({"key.a": 1}, "where.key.a"),
    ({"content.a\0": 1}, "where.content.?"),
    ({"key": {}}, "where.key"),
    ({"key": {"$where": 1}}, "where.key.?"),
    ({"key": {"regex": "("}}, "where.key.regex"),
    ({"key": {"EQ": "x"}}, "where.key.EQ"),
    ({"key": {None: "x"}}, "where.key.?"),
    ({"key": 5}, "where.key"),
    ({"key": "a\0"}, "where.key"),
    ({"key": "a\ud800"}, "where.key"),
    ({"key": "x" * 65537}, "where.key"),
    ({"key": ["x"]}, "where.key"),
    ({"key": {"eq": {"a": 1}}}, "where.key.eq"),
    ({"key": {"in": []}}, "where.key.in"),
    ({"key": {"in": "abc"}}, "where.key.in"),
    ({"key": {"in": {"a"}}}, "where.key.in"),
    ({"key": {"in": ["a", 5]}}, "where.key.in[1]"),
    ({"key": {"nin": ["a"] * 1001}}, "where.key.nin"),
    ({"content.a": {"in": [[1]]}}, "where.content.a.in[0]"),
    ({"key": {"exists": 1}}, "where.key.exists"),
    ({"key": {"exists": None}}, "where.key.exists"),
    ({"key": {"prefix": None}}, "where.key.prefix"),
    ({"tags": "x"}, "where.tags"),
    ({"tags": None}, "where.tags"),
    ({"tags": {"in": ["x"]}}, "where.tags.in[0]"),
    ({"tags": {"prefix": "x"}}, "where.tags.prefix"),
    ({"tags": {"contains": 1}}, "where.tags.contains"),
    ({"importance": "0.5"}, "where.importance"),
    ({"importance": True}, "where.importance"),
    ({"importance": float("nan")}, "where.importance"),
    ({"importance": {"contains": 1}}, "where.importance.contains"),
    ({"created_at": 5}, "where.created_at"),
    ({"created_at": datetime(2024, 1, 1)}, "where.created_at"),  # noqa: DTZ001 - the case
    ({"created_at": "2024-01-01"}, "where.created_at"),
    ({"created_at": "yesterday"}, "where.created_at"),
    ({"created_at": {"prefix": "2024"}}, "where.created_at.prefix"),
    ({"content.a": float("inf")}, "where.content.a"),
    ({"content.a": 2**63}, "where.content.a"),
    ({"content.a": NOON}, "where.content.a"),
    ({"content.a": b"x"}, "where.content.a"),
    ({"content.a": {"gt": None}}, "where.content.a.gt"),
    ({"content.a": {"gt": True}}, "where.content.a.gt"),
    ({"content.a": {"prefix": 1}}, "where.content.a.prefix"),
    ({"content.a": {"contains": None}}, "where.content.a.contains"),
    ({"path": ["content", "a"], "op": "eq"}, "where"),
    ({"path": ["content", "a"], "op": "eq", "value": 1, "key": "x"}, "where"),
    ({"path": ["content", "a"], "op": "like", "value": 1}, "where.value"),
    ({"path": ["content", "a"], "op": ["eq"], "value": 1}, "where.value"),
    ({"path": ["content"], "op": "eq", "value": 1}, "where.path"),
    ({"path": [], "op": "eq", "value": 1}, "where.path"),
    ({"path": ["content", 0], "op": "eq", "value": 1}, "where.path"),
    ({"path": "content.a", "op": "eq", "value": 1}, "where.path"),
    ({"path": ["nodes"], "op": "eq", "value": 1}, "where.path"),
    (_path(*["k"] * 65, value=1), "where.path"),
]


@pytest.mark.parametrize(("where", "place"), REFUSED, ids=range(len(REFUSED)))
def test_a_doubtful_filter_is_refused_and_the_place_named(where: Mapping[str, object], place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(where)
    assert caught.value.field == place
