"""Deciding one user's operations against the rows that stand: the merge rules, laid over what Postgres holds."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from hybrid_memory.changes import Kind, NodeRow, Operation, RelationshipRow, Rule
from hybrid_memory.graph import Verdict
from hybrid_memory.merging import decide_node, decide_relationship
from hybrid_memory.messages import Applied
from hybrid_memory.payloads import carried_node, carried_relationship, node_payload, relationship_payload
from hybrid_memory.postgres.batches import RowChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A row as it stands, and the operation that made it: `writer_seq` 0 where that was a decision."""

    row: NodeRow | RelationshipRow
    writer: str
    writer_seq: int

    def made_by(self, client_id: str, seq: int) -> bool:
        """Whether it is exactly what that operation of that client made."""
        return self.writer == client_id and self.writer_seq == seq > 0

    def seen_by(self, operation: Operation, client_id: str) -> bool:
        """Whether the operation was made on exactly this row."""
        return self.row.rev == operation.base or self.made_by(client_id, -operation.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What one user's operations meet: the rows that stand, and which nodes, of those that they relate, are deleted."""

    standings: Mapping[tuple[Kind, str], Standing]
    present_nodes: frozenset[str] = frozenset()
    deleted_nodes: frozenset[str] = frozenset()

    def standing(self, operation: Operation) -> Standing | None:
        """The row that an operation is about."""
        return self.standings.get((operation.kind, operation.entity_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A content that a decision went against: `rev` and `beaten_by` are those of the row that stands."""

    row: NodeRow
    rev: int
    beaten_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What becomes of an operation: `row` stands then, and `change` writes it; None leaves what stands."""

    operation: Operation
    verdict: Verdict
    row: NodeRow | RelationshipRow | None = None
    change: RowChange | None = None
    lost: Lost | None = None
    as_sent: bool = False


def decide(operations: Sequence[Operation], met: Met, client_id: str, erased: Container[int] = ()) -> list[Decided]:
    """Decide one user's operations by the merge rules, in their order; `erased` are numbers that an erasure beat.

    The nodes among them are written before the relationships, so these meet what becomes of their ends.
    """
    decided: dict[int, Decided] = {}
    deleted = set(met.deleted_nodes)
    for operation in sorted(operations, key=_is_relationship):
        if operation.seq in erased:
            outcome = Decided(operation=operation, verdict=Verdict.REJECTED)
        elif operation.kind is Kind.NODE:
            outcome = _decide_node(operation, met.standing(operation), client_id)
        elif operation.kind is Kind.RELATIONSHIP:
            outcome = _decide_relationship(operation, met.standing(operation), client_id, deleted)
        else:
            raise ValueError("an erasure is not decided, it is done")
        decided[operation.seq] = outcome
        if isinstance(outcome.row, NodeRow):
            (deleted.discard if outcome.row.deleted_at is None else deleted.add)(operation.entity_id)
    return [decided[operation.seq] for operation in operations]


def _is_relationship(operation: Operation) -> bool:
    return operation.kind is Kind.RELATIONSHIP


def _decide_node(operation: Operation, standing: Standing | None, client_id: str) -> Decided:
    carried = carried_node(operation.payload)
    current = standing.row if standing is not None else None
    if current is not None and not isinstance(current, NodeRow):
        raise TypeError("a node was held against a relationship")
    seen = standing is not None and standing.seen_by(operation, client_id)
    decision = decide_node(carried, current, seen=seen)
    lost = None
    if decision.lost and standing is not None:
        lost = Lost(row=carried.row, rev=standing.row.rev, beaten_by=standing.writer)
    if decision.row is None:
        return Decided(operation=operation, verdict=decision.verdict, lost=lost)
    as_sent = decision.row is carried.row
    change = _change(
        operation,
        standing,
        decision.row,
        payload=operation.payload if as_sent else node_payload(operation.user_id, decision.row, rule=Rule.REPLACE),
        merged=decision.verdict is Verdict.MERGED,
    )
    return Decided(
        operation=operation, verdict=decision.verdict, row=decision.row, change=change, lost=lost, as_sent=as_sent
    )


def _decide_relationship(
    operation: Operation, standing: Standing | None, client_id: str, deleted_nodes: Container[str]
) -> Decided:
    row, revive, absent_at = carried_relationship(operation.payload)
    current = standing.row if standing is not None else None
    if current is not None and not isinstance(current, RelationshipRow):
        raise TypeError("a relationship was held against a node")
    seen = standing is not None and standing.seen_by(operation, client_id)
    end_deleted = row.source_id in deleted_nodes or row.target_id in deleted_nodes
    decision = decide_relationship(row, current, seen=seen, revive=revive, absent_at=absent_at, end_deleted=end_deleted)
    if decision.row is None:
        return Decided(operation=operation, verdict=decision.verdict)
    as_sent = decision.row is row
    change = _change(
        operation,
        standing,
        decision.row,
        payload=operation.payload if as_sent else relationship_payload(operation.user_id, decision.row),
        merged=decision.verdict is Verdict.MERGED,
    )
    return Decided(operation=operation, verdict=decision.verdict, row=decision.row, change=change, as_sent=as_sent)


def _change(
    operation: Operation,
    standing: Standing | None,
    row: NodeRow | RelationshipRow,
    *,
    payload: str,
    merged: bool,
) -> RowChange:
    was_live = standing is not None and standing.row.deleted_at is None
    return RowChange(
        kind=operation.kind,
        # Nobody has seen a merged row yet, so no later operation may claim to be made on it.
        seq=0 if merged else operation.seq,
        base=standing.row.rev if standing is not None else 0,
        delta=(row.deleted_at is None) - was_live,
        payload=payload,
    )


def told_again(operation: Operation, standing: Standing | None, client_id: str, *, erased: bool) -> Applied:
    """What is known, from what stands, of an operation whose first answer was lost; `erased`, an erasure beat it.

    Of what lost to another the history knows more.
    """
    if erased:
        return Applied(operation, Verdict.REJECTED, None)
    if standing is not None and standing.made_by(client_id, operation.seq):
        return Applied(operation, Verdict.APPLIED, standing.row.rev)
    return Applied(operation, Verdict.APPLIED, None)


def verdict_of_loser(operation: Operation) -> Verdict:
    """The verdict on an operation that is in the history as having lost."""
    compares = operation.kind is Kind.NODE and carried_node(operation.payload).rule is Rule.COMPARE
    return Verdict.REJECTED if compares else Verdict.SUPERSEDED
