"""Takes back what is shown of an operation that Postgres decided against, where the feed would never replace it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.graph import Verdict
from hybrid_memory.messages import Applied
from hybrid_memory.payloads import carried_relationship
from hybrid_memory.sqlite.ledger import Ledger


def shows(connection: sqlite3.Connection, user_no: int | None, operation: Operation) -> bool:
    """Whether what a copy shows of an entity is just what the operation made of it."""
    found = connection.execute(
        "select 1 from nodes where user_no = ?1 and node_id = ?2 and stamp = ?3"
        " union all select 1 from relationships where user_no = ?1 and relationship_id = ?2 and stamp = ?3",
        (user_no, operation.entity_id, operation.stamp),
    ).fetchone()
    return found is not None


def withdraw_beaten(connection: sqlite3.Connection, ledger: Ledger, otherwise: Sequence[Applied]) -> None:
    """Do so with what was rejected or superseded among what was not applied; what was merged is noted as such."""
    for operation, verdict, rev in otherwise:
        user_no = ledger.known_user_no(connection, operation.user_id)
        if verdict is Verdict.MERGED and user_no is not None:
            ledger.merged(user_no, operation.entity_id, rev or 0)
        elif verdict in {Verdict.REJECTED, Verdict.SUPERSEDED}:
            withdraw(connection, user_no, operation, ledger.now_us())


def withdraw(connection: sqlite3.Connection, user_no: int | None, beaten: Operation, now_us: int) -> None:
    """Let a copy no longer show a change that was rejected or superseded, unless a later change lies over it.

    What beat it mostly comes by the feed. Not what the copy had passed already when the operation was laid over it: an
    erasure, or a tombstone that the load left out. So a row that Postgres never had goes at once; and where the row
    was another's before, and the user has been erased, the copy is loaded anew. A relationship goes at once whatever
    was there before: what beat it may be the deletion of an end, which was revived before the feed could tell of it.
    """
    place = (user_no, beaten.entity_id, beaten.stamp)
    if beaten.kind is Kind.RELATIONSHIP:
        row = carried_relationship(beaten.payload).row
        buried = connection.execute(
            "update relationships set deleted_at = ?1, updated_at = ?1 where user_no = ?2 and source_id = ?3"
            " and relationship_type = ?4 and target_id = ?5 and stamp = ?6 and (rev = 0 or deleted_at is null)",
            (now_us, user_no, row.source_id, row.relationship_type, row.target_id, beaten.stamp),
        )
    else:
        buried = connection.execute(
            "update nodes set deleted_at = ?4, updated_at = ?4 where user_no = ?1 and node_id = ?2 and stamp = ?3"
            " and rev = 0",
            (*place, now_us),
        )
    if buried.rowcount == 0:
        connection.execute(
            "update users set complete = 0 where user_no = ?1 and erased_rev > 0 and ("
            "exists (select 1 from nodes n where n.user_no = ?1 and n.node_id = ?2 and n.stamp = ?3)"
            " or exists (select 1 from relationships r where r.user_no = ?1 and r.relationship_id = ?2"
            " and r.stamp = ?3))",
            place,
        )
