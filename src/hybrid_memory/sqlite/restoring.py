"""What a rewound Postgres has lost of a user: acknowledged rows that it does not hold any more are queued again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from hybrid_memory.changes import Kind, NodeRow, Operation, RelationshipRow, Rule
from hybrid_memory.merging import decide_node
from hybrid_memory.payloads import carried_node, node_payload, relationship_payload
from hybrid_memory.sqlite.accepting import newest_own
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.past import kept_up_to
from hybrid_memory.sqlite.rows import find_node, find_relationship
from hybrid_memory.sqlite.verdicts import revisions_behind

# What has expired is gone for good, and what Postgres never took is in the dead letters.
_LOST_NODES: Final = """
    select o.node_id from nodes o
    left join nodes n on n.user_no = :loaded and n.node_id = o.node_id
    where o.user_no = :former and (o.expires_at is null or o.expires_at > :now_us)
      and (n.row_id is null or n.stamp < o.stamp or o.entity_system is not null and n.row_hash <> o.row_hash)
      and not exists (select 1 from dead_letters d where d.user_id = :user_id and d.entity_id = o.node_id)
    order by o.stamp
"""
_LOST_RELATIONSHIPS: Final = """
    select o.source_id, o.relationship_type, o.target_id from relationships o
    left join relationships n on n.user_no = :loaded and n.source_id = o.source_id
        and n.relationship_type = o.relationship_type and n.target_id = o.target_id
    where o.user_no = :former and (n.row_id is null or n.stamp < o.stamp)
      and not exists (select 1 from dead_letters d where d.user_id = :user_id and d.entity_id = o.relationship_id)
    order by o.stamp
