"""What one call of `memory.apply` is given: built from operations without reading their payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.graph import Verdict
from hybrid_memory.ports import Applied, AppliedUser, BatchApplied, Opening


class RowChange(NamedTuple):
    """A row to be written: `payload` as `payloads` wrote it, and how it changes its user's count of live rows."""

    kind: Kind
    seq: int
    base: int
    delta: int
    payload: str

    @property
    def buries_node(self) -> bool:
        """Whether relationships that its writer did not know of have to go with it."""
        return self.kind is Kind.NODE and self.delta < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UserChanges:
    """One user's part of a batch: it does `[first_seq, last_seq]` of the queue, and each row takes a revision."""

    user_id: str
    first_seq: int
    last_seq: int
    erased_rev: int
    rows: tuple[RowChange, ...]

    @property
    def buries_nodes(self) -> bool:
        """Whether any node is buried."""
        return any(row.buries_node for row in self.rows)

    def delta(self, kind: Kind) -> int:
        """By how much the user's count of live rows of a kind changes."""
        return sum(row.delta for row in self.rows if row.kind is kind)


def by_user(operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    """Each user's operations in their order; users in ascending order, in which their heads are locked."""
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        found.setdefault(operation.user_id, []).append(operation)
    return dict(sorted(found.items()))


def as_sent(users: Mapping[str, Sequence[Operation]], erased: Mapping[str, int]) -> list[UserChanges]:
    """The changes of users whose operations are applied just as their writer made them."""
    return [
        UserChanges(
            user_id=user_id,
            first_seq=operations[0].seq,
            last_seq=operations[-1].seq,
            erased_rev=erased.get(user_id, 0),
            rows=tuple(RowChange(one.kind, one.seq, one.base, one.delta, one.payload) for one in operations),
        )
        for user_id, operations in users.items()
    ]


def arguments(opening: Opening, users: Sequence[UserChanges]) -> tuple[object, ...]:
    """The arguments of `memory.apply`, in its order."""
    burying = [place for place, user in enumerate(users, start=1) if user.buries_nodes]
    return (
        opening.client_id,
        opening.number,
        opening.token,
        [user.user_id for user in users],
        [len(user.rows) for user in users],
        [user.first_seq for user in users],
        [user.last_seq for user in users],
        [user.erased_rev for user in users],
        [user.delta(Kind.NODE) for user in users],
        [user.delta(Kind.RELATIONSHIP) for user in users],
        _rows(users, Kind.NODE),
        _rows(users, Kind.RELATIONSHIP),
        burying or None,
    )


def _rows(users: Sequence[UserChanges], kind: Kind) -> str | None:
    """The JSON array of all rows of a kind; the payloads are spliced in as the text they are."""
    rows = [
        f'{{"u":{place},"back":{back},"seq":{row.seq},"base":{row.base},{row.payload[1:]}'
        for place, user in enumerate(users, start=1)
        for back, row in zip(range(len(user.rows) - 1, -1, -1), user.rows, strict=True)
        if row.kind is kind
    ]
    return f"[{','.join(rows)}]" if rows else None


def outcome(
    users: Mapping[str, Sequence[Operation]], changes: Sequence[UserChanges], revs: Sequence[int], epochs: Sequence[str]
) -> BatchApplied:
    """The outcome of a batch that was applied as sent; `revs` are the revisions of each user's last row."""
    applied: list[Applied] = []
    heads: list[AppliedUser] = []
    for user, rev, epoch in zip(changes, revs, epochs, strict=True):
        operations = users[user.user_id]
        before = rev - len(operations)
        applied.extend(
            Applied(operation, Verdict.APPLIED, before + place) for place, operation in enumerate(operations, start=1)
        )
        heads.append(
            AppliedUser(
                user_id=user.user_id,
                epoch=epoch,
                before_rev=before,
                head_rev=rev,
                # A buried node may have taken relationships along that its writer did not know of.
                as_sent=not user.buries_nodes,
            )
        )
    return BatchApplied(operations=tuple(applied), users=tuple(heads))
