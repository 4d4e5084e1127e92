"""What a call that applies a batch is given: built from operations without reading their payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.graph import Verdict
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied, Opening


class RowChange(NamedTuple):
    """A row to be written: `payload` as `payloads` wrote it, and how it changes its user's count of live rows."""

    kind: Kind
    seq: int
    base: int
    delta: int
    payload: str


def buries_node(row: RowChange | Operation) -> bool:
    """Whether a row buries a node: relationships that its writer did not know of have to go with it."""
    return row.delta < 0 and row.kind is Kind.NODE


class UserChanges(NamedTuple):
    """One user's part of a batch: it does `[first_seq, last_seq]` of the queue, and each row takes a revision."""

    user_id: str
    first_seq: int
    last_seq: int
    erased_rev: int
    rows: Sequence[RowChange | Operation]


def by_user(operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    """Each user's operations in their order; users in ascending order, in which their heads are locked."""
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        found.setdefault(operation.user_id, []).append(operation)
    return dict(sorted(found.items()))


def as_sent(users: Mapping[str, Sequence[Operation]], erased: Mapping[str, int]) -> list[UserChanges]:
    """The changes of users whose operations are applied just as their writer made them."""
    return [
        UserChanges(user_id, operations[0].seq, operations[-1].seq, erased.get(user_id, 0), operations)
        for user_id, operations in users.items()
    ]


def arguments_of_one(opening: Opening, user: UserChanges) -> tuple[object, ...]:
    """The arguments of `memory.apply_one`, in its order."""
    rows = _Rows()
    rows.add(1, user)
    return (
        opening.client_id,
        opening.number,
        opening.token,
        user.user_id,
        len(user.rows),
        user.first_seq,
        user.last_seq,
        user.erased_rev,
        rows.node_counts[0],
        rows.relationship_counts[0],
        _json_array(rows.nodes),
        _json_array(rows.relationships),
        rows.new,
        bool(rows.burying),
    )


def arguments(opening: Opening, users: Sequence[UserChanges]) -> tuple[object, ...]:
    """The arguments of `memory.apply`, in its order."""
    rows = _Rows()
    for place, user in enumerate(users, start=1):
        rows.add(place, user)
    return (
        opening.client_id,
        opening.number,
        opening.token,
        [user.user_id for user in users],
        _array([len(user.rows) for user in users]),
        _array([user.first_seq for user in users]),
        _array([user.last_seq for user in users]),
        _array([user.erased_rev for user in users]),
        _array(rows.node_counts),
        _array(rows.relationship_counts),
        _json_array(rows.nodes),
        _json_array(rows.relationships),
        rows.new,
        rows.burying or None,
    )


def _array(numbers: list[int]) -> str:
    """An array as Postgres reads it: the driver would ask of each element what it is, at the cost of all the rest."""
    return f"{{{str(numbers)[1:-1]}}}"


def _json_array(texts: Sequence[str]) -> str | None:
    return f"[{','.join(texts)}]" if texts else None


class _Rows:
    """What is said of a batch's rows, gathered in one pass: every write goes through it."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.relationships: list[str] = []
        self.node_counts: list[int] = []
        self.relationship_counts: list[int] = []
        self.burying: list[int] = []
        # All are nodes that their writer took for new.
        self.new = True

    def add(self, place: int, user: UserChanges) -> None:
        """Add a user's rows; the payloads are spliced in as the text they are."""
        node_count = relationship_count = 0
        buries = False
        back = len(user.rows)
        for row in user.rows:
            back -= 1
            text = f'{{"u":{place},"back":{back},"seq":{row.seq},"base":{row.base},{row.payload[1:]}'
            if row.kind is Kind.NODE:
                self.nodes.append(text)
                node_count += row.delta
                buries = buries or buries_node(row)
                if row.base != 0:
                    self.new = False
            else:
                self.new = False
                self.relationships.append(text)
                relationship_count += row.delta
        self.node_counts.append(node_count)
        self.relationship_counts.append(relationship_count)
        if buries:
            self.burying.append(place)


def outcome(
    users: Mapping[str, Sequence[Operation]], changes: Sequence[UserChanges], revs: Sequence[int], epochs: Sequence[str]
) -> BatchApplied:
    """The outcome of a batch that was applied as sent; `revs` are the revisions of each user's last row."""
    applied: list[Applied] = []
    heads: list[AppliedUser] = []
    for user, rev, epoch in zip(changes, revs, epochs, strict=True):
        operations = users[user.user_id]
        before = rev_of = rev - len(operations)
        as_sent = True
        for operation in operations:
            rev_of += 1
            applied.append(Applied(operation, Verdict.APPLIED, rev_of))
            if buries_node(operation):
                # It may have taken relationships along that its writer did not know of.
                as_sent = False
        heads.append(AppliedUser(user.user_id, epoch, before, rev, as_sent))
    return BatchApplied(operations=tuple(applied), users=tuple(heads))
