"""Which queued operations may travel in one transaction: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.payloads import may_revive, related_nodes


@dataclass(slots=True)
class _User:
    touched: set[str] = field(default_factory=set[str])
    buried: set[str] = field(default_factory=set[str])
    related: set[str] = field(default_factory=set[str])
    closed: bool = False


def cut(operations: Sequence[Operation]) -> tuple[list[Operation], set[str]]:
    """The operations that may go together, in order, and the users some of whose operations must wait.

    In one transaction nodes are written before relationships, and no row twice. So a user's operations end for this
    batch before one that touches an entity again, that relates a node buried before it, that may bring back a node
    related before it, or that follows an erasure; an erasure itself travels alone.
    """
    if _independent(operations):
        return list(operations), set()
    taken: list[Operation] = []
    users: dict[str, _User] = {}
    for operation in operations:
        user = users.get(operation.user_id)
        if user is None:
            user = users[operation.user_id] = _User()
        if user.closed or not _fits(user, operation):
            user.closed = True
            continue
        user.touched.add(operation.entity_id)
        if operation.kind is Kind.ERASE:
            user.touched.add("")
        elif operation.kind is Kind.NODE and operation.delta < 0:
            user.buried.add(operation.entity_id)
        elif operation.kind is Kind.RELATIONSHIP:
            user.related.update(related_nodes(operation.payload))
        taken.append(operation)
    return taken, {user_id for user_id, user in users.items() if user.closed}


def _independent(operations: Sequence[Operation]) -> bool:
    # Nearly always so, and told at a tenth of the cost.
    if len({one.entity_id for one in operations}) < len(operations):
        return False
    related = False
    for one in operations:
        if one.delta < 0 or one.kind is Kind.ERASE or (related and _may_bring_back(one)):
            return False
        related = related or one.kind is Kind.RELATIONSHIP
    return True


def _may_bring_back(operation: Operation) -> bool:
    return operation.kind is Kind.NODE and operation.delta > 0 and may_revive(operation.payload)


def _fits(user: _User, operation: Operation) -> bool:
    if operation.entity_id in user.touched or "" in user.touched:
        return False
    if operation.kind is Kind.ERASE:
        return not user.touched
    if operation.kind is Kind.RELATIONSHIP and user.buried:
        return user.buried.isdisjoint(related_nodes(operation.payload))
    return operation.entity_id not in user.related or not _may_bring_back(operation)


def halves(operations: list[Operation]) -> list[list[Operation]]:
    """Split what failed as a whole: by user where there are several, else in the middle."""
    by_user: dict[str, list[Operation]] = {}
    for operation in operations:
        by_user.setdefault(operation.user_id, []).append(operation)
    if len(by_user) > 1:
        return list(by_user.values())
    middle = len(operations) // 2
    return [operations[:middle], operations[middle:]]
