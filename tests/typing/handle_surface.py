"""The types of a user's handle, of what it gives, and of filters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import assert_type

from hybrid_memory import (
    Digest,
    Filter,
    Freshness,
    Hit,
    MemoryNode,
    Neighbour,
    NodeId,
    Page,
    Receipt,
    Relationship,
    RelationshipId,
    UserMemory,
    field,
)
from hybrid_memory.filters import Where
from hybrid_memory.graph import Direction, JsonValue


async def writes(memory: UserMemory, node: MemoryNode) -> None:
    stored = await memory.store(
        {"text": "tea", "n": 1, "x": None, "deep": [{"a": [True, 1.5]}]},
        context_type="fact",
        namespace="notes",
        key="k",
        tags=["a"],
        summary=None,
        importance=0.5,
        ttl=timedelta(days=1),
        expected_rev=0,
        wait=0,
    )
    assert_type(stored, Receipt)
    # What was read can be stored again as it is.
    assert_type(await memory.store(node.content, context_type=node.context_type, node_id=node.node_id), Receipt)
    assert_type(await memory.store_entity("crm", "7", "customer", node.content, name="N"), Receipt)
    assert_type(await memory.relate(node.node_id, stored.node_id, "led_to", properties=node.content), Receipt)
    assert_type(await memory.delete(node.node_id), Receipt)
    assert_type(await memory.barrier(memory.token(), wait=1.0), bool)


async def reads(memory: UserMemory, node_id: NodeId, direction: Direction) -> None:
    assert_type(memory.user_id, str)
    assert_type(await memory.get(node_id), MemoryNode | None)
    assert_type(await memory.get("01900000-0000-7000-8000-000000000000"), MemoryNode | None)
    assert_type(await memory.get(node_id, max_staleness=1.5), MemoryNode | None)
    assert_type(await memory.get_many([node_id]), list[MemoryNode | None])
    assert_type(await memory.get_many([node_id], max_staleness=timedelta(seconds=1)), list[MemoryNode | None])
    assert_type(await memory.list(max_staleness=timedelta(0)), Page[MemoryNode])
    assert_type(await memory.search("tea", max_staleness=None), list[Hit])
    assert_type(await memory.neighbours(node_id, max_staleness=0), list[Neighbour])
    page = await memory.list(where={"context_type": "fact"}, order="-importance", limit=5, cursor=None)
    assert_type(page, Page[MemoryNode])
    assert_type(page.items, tuple[MemoryNode, ...])
    assert_type(page.next_cursor, str | None)
    hits = await memory.search("tea", where=field("importance") >= 0.5, limit=5)
    assert_type(hits, list[Hit])
    assert_type(hits[0].node, MemoryNode)
    assert_type(hits[0].score, float)
    near = await memory.neighbours(node_id, depth=2, types={"led_to"}, direction=direction, limit=5)
    assert_type(near, list[Neighbour])
    assert_type(near[0].relationship, Relationship)
    assert_type(memory.freshness(), Freshness)
    assert_type(await memory.digest(), Digest)


def values(node: MemoryNode, relationship: Relationship, freshness: Freshness, digest: Digest) -> None:
    assert_type(node.node_id, NodeId)
    assert_type(node.content, dict[str, JsonValue])
    assert_type(node.tags, tuple[str, ...])
    assert_type(node.created_at, datetime)
    assert_type(node.expires_at, datetime | None)
    assert_type(node.key, str | None)
    assert_type(relationship.relationship_id, RelationshipId)
    assert_type(relationship.source_id, NodeId)
    assert_type(relationship.weight, float)
    assert_type(freshness.age, timedelta | None)
    assert_type(freshness.complete, bool)
    assert_type(digest.value, int)


def filters() -> Filter:
    built = field("context_type").eq("fact") & ~field("tags").contains("old") | field("content", "a.b").ne(None)
    assert_type(built, Where)
    assert_type(field("created_at") < datetime.now(UTC), Where)
    assert_type(field("importance").is_in([0.5, None]), Where)
    plain: Filter = {"or": [{"content.n": {"gte": 1}}, {"tags": {"contains": "x"}}]}
    return {"and": [plain, built]}
