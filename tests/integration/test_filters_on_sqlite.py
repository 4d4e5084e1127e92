"""SQLite gives the rows that the same filter lets pass in memory: one meaning on both."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_memory.changes import searchable_text
from hybrid_memory.clock import to_us
from hybrid_memory.filters import Predicate, matches, parse, to_sqlite
from hybrid_memory.graph import JsonValue, MemoryNode, NodeId
from hybrid_memory.jsontext import encode
from hybrid_memory.sqlite.driver import choose_driver
from tests.unit.test_filters import FALSE, NODE, NOON, TRUE

HOSTILE_KEYS = [
    "a",
    "b",
    "a.b",
    'a"b',
    "$x",
    "$",
    "0",
    "[0]",
    "#-1",
    "",
    " ",
    "'",
    '"',
    "\\",
    '\\"',
    "\\u0061",
    "\n",
    "\t\x01",
    "\x7f",
    "e\u0301",
    "\u00e9",
    "\u2028",
    "\U0001f600",
    "/",
    "*",
    "a]",
    "--",
    "; drop table nodes",
    "A",
]

STRINGS = st.sampled_from(
    [
        "",
        "a",
        "ab",
        "A",
        "b",
        "5",
        "1",
        "true",
        "null",
        "%",
        "_",
        "a%b",
        "'",
        '"',
        "\\",
        "\n",
        "\u00e9",
        "e\u0301",
        "\uffff",
        "\U0001f600",
        "\U0001f600x",
        "x' or 1=1",
        "[]",
        "{}",
    ]
)
NUMBERS = st.sampled_from(
    [
        0,
        1,
        -1,
        5,
        2**53,
        2**53 + 1,
        2**63 - 1,
        -(2**63),
        0.0,
        -0.0,
        1.0,
        0.1,
        0.5,
        5.0,
        1e22,
        1e300,
        5e-324,
        float(2**53),
        float(2**63),
        -1e-7,
        123456789012345680.0,
    ]
)
FREE_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
# Few values that are easily mistaken for each other, so that a test often meets what it is about.
ALIKE: st.SearchStrategy[bool | float | str] = st.sampled_from(
    [0, 1, 1.0, -0.0, True, False, "1", "0", "true", "[1]", "", "a"]
)
SCALARS: st.SearchStrategy[bool | float | str] = ALIKE | ALIKE | st.booleans() | NUMBERS | STRINGS | FREE_FLOATS
KEYS = st.sampled_from([*["a"] * 6, "b", "b", "a.b", 'a"b', "$x", "0", "[0]", "", "\\", "é"])
DOCUMENTS: st.SearchStrategy[dict[str, JsonValue]] = st.dictionaries(
    KEYS,
    st.recursive(
        st.none() | SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=5,
)
NAMES = st.sampled_from(["a", "ab", "B", "5", "caf\u00e9", "\U0001f600", "a%", "a_", '"'])
TIMES = st.integers(-2, 2).map(lambda offset: NOON + timedelta(microseconds=offset))
IMPORTANCES = st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.floats(0, 1).map(abs)


@st.composite
def nodes(draw: st.DrawFn) -> MemoryNode:
    maybe = st.none() | NAMES
    return MemoryNode(
        node_id=NodeId(""),
        user_id="alice",
        namespace=draw(NAMES),
        key=draw(maybe),
        context_type=draw(NAMES),
        content=draw(DOCUMENTS),
        summary=draw(st.none() | STRINGS),
        tags=tuple(draw(st.lists(NAMES, max_size=3, unique=True))),
        importance=draw(IMPORTANCES),
        entity_system=draw(maybe),
        entity_id=draw(maybe),
        entity_type=draw(maybe),
        session_id=draw(maybe),
        source_agent=draw(maybe),
        created_at=draw(TIMES),
        updated_at=draw(TIMES),
        expires_at=draw(st.none() | TIMES),
        rev=0,
    )


def _tests(target: dict[str, object], scalars: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    listed = st.lists(st.none() | scalars, min_size=1, max_size=4)
    return st.one_of(
        st.tuples(st.sampled_from(["eq", "ne"]), st.none() | scalars),
        st.tuples(st.sampled_from(["in", "nin"]), listed),
        st.tuples(st.just("exists"), st.booleans()),
    ).map(lambda test: {**target, "op": test[0], "value": test[1]})


def _ordered(target: dict[str, object], scalars: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.tuples(st.sampled_from(["gt", "gte", "lt", "lte"]), scalars).map(
        lambda test: {**target, "op": test[0], "value": test[1]}
    )


def _found(
    target: dict[str, object], op: str, scalars: st.SearchStrategy[object]
) -> st.SearchStrategy[dict[str, object]]:
    return scalars.map(lambda value: {**target, "op": op, "value": value})


def _of_column(name: str, scalars: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    target: dict[str, object] = {"path": [name]}
    return _tests(target, scalars) | _ordered(target, scalars)


def _of_text(name: str) -> st.SearchStrategy[dict[str, object]]:
    target: dict[str, object] = {"path": [name]}
    values = NAMES | STRINGS
    return _of_column(name, values) | _found(target, "contains", values) | _found(target, "prefix", values)


def _of_content(keys: list[str]) -> st.SearchStrategy[dict[str, object]]:
    target: dict[str, object] = {"path": ["content", *keys]}
    return st.one_of(
        _tests(target, SCALARS),
        _ordered(target, SCALARS.filter(lambda value: type(value) is not bool)),
        _found(target, "contains", SCALARS),
        _found(target, "prefix", STRINGS),
    )


TEXT_COLUMNS = [
    "namespace",
    "key",
    "context_type",
    "summary",
    "entity_system",
    "entity_id",
    "entity_type",
    "session_id",
    "source_agent",
    "text_content",
]
TESTS: st.SearchStrategy[dict[str, object]] = st.one_of(
    *[st.lists(KEYS, min_size=1, max_size=2).flatmap(_of_content)] * 3,
    st.sampled_from(TEXT_COLUMNS).flatmap(_of_text),
    _of_column("importance", IMPORTANCES | NUMBERS),
    st.sampled_from(["created_at", "updated_at", "expires_at"]).flatmap(lambda name: _of_column(name, TIMES)),
    _found({"path": ["tags"]}, "contains", NAMES),
    _found({"path": ["tags"]}, "exists", st.booleans()),
)
FILTERS: st.SearchStrategy[Mapping[str, object]] = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"or": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    module = choose_driver().module
    opened = module.connect(":memory:", isolation_level=None, check_same_thread=True, uri=False)
    with closing(opened) as connection:
        connection.executescript((files("hybrid_memory.schemas") / "sqlite" / "0001_hot_tier.sql").read_text())
        yield connection


def _fill(database: sqlite3.Connection, held: list[MemoryNode]) -> None:
    database.execute("delete from nodes")
    for row_id, node in enumerate(held):
        row: dict[str, object] = {
            "row_id": row_id,
            "user_no": 1,
            "node_id": str(row_id),
            "namespace": node.namespace,
            "key": node.key,
            "context_type": node.context_type,
            "content": encode(node.content),
            "row_hash": "",
            "text_content": searchable_text(node.content),
            "summary": node.summary,
            "tags": encode(node.tags),
            "importance": node.importance,
            "entity_system": node.entity_system,
            "entity_id": node.entity_id,
            "entity_type": node.entity_type,
            "session_id": node.session_id,
            "source_agent": node.source_agent,
            "created_at": to_us(node.created_at),
            "updated_at": to_us(node.updated_at),
            "expires_at": None if node.expires_at is None else to_us(node.expires_at),
            "stamp": 0,
            "rev": 0,
        }
        marks = ", ".join("?" * len(row))
        database.execute(f"insert into nodes ({', '.join(row)}) values ({marks})", list(row.values()))


def _verdicts(database: sqlite3.Connection, predicate: Predicate) -> list[object]:
    sql, binds = to_sqlite(predicate)
    assert sql.count("?") == len(binds)
    return [verdict for (verdict,) in database.execute(f"select {sql} from nodes n order by row_id", binds)]


@settings(max_examples=120, deadline=None)
@given(st.lists(nodes(), min_size=1, max_size=5), st.lists(FILTERS, min_size=1, max_size=8))
def test_random_filters_give_the_same_rows_in_memory_and_on_sqlite(
    database: sqlite3.Connection, held: list[MemoryNode], wheres: list[Mapping[str, object]]
) -> None:
    _fill(database, held)
    for where in wheres:
        predicate = parse(where)
        assert _verdicts(database, predicate) == [int(matches(predicate, node)) for node in held]


_STRINGS = ["", "0", "1", "true", "a", "A", "ab", "[1]", "{}", "\uffff", "\U0001f600"]
OPERANDS: list[bool | float | str] = [True, False, 0, 1, 1.0, -0.0, 2**53 + 1, float(2**53), 0.5, *_STRINGS]
STORED: list[JsonValue] = [None, [], {}, [1], ["1"], [True], [None, "a", 0.0], [["a"]], {"a": "a"}, {"0": 1}, *OPERANDS]


@pytest.mark.parametrize("op", ["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "contains", "prefix"])
def test_each_operator_agrees_on_every_pair_of_values(database: sqlite3.Connection, op: str) -> None:
    held = [replace(NODE, content={"a": value}) for value in STORED] + [replace(NODE, content={})]
    _fill(database, held)
    for operand in OPERANDS:
        if (op == "prefix" and not isinstance(operand, str)) or (
            op in {"gt", "gte", "lt", "lte"} and type(operand) is bool
        ):
            continue
        predicate = parse({"content.a": {op: [operand, None] if op in {"in", "nin"} else operand}})
        assert _verdicts(database, predicate) == [int(matches(predicate, node)) for node in held]


@pytest.mark.parametrize("where", TRUE + FALSE, ids=repr)
def test_every_case_of_the_language_holds_on_sqlite(database: sqlite3.Connection, where: dict[str, object]) -> None:
    _fill(database, [NODE, replace(NODE, tags=(), content={})])
    expected = [int(matches(parse(where), node)) for node in (NODE, replace(NODE, tags=(), content={}))]
    assert _verdicts(database, parse(where)) == expected


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=range(len(HOSTILE_KEYS)))
def test_a_key_means_itself_whatever_it_looks_like(database: sqlite3.Connection, key: str) -> None:
    others: dict[str, JsonValue] = {other: {"in": "other", "list": ["other"]} for other in HOSTILE_KEYS if other != key}
    with_key = replace(NODE, content={**others, key: {"in": "hit", "list": ["hit"]}})
    _fill(database, [with_key, replace(NODE, content=others)])
    for keys, op, value in (([key, "in"], "eq", "hit"), ([key, "list"], "contains", "hit"), ([key], "exists", True)):
        assert _verdicts(database, parse({"path": ["content", *keys], "op": op, "value": value})) == [1, 0]


@settings(max_examples=300, deadline=None)
@given(FREE_FLOATS)
def test_a_float_is_told_from_its_neighbours(database: sqlite3.Connection, value: float) -> None:
    around: list[JsonValue] = [math.nextafter(value, -math.inf), value, math.nextafter(value, math.inf)]
    held = [replace(NODE, content={"a": one}) for one in around if isinstance(one, float) and math.isfinite(one)]
    _fill(database, held)
    for test in ({"eq": value}, {"in": [value, "x", 7e77]}, {"gt": value}, {"lte": value}):
        predicate = parse({"content.a": test})
        assert _verdicts(database, predicate) == [int(matches(predicate, node)) for node in held]


def test_the_largest_filter_fits_into_one_statement(database: sqlite3.Connection) -> None:
    many: list[object] = [*range(500), *map(str, range(499)), None]
    where: dict[str, object] = {"or": [{"content.absent": {"nin": many}}, *[{"content.status": {"in": many}}] * 255]}
    for _ in range(15):
        where = {"not": where}
    _fill(database, [NODE])
    predicate = parse(where)
    assert _verdicts(database, predicate) == [int(matches(predicate, NODE))]


def test_an_entity_is_found_through_its_index(database: sqlite3.Connection) -> None:
    sql, binds = to_sqlite(parse({"entity_system": "crm", "entity_id": "7"}))
    plan = database.execute(f"explain query plan select * from nodes n where n.user_no = 1 and {sql}", binds).fetchall()
    assert "nodes_by_entity (user_no=? AND entity_system=? AND entity_id=?)" in str(plan)
