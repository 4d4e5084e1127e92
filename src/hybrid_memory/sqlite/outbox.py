"""The durable queue: a change and its entry are one transaction; nothing leaves before its verdict is known."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import orjson

from hybrid_memory.changes import (
    Kind,
    NodeChange,
    NodeRow,
    Operation,
    RelationshipChange,
    RelationshipRow,
    Rule,
    node_row,
    relationship_row,
)
from hybrid_memory.errors import Backpressure, Conflict, NotFound
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.payloads import carried_relationship, node_payload, relationship_payload
from hybrid_memory.ports import Accepted, Applied, BatchApplied, QueueState
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.rows import (
    SqlRow,
    find_node,
    find_relationship,
    live_relationships,
    operation,
    put_node,
    put_relationship,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBounds:
    """Where the queue stops taking: number of entries, and bytes of payload."""

    entries: int
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a transaction accepted, and which node row of which generation it touched (None: no node)."""

    accepted: Accepted
    user_no: int
    row_id: int | None


class SqliteOutbox:
    """`Outbox` in the hot-tier file."""

    def __init__(
        self, database: Database, ledger: Ledger, bounds: QueueBounds, on_stored: Callable[[Stored], None]
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._bounds = bounds
        self._on_stored = on_stored
        # Decided in Postgres, their leaving the queue not yet committed here.
        self._settling: dict[int, Applied] = {}
        self._settling_revs: dict[tuple[str, str], int] = {}

    async def accept_node(self, user_id: str, change: NodeChange) -> Accepted:
        """Store a node locally and queue it, in one transaction."""
        return await self._accept(partial(self.store_node, user_id, change))

    async def accept_relationship(self, user_id: str, change: RelationshipChange) -> Accepted:
        """Store a relationship locally and queue it, in one transaction."""
        return await self._accept(partial(self._store_relationship, user_id, change))

    async def accept_deletion(self, user_id: str, node_id: NodeId) -> Accepted:
        """Bury a node and its relationships locally and queue that, in one transaction."""
        return await self._accept(partial(self._store_deletion, user_id, node_id))

    async def _accept(self, work: Callable[[sqlite3.Connection], Stored]) -> Accepted:
        stored = await self._database.write(work, after=self._on_stored)
        return stored.accepted

    def store_node(self, user_id: str, change: NodeChange, connection: sqlite3.Connection) -> Stored:
        """The transaction of `accept_node`, also part of others."""
        self._check_room()
        ledger = self._ledger
        user_no = ledger.user_no(connection, user_id)
        found = None if change.fresh else find_node(connection, user_no, change.node_id)
        existing = found[1] if found else None
        live = existing is not None and existing.deleted_at is None
        own = 0 if change.fresh else self._newest_own(connection, user_id, change.node_id)
        if change.expected_rev is not None:
            _check_expected(change.expected_rev, existing if live else None, queued=own > 0)
        row = node_row(change, existing, now_us=ledger.now_us(), stamp=ledger.next_stamp())
        row_id = found[0] if found else ledger.next_row_id(connection, user_no)
        put_node(connection, user_no, row_id, row)
        patch = change.content if change.rule is Rule.MERGE else None
        payload = node_payload(user_id, row, rule=change.rule, patch=patch, revive=existing is not None and not live)
        queued = Operation(
            seq=ledger.next_seq(connection),
            op_id=ledger.new_id(),
            user_id=user_id,
            kind=Kind.NODE,
            entity_id=change.node_id,
            base=-own or (existing.rev if existing else 0),
            delta=0 if live else 1,
            stamp=row.stamp,
            payload=payload,
            accepted_at=row.updated_at,
        )
        return Stored(accepted=self.enqueue(connection, queued), user_no=user_no, row_id=row_id)

    def _store_relationship(self, user_id: str, change: RelationshipChange, connection: sqlite3.Connection) -> Stored:
        self._check_room()
        ledger = self._ledger
        user_no = ledger.user_no(connection, user_id)
        for field, end in (("source_id", change.source_id), ("target_id", change.target_id)):
            found = find_node(connection, user_no, end)
            if found is None or found[1].deleted_at is not None:
                raise NotFound(f"{field} names no node of this user")
        known = find_relationship(connection, user_no, change.source_id, change.relationship_type, change.target_id)
        existing = known[1] if known else None
        row = relationship_row(change, existing, now_us=ledger.now_us(), stamp=ledger.next_stamp())
        row_id = known[0] if known else ledger.next_row_id(connection, user_no)
        accepted = self._queue_relationship(connection, user_id, user_no, row_id, row, existing)
        return Stored(accepted=accepted, user_no=user_no, row_id=None)

    def _queue_relationship(
        self,
        connection: sqlite3.Connection,
        user_id: str,
        user_no: int,
        row_id: int,
        row: RelationshipRow,
        existing: RelationshipRow | None,
    ) -> Accepted:
        put_relationship(connection, user_no, row_id, row)
        was_live = existing is not None and existing.deleted_at is None
        own = self._newest_own(connection, user_id, row.relationship_id)
        queued = Operation(
            seq=self._ledger.next_seq(connection),
            op_id=self._ledger.new_id(),
            user_id=user_id,
            kind=Kind.RELATIONSHIP,
            entity_id=row.relationship_id,
            base=-own or (existing.rev if existing else 0),
            delta=int(row.deleted_at is None) - int(was_live),
            stamp=row.stamp,
            payload=relationship_payload(user_id, row, revive=existing is not None and not was_live),
            accepted_at=row.updated_at,
        )
        return self.enqueue(connection, queued)

    def _store_deletion(self, user_id: str, node_id: NodeId, connection: sqlite3.Connection) -> Stored:
        ledger = self._ledger
        user_no = ledger.known_user_no(connection, user_id)
        found = None if user_no is None else find_node(connection, user_no, node_id)
        if user_no is None or found is None or found[1].deleted_at is not None:
            raise NotFound("node_id names no node of this user")
        self._check_room()
        now_us = ledger.now_us()
        for row_id, edge in live_relationships(connection, user_no, node_id):
            tomb = edge._replace(deleted_at=now_us, updated_at=now_us, stamp=ledger.next_stamp())
            self._queue_relationship(connection, user_id, user_no, row_id, tomb, edge)
        row_id, row = found
        tomb_row: NodeRow = row._replace(deleted_at=now_us, updated_at=now_us, stamp=ledger.next_stamp())
        own = self._newest_own(connection, user_id, node_id)
        put_node(connection, user_no, row_id, tomb_row)
        queued = Operation(
            seq=ledger.next_seq(connection),
            op_id=ledger.new_id(),
            user_id=user_id,
            kind=Kind.NODE,
            entity_id=node_id,
            base=-own or row.rev,
            delta=-1,
            stamp=tomb_row.stamp,
            payload=node_payload(user_id, tomb_row, rule=Rule.REPLACE),
            accepted_at=now_us,
        )
        return Stored(accepted=self.enqueue(connection, queued), user_no=user_no, row_id=row_id)

    def _check_room(self) -> None:
        queue = self._ledger.queue
        if queue.entries >= self._bounds.entries or queue.payload_bytes >= self._bounds.payload_bytes:
            raise Backpressure(
                f"the durable queue holds {queue.entries} entries, {queue.payload_bytes} bytes",
                fix="bring Postgres back, then `hybrid-memory outbox drain`",
            )

    @staticmethod
    def _newest_own(connection: sqlite3.Connection, user_id: str, entity_id: str) -> int:
        row = connection.execute(
            "select max(seq) from outbox where user_id = ? and entity_id = ?", (user_id, entity_id)
        ).fetchone()
        return cast("int | None", row[0]) or 0

    def enqueue(self, connection: sqlite3.Connection, queued: Operation) -> Accepted:
        """Append an operation to the queue, inside a transaction."""
        connection.execute(
            "insert into outbox (seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            # A plain string: what is not exactly one is adapted first, at ten times the cost.
            (*queued[:3], queued.kind.value, *queued[4:]),
        )
        self._ledger.queue.entries += 1
        self._ledger.queue.payload_bytes += len(queued.payload)
        return Accepted(seq=queued.seq, op_id=queued.op_id, user_id=queued.user_id, entity_id=queued.entity_id)

    def claim(self, *, after_seq: int, limit: int, user_id: str | None = None) -> list[Operation]:
        """The next operations in order of acceptance; those already decided are passed over."""
        if user_id is None:
            rows = self._database.point.execute(
                "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at"
                " from outbox where seq > ? order by seq limit ?",
                (after_seq, limit),
            ).fetchall()
        else:
            rows = self._database.point.execute(
                "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at"
                " from outbox indexed by outbox_by_entity where user_id = ? and seq > ? order by seq limit ?",
                (user_id, after_seq, limit),
            ).fetchall()
        return [operation(row) for row in cast("list[SqlRow]", rows) if row[0] not in self._settling]

    def settle(self, batch: BatchApplied) -> asyncio.Future[None]:
        """Take decided operations out of the queue; rides on another change's commit if one comes soon.

        A crash before that commit costs nothing: the operations are sent again and meet their mark.
        """
        for applied in batch.operations:
            self._settling[applied.operation.seq] = applied
            if applied.rev is not None:
                self._settling_revs[applied.operation.user_id, applied.operation.entity_id] = applied.rev
        return self._database.write(
            partial(self._settle, batch), after=lambda _: self._settled(batch.operations), ride=True
        )

    def _settled(self, operations: tuple[Applied, ...]) -> None:
        for applied in operations:
            self._settling.pop(applied.operation.seq, None)
            entity = applied.operation.user_id, applied.operation.entity_id
            if self._settling_revs.get(entity) == applied.rev:
                self._settling_revs.pop(entity, None)

    def _settle(self, batch: BatchApplied, connection: sqlite3.Connection) -> None:
        now_us = self._ledger.now_us()
        seqs = sorted(a.operation.seq for a in batch.operations)
        decided = [(a.operation.seq, a.rev, a.verdict) for a in batch.operations]
        _keep_receipt(connection, seqs, decided, now_us)
        connection.executemany("delete from outbox where seq between ? and ?", _runs(seqs))
        self._ledger.queue.entries -= len(batch.operations)
        self._ledger.queue.payload_bytes -= sum(len(a.operation.payload) for a in batch.operations)
        # A row decided otherwise than its writer wished comes by the feed, with the revision that stands.
        stood = [a for a in batch.operations if a.rev is not None and a.verdict is Verdict.APPLIED]
        self._number_nodes(connection, [a for a in stood if a.operation.kind is Kind.NODE])
        self._number_relationships(connection, [a for a in stood if a.operation.kind is Kind.RELATIONSHIP])
        connection.executemany(
            "update users set erased_rev = ? where user_id = ?",
            [(a.rev, a.operation.user_id) for a in batch.operations if a.operation.kind is Kind.ERASE],
        )
        # Where nobody else wrote in between, the copy already is what stands in Postgres: no echo need be fetched.
        connection.executemany(
            "update users set rev = ?, epoch = ?, confirmed_at = ?"
            " where user_id = ? and complete = 1 and rev = ? and (epoch is null or epoch = ?)",
            [
                (user.head_rev, user.epoch, now_us, user.user_id, user.before_rev, user.epoch)
                for user in batch.users
                if user.as_sent
            ],
        )

    def _number_nodes(self, connection: sqlite3.Connection, stood: list[Applied]) -> None:
        connection.executemany(
            "update nodes set rev = ?1 where user_no = ?2 and node_id = ?3 and rev < ?1",
            [
                (a.rev, user_no, a.operation.entity_id)
                for a in stood
                if (user_no := self._ledger.known_user_no(connection, a.operation.user_id)) is not None
            ],
        )

    def _number_relationships(self, connection: sqlite3.Connection, stood: list[Applied]) -> None:
        for applied in stood:
            user_no = self._ledger.known_user_no(connection, applied.operation.user_id)
            row, _ = carried_relationship(applied.operation.payload)
            connection.execute(
                "update relationships set rev = ?1 where user_no = ?2 and source_id = ?3 and relationship_type = ?4"
                " and target_id = ?5 and rev < ?1",
                (applied.rev, user_no, row.source_id, row.relationship_type, row.target_id),
            )

    async def bury(self, operation: Operation, *, sqlstate: str, reason: str) -> None:
        """Move an operation to the dead letters."""
        await self._database.write(partial(self._bury, operation, sqlstate, reason))

    def _bury(self, dead: Operation, sqlstate: str, reason: str, connection: sqlite3.Connection) -> None:
        now_us = self._ledger.now_us()
        connection.execute(
            "insert or replace into dead_letters (op_id, seq, user_id, kind, entity_id, base, delta, stamp, payload,"
            " accepted_at, died_at, sqlstate, reason) select op_id, seq, user_id, kind, entity_id, base, delta, stamp,"
            " payload, accepted_at, ?, ?, ? from outbox where seq = ?",
            (now_us, sqlstate, reason, dead.seq),
        )
        _keep_receipt(connection, [dead.seq], [(dead.seq, None, Verdict.DEAD)], now_us)
        connection.execute("delete from outbox where seq = ?", (dead.seq,))
        self._ledger.queue.entries -= 1
        self._ledger.queue.payload_bytes -= len(dead.payload)
        self._ledger.queue.dead_letters += 1

    def verdict(self, accepted: Accepted) -> tuple[Verdict, int | None] | None:
        """What became of an operation, or None while it is queued.

        A receipt past its retention reads as applied: whatever else would still be in the dead letters.
        """
        applied = self._settling.get(accepted.seq)
        if applied is not None:
            return applied.verdict, applied.rev
        row = self._database.point.execute(
            "select 1 from outbox where seq = ? and op_id = ?", (accepted.seq, accepted.op_id)
        ).fetchone()
        if row is not None:
            return None
        kept = self._database.point.execute(
            "select decided from receipts where first_seq <= ?1 and last_seq >= ?1", (accepted.seq,)
        ).fetchall()
        for (decided,) in cast("list[tuple[str]]", kept):
            for seq, rev, verdict in cast("list[tuple[int, int | None, str]]", orjson.loads(decided)):
                if seq == accepted.seq:
                    return Verdict(verdict), rev
        return Verdict.APPLIED, None

    @property
    def settling_revs(self) -> Mapping[tuple[str, str], int]:
        """The revisions that Postgres gave (user, entity) and the file does not hold yet."""
        return self._settling_revs

    def state(self) -> QueueState:
        """Counts, at once."""
        queue = self._ledger.queue
        row = self._database.point.execute("select accepted_at from outbox order by seq limit 1").fetchone()
        return QueueState(
            entries=queue.entries - len(self._settling),
            payload_bytes=queue.payload_bytes,
            oldest_at=None if row is None or queue.entries == len(self._settling) else row[0],
            dead_letters=queue.dead_letters,
        )

    def queued_of(self, user_id: str) -> int:
        """How many of a user's operations are queued."""
        row = self._database.point.execute("select count(*) from outbox where user_id = ?", (user_id,)).fetchone()
        settling = sum(applied.operation.user_id == user_id for applied in self._settling.values())
        return max(0, cast("int", row[0]) - settling)


def _check_expected(expected: int, live: NodeRow | None, *, queued: bool) -> None:
    actual = live.rev if live else 0
    if queued or actual != expected:
        raise Conflict(expected_rev=expected, actual_rev=actual)


def _keep_receipt(
    connection: sqlite3.Connection, seqs: list[int], decided: list[tuple[int, int | None, Verdict]], now_us: int
) -> None:
    connection.execute(
        "insert or replace into receipts (first_seq, last_seq, decided_at, decided) values (?, ?, ?, ?)",
        (seqs[0], seqs[-1], now_us, orjson.dumps(decided).decode()),
    )


def _runs(seqs: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as runs without a gap: a run is deleted by one statement."""
    runs: list[tuple[int, int]] = []
    for seq in seqs:
        if runs and runs[-1][1] == seq - 1:
            runs[-1] = (runs[-1][0], seq)
        else:
            runs.append((seq, seq))
    return runs
