"""The handle of one user: what is stored is read back to the letter, at once, and by nobody else."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from pathlib import Path

import pytest

from hybrid_memory import Conflict, HybridMemoryManager, InvalidInput, NotFound, Settings, Status, UserMemory
from hybrid_memory.clock import keyed_node_id
from hybrid_memory.errors import Backpressure
from hybrid_memory.graph import JsonValue
from tests.support.clocks import NOON, HandClock

FACT = "conversation_fact"
ABSENT = "01900000-0000-7000-8000-000000000000"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def manager(tmp_path: Path, clock: HandClock) -> AsyncIterator[HybridMemoryManager]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, clock=clock) as manager:
        yield manager


@pytest.fixture
async def ann(manager: HybridMemoryManager) -> UserMemory:
    return await manager.ensure_user_memories("ann")


@pytest.fixture
async def bea(manager: HybridMemoryManager) -> UserMemory:
    return await manager.ensure_user_memories("bea")


# Storing and reading


async def test_a_memory_is_read_as_it_was_stored(ann: UserMemory) -> None:
    receipt = await ann.store(
        {"text": "likes tea"},
        context_type=FACT,
        namespace="notes",
        tags=("b", "a", "b"),
        summary="tea",
        importance=0.75,
        ttl=timedelta(hours=1),
    )
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert (node.node_id, node.user_id, node.namespace, node.key) == (receipt.node_id, "ann", "notes", None)
    assert (node.context_type, node.content, node.summary) == (FACT, {"text": "likes tea"}, "tea")
    assert (node.tags, node.importance, node.rev) == (("b", "a"), 0.75, 0)
    assert node.created_at == node.updated_at == NOON
    assert node.expires_at == NOON + timedelta(hours=1)
    assert node.created_at.tzinfo is UTC
    assert (node.entity_system, node.entity_id, node.entity_type, node.session_id, node.source_agent) == (None,) * 5


async def test_what_is_left_out_has_the_usual_values(ann: UserMemory) -> None:
    node = await ann.get((await ann.store({}, context_type=FACT)).node_id)
    assert node is not None
    assert (node.namespace, node.content, node.tags, node.summary, node.importance) == ("default", {}, (), None, 0.5)
    assert node.expires_at is None


async def test_a_receipt_without_postgres_says_pending(ann: UserMemory) -> None:
    receipt = await ann.store({}, context_type=FACT)
    assert (receipt.status, receipt.rev, receipt.verdict) == (Status.PENDING, None, None)
    assert uuid.UUID(receipt.node_id).version == uuid.UUID(receipt.op_id).version == 7
    with pytest.raises(TimeoutError):
        await receipt.durable(0)
    with pytest.raises(TimeoutError):
        await receipt.durable(timedelta(0))


_VALUES: list[JsonValue] = [
    None,
    True,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**53 + 1,
    0.0,
    -0.0,
    1.0,
    1e22,
    1e300,
    1.7976931348623157e308,
    5e-324,
    0.1,
    "",
    " ",
    "e\u0301 \u00e9 \u200b\u202e\ufeff",
    "\U0001f600 \u65e5\u672c \u2028\u2029",
    '\x01\x1f\x7f"\\/\b\f\n\r\t',
    "\\u0000",
    [],
    {},
    [None, [], {}, [[]]],
    {"": {'"': 1, "$": 2, "a.b": 3, "e\u0301": 4, "\u00e9": 5}},
]


@pytest.mark.parametrize("value", _VALUES, ids=repr)
async def test_a_value_comes_back_exactly(ann: UserMemory, value: JsonValue) -> None:
    receipt = await ann.store({"v": value, "in": [value]}, context_type=FACT)
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert repr(node.content) == repr({"in": [value], "v": value})


async def test_content_is_kept_up_to_its_limit_to_the_byte(tmp_path: Path) -> None:
    limited = Settings(content_bytes=1000)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, settings=limited) as manager:
        handle = manager.user("ann")
        fitting: dict[str, JsonValue] = {"a": "é" * 496}
        receipt = await handle.store(fitting, context_type=FACT)
        node = await handle.get(receipt.node_id)
        assert node is not None
        assert node.content == fitting
        with pytest.raises(InvalidInput, match="content: must be JSON of at most 1000 bytes"):
            await handle.store({"a": "é" * 496 + "x"}, context_type=FACT)


async def test_what_is_changed_after_storing_is_not_changed_in_the_memory(ann: UserMemory) -> None:
    content: dict[str, JsonValue] = {"list": [1]}
    receipt = await ann.store(content, context_type=FACT)
    content["list"] = []
    first = await ann.get(receipt.node_id)
    assert first is not None
    assert first.content == {"list": [1]}
    first.content["list"] = "changed"
    second = await ann.get(receipt.node_id)
    assert second is not None
    assert second.content == {"list": [1]}


async def test_many_are_read_in_the_order_asked(ann: UserMemory) -> None:
    ids = [(await ann.store({"n": n}, context_type=FACT)).node_id for n in range(3)]
    found = await ann.get_many([ids[2], ABSENT, ids[0], ids[2].upper()])
    assert [node and node.content["n"] for node in found] == [2, None, 0, 2]
    assert await ann.get_many([]) == []
    assert await ann.get_many(iter(ids[:1])) == [await ann.get(ids[0])]


async def test_an_id_may_be_written_in_upper_case(ann: UserMemory) -> None:
    receipt = await ann.store({"n": 1}, context_type=FACT)
    assert await ann.get(receipt.node_id.upper()) == await ann.get(receipt.node_id)


# Identity


async def test_a_node_may_be_given_an_id_and_overwritten_by_it(ann: UserMemory, clock: HandClock) -> None:
    first = await ann.store({"n": 1}, context_type=FACT, node_id=ABSENT, tags=["a"], summary="s", importance=0.9)
    clock.advance(timedelta(seconds=5))
    second = await ann.store({"n": 2}, context_type="other", node_id=ABSENT)
    assert first.node_id == second.node_id == ABSENT
    node = await ann.get(ABSENT)
    assert node is not None
    assert (node.content, node.context_type) == ({"n": 2}, "other")
    assert (node.tags, node.summary, node.importance) == (("a",), "s", 0.9)
    assert (node.created_at, node.updated_at) == (NOON, NOON + timedelta(seconds=5))


async def test_a_key_names_one_node_of_a_namespace(ann: UserMemory, bea: UserMemory) -> None:
    first = await ann.store({"n": 1}, context_type=FACT, key="home")
    again = await ann.store({"n": 2}, context_type=FACT, key="home")
    elsewhere = await ann.store({"n": 3}, context_type=FACT, key="home", namespace="work")
    others = await bea.store({"n": 4}, context_type=FACT, key="home")
    assert first.node_id == again.node_id == keyed_node_id("ann", "default", "home")
    assert len({first.node_id, elsewhere.node_id, others.node_id}) == 3
    node = await ann.get(first.node_id)
    assert node is not None
    assert (node.key, node.content) == ("home", {"n": 2})
    assert len((await ann.list()).items) == 2


async def test_keys_differ_by_case_and_not_by_the_spelling_of_a_character(ann: UserMemory) -> None:
    composed = await ann.store({}, context_type=FACT, key="caf\u00e9")
    decomposed = await ann.store({}, context_type=FACT, key="cafe\u0301")
    upper = await ann.store({}, context_type=FACT, key="CAF\u00c9")
    assert composed.node_id == decomposed.node_id != upper.node_id


async def test_an_id_and_a_key_together_are_refused(ann: UserMemory) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ann.store({}, context_type=FACT, node_id=ABSENT, key="home")
    assert caught.value.field == "node_id"
    assert (await ann.list()).items == ()


# Expectations


async def test_revision_0_is_expected_of_what_is_not_there(ann: UserMemory) -> None:
    receipt = await ann.store({"n": 1}, context_type=FACT, key="home", expected_rev=0)
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert node.content == {"n": 1}


@pytest.mark.parametrize("expected_rev", [0, 1, 7, -1])
async def test_an_expectation_fails_while_an_own_write_is_on_its_way(ann: UserMemory, expected_rev: int) -> None:
    receipt = await ann.store({"n": 1}, context_type=FACT, key="home")
    before = await ann.digest()
    with pytest.raises(Conflict) as caught:
        await ann.store({"n": 2}, context_type=FACT, key="home", expected_rev=expected_rev)
    assert (caught.value.expected_rev, caught.value.actual_rev) == (expected_rev, 0)
    assert await ann.digest() == before
    assert ann.freshness().queued == 1
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert node.content == {"n": 1}


@pytest.mark.parametrize("expected_rev", [1, -1, 2**63 - 1])
async def test_a_revision_expected_of_nothing_is_a_conflict(ann: UserMemory, expected_rev: int) -> None:
    with pytest.raises(Conflict):
        await ann.store({"n": 2}, context_type=FACT, node_id=ABSENT, expected_rev=expected_rev)
    assert (await ann.list()).items == ()
    assert ann.freshness().queued == 0


# Deleting


async def test_what_is_deleted_is_gone_at_once_everywhere(ann: UserMemory) -> None:
    kept = await ann.store({"text": "green tea"}, context_type=FACT)
    gone = await ann.store({"text": "black tea"}, context_type=FACT)
    await ann.relate(kept.node_id, gone.node_id, "relates_to")
    receipt = await ann.delete(gone.node_id)
    assert receipt.node_id == gone.node_id
    assert await ann.get(gone.node_id) is None
    assert [node.node_id for node in (await ann.list()).items] == [kept.node_id]
    assert [hit.node.node_id for hit in await ann.search("tea")] == [kept.node_id]
    assert await ann.neighbours(kept.node_id) == []
    assert (await ann.digest()).nodes == 1
    assert (await ann.digest()).relationships == 0


async def test_only_what_is_there_can_be_deleted_and_only_once(ann: UserMemory, bea: UserMemory) -> None:
    receipt = await ann.store({}, context_type=FACT)
    with pytest.raises(NotFound):
        await ann.delete(ABSENT)
    with pytest.raises(NotFound):
        await bea.delete(receipt.node_id)
    await ann.delete(receipt.node_id)
    with pytest.raises(NotFound):
        await ann.delete(receipt.node_id)
    assert ann.freshness().queued == 2


async def test_a_deleted_node_can_be_stored_again_and_begins_anew(ann: UserMemory, clock: HandClock) -> None:
    first = await ann.store({"n": 1}, context_type=FACT, key="home", tags=["old"], summary="old", importance=1.0)
    await ann.delete(first.node_id)
    clock.advance(timedelta(seconds=1))
    await ann.store({"n": 2}, context_type=FACT, key="home")
    node = await ann.get(first.node_id)
    assert node is not None
    assert (node.content, node.tags, node.summary, node.importance) == ({"n": 2}, (), None, 0.5)
    assert node.created_at == NOON + timedelta(seconds=1)


# Relating


async def test_a_relationship_needs_both_its_ends(ann: UserMemory, bea: UserMemory) -> None:
    mine = (await ann.store({}, context_type=FACT)).node_id
    others = (await bea.store({}, context_type=FACT)).node_id
    for source, target, field in (
        (ABSENT, mine, "source_id"),
        (mine, ABSENT, "target_id"),
        (mine, others, "target_id"),
    ):
        with pytest.raises(NotFound, match=field):
            await ann.relate(source, target, "led_to")
    assert (await ann.digest()).relationships == 0
    assert ann.freshness().queued == 1


async def test_relating_again_updates_and_another_type_adds(ann: UserMemory) -> None:
    one, two = [(await ann.store({"n": n}, context_type=FACT)).node_id for n in range(2)]
    receipt = await ann.relate(one, two, "led_to")
    assert receipt.node_id == one
    await ann.relate(one, two, "led_to", weight=-2.5, properties={"why": [1e22]})
    await ann.relate(one, two, "a type of mine")
    found = {n.relationship.relationship_type: n.relationship for n in await ann.neighbours(one, types=["led_to"])}
    assert (found["led_to"].weight, found["led_to"].properties) == (-2.5, {"why": [1e22]})
    assert (found["led_to"].source_id, found["led_to"].target_id, found["led_to"].user_id) == (one, two, "ann")
    assert (await ann.digest()).relationships == 2


# Freshness, digest, bounds


async def test_freshness_without_postgres_tells_what_is_queued(ann: UserMemory) -> None:
    before = ann.freshness()
    assert (before.complete, before.rev, before.age, before.queued, before.degraded) == (False, 0, None, 0, True)
    await ann.store({}, context_type=FACT)
    await ann.store({}, context_type=FACT)
    assert ann.freshness().queued == 2


async def test_a_digest_tells_two_contents_apart_and_forgets_what_is_gone(ann: UserMemory, bea: UserMemory) -> None:
    empty = await ann.digest()
    assert (empty.value, empty.nodes, empty.relationships) == (0, 0, 0)
    first = await ann.store({"n": 1}, context_type=FACT, node_id=ABSENT)
    one = await ann.digest()
    await ann.store({"n": 2}, context_type=FACT, node_id=ABSENT)
    two = await ann.digest()
    assert one.nodes == two.nodes == 1
    assert len({empty.value, one.value, two.value}) == 3
    await ann.delete(first.node_id)
    assert await ann.digest() == empty == await bea.digest()


async def test_a_full_queue_refuses_and_drops_nothing(tmp_path: Path) -> None:
    bounds = Settings(queue_entries=2)
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, settings=bounds) as manager:
        handle = manager.user("ann")
        kept = [(await handle.store({"n": n}, context_type=FACT)).node_id for n in range(2)]
        for refused in (handle.store({"n": 3}, context_type=FACT), handle.delete(kept[0])):
            with pytest.raises(Backpressure) as caught:
                await refused
            assert caught.value.retryable
        with pytest.raises(Backpressure):
            await handle.relate(kept[0], kept[1], "led_to")
        assert [node.content["n"] for node in (await handle.list()).items] == [1, 0]
        assert manager.queue().entries == 2


# Tenancy


async def test_nobody_sees_anothers_memory_by_any_way(ann: UserMemory, bea: UserMemory) -> None:
    canary = "zebrafinch"
    mine = (await ann.store({"text": canary}, context_type=canary, tags=[canary], summary=canary)).node_id
    next_to_it = (await ann.store({"text": canary}, context_type=FACT)).node_id
    await ann.relate(mine, next_to_it, "led_to")
    own = (await bea.store({"text": "own"}, context_type=FACT)).node_id
    seen = [
        await bea.get(mine),
        *await bea.get_many([mine, next_to_it]),
        *(await bea.list(limit=1000)).items,
        *(await bea.list(where={"context_type": canary})).items,
        *await bea.search(canary),
        *await bea.search(f"{canary} own"),
        *await bea.neighbours(mine),
        *await bea.neighbours(own, depth=8),
    ]
    assert canary not in repr(seen)
    assert (await bea.digest()).nodes == 1
    with pytest.raises(NotFound):
        await bea.relate(own, mine, "led_to")
    with pytest.raises(NotFound):
        await bea.delete(mine)
    assert await ann.get(mine) is not None


@pytest.mark.parametrize("other", ["Ann", "an", "ann.", "ann%", "%", "_nn", "*", "ann' or '1'='1", "a\u0304nn"])
async def test_a_user_with_a_similar_name_is_another_user(manager: HybridMemoryManager, other: str) -> None:
    mine = await manager.user("ann").store({"text": "tea"}, context_type=FACT, key="home")
    stranger = await manager.ensure_user_memories(other)
    assert await stranger.get(mine.node_id) is None
    assert (await stranger.list()).items == ()
    assert await stranger.search("tea") == []
    await stranger.store({"text": "milk"}, context_type=FACT, key="home")
    assert len((await manager.user("ann").list()).items) == 1


async def test_the_same_id_may_name_a_node_of_each_user(ann: UserMemory, bea: UserMemory) -> None:
    await ann.store({"of": "ann"}, context_type=FACT, node_id=ABSENT)
    await bea.store({"of": "bea"}, context_type=FACT, node_id=ABSENT)
    await bea.delete(ABSENT)
    node = await ann.get(ABSENT)
    assert node is not None
    assert node.content == {"of": "ann"}


async def test_users_spelt_alike_in_unicode_are_one(manager: HybridMemoryManager) -> None:
    receipt = await manager.user("zo\u00eb").store({}, context_type=FACT)
    same = manager.user("zoe\u0308")
    assert same.user_id == "zo\u00eb"
    assert await same.get(receipt.node_id) is not None
