"""Who wins when an operation meets a row its writer had not seen: pure functions with one table of cases."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_memory.changes import (
    NodeRow,
    RelationshipRow,
    Rule,
    merge_tags,
    merge_text,
    node_hash,
    searchable_text,
    still_standing,
    without_removed,
)
from hybrid_memory.graph import Verdict
from hybrid_memory.jsontext import decode
from hybrid_memory.payloads import CarriedNode


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDecision:
    """`row` is what shall stand from now on (None: what stands, stays); `lost` says the change's content lost."""

    verdict: Verdict
    row: NodeRow | None
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationshipDecision:
    """`row` is what shall stand from now on; None leaves what stands."""

    verdict: Verdict
    row: RelationshipRow | None


def decide_node(carried: CarriedNode, current: NodeRow | None, *, seen: bool) -> NodeDecision:
    """Decide a node operation. `seen` says that its writer had seen exactly the row that stands.

    | what stands | the operation | outcome |
    |---|---|---|
    | nothing, or what the writer saw | any | applied |
    | a tombstone that its writer's copy, being complete, had left out | any | applied |
    | the same write, brought by another copy after a loss | any | applied: it stands |
    | a live row it did not see | compare | rejected |
    | a tombstone it did not see | revives | applied |
    | a tombstone it did not see | any other | superseded: delete wins |
    | a live row it did not see | deletes | applied: delete wins, over the content that stands |
    | a live row it did not see | merge | merged field by field |
    | a live row it did not see | append, replace | the later stamp wins |
    """
    row = carried.row
    if current is None or seen or _left_out(current, carried.absent_at):
        return NodeDecision(verdict=Verdict.APPLIED, row=row)
    if _is_same_write(row, current):
        return NodeDecision(verdict=Verdict.APPLIED, row=None)
    if carried.rule is Rule.COMPARE:
        return NodeDecision(verdict=Verdict.REJECTED, row=None, lost=True)
    if current.deleted_at is not None:
        if carried.revive and row.deleted_at is None:
            return NodeDecision(verdict=Verdict.APPLIED, row=row)
        return NodeDecision(verdict=Verdict.SUPERSEDED, row=None, lost=row.deleted_at is None)
    if row.deleted_at is not None:
        tomb = current._replace(deleted_at=row.deleted_at, updated_at=row.updated_at, stamp=row.stamp)
        return NodeDecision(verdict=Verdict.APPLIED, row=tomb)
    if carried.rule is Rule.MERGE and carried.patch is not None:
        return NodeDecision(verdict=Verdict.MERGED, row=_merged(carried, carried.patch, current))
    if row.row_hash == current.row_hash:
        return NodeDecision(verdict=Verdict.SUPERSEDED, row=None)
    if row.stamp > current.stamp:
        return NodeDecision(verdict=Verdict.APPLIED, row=row)
    return NodeDecision(verdict=Verdict.SUPERSEDED, row=None, lost=True)


def _left_out(current: NodeRow | RelationshipRow, absent_at: int) -> bool:
    """Whether the writer saw that nothing was there: complete copies are loaded without tombstones."""
    return current.deleted_at is not None and 0 < current.rev <= absent_at


def _is_same_write(row: NodeRow | RelationshipRow, current: NodeRow | RelationshipRow) -> bool:
    return (row.stamp, row.row_hash, row.deleted_at) == (current.stamp, current.row_hash, current.deleted_at)


def _merged(carried: CarriedNode, patch: str, current: NodeRow) -> NodeRow:
    row = carried.row
    # Laid over in stamp order, so that two replicas merging the same two changes agree field by field.
    later = row.stamp > current.stamp
    if later:
        content = merge_text(current.content, patch)
    elif carried.patched is None:
        content = merge_text(merge_text("{}", patch), current.content)
    else:
        # What its writer saw and is gone was removed since, and would be seen nowhere in what stands.
        left = without_removed(patch, carried.patched, current.content)
        content = merge_text(merge_text("{}", left), current.content)
        # The later stamp may be another field's. What stands as its writer saw it nobody else has changed since.
        content = merge_text(content, still_standing(patch, carried.patched, current.content))
    newer, older = (row, current) if later else (current, row)
    merged = newer._replace(
        content=content,
        text_content=searchable_text(decode(content)),
        summary=newer.summary if newer.summary is not None else older.summary,
        tags=merge_tags(current.tags, row.tags),
        importance=max(row.importance, current.importance),
        created_at=min(row.created_at, current.created_at),
        updated_at=max(row.updated_at, current.updated_at),
        stamp=max(row.stamp, current.stamp),
        rev=0,
    )
    return merged._replace(row_hash=node_hash(merged))


def decide_relationship(
    row: RelationshipRow,
    current: RelationshipRow | None,
    *,
    seen: bool,
    revive: bool,
    absent_at: int = 0,
    end_deleted: bool = False,
) -> RelationshipDecision:
    """Decide a relationship operation: delete wins unless revived or known, else the later stamp.

    `end_deleted` says that one of its nodes is a tombstone, or will be when the operation is done: deleting a node
    deletes its relationships, those too that were not known of, and none may live on.
    """
    if end_deleted and row.deleted_at is None:
        return RelationshipDecision(verdict=Verdict.SUPERSEDED, row=None)
    if current is None or seen or _left_out(current, absent_at):
        return RelationshipDecision(verdict=Verdict.APPLIED, row=row)
    if _is_same_write(row, current):
        return RelationshipDecision(verdict=Verdict.APPLIED, row=None)
    if current.deleted_at is not None and not (revive and row.deleted_at is None):
        return RelationshipDecision(verdict=Verdict.SUPERSEDED, row=None)
    if row.deleted_at is not None or revive or row.stamp > current.stamp:
        return RelationshipDecision(verdict=Verdict.APPLIED, row=row)
    return RelationshipDecision(verdict=Verdict.SUPERSEDED, row=None)
