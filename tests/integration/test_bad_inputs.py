"""What no tier could store or find again is refused by name, without its value, before anything happens."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import inspect
import math
import random
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from hybrid_memory import HybridMemoryManager, InvalidInput, NodeId, UserMemory, Verdict
from hybrid_memory.graph import JsonValue
from tests.plugins.postgres import Database
from tests.support.managers import both_tiers_agree, drained, opened

FACT = "conversation_fact"
CANARY = "zebrafinch"
ABSENT = NodeId("01900000-0000-7000-8000-000000000000")


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Colour(enum.IntEnum):
    RED = 1


def _nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


_circle: list[object] = [CANARY]
_circle.append(_circle)

# The rows of the catalogue, by what kind of value they are.

NO_NAMES: list[object] = [
    "",
    " ",
    f" {CANARY}",
    f"{CANARY} ",
    f"{CANARY}\n",
    f"{CANARY}\0",
    f"{CANARY}\ud800",
    f"{CANARY}\u200b",
    f"\u202e{CANARY}",
    f"{CANARY}\x07",
    f"{CANARY}\ue000",
    f"{CANARY}\u0378",
    "\u65e5" * 171,
    CANARY * 52,
    CANARY * 1_000_000,
    Text(CANARY),
    CANARY.encode(),
    5,
    True,
    1.5,
    [CANARY],
    {CANARY: CANARY},
    ABSENT.join(["{", "}" * 512]),
]
NO_IDS: list[object] = [
    None,
    "",
    CANARY,
    ABSENT.replace("-", ""),
    f"{{{ABSENT}}}",
    f"{ABSENT}\n",
    f" {ABSENT}",
    ABSENT[:-1],
    f"{ABSENT}' or '1'='1",
    5,
    True,
    ABSENT.encode(),
    Text(ABSENT),
    [ABSENT],
]
NO_JSON: list[object] = [
    math.nan,
    math.inf,
    -math.inf,
    2**63,
    -(2**63) - 1,
    10**400,
    f"{CANARY}\0",
    f"{CANARY}\ud800",
    (CANARY,),
    {CANARY},
    CANARY.encode(),
    datetime(2026, 1, 1, tzinfo=UTC),
    timedelta(1),
    Decimal(1),
    Colour.RED,
    Text(CANARY),
    Whole(1),
    Real(1.0),
    OrderedDict[str, str](),
    object(),
    {1: CANARY},
    {None: CANARY},
    {Text(CANARY): 1},
    {f"{CANARY}\0": 1},
    {f"{CANARY}\ud800": 1},
    _circle,
    _nested(64),
    _nested(10_000),
    CANARY * 200_000,
]
NO_OBJECTS: list[object] = [None, [], CANARY, 5, OrderedDict[str, str](), ((CANARY, 1),)]
NO_TEXTS: list[object] = [
    f"{CANARY}\0",
    f"{CANARY}\ud800",
    Text(CANARY),
    CANARY.encode(),
    5,
    [CANARY],
    CANARY * 200_000,
]
NO_TAGS: list[object] = [
    None,
    CANARY,
    CANARY.encode(),
    {CANARY: 1},
    5,
    [None],
    [""],
    [f"{CANARY} "],
    [f"{CANARY}\0"],
    [CANARY * 13],
    [Text(CANARY)],
    [str(number) for number in range(65)],
]
NO_LISTS_OF_NAMES: list[object] = [
    CANARY,
    CANARY.encode(),
    5,
    [],
    [""],
    [None],
    [f"{CANARY}\0"],
    ["x" * 513],
    ["x"] * 1001,
]
NO_LIMITS: list[object] = [0, -1, 1001, 2**63, True, 1.0, "1", "1; drop table nodes", None, Whole(5), math.nan]
NO_NUMBERS: list[object] = [math.nan, math.inf, -math.inf, True, None, CANARY, "1", 10**400, Real(0.5), Decimal(1), [1]]
NO_SPANS: list[object] = [
    timedelta(0),
    timedelta(seconds=-1),
    timedelta.max,
    timedelta(days=3654),
    0,
    60,
    1.5,
    True,
    CANARY,
]
# A name that is plain is told, as it says where the fault is; what it is compared to never is.
NO_FILTERS: list[object] = [
    {},
    [],
    CANARY,
    5,
    True,
    {"unknown": CANARY},
    {f"{CANARY} ": 1},
    {"user_id": CANARY},
    {"content": CANARY},
    {"content.": CANARY},
    {"context_type": {"$where": CANARY}},
    {"context_type": {"regex": CANARY}},
    {"context_type": {}},
    {"context_type": [CANARY]},
    {"context_type": {"in": []}},
    {"context_type": {"in": [CANARY] * 1001}},
    {"context_type": {"eq": {CANARY: 1}}},
    {"importance": {"gt": math.nan}},
    {"importance": CANARY},
    {"created_at": {"gt": CANARY}},
    {"created_at": {"gt": datetime(2026, 1, 1)}},  # noqa: DTZ001 - the case
    {"content.a": f"{CANARY}\0"},
    {"content.a": 2**63},
    {f"content.{CANARY}\0": 1},
    {f"x') or '1'='1 {CANARY}": 1},
    {"and": []},
    {"or": [{"content.a": object()}]},
    {5: CANARY},
]


# What a value of each kind may be handed to: each entry names the argument it fills.

Call: TypeAlias = Callable[[HybridMemoryManager, UserMemory, Any], object]


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    field: str
    values: Sequence[object] = dataclasses.field(repr=False)
    call: Call = dataclasses.field(repr=False)


def _entries(name: str, values: Sequence[object], **calls: Call) -> list[Entry]:
    return [Entry(f"{name}-{where}", name, values, call) for where, call in calls.items()]


_NAMES_OR_NONE = [None, *NO_NAMES]

ENTRIES: list[Entry] = [
    *_entries(
        "user_id",
        _NAMES_OR_NONE,
        ensure=lambda m, _, v: m.ensure_user_memories(v),
        user=lambda m, _, v: m.user(v),
        store=lambda m, _, v: m.store_persistent_memory(v, {}, FACT),
        relate=lambda m, _, v: m.persist_relationship(v, ABSENT, ABSENT, "led_to"),
        retrieve=lambda m, _, v: m.retrieve_relevant("tea", user_id=v),
        promote=lambda m, _, v: m.promote("t", ABSENT, v),
        forget=lambda m, _, v: m.forget(v),
        digest=lambda m, _, v: m.durable_digest(v),
    ),
    *_entries("namespace", _NAMES_OR_NONE, store=lambda _, u, v: u.store({}, context_type=FACT, namespace=v)),
    *_entries("key", NO_NAMES, store=lambda _, u, v: u.store({}, context_type=FACT, key=v)),
    *_entries(
        "context_type",
        _NAMES_OR_NONE,
        store=lambda _, u, v: u.store({}, context_type=v),
        persistent=lambda m, _, v: m.store_persistent_memory("ann", {}, v),
        transient=lambda m, _, v: m.store_transient_memory("t", {}, v),
    ),
    *_entries("entity_system", _NAMES_OR_NONE, store=lambda _, u, v: u.store_entity(v, "7", "customer", {})),
    *_entries("entity_id", _NAMES_OR_NONE, store=lambda _, u, v: u.store_entity("crm", v, "customer", {})),
    *_entries("entity_type", _NAMES_OR_NONE, store=lambda _, u, v: u.store_entity("crm", "7", v, {})),
    *_entries(
        "relationship_type",
        _NAMES_OR_NONE,
        relate=lambda _, u, v: u.relate(ABSENT, ABSENT, v),
        persist=lambda m, _, v: m.persist_relationship("ann", ABSENT, ABSENT, v),
    ),
    *_entries(
        "thread_id",
        _NAMES_OR_NONE,
        store=lambda m, _, v: m.store_transient_memory(v, {}, FACT),
        list=lambda m, _, v: m.transient_memories(v),
        promote=lambda m, _, v: m.promote(v, ABSENT, "ann"),
        save=lambda m, _, v: m.checkpoints.save(v, "c", {}),
        load=lambda m, _, v: m.checkpoints.load(v),
        history=lambda m, _, v: m.checkpoints.list(v),
        delete=lambda m, _, v: m.checkpoints.delete(v),
    ),
    *_entries(
        "checkpoint_id",
        NO_NAMES,
        save=lambda m, _, v: m.checkpoints.save("t", v, {}),
        load=lambda m, _, v: m.checkpoints.load("t", v),
        delete=lambda m, _, v: m.checkpoints.delete("t", v),
    ),
    *_entries("parent_id", NO_NAMES, save=lambda m, _, v: m.checkpoints.save("t", "c", {}, v)),
    *_entries(
        "node_id",
        NO_IDS,
        get=lambda _, u, v: u.get(v),
        neighbours=lambda _, u, v: u.neighbours(v),
        delete=lambda _, u, v: u.delete(v),
        promote=lambda m, _, v: m.promote("t", v, "ann"),
    ),
    *_entries("node_id", NO_IDS[1:], store=lambda _, u, v: u.store({}, context_type=FACT, node_id=v)),
    *_entries(
        "node_ids",
        NO_IDS,
        get_many=lambda _, u, v: u.get_many([ABSENT, v]),
    ),
    *_entries("node_ids", [None, 5, "", ABSENT, ABSENT.encode()], get_many_of=lambda _, u, v: u.get_many(v)),
    *_entries(
        "source_id",
        NO_IDS,
        relate=lambda _, u, v: u.relate(v, ABSENT, "led_to"),
        persist=lambda m, _, v: m.persist_relationship("ann", v, ABSENT, "led_to"),
    ),
    *_entries(
        "target_id",
        NO_IDS,
        relate=lambda _, u, v: u.relate(ABSENT, v, "led_to"),
        persist=lambda m, _, v: m.persist_relationship("ann", ABSENT, v, "led_to"),
    ),
    *_entries(
        "content",
        [*NO_OBJECTS, *({"a": value} for value in NO_JSON), *({"a": [0, value]} for value in NO_JSON)],
        store=lambda _, u, v: u.store(v, context_type=FACT),
        persistent=lambda m, _, v: m.store_persistent_memory("ann", v, FACT),
        transient=lambda m, _, v: m.store_transient_memory("t", v, FACT),
    ),
    *_entries(
        "data",
        [*NO_OBJECTS, *({"a": value} for value in NO_JSON)],
        store=lambda _, u, v: u.store_entity("crm", "7", "customer", v),
    ),
    *_entries(
        "state",
        [*NO_OBJECTS, *({"a": value} for value in NO_JSON)],
        save=lambda m, _, v: m.checkpoints.save("t", "c", v),
    ),
    *_entries(
        "properties",
        [*NO_OBJECTS[1:], *({"a": value} for value in NO_JSON)],
        relate=lambda _, u, v: u.relate(ABSENT, ABSENT, "led_to", properties=v),
        persist=lambda m, _, v: m.persist_relationship("ann", ABSENT, ABSENT, "led_to", properties=v),
    ),
    *_entries(
        "summary",
        NO_TEXTS,
        store=lambda _, u, v: u.store({}, context_type=FACT, summary=v),
        persistent=lambda m, _, v: m.store_persistent_memory("ann", {}, FACT, summary=v),
    ),
    *_entries("name", NO_TEXTS, store=lambda _, u, v: u.store_entity("crm", "7", "customer", {}, name=v)),
    *_entries(
        "text",
        [None, *NO_TEXTS],
        search=lambda _, u, v: u.search(v),
        retrieve=lambda m, _, v: m.retrieve_relevant(v, user_id="ann"),
    ),
    *_entries(
        "tags",
        NO_TAGS,
        store=lambda _, u, v: u.store({}, context_type=FACT, tags=v),
        persistent=lambda m, _, v: m.store_persistent_memory("ann", {}, FACT, tags=v),
    ),
    *_entries("types", NO_LISTS_OF_NAMES, neighbours=lambda _, u, v: u.neighbours(ABSENT, types=v)),
    *_entries(
        "context_types",
        NO_LISTS_OF_NAMES,
        retrieve=lambda m, _, v: m.retrieve_relevant("tea", user_id="ann", context_types=v),
    ),
    *_entries(
        "importance",
        [*(value for value in NO_NUMBERS if value is not None), -0.1, 1.1, 2],
        store=lambda _, u, v: u.store({}, context_type=FACT, importance=v),
    ),
    *_entries(
        "weight",
        NO_NUMBERS,
        relate=lambda _, u, v: u.relate(ABSENT, ABSENT, "led_to", weight=v),
        persist=lambda m, _, v: m.persist_relationship("ann", ABSENT, ABSENT, "led_to", weight=v),
    ),
    *_entries(
        "wait",
        [*NO_NUMBERS, -0.1, 3601],
        store=lambda _, u, v: u.store({}, context_type=FACT, wait=v),
        entity=lambda _, u, v: u.store_entity("crm", "7", "customer", {}, wait=v),
        relate=lambda _, u, v: u.relate(ABSENT, ABSENT, "led_to", wait=v),
        delete=lambda _, u, v: u.delete(ABSENT, wait=v),
        persistent=lambda m, _, v: m.store_persistent_memory("ann", {}, FACT, wait=v),
        promote=lambda m, _, v: m.promote("t", ABSENT, "ann", wait=v),
        persist=lambda m, _, v: m.persist_relationship("ann", ABSENT, ABSENT, "led_to", wait=v),
    ),
    *_entries(
        "min_relevance",
        [*NO_NUMBERS, -0.1, 1.1],
        retrieve=lambda m, _, v: m.retrieve_relevant("tea", user_id="ann", min_relevance=v),
    ),
    *_entries(
        "limit",
        NO_LIMITS,
        list=lambda _, u, v: u.list(limit=v),
        search=lambda _, u, v: u.search("tea", limit=v),
        neighbours=lambda _, u, v: u.neighbours(ABSENT, limit=v),
        retrieve=lambda m, _, v: m.retrieve_relevant("tea", user_id="ann", limit=v),
        history=lambda m, _, v: m.checkpoints.list("t", limit=v),
    ),
    *_entries(
        "depth",
        [0, -1, 9, 2**63, True, 1.0, "1", None, Whole(1)],
        neighbours=lambda _, u, v: u.neighbours(ABSENT, depth=v),
    ),
    *_entries(
        "expected_rev",
        [True, 1.0, "1", 2**63, -(2**63) - 1, Whole(1), CANARY, math.nan],
        store=lambda _, u, v: u.store({}, context_type=FACT, key="k", expected_rev=v),
    ),
    *_entries(
        "ttl",
        NO_SPANS,
        store=lambda _, u, v: u.store({}, context_type=FACT, ttl=v),
        transient=lambda m, _, v: m.store_transient_memory("t", {}, FACT, ttl=v),
    ),
    *_entries(
        "where",
        NO_FILTERS,
        list=lambda _, u, v: u.list(where=v),
        search=lambda _, u, v: u.search("tea", where=v),
    ),
    *_entries(
        "order",
        [None, "", "-", CANARY, "rev", "--created_at", "created_at desc", "+created_at", 1, Text("created_at"), ["x"]],
        list=lambda _, u, v: u.list(order=v),
    ),
    *_entries(
        "direction",
        [None, "", CANARY, "OUT", ["out"], {"out": 1}, True],
        neighbours=lambda _, u, v: u.neighbours(ABSENT, direction=v),
    ),
    *_entries("cursor", [5, b"x", True, ["x"], Text("x")], list=lambda _, u, v: u.list(cursor=v)),
    *_entries("within", [None, 5, 1.5, True, CANARY], drain=lambda m, _, v: m.drain(v)),
]


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[HybridMemoryManager]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        await manager.store_persistent_memory("ann", {"text": "tea"}, FACT)
        await manager.store_transient_memory("t", {}, FACT)
        await manager.checkpoints.save("t", "kept", {})
        yield manager


async def _held(manager: HybridMemoryManager) -> object:
    """Everything that a refused call could have changed."""
    ann = manager.user("ann")
    health = asdict(await manager.health()) | {"file_bytes": 0, "oldest_queued_seconds": 0, "index_bytes": 0}
    del health["users_open"]
    return health, await ann.digest(), manager.transient_memories("t"), await manager.checkpoints.list("t")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
async def test_what_must_not_enter_is_refused_by_name_and_nothing_happens(
    manager: HybridMemoryManager, entry: Entry
) -> None:
    ann = manager.user("ann")
    before = await _held(manager)
    for number, value in enumerate(entry.values):
        with pytest.raises(InvalidInput) as caught:
            await _awaited(entry.call(manager, ann, value))
        error = caught.value
        place = error.field.partition(".")[0].partition("[")[0]
        assert place == entry.field, f"value {number} was refused as {error.field}"
        told = "".join(traceback.format_exception(error)) + repr(error) + error.fix
        assert CANARY not in told, f"value {number} is repeated"
        assert len(str(error)) < 1000
    assert await _held(manager) == before


async def _awaited(result: object) -> None:
    if inspect.isawaitable(result):
        await result


async def test_the_first_fault_refuses_a_list_as_a_whole(manager: HybridMemoryManager) -> None:
    ann = manager.user("ann")
    with pytest.raises(InvalidInput) as caught:
        await ann.get_many([ABSENT, CANARY, ABSENT])
    assert caught.value.field == "node_ids[1]"


async def test_an_argument_that_is_no_name_of_any_is_a_mistake_of_the_program(manager: HybridMemoryManager) -> None:
    ann: Any = manager.user("ann")
    with pytest.raises(TypeError):
        await ann.store({}, FACT)
    with pytest.raises(TypeError):
        await ann.list(offset=5)


# What enters must be taken by Postgres too: what is acknowledged can no longer be refused.


def _wide(length: int, seed: int) -> str:
    """Characters of three bytes that no compression shortens."""
    chance = random.Random(seed)
    return "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(length))


_EXTREME_NAMES = [
    "%",
    "_",
    "*",
    "..",
    "a/../b",
    "alice' or '1'='1",
    '"; drop table memory.nodes; --',
    "a,b{}\\",
    "\u0130stanbul \u00df",
    "x" * 512,
    _wide(170, 1),
    "\U0001f600" * 128,
]


async def test_extreme_names_are_taken_by_postgres(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path) as manager:
        for number, name in enumerate(_EXTREME_NAMES):
            user = await manager.ensure_user_memories(name)
            wide = _wide(170, number + 10)
            stored = await user.store({}, context_type=name, namespace=name, key=wide, wait=0)
            entity = await user.store_entity(name, wide, name, {}, name=name, wait=0)
            await user.relate(stored.node_id, entity.node_id, name, properties={name: name}, wait=0)
            await user.store({}, context_type=FACT, tags=[name[:32], wide[:42]], summary=name, wait=0)
        await drained(manager)
        assert manager.queue().dead_letters == 0
        for name in _EXTREME_NAMES:
            await both_tiers_agree(manager, manager.user(name))


_EXTREME_CONTENT: dict[str, dict[str, JsonValue]] = {
    "empty": {},
    "a megabyte": {"a": "x" * (2**20 - 8)},
    "a megabyte of different words": {"a": " ".join(f"w{n:x}" for n in range(149_000))},
    "a megabyte of wide characters": {"a": _wide(349_000, 3)},
    "a word of 3,000 characters": {"a": "w" * 3000},
    "every character that may be": {"a": "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x10000)]))},
    "numbers": {"a": [1e22, 1e300, -0.0, 5e-324, 2**63 - 1, -(2**63), 1.7976931348623157e308]},
    "a deep nest": {"a": [[[[[[[[[[{"b": {"c": {"d": {}}}}]]]]]]]]]]},
    "many keys": {str(n): n for n in range(20_000)},
    "strange keys": {"": 1, " ": 2, "a.b": 3, '"': 4, "$": 5, "\\u0000": 6, "e\u0301": 7, "\u00e9": 8},
    "escapes": {"a": "\\u0000 \\ud800 \\ \x01\x1f\x7f\u2028\ufeff\ufffe\uffff"},
}


async def test_extreme_contents_are_taken_by_postgres_and_come_back_the_same(
    postgres: Database, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "one") as one, opened(postgres, tmp_path / "two") as two:
        ann = await one.ensure_user_memories("ann")
        ids = {
            name: (await ann.store(content, context_type=FACT, wait=0)).node_id
            for name, content in _EXTREME_CONTENT.items()
        }
        await ann.relate(ids["empty"], ids["empty"], "led_to", weight=1e308, properties=_EXTREME_CONTENT["numbers"])
        await ann.relate(ids["empty"], ids["numbers"], "led_to", weight=-5e-324)
        await ann.store({}, context_type=FACT, ttl=timedelta(days=3653), importance=5e-324, wait=0)
        await ann.store(
            {}, context_type=FACT, summary="s" * 2**16, tags=[f"{n}{_wide(42, n)}"[:42] for n in range(64)], wait=0
        )
        await drained(one, seconds=60)
        assert one.queue().dead_letters == 0
        seen = await two.ensure_user_memories("ann")
        for name, content in _EXTREME_CONTENT.items():
            node = await seen.get(ids[name])
            assert node is not None, name
            assert node.content == content, name
        assert await seen.digest() == await ann.digest() == await two.durable_digest("ann")


async def test_the_last_of_several_writes_of_one_key_stands_in_both_tiers(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path) as manager:
        ann = await manager.ensure_user_memories("ann")
        receipts = await asyncio.gather(*(ann.store({"n": n}, context_type=FACT, key="k", wait=0) for n in range(30)))
        outcomes = [await receipt.durable(20) for receipt in receipts]
        assert {outcome.verdict for outcome in outcomes} == {Verdict.APPLIED}
        node = await ann.get(receipts[0].node_id)
        assert node is not None
        assert node.content == {"n": 29}
        await both_tiers_agree(manager, ann)
