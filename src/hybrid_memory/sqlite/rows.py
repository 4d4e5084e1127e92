"""Rows of the hot tier become values here, once."""

from __future__ import annotations

import sqlite3
import zlib
from typing import Any, Final, TypeAlias, cast

import orjson

from hybrid_memory.changes import Kind, NodeRow, Operation, RelationshipRow
from hybrid_memory.clock import from_us
from hybrid_memory.graph import MemoryNode, NodeId, Relationship, RelationshipId

SqlRow: TypeAlias = "tuple[Any, ...]"

NO_TAGS = "[]"
NO_LABELS = (None,) * 7
LABEL_SEPARATOR = "\x1f"
_CHECKED = "\x1f".join(["%s"] * 10)


class _Blank:
    """A `MemoryNode` in the making: the same slots, not frozen yet."""

    __slots__ = MemoryNode.__slots__


def memory_node(user_id: str, node_id: NodeId, row: SqlRow) -> MemoryNode:
    """A node as callers see it, from the columns that `hot_tier` selects.

    A frozen dataclass sets each field through `object.__setattr__`, which would take as long as the whole read from
    SQLite. So the fields are set on a twin with the same slots, which then becomes the node.
    """
    blank: Any = _Blank()
    (
        blank.namespace,
        blank.context_type,
        content,
        tags,
        blank.importance,
        blank.rev,
        created_at,
        updated_at,
        expires_at,
        labels,
    ) = row
    blank.user_id = user_id
    blank.node_id = node_id
    blank.content = orjson.loads(content)
    blank.tags = () if tags == NO_TAGS else tuple(orjson.loads(tags))
    blank.created_at = created = from_us(created_at)
    blank.updated_at = created if updated_at == created_at else from_us(updated_at)
    blank.expires_at = None if expires_at is None else from_us(expires_at)
    (
        blank.key,
        blank.entity_system,
        blank.entity_id,
        blank.entity_type,
        blank.session_id,
        blank.source_agent,
        blank.summary,
    ) = NO_LABELS if labels is None else _labels(labels)
    blank.__class__ = MemoryNode
    return cast("MemoryNode", blank)


def _labels(joined: str) -> list[str | None]:
    ids = joined.split(LABEL_SEPARATOR, 6)
    summary = ids.pop() if len(ids) > 6 else None  # noqa: PLR2004 - six ids, then the summary if there is one
    return [*(name or None for name in ids), summary]


def relationship(user_id: str, row: SqlRow) -> Relationship:
    """A relationship as callers see it, from the members of `RelationshipRow` in order."""
    stored = RelationshipRow._make(row)
    return Relationship(
        relationship_id=RelationshipId(stored.relationship_id),
        user_id=user_id,
        source_id=NodeId(stored.source_id),
        target_id=NodeId(stored.target_id),
        relationship_type=stored.relationship_type,
        weight=stored.weight,
        properties=orjson.loads(stored.properties),
        valid_from=None if stored.valid_from is None else from_us(stored.valid_from),
        valid_to=None if stored.valid_to is None else from_us(stored.valid_to),
        created_at=from_us(stored.created_at),
        updated_at=from_us(stored.updated_at),
        rev=stored.rev,
    )


def node_row(flat: SqlRow) -> NodeRow:
    """A stored node from its members in order."""
    return NodeRow._make(flat)


def relationship_row(flat: SqlRow) -> RelationshipRow:
    """A stored relationship from its members in order."""
    return RelationshipRow._make(flat)


def operation(row: SqlRow) -> Operation:
    """A queued operation from the columns of the outbox in order."""
    seq, op_id, user_id, kind, *rest = row
    return Operation(seq, op_id, user_id, Kind(kind), *rest)


def queue_entry(queued: Operation) -> SqlRow:
    """The columns of the outbox in order, and last their checksum."""
    # A plain string for the kind: what is not exactly one is adapted first, at ten times the cost.
    row = (*queued[:3], queued.kind.value, *queued[4:])
    return (*row, _checksum(row))


def is_sound(entry: SqlRow) -> bool:
    """Whether a queue entry, its checksum last, is as it was written."""
    return bool(_checksum(entry[:-1]) == entry[-1])


def _checksum(row: SqlRow) -> int:
    return zlib.crc32((_CHECKED % row).encode())


def find_node(connection: sqlite3.Connection, user_no: int, node_id: str) -> tuple[int, NodeRow] | None:
    """The row id and the row of a node, a tombstone too."""
    row = connection.execute(
        "select row_id, node_id, namespace, key, context_type, content, row_hash, text_content, summary, tags,"
        " importance, entity_system, entity_id, entity_type, session_id, source_agent, created_at, updated_at,"
        " expires_at, deleted_at, stamp, rev from nodes where user_no = ? and node_id = ?",
        (user_no, node_id),
    ).fetchone()
    return None if row is None else (row[0], node_row(row[1:]))


