"""How an operation's row travels: the JSON object that is frozen in the queue and read by Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import orjson

from hybrid_memory.changes import JsonObject, NodeRow, RelationshipRow, Rule
from hybrid_memory.graph import JsonValue, NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedNode:
    """A node as an operation carries it: the full row its writer wished for, and what decides a conflict."""

    row: NodeRow
    rule: Rule
    patch: str | None
    revive: bool
    absent_at: int = 0
    """The writer's copy was complete as of this revision and had no such node; 0 where that is not known."""
    patched: str | None = None
    """What the writer saw where its patch changes it; None where it saw nothing."""


class CarriedRelationship(NamedTuple):
    """A relationship as an operation carries it; `revive` and `absent_at` are as with a node."""

    row: RelationshipRow
    revive: bool
    absent_at: int = 0


def node_payload(
    user_id: str,
    row: NodeRow,
    *,
    rule: Rule,
    patch: str | None = None,
    revive: bool = False,
    absent_at: int = 0,
    patched: str | None = None,
) -> str:
    """The JSON object that carries a node to Postgres. `patch` and `patched` go as text, to be read back as frozen."""
    members: dict[str, object] = {
        "user_id": user_id,
        "node_id": row.node_id,
        "namespace": row.namespace,
        "context_type": row.context_type,
        "content": orjson.Fragment(row.content),
        "row_hash": row.row_hash,
        "text_content": row.text_content,
        "tags": orjson.Fragment(row.tags),
        "importance": row.importance,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "stamp": row.stamp,
        "rule": rule,
    }
    # What few nodes have is left out where it is null: Postgres parses every member.
    if row.key is not None:
        members["key"] = row.key
    if row.summary is not None:
        members["summary"] = row.summary
    if row.entity_system is not None:
        members |= {"entity_system": row.entity_system, "entity_id": row.entity_id, "entity_type": row.entity_type}
    if row.session_id is not None or row.source_agent is not None:
        members |= {"session_id": row.session_id, "source_agent": row.source_agent}
    if row.expires_at is not None or row.deleted_at is not None:
        members |= {"expires_at": row.expires_at, "deleted_at": row.deleted_at}
    if patch is not None:
        members["patch"] = patch
    if patched is not None:
        members["patched"] = patched
    if revive:
        members["revive"] = True
    if absent_at:
        members["absent_at"] = absent_at
    return orjson.dumps(members).decode()


def carried_node(payload: str) -> CarriedNode:
    """Read back what `node_payload` wrote."""
    members = cast("dict[str, JsonValue]", orjson.loads(payload))
    row = NodeRow(
        node_id=NodeId(cast("str", members["node_id"])),
        namespace=cast("str", members["namespace"]),
        key=cast("str | None", members.get("key")),
        context_type=cast("str", members["context_type"]),
        content=_text(members["content"]),
        row_hash=cast("str", members["row_hash"]),
        text_content=cast("str", members["text_content"]),
        summary=cast("str | None", members.get("summary")),
        tags=_text(members["tags"]),
        importance=cast("float", members["importance"]),
        entity_system=cast("str | None", members.get("entity_system")),
        entity_id=cast("str | None", members.get("entity_id")),
        entity_type=cast("str | None", members.get("entity_type")),
        session_id=cast("str | None", members.get("session_id")),
        source_agent=cast("str | None", members.get("source_agent")),
        created_at=cast("int", members["created_at"]),
        updated_at=cast("int", members["updated_at"]),
        expires_at=cast("int | None", members.get("expires_at")),
        deleted_at=cast("int | None", members.get("deleted_at")),
        stamp=cast("int", members["stamp"]),
        rev=0,
    )
    return CarriedNode(
        row=row,
        rule=Rule(cast("str", members["rule"])),
        patch=cast("str | None", members.get("patch")),
        revive=members.get("revive") is True,
        absent_at=cast("int", members.get("absent_at", 0)),
        patched=cast("str | None", members.get("patched")),
    )


def erasure_payload(heard_of: int) -> str:
    """What carries an erasure: the last one of the user that its writer had heard of, below 0 for not known."""
    return "{}" if heard_of < 0 else orjson.dumps({"heard_of": heard_of}).decode()


def carried_erasure(payload: str) -> int:
    """Read back what `erasure_payload` wrote."""
    return cast("dict[str, int]", orjson.loads(payload)).get("heard_of", -1)


def erasure_told(payload: str, before: int, erased_rev: int) -> int:
    """The erasure that its writer has heard of when its own is done, which made `erased_rev` of `before`.

    Where somebody else had erased the user and it had not heard of that, it still has not: what it stored behind its
    own erasure must not pass for written after the other's.
    """
    heard_of = carried_erasure(payload)
    return heard_of if 0 <= heard_of < before else erased_rev


def _text(value: JsonValue) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def relationship_payload(user_id: str, row: RelationshipRow, *, revive: bool = False, absent_at: int = 0) -> str:
    """The JSON object that carries a relationship to Postgres. Absent members are null there."""
    members: JsonObject = {
        "user_id": user_id,
        "relationship_id": row.relationship_id,
        "source_id": row.source_id,
        "target_id": row.target_id,
        "relationship_type": row.relationship_type,
        "weight": row.weight,
        "properties": cast("JsonValue", orjson.Fragment(row.properties)),
        "row_hash": row.row_hash,
        "valid_from": row.valid_from,
        "valid_to": row.valid_to,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "deleted_at": row.deleted_at,
        "stamp": row.stamp,
        "revive": revive,
    }
    if absent_at:
        members["absent_at"] = absent_at
    return orjson.dumps(members).decode()


def carried_relationship(payload: str) -> CarriedRelationship:
    """Read back what `relationship_payload` wrote."""
    members = cast("dict[str, JsonValue]", orjson.loads(payload))
    row = RelationshipRow(
        relationship_id=cast("str", members["relationship_id"]),
        source_id=cast("str", members["source_id"]),
        target_id=cast("str", members["target_id"]),
        relationship_type=cast("str", members["relationship_type"]),
        weight=cast("float", members["weight"]),
        properties=_text(members["properties"]),
        row_hash=cast("str", members["row_hash"]),
        valid_from=cast("int | None", members["valid_from"]),
        valid_to=cast("int | None", members["valid_to"]),
        created_at=cast("int", members["created_at"]),
        updated_at=cast("int", members["updated_at"]),
        deleted_at=cast("int | None", members["deleted_at"]),
        stamp=cast("int", members["stamp"]),
        rev=0,
    )
    return CarriedRelationship(row, members["revive"] is True, cast("int", members.get("absent_at", 0)))


def related_nodes(payload: str) -> tuple[str, str]:
    """The source and the target of a relationship that `relationship_payload` wrote."""
    members = cast("dict[str, str]", orjson.loads(payload))
    return members["source_id"], members["target_id"]


def may_merge(payload: str) -> bool:
    """Whether a node that `node_payload` wrote is to be merged with what stands; it may be said of others too."""
    return '"rule":"merge"' in payload


def may_revive(payload: str) -> bool:
    """Whether a node that `node_payload` wrote may take the place of a tombstone; it may be said of others too."""
    return '"revive":true' in payload or '"absent_at":' in payload