"""
_UNNUMBER_NODES: Final = (
    "update nodes set rev = 0 where user_no = ?1 and node_id in (select entity_id from outbox where user_id = ?2)"
)
_UNNUMBER_RELATIONSHIPS: Final = (
    "update relationships set rev = 0"
    " where user_no = ?1 and relationship_id in (select entity_id from outbox where user_id = ?2)"
)


class Restoration:
    """Compares a user's copy with what was loaded, and queues what is missing there or older.

    A row goes as it stands here, under its own stamp and on what stands there, so two processes that restore the same
    row agree, and what was written after the loss is decided by the merge rules like any other conflict.

    An entity may have been merged into since, without what was lost: then it is newer there and lacks fields all the
    same. It is merged again if an operation of this file, known by its receipt, was lost (or may have been, where the
    server's mark does not tell) that made it what it is here or that was merged, or if only such operations made it
    newer as were merged here as well. A field that others had removed meanwhile stays removed otherwise.

    Nothing is removed from an entity: what it lacks here may have been removed, and may as well be what others merged
    and brought back before us.
    """

    def __init__(self, ledger: Ledger, enqueue: Callable[[Operation], Operation]) -> None:
        self._ledger = ledger
        self._enqueue = enqueue

    def restore(self, connection: sqlite3.Connection, user_id: str, *, former: int, loaded: int, done_seq: int) -> int:
        """Queue what the generation `former` has and `loaded` lacks; returns how many operations that took.

        `done_seq` is the last number of this file's queue that the server knows of.
        """
        lost_revs, lost_a_merge = revisions_behind(connection, kept_up_to(connection, user_id, done_seq))
        asked = {"user_id": user_id, "former": former, "loaded": loaded, "now_us": self._ledger.now_us()}
        count = 0
        for (node_id,) in connection.execute(_LOST_NODES, asked).fetchall():
            kept, standing = find_node(connection, former, node_id), find_node(connection, loaded, node_id)
            there = standing[1] if standing else None
            if kept is not None and _is_missing(kept[1], there, lost_revs, lost_a_merge=lost_a_merge):
                count += self._restore_node(connection, user_id, kept[1], there, lost_a_merge=lost_a_merge)
        for ends in connection.execute(_LOST_RELATIONSHIPS, asked).fetchall():
            edge, other = find_relationship(connection, former, *ends), find_relationship(connection, loaded, *ends)
            if edge is not None:
                count += self._restore_relationship(connection, user_id, edge[1], other[1] if other else None)
        self._ledger.staging.flush(connection)
        return count

    @staticmethod
    def wait(connection: sqlite3.Connection, user_id: str, former: int) -> None:
        """Leave the copy as it is until Postgres has decided what was queued again: that is shown as what is queued.

        And it is sent as what was stored without knowing of any erasure, so that its time decides. Behind it the
        server's mark tells again what was decided.
        """
        connection.execute(_UNNUMBER_NODES, (former, user_id))
        connection.execute(_UNNUMBER_RELATIONSHIPS, (former, user_id))
        connection.execute("update users set erased_rev = -1, first_unsent = null where user_id = ?", (user_id,))

    def _restore_node(
        self,
        connection: sqlite3.Connection,
        user_id: str,
        kept: NodeRow,
        standing: NodeRow | None,
        *,
        lost_a_merge: bool,
    ) -> bool:
        own = newest_own(connection, user_id, kept.node_id)
        is_entity = kept.entity_system is not None
        if kept.rev == 0 and (kept.deleted_at is not None or (own and not (is_entity and lost_a_merge))):
            return False  # never in Postgres: it was decided against and withdrawn, or is queued as it was
        was_live = standing is not None and standing.deleted_at is None
        is_live = kept.deleted_at is None
        patch = None
        seen = standing
        if is_live and is_entity:
            if was_live:
                seen = None  # to be merged with what stands, not to take its place
            patch = kept.content
        payload = node_payload(user_id, kept, rule=Rule.REPLACE if patch is None else Rule.MERGE, patch=patch)
        if patch is not None and standing is not None and was_live and _stays(standing, payload):
            return False
        self._queue(
            connection,
            user_id,
            Kind.NODE,
            kept.node_id,
            kept.stamp,
            kept.updated_at,
            payload,
            base=-own or (seen.rev if seen else 0),
            # What is queued already makes of it what it is here.
            delta=0 if own else is_live - was_live,
        )
        return True

    def _restore_relationship(
        self, connection: sqlite3.Connection, user_id: str, kept: RelationshipRow, standing: RelationshipRow | None
    ) -> bool:
        own = newest_own(connection, user_id, kept.relationship_id)
        if own or (kept.rev == 0 and kept.deleted_at is not None):
            return False  # what is queued carries all there is to a relationship, and what was withdrawn is gone
        was_live = standing is not None and standing.deleted_at is None
        self._queue(
            connection,
            user_id,
            Kind.RELATIONSHIP,
            kept.relationship_id,
            kept.stamp,
            kept.updated_at,
            relationship_payload(user_id, kept),
            base=standing.rev if standing else 0,
            delta=(kept.deleted_at is None) - was_live,
        )
        return True

    def _queue(
        self,
        connection: sqlite3.Connection,
        user_id: str,
        kind: Kind,
        entity_id: str,
        stamp: int,
        accepted_at: int,
        payload: str,
        *,
        base: int,
        delta: int,
    ) -> None:
        self._enqueue(
            Operation(
                seq=self._ledger.next_seq(connection),
                op_id=self._ledger.new_id(),
                user_id=user_id,
                kind=kind,
                entity_id=entity_id,
                base=base,
                delta=delta,
                stamp=stamp,
                payload=payload,
                accepted_at=accepted_at,
            )
        )


def _stays(standing: NodeRow, payload: str) -> bool:
    """Whether merging an entity again leaves it as it stands: nothing of ours is missing, whatever others added."""
    merged = decide_node(carried_node(payload), standing, seen=False).row
    return merged is None or (merged.row_hash, merged.stamp) == (standing.row_hash, standing.stamp)


def _is_missing(kept: NodeRow, standing: NodeRow | None, lost_revs: frozenset[int], *, lost_a_merge: bool) -> bool:
    if standing is None or standing.stamp < kept.stamp:
        return True
    # An entity with another content.
    lost_ours = lost_a_merge or kept.rev in lost_revs
    return standing.deleted_at is None and (standing.stamp == kept.stamp or lost_ours)