def put_node(connection: sqlite3.Connection, user_no: int, row_id: int, row: NodeRow) -> None:
    """Insert a node or overwrite the one with its id, which keeps its place."""
    connection.execute(
        "insert into nodes (row_id, user_no, node_id, namespace, key, context_type, content, row_hash, text_content,"
        " summary, tags, importance, entity_system, entity_id, entity_type, session_id, source_agent, created_at,"
        " updated_at, expires_at, deleted_at, stamp, rev)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " on conflict (user_no, node_id) do update set namespace = excluded.namespace, key = excluded.key,"
        " context_type = excluded.context_type, content = excluded.content, row_hash = excluded.row_hash,"
        " text_content = excluded.text_content, summary = excluded.summary, tags = excluded.tags,"
        " importance = excluded.importance, entity_system = excluded.entity_system, entity_id = excluded.entity_id,"
        " entity_type = excluded.entity_type, session_id = excluded.session_id, source_agent = excluded.source_agent,"
        " created_at = excluded.created_at, updated_at = excluded.updated_at, expires_at = excluded.expires_at,"
        " deleted_at = excluded.deleted_at, stamp = excluded.stamp, rev = excluded.rev",
        (row_id, user_no, *row),
    )


def find_relationship(
    connection: sqlite3.Connection, user_no: int, source_id: str, relationship_type: str, target_id: str
) -> tuple[int, RelationshipRow] | None:
    """The row id and the row of a relationship, a tombstone too."""
    row = connection.execute(
        "select row_id, relationship_id, source_id, target_id, relationship_type, weight, properties, row_hash,"
        " valid_from, valid_to, created_at, updated_at, deleted_at, stamp, rev from relationships"
        " where user_no = ? and source_id = ? and relationship_type = ? and target_id = ?",
        (user_no, source_id, relationship_type, target_id),
    ).fetchone()
    return None if row is None else (row[0], relationship_row(row[1:]))


def put_relationship(connection: sqlite3.Connection, user_no: int, row_id: int, row: RelationshipRow) -> None:
    """Insert a relationship or overwrite the one between the same ends of the same type."""
    connection.execute(
        "insert into relationships (row_id, user_no, relationship_id, source_id, target_id, relationship_type, weight,"
        " properties, row_hash, valid_from, valid_to, created_at, updated_at, deleted_at, stamp, rev)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " on conflict (user_no, source_id, relationship_type, target_id) do update set weight = excluded.weight,"
        " properties = excluded.properties, row_hash = excluded.row_hash, valid_from = excluded.valid_from,"
        " valid_to = excluded.valid_to, created_at = excluded.created_at, updated_at = excluded.updated_at,"
        " deleted_at = excluded.deleted_at, stamp = excluded.stamp, rev = excluded.rev",
        (row_id, user_no, *row),
    )


def live_relationships(connection: sqlite3.Connection, user_no: int, node_id: str) -> list[tuple[int, RelationshipRow]]:
    """The live relationships that begin or end at a node, with their row ids."""
    rows = connection.execute(
        "select row_id, relationship_id, source_id, target_id, relationship_type, weight, properties, row_hash,"
        " valid_from, valid_to, created_at, updated_at, deleted_at, stamp, rev from relationships"
        " where user_no = ? and source_id = ? and deleted_at is null"
        " union select row_id, relationship_id, source_id, target_id, relationship_type, weight, properties, row_hash,"
        " valid_from, valid_to, created_at, updated_at, deleted_at, stamp, rev from relationships"
        " where user_no = ? and target_id = ? and deleted_at is null",
        (user_no, node_id, user_no, node_id),
    ).fetchall()
    return [(cast("int", row[0]), relationship_row(row[1:])) for row in rows]


_BURY_OUTGOING: Final = (
    "update relationships set deleted_at = ?1 where user_no = ?2 and source_id = ?3 and deleted_at is null"
)
_BURY_INCOMING: Final = (
    "update relationships set deleted_at = ?1 where user_no = ?2 and target_id = ?3 and deleted_at is null"
)


def bury_relationships(connection: sqlite3.Connection, user_no: int, node_id: str, deleted_at: int) -> None:
    """Show the live relationships at a node as deleted; the revisions stay those that Postgres gave."""
    for statement in (_BURY_OUTGOING, _BURY_INCOMING):
        connection.execute(statement, (deleted_at, user_no, node_id))


def end_deleted_at(connection: sqlite3.Connection, user_no: int, source_id: str, target_id: str) -> int | None:
    """When one of two nodes was deleted, None while neither is known to be."""
    (deleted_at,) = connection.execute(
        "select max(deleted_at) from nodes where user_no = ?1 and node_id in (?2, ?3)", (user_no, source_id, target_id)
    ).fetchone()
    return cast("int | None", deleted_at)


def ends_live(connection: sqlite3.Connection, user_no: int, edge: RelationshipRow) -> bool:
    """Whether both nodes of a relationship are here, and not deleted."""
    ends = {edge.source_id, edge.target_id}
    (live,) = connection.execute(
        "select count(*) from nodes where user_no = ?1 and node_id in (?2, ?3) and deleted_at is null",
        (user_no, edge.source_id, edge.target_id),
    ).fetchone()
    return cast("int", live) == len(ends)
