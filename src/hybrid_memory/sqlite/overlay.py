"""What a copy shows: rows as Postgres has them, and over them what is queued here, as Postgres will decide it."""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Sequence
from typing import Final, TypeAlias, cast

from hybrid_memory.changes import Kind, NodeRow, Operation, RelationshipRow, Rule
from hybrid_memory.graph import Verdict
from hybrid_memory.merging import decide_node, decide_relationship
from hybrid_memory.messages import Applied
from hybrid_memory.payloads import carried_node, carried_relationship, related_nodes
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.rows import (
    SqlRow,
    bury_relationships,
    end_deleted_at,
    ends_live,
    find_node,
    find_relationship,
    operation,
    put_node,
    put_relationship,
)

Touched: TypeAlias = "tuple[int, int]"
"""A generation, and the row id of a node in it."""

_NUMBER_NODE: Final = "update nodes set rev = ?1 where row_id = ?2 and rev < ?1"
_NUMBER_RELATIONSHIP: Final = "update relationships set rev = ?1 where row_id = ?2 and rev < ?1"


def show_node(connection: sqlite3.Connection, ledger: Ledger, user_no: int, row: NodeRow) -> int:
    """Put a node's row in the place of what is shown of it; the row id. A tombstone hides the relationships at it."""
    found = find_node(connection, user_no, row.node_id)
    row_id = found[0] if found else ledger.next_row_id(connection)
    put_node(connection, user_no, row_id, row)
    if row.deleted_at is not None:
        bury_relationships(connection, user_no, row.node_id, row.deleted_at)
    ledger.observe(row.stamp)
    return row_id


def show_relationship(connection: sqlite3.Connection, ledger: Ledger, user_no: int, row: RelationshipRow) -> None:
    """Put a relationship's row in the place of what is shown of it; deleted, where one of its ends is."""
    found = find_relationship(connection, user_no, row.source_id, row.relationship_type, row.target_id)
    row_id = found[0] if found else ledger.next_row_id(connection)
    shown = row
    if row.deleted_at is None:
        shown = row._replace(deleted_at=end_deleted_at(connection, user_no, row.source_id, row.target_id))
    put_relationship(connection, user_no, row_id, shown)
    ledger.observe(row.stamp)


def queued_operations(
    connection: sqlite3.Connection, user_id: str, entity_id: str | None = None, *, after_seq: int = 0
) -> list[Operation]:
    """What is queued of a user, or on one of its entities, behind a number, in order.

    To be laid over rows from Postgres it has to be what is behind the last number that they contain. The answer to the
    relay on the others may still be on the way; laid over what others made of them since, they would undo that.
    """
    rows = connection.execute(
        "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at from outbox"
        " where user_id = ?1 and (?2 is null or entity_id = ?2) and seq > ?3 order by seq",
        (user_id, entity_id, after_seq),
    ).fetchall()
    return [operation(row) for row in cast("list[SqlRow]", rows)]


def lay_over(connection: sqlite3.Connection, ledger: Ledger, user_no: int, queued: Operation) -> int | None:
    """Show a queued operation over the row that stands, as Postgres will decide it; the row id it touched."""
    match queued.kind:
        case Kind.NODE:
            carried = carried_node(queued.payload)
            found = find_node(connection, user_no, queued.entity_id)
            current = found[1] if found else None
            seen = current is not None and current.rev == queued.base
            decided = decide_node(carried, current, seen=seen)
            if decided.row is None or decided.verdict is Verdict.REJECTED:
                return None
            rev = current.rev if current else 0
            return show_node(connection, ledger, user_no, decided.row._replace(rev=rev))
        case Kind.RELATIONSHIP:
            _lay_relationship_over(connection, ledger, user_no, queued)
            return None
        case Kind.ERASE:
            return None


def _lay_relationship_over(connection: sqlite3.Connection, ledger: Ledger, user_no: int, queued: Operation) -> None:
    wished, revive, absent_at = carried_relationship(queued.payload)
    found = find_relationship(connection, user_no, wished.source_id, wished.relationship_type, wished.target_id)
    standing = found[1] if found else None
    rev = standing.rev if standing else 0
    # What stands in Postgres has no deleted end there: an end that is not here has expired.
    stands = standing is not None and standing.deleted_at is None and standing.rev > 0
    if wished.deleted_at is None and not stands and not ends_live(connection, user_no, wished):
        # Kept out of sight: should the ends come back first, Postgres will take it.
        if standing is None or standing.deleted_at is None:
            hidden = wished._replace(deleted_at=wished.updated_at, rev=rev)
            show_relationship(connection, ledger, user_no, hidden)
        return
    seen = standing is not None and standing.rev == queued.base
    row = decide_relationship(wished, standing, seen=seen, revive=revive, absent_at=absent_at).row
    if row is not None:
        show_relationship(connection, ledger, user_no, row._replace(rev=rev))


