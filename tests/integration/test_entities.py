"""An entity is one node for each (user, system, id); storing it again merges field by field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager, InvalidInput, UserMemory
from hybrid_memory.clock import entity_node_id
from hybrid_memory.graph import JsonValue

CUSTOMER = ("crm", "cust-7", "customer")


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[HybridMemoryManager]:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        yield manager


@pytest.fixture
async def ann(manager: HybridMemoryManager) -> UserMemory:
    return await manager.ensure_user_memories("ann")


async def _data(memory: UserMemory, node_id: str) -> JsonValue:
    node = await memory.get(node_id)
    assert node is not None
    return node.content["entity_data"]


async def test_an_entity_is_stored_with_what_names_it(ann: UserMemory) -> None:
    receipt = await ann.store_entity(*CUSTOMER, {"city": "Oslo"}, name="Nordlicht AS")
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert node.node_id == entity_node_id("ann", "crm", "cust-7")
    assert (node.context_type, node.namespace, node.key) == ("domain_entity", "default", None)
    assert (node.entity_system, node.entity_id, node.entity_type) == CUSTOMER
    assert node.content == {
        "entity_system": "crm",
        "entity_id": "cust-7",
        "entity_type": "customer",
        "entity_name": "Nordlicht AS",
        "entity_data": {"city": "Oslo"},
    }


async def test_storing_it_again_merges(ann: UserMemory) -> None:
    first = await ann.store_entity(
        *CUSTOMER, {"city": "Oslo", "seats": 5, "old": 1, "plan": {"a": 1, "b": 2}}, name="N"
    )
    again = await ann.store_entity(*CUSTOMER, {"city": "Bergen", "old": None, "plan": {"b": None, "c": 3}, "tags": [1]})
    assert first.node_id == again.node_id
    expected = {"city": "Bergen", "seats": 5, "plan": {"a": 1, "c": 3}, "tags": [1]}
    assert await _data(ann, first.node_id) == expected
    node = await ann.get(first.node_id)
    assert node is not None
    assert node.content["entity_name"] == "N"
    assert len((await ann.list()).items) == 1


async def test_lists_are_replaced_as_a_whole(ann: UserMemory) -> None:
    receipt = await ann.store_entity(*CUSTOMER, {"phones": ["1", "2"]})
    await ann.store_entity(*CUSTOMER, {"phones": ["3"]})
    assert await _data(ann, receipt.node_id) == {"phones": ["3"]}


async def test_a_null_removes_and_is_never_stored(ann: UserMemory) -> None:
    receipt = await ann.store_entity(*CUSTOMER, {"a": None, "b": {"c": None, "d": 1}})
    assert await _data(ann, receipt.node_id) == {"b": {"d": 1}}


async def test_the_type_of_an_entity_may_change(ann: UserMemory) -> None:
    receipt = await ann.store_entity("crm", "7", "lead", {})
    await ann.store_entity("crm", "7", "customer", {})
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert (node.entity_type, node.content["entity_type"]) == ("customer", "customer")


async def test_writers_at_the_same_time_lose_no_field(ann: UserMemory) -> None:
    receipts = await asyncio.gather(*(ann.store_entity(*CUSTOMER, {f"f{n}": n}) for n in range(20)))
    assert len({receipt.node_id for receipt in receipts}) == 1
    assert await _data(ann, receipts[0].node_id) == {f"f{n}": n for n in range(20)}


async def test_systems_ids_and_users_keep_entities_apart(manager: HybridMemoryManager, ann: UserMemory) -> None:
    stored = [
        await ann.store_entity("crm", "7", "customer", {}),
        await ann.store_entity("CRM", "7", "customer", {}),
        await ann.store_entity("crm", "77", "customer", {}),
        await ann.store_entity("crm7", "7", "customer", {}),
        await manager.user("bea").store_entity("crm", "7", "customer", {}),
        await ann.store({}, context_type="domain_entity", namespace="crm", key="7"),
    ]
    assert len({receipt.node_id for receipt in stored}) == len(stored)


async def test_a_deleted_entity_begins_anew(ann: UserMemory) -> None:
    receipt = await ann.store_entity(*CUSTOMER, {"old": 1}, name="Old")
    await ann.delete(receipt.node_id)
    await ann.store_entity(*CUSTOMER, {"new": 1})
    node = await ann.get(receipt.node_id)
    assert node is not None
    assert node.content["entity_data"] == {"new": 1}
    assert "entity_name" not in node.content


async def test_words_of_an_entity_follow_its_merges(ann: UserMemory) -> None:
    receipt = await ann.store_entity(*CUSTOMER, {"city": "Oslo", "note": "vip"})
    await ann.store_entity(*CUSTOMER, {"city": "Bergen"})
    assert await ann.search("oslo") == []
    assert [hit.node.node_id for hit in await ann.search("vip")] == [receipt.node_id]
    assert [hit.node.node_id for hit in await ann.search("bergen")] == [receipt.node_id]


@pytest.mark.parametrize("data", [None, [], "x", 1, (("a", 1),)])
async def test_the_data_of_an_entity_is_a_dict(ann: UserMemory, data: dict[str, JsonValue]) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ann.store_entity(*CUSTOMER, data)
    assert caught.value.field == "data"


async def test_a_fault_inside_the_data_is_named_as_the_caller_knows_it(ann: UserMemory) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ann.store_entity(*CUSTOMER, {"a": [{"b": float("nan")}]})
    assert caught.value.field == "data.a[0].b"
    with pytest.raises(InvalidInput) as caught:
        await ann.store_entity(*CUSTOMER, {"a": "x" * 2**20})
    assert caught.value.field == "data"
