"""Whether what a failover took came back: what was stored stands again, and what was erased does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import orjson

from hybrid_memory.changes import Kind, NodeRow, Operation, RelationshipRow
from hybrid_memory.graph import Verdict
from hybrid_memory.payloads import carried_node, carried_relationship
from hybrid_memory.testing.history import Act, History
from tests.simulation.postgres import Postgres
from tests.simulation.process import Process

_TOOK_EFFECT = {Verdict.APPLIED, Verdict.MERGED}


def still_lost(postgres: Postgres, history: History, processes: Sequence[Process]) -> list[str]:
    """The operations that were acknowledged, then taken by a failover, and of which nothing has come back.

    What stands in their place may be later, or deleted. A copy that was given up cannot bring anything back, so users
    who were evicted or erased anywhere are left out, and rows on which something died or that were to expire. One stamp
    stands for all fields of an entity, so of what two copies bring back of one field the later need not win. Deleting a
    node deletes the relationships at it, and a deletion is brought back too: one that comes behind it is superseded.
    A deletion wins over what it had not seen, later or not, and what its caller stores anew behind it stands.

    Not told apart by the product, so left out too: what was queued on a revision that was lost, and that another
    operation on the same row was given since, passes for one that has seen that.
    """
    given_up = {event.user_id for event in history.events if event.act in {Act.EVICT, Act.ERASE}}
    expiring = {
        (one.user_id, one.entity_id)
        for one in postgres.operations.values()
        if one.kind is Kind.NODE and carried_node(one.payload).row.expires_at is not None
    }
    deleted = _first_deletions(postgres.operations.values())
    left_out = expiring | _mistaken(postgres) | {place for process in processes for place in process.buried_keys()}
    acknowledged = {one for process in processes for one in process.acknowledged}
    applied = {entry.operation for entry in postgres.ledger}
    found: list[str] = []
    for entry in postgres.rewound:
        if entry.user_id in given_up or (entry.user_id, entry.key) in left_out or entry.verdict not in _TOOK_EFFECT:
            continue
        if entry.operation in applied or entry.operation not in acknowledged:
            continue
        if not history.clocks_agree and _row(postgres.operations[entry.operation]).deleted_at is not None:
            continue  # who begins it anew may know of the deletion and have an earlier stamp
        account = postgres.accounts.get(entry.user_id)
        standing = account.rows.get(entry.key) if account else None
        row = standing.row if standing else None
        operation = postgres.operations[entry.operation]
        deletions = [
            deleted[entry.user_id, place]
            for place in (entry.key, *_ends(operation))
            if (entry.user_id, place) in deleted
        ]
        lost = _lost(operation, row, deletion=min(deletions, default=None))
        found += [f"a failover took {entry.operation} of {entry.key}: {what}" for what in lost]
    return found


def _mistaken(postgres: Postgres) -> set[tuple[str, str]]:
    """The rows that were changed on a revision which is another write's than it was in a past that was lost."""
    stamps = {op_id: one.stamp for op_id, one in postgres.operations.items()}
    now = {(one.user_id, one.key, one.rev): stamps.get(one.operation) for one in postgres.ledger}
    made_on = {
        (one.user_id, one.key, postgres.operations[one.operation].base)
        for one in postgres.ledger
        if one.rev is not None and one.operation in postgres.operations
    }
    return {
        (one.user_id, one.key)
        for past in postgres.pasts
        for one in past
        if (at := (one.user_id, one.key, one.rev)) in made_on & now.keys() and now[at] != stamps.get(one.operation)
    }


def _first_deletions(operations: Iterable[Operation]) -> dict[tuple[str, str], int]:
    """The nodes that were ever deleted, by user and key, each with the earliest stamp of a deletion."""
    found: dict[tuple[str, str], int] = {}
    for one in operations:
        row = carried_node(one.payload).row if one.kind is Kind.NODE else None
        if row is not None and row.deleted_at is not None:
            place = one.user_id, one.entity_id
            found[place] = min(row.stamp, found.get(place, row.stamp))
    return found


def _lost(operation: Operation, standing: NodeRow | RelationshipRow | None, *, deletion: int | None) -> Iterator[str]:
    """What is missing of an operation; `deletion` is the stamp of the first of its row or of an end, if any."""
    row = _row(operation)
    if standing is None:
        if row.deleted_at is None and deletion is None:
            yield "nothing stands there"
    elif standing.deleted_at is not None:
        return
    elif row.deleted_at is not None or not isinstance(standing, NodeRow) or standing.entity_system is None:
        begun_anew = row.deleted_at is None and deletion is not None and deletion < standing.stamp
        if standing.stamp < row.stamp and not begun_anew:
            yield "something older stands there"
    elif deletion is None:
        stands = _data(standing.content)
        for name, value in _patch(operation).items():
            if name not in stands:
                yield f"it has no {name}, which was {value}"


def erased_and_back(postgres: Postgres, history: History) -> list[str]:
    """What was erased by a caller in a past that a failover took, and stands in the end all the same.

    Erasures are repeated in any order, and held against what was stored by time. So nothing is said of users whom two
    processes erased, nor where clocks differ.
    """
    if not history.clocks_agree:
        return []
    erasures = [event for event in history.events if event.act is Act.ERASE]
    erasers = Counter(user_id for user_id, _ in {(event.user_id, event.process) for event in erasures})
    asked = {event.operation for event in erasures if erasers[event.user_id] == 1}
    standing = {row.value for row in history.postgres.values()}
    found: list[str] = []
    for past in postgres.pasts:
        erased_at = {entry.user_id: at for at, entry in enumerate(past) if entry.operation in asked}
        found += [
            f"{entry.value} was erased before a failover and stands again"
            for at, entry in enumerate(past)
            if entry.value is not None and entry.value in standing and at < erased_at.get(entry.user_id, -1)
        ]
    return found


def _ends(operation: Operation) -> tuple[str, ...]:
    """The nodes that an operation relates."""
    row = _row(operation)
    return (row.source_id, row.target_id) if isinstance(row, RelationshipRow) else ()


def _row(operation: Operation) -> NodeRow | RelationshipRow:
    if operation.kind is Kind.NODE:
        return carried_node(operation.payload).row
    return carried_relationship(operation.payload)[0]


def _patch(operation: Operation) -> Mapping[str, str]:
    patch = carried_node(operation.payload).patch
    return {} if patch is None else _data(patch)


def _data(content: str) -> Mapping[str, str]:
    return cast("dict[str, dict[str, str]]", orjson.loads(content)).get("entity_data", {})