def relate_again(
    connection: sqlite3.Connection, ledger: Ledger, user_no: int, queued: Sequence[Operation], nodes: Container[str]
) -> None:
    """Show what is queued that relates nodes which were not there before, and was kept out of sight for that."""
    for one in queued:
        if one.kind is Kind.RELATIONSHIP and any(end in nodes for end in related_nodes(one.payload)):
            _lay_relationship_over(connection, ledger, user_no, one)


def show_applied(connection: sqlite3.Connection, ledger: Ledger, applied: Sequence[Applied]) -> list[Touched]:
    """Show operations that Postgres applied as their writers made them, with the revisions that it gave them.

    Laid over a row that its writer had not seen, an operation may have lost here, and that row have been deleted before
    the operation came to Postgres. Given the revision, the other's row would pass for it for good: so the operation's
    own is put in its place. Returns what was put so.
    """
    touched: list[Touched] = []
    for change, _, rev in applied:
        user_no = ledger.known_user_no(connection, change.user_id)
        if user_no is None or rev is None:
            continue
        own = _Own(change)
        found = own.find(connection, user_no)
        if found is None or found[1].rev >= rev:
            continue
        row_id, standing = found
        later = queued_operations(connection, change.user_id, change.entity_id, after_seq=change.seq)
        if own.is_hidden(standing) or (standing.rev > 0 and not own.is_shown(standing, later)):
            if own.has_deleted_end(connection, user_no):
                continue  # it has come back in Postgres: the feed brings both
            own.show(connection, ledger, user_no, rev)
            for other in later:
                lay_over(connection, ledger, user_no, other)
            if change.kind is Kind.NODE:
                touched.append((user_no, row_id))
        own.number(connection, row_id, rev)
    return touched


class _Own:
    """A change of ours of a node or a relationship, held against the row that is shown of it."""

    def __init__(self, operation: Operation) -> None:
        self._stamp = operation.stamp
        self._merges = False
        if operation.kind is Kind.NODE:
            carried = carried_node(operation.payload)
            self._row: NodeRow | RelationshipRow = carried.row
            self._merges = carried.rule is Rule.MERGE
        else:
            self._row = carried_relationship(operation.payload).row

    def find(self, connection: sqlite3.Connection, user_no: int) -> tuple[int, NodeRow | RelationshipRow] | None:
        """The row id and what is shown, a tombstone too."""
        row = self._row
        if isinstance(row, NodeRow):
            return find_node(connection, user_no, row.node_id)
        return find_relationship(connection, user_no, row.source_id, row.relationship_type, row.target_id)

    def is_shown(self, standing: NodeRow | RelationshipRow, later: Sequence[Operation]) -> bool:
        """Whether that is this change, one that is queued behind it, or says the same.

        Laid over a row that its writer had not seen, what merges has the change's stamp and more in it.
        """
        same = standing.row_hash == self._row.row_hash and standing.deleted_at == self._row.deleted_at
        is_this = standing.stamp == self._stamp and not self._merges
        return same or is_this or standing.stamp in {other.stamp for other in later}

    def is_hidden(self, standing: NodeRow | RelationshipRow) -> bool:
        """Whether that is this change, shown as deleted because an end of the relationship was not there."""
        row = self._row
        if isinstance(row, NodeRow) or row.deleted_at is not None:
            return False
        return standing.deleted_at is not None and standing.stamp == self._stamp

    def has_deleted_end(self, connection: sqlite3.Connection, user_no: int) -> bool:
        """Whether it is a live relationship of a node that is deleted here."""
        row = self._row
        if isinstance(row, NodeRow) or row.deleted_at is not None:
            return False
        return end_deleted_at(connection, user_no, row.source_id, row.target_id) is not None

    def show(self, connection: sqlite3.Connection, ledger: Ledger, user_no: int, rev: int) -> None:
        """Put it in the place of what is shown."""
        if isinstance(self._row, NodeRow):
            show_node(connection, ledger, user_no, self._row._replace(rev=rev))
        else:
            show_relationship(connection, ledger, user_no, self._row._replace(rev=rev))

    def number(self, connection: sqlite3.Connection, row_id: int, rev: int) -> None:
        """Give what is shown its revision."""
        statement = _NUMBER_NODE if isinstance(self._row, NodeRow) else _NUMBER_RELATIONSHIP
        connection.execute(statement, (rev, row_id))
