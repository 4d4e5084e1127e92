"""Accepting changes: the local rows and the queue entry, in one transaction of the writer's."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import NamedTuple, cast

from hybrid_memory.changes import (
    Kind,
    NodeChange,
    NodeRow,
    Operation,
    RelationshipChange,
    RelationshipRow,
    Rule,
    node_row,
    patched_members,
    relationship_row,
)
from hybrid_memory.errors import Backpressure, Conflict, NotFound
from hybrid_memory.graph import NodeId
from hybrid_memory.payloads import erasure_payload, node_payload, relationship_payload
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.rows import (
    find_node,
    find_relationship,
    live_relationships,
    put_node,
    put_relationship,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBounds:
    """Where the queue stops taking: number of entries, and bytes of payload."""

    entries: int
    payload_bytes: int


class Stored(NamedTuple):
    """What a transaction accepted, and which node row of which generation it touched (None: no node)."""

    operations: tuple[Operation, ...]
    user_no: int
    row_id: int | None

    @property
    def told(self) -> Operation:
        """The operation that the caller hears of: the last."""
        return self.operations[-1]


class Acceptance:
    """The transactions of the writer that accept a change. They raise before they write, or not at all."""

    def __init__(self, ledger: Ledger, bounds: QueueBounds) -> None:
        self._ledger = ledger
        self._bounds = bounds

    def store_fresh(self, user_id: str, change: NodeChange, connection: sqlite3.Connection) -> Stored:
        """Store a node whose id was made for it: nothing need be read, so its rows are staged."""
        self._check_room(connection)
        ledger = self._ledger
        user_no = ledger.user_no(connection, user_id)
        row = node_row(change, None, now_us=ledger.now_us(), stamp=ledger.next_stamp())
        row_id = ledger.next_row_id(connection)
        payload = node_payload(user_id, row, rule=change.rule)
        queued = self._operation(connection, user_id, row, payload, base=0, delta=1)
        ledger.staging.add_node(user_no, row_id, row)
        return Stored((self.enqueue(queued),), user_no, row_id)

    def store_node(self, user_id: str, change: NodeChange, connection: sqlite3.Connection) -> Stored:
        """Store a node over what may be there."""
        self._check_room(connection)
        ledger = self._ledger
        user_no = ledger.user_no(connection, user_id)
        found = find_node(connection, user_no, change.node_id)
        existing = found[1] if found else None
        live = existing is not None and existing.deleted_at is None
        own = newest_own(connection, user_id, change.node_id)
        if change.expected_rev is not None:
            _check_expected(change.expected_rev, existing if live else None, queued=own > 0)
        row = node_row(change, existing, now_us=ledger.now_us(), stamp=ledger.next_stamp())
        row_id = found[0] if found else ledger.next_row_id(connection)
        put_node(connection, user_no, row_id, row)
        is_merge = change.rule is Rule.MERGE
        payload = node_payload(
            user_id,
            row,
            rule=change.rule,
            patch=change.content if is_merge else None,
            revive=existing is not None and not live,
            absent_at=complete_at(connection, user_no) if existing is None else 0,
            patched=patched_members(existing.content, change.content) if is_merge and existing and live else None,
        )
        base = _base(connection, own, existing)
        queued = self._operation(connection, user_id, row, payload, base=base, delta=0 if live else 1)
        return Stored(operations=(self.enqueue(queued),), user_no=user_no, row_id=row_id)

    def _operation(
        self, connection: sqlite3.Connection, user_id: str, row: NodeRow, payload: str, *, base: int, delta: int
    ) -> Operation:
        return Operation(
            self._ledger.next_seq(connection),
            self._ledger.new_id(),
            user_id,
            Kind.NODE,
            row.node_id,
            base,
            delta,
            row.stamp,
            payload,
            row.updated_at,
        )

    def store_relationship(self, user_id: str, change: RelationshipChange, connection: sqlite3.Connection) -> Stored:
        """Store a relationship between two live nodes."""
        self._check_room(connection)
        ledger = self._ledger
        user_no = ledger.user_no(connection, user_id)
        for field, end in (("source_id", change.source_id), ("target_id", change.target_id)):
            found = find_node(connection, user_no, end)
            if found is None or not self._is_live(found[1]):
                raise NotFound(f"{field} names no node of this user")
        known = find_relationship(connection, user_no, change.source_id, change.relationship_type, change.target_id)
        existing = known[1] if known else None
        row = relationship_row(change, existing, now_us=ledger.now_us(), stamp=ledger.next_stamp())
        row_id = known[0] if known else ledger.next_row_id(connection)
        queued = self._queue_relationship(connection, user_id, user_no, row_id, row, existing)
        return Stored(operations=(queued,), user_no=user_no, row_id=None)

    def _queue_relationship(
        self,
        connection: sqlite3.Connection,
        user_id: str,
        user_no: int,
        row_id: int,
        row: RelationshipRow,
        existing: RelationshipRow | None,
    ) -> Operation:
        put_relationship(connection, user_no, row_id, row)
        was_live = existing is not None and existing.deleted_at is None
        own = newest_own(connection, user_id, row.relationship_id)
        queued = Operation(
            seq=self._ledger.next_seq(connection),
            op_id=self._ledger.new_id(),
            user_id=user_id,
            kind=Kind.RELATIONSHIP,
            entity_id=row.relationship_id,
            base=_base(connection, own, existing),
            delta=int(row.deleted_at is None) - int(was_live),
            stamp=row.stamp,
            payload=relationship_payload(
                user_id,
                row,
                revive=existing is not None and not was_live,
                absent_at=complete_at(connection, user_no) if existing is None else 0,
            ),
            accepted_at=row.updated_at,
        )
        return self.enqueue(queued)

    def store_deletion(self, user_id: str, node_id: NodeId, connection: sqlite3.Connection) -> Stored:
        """Bury a node and the relationships at it."""
        ledger = self._ledger
        user_no = ledger.known_user_no(connection, user_id)
        found = None if user_no is None else find_node(connection, user_no, node_id)
        if user_no is None or found is None or not self._is_live(found[1]):
            raise NotFound("node_id names no node of this user")
        self._check_room(connection)
        now_us = ledger.now_us()
        queued: list[Operation] = []
        for edge_id, edge in live_relationships(connection, user_no, node_id):
            gone = edge._replace(deleted_at=now_us, updated_at=now_us, stamp=ledger.next_stamp())
            queued.append(self._queue_relationship(connection, user_id, user_no, edge_id, gone, edge))
        row_id, row = found
        tomb = row._replace(deleted_at=now_us, updated_at=now_us, stamp=ledger.next_stamp())
        own = newest_own(connection, user_id, node_id)
        put_node(connection, user_no, row_id, tomb)
        payload = node_payload(user_id, tomb, rule=Rule.REPLACE)
        burial = self._operation(connection, user_id, tomb, payload, base=_base(connection, own, row), delta=-1)
        queued.append(self.enqueue(burial))
        return Stored(operations=tuple(queued), user_no=user_no, row_id=row_id)

    def store_erasure(self, user_id: str, connection: sqlite3.Connection, *, heard_of: int = -1) -> Operation:
        """Queue the erasure of a user, also where the queue is full: it makes room. See `erasure_payload`."""
        ledger = self._ledger
        queued = Operation(
            seq=ledger.next_seq(connection),
            op_id=ledger.new_id(),
            user_id=user_id,
            kind=Kind.ERASE,
            entity_id=user_id,
            base=0,
            delta=0,
            stamp=ledger.next_stamp(),
            payload=erasure_payload(heard_of),
            accepted_at=ledger.now_us(),
        )
        return self.enqueue(queued)

    def _is_live(self, row: NodeRow) -> bool:
        expired = row.expires_at is not None and row.expires_at <= self._ledger.now_us()
        return row.deleted_at is None and not expired

    def _check_room(self, connection: sqlite3.Connection) -> None:
        queue = self._ledger.queue(connection)
        if queue.entries >= self._bounds.entries or queue.payload_bytes >= self._bounds.payload_bytes:
            raise Backpressure(
                f"the durable queue holds {queue.entries} entries, {queue.payload_bytes} bytes",
                fix="bring Postgres back, then `hybrid-memory outbox drain`",
            )

    def enqueue(self, queued: Operation) -> Operation:
        """Append an operation to the queue."""
        self._ledger.staging.add_operation(queued)
        self._ledger.count_in(queued)
        return queued


def newest_own(connection: sqlite3.Connection, user_id: str, entity_id: str) -> int:
    """The number of the newest queued operation on an entity, 0 if there is none."""
    row = connection.execute(
        "select max(seq) from outbox where user_id = ? and entity_id = ?", (user_id, entity_id)
    ).fetchone()
    return cast("int | None", row[0]) or 0


def _base(connection: sqlite3.Connection, own: int, shown: NodeRow | RelationshipRow | None) -> int:
    """What a change of a row is made on: what the copy shows, as Postgres will know it.

    That is our newest queued operation on it, unless another's row stands over that: then it is that row's revision.
    An entity is merged: what stands of it is never another's alone.
    """
    rev = shown.rev if shown else 0
    is_entity = isinstance(shown, NodeRow) and shown.entity_system is not None
    if own == 0 or shown is None or rev == 0 or is_entity:
        return -own or rev
    (stamp,) = connection.execute("select stamp from outbox where seq = ?", (own,)).fetchone()
    return -own if stamp == shown.stamp else rev


def complete_at(connection: sqlite3.Connection, user_no: int) -> int:
    """The revision as of which a copy is complete, 0 while it is not: what it has not, it knows to be absent."""
    row = connection.execute("select rev from users where user_no = ? and complete = 1", (user_no,)).fetchone()
    return 0 if row is None else cast("int", row[0])


def _check_expected(expected: int, live: NodeRow | None, *, queued: bool) -> None:
    actual = live.rev if live else 0
    if queued or actual != expected:
        raise Conflict(expected_rev=expected, actual_rev=actual)
