"""The operations that flow to Postgres and the rows they make: pure, one implementation for both tiers.

These values are named tuples and not frozen dataclasses: a row of 21 fields is made in 0.6 microseconds instead of 6,
one is made for each write, and as a tuple it is at once what goes into the database.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NamedTuple, TypeAlias, cast

import orjson

from hybrid_memory.graph import JsonValue, NodeId

JsonObject: TypeAlias = "dict[str, JsonValue]"


class Rule(StrEnum):
    """What happens when the row changed since the writer last saw it."""

    APPEND = "append"
    """Ids are unique, no conflict can occur."""
    MERGE = "merge"
    """The change is a JSON merge patch (RFC 7396) laid over whatever is there."""
    REPLACE = "replace"
    """The later stamp wins; the loser goes to history."""
    COMPARE = "compare"
    """Rejected unless the row is the one the writer expected."""


class Kind(StrEnum):
    """What an operation is about."""

    NODE = "node"
    RELATIONSHIP = "relationship"
    ERASE = "erase"


class NodeRow(NamedTuple):
    """A node as both tiers store it: JSON as canonical text, times in microseconds since the epoch."""

    node_id: NodeId
    namespace: str
    key: str | None
    context_type: str
    content: str
    row_hash: str
    text_content: str
    summary: str | None
    tags: str
    importance: float
    entity_system: str | None
    entity_id: str | None
    entity_type: str | None
    session_id: str | None
    source_agent: str | None
    created_at: int
    updated_at: int
    expires_at: int | None
    deleted_at: int | None
    stamp: int
    rev: int


class RelationshipRow(NamedTuple):
    """A relationship as both tiers store it."""

    relationship_id: str
    source_id: str
    target_id: str
    relationship_type: str
    weight: float
    properties: str
    row_hash: str
    valid_from: int | None
    valid_to: int | None
    created_at: int
    updated_at: int
    deleted_at: int | None
    stamp: int
    rev: int


class NodeChange(NamedTuple):
    """A validated wish to store a node. Fields left None keep what an existing node has.

    `fresh` says that the id was made for this change, so no row can have it yet.
    """

    node_id: NodeId
    namespace: str
    key: str | None
    context_type: str
    content: str
    text_content: str
    rule: Rule
    summary: str | None = None
    tags: str | None = None
    importance: float | None = None
    entity_system: str | None = None
    entity_id: str | None = None
    entity_type: str | None = None
    session_id: str | None = None
    source_agent: str | None = None
    created_at: int | None = None
    expires_at: int | None = None
    expected_rev: int | None = None
    fresh: bool = False


class RelationshipChange(NamedTuple):
    """A validated wish to store a relationship."""

    relationship_id: str
    source_id: NodeId
    target_id: NodeId
    relationship_type: str
    weight: float
    properties: str


class Operation(NamedTuple):
    """A queued change: `payload` is the JSON object that Postgres reads, frozen when the change was accepted.

    `base` is what it was made on (0 nothing, above 0 that revision of the row, below 0 our own operation of that
    number), `delta` by how much it changes the count of live rows (-1 for a burial).
    """

    seq: int
    op_id: str
    user_id: str
    kind: Kind
    entity_id: str
    base: int
    delta: int
    stamp: int
    payload: str
    accepted_at: int


DEFAULT_IMPORTANCE = 0.5


def _hash(values: tuple[object, ...]) -> str:
    # BLAKE2b takes a quarter of SHA-256's time here, and every write pays it.
    return hashlib.blake2b(orjson.dumps(values), digest_size=16).hexdigest()


def node_hash(row: NodeRow) -> str:
    """BLAKE2b-128 (hex) over what a reader can see of the node; revisions, stamps and access counters are left out."""
    return _hash((*row[1:5], *row[6:16], row.expires_at))


def relationship_hash(row: RelationshipRow) -> str:
    """BLAKE2b-128 (hex) over what a reader can see of the relationship."""
    return _hash((*row[1:6], row.valid_from, row.valid_to, row.created_at))


def merge_patch(target: JsonValue, patch: JsonValue) -> JsonValue:
    """Lay `patch` over `target` as RFC 7396 says: null removes a member, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged: JsonObject = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def patch_between(before: str, after: str) -> str:
    """The merge patch that makes the object `after` of the object `before`, both canonical JSON text."""
    patch = _patch(cast("JsonObject", orjson.loads(before)), cast("JsonObject", orjson.loads(after)))
    return orjson.dumps(patch, option=orjson.OPT_SORT_KEYS).decode()


def _patch(before: JsonObject, after: JsonObject) -> JsonObject:
    patch: JsonObject = {name: None for name in before if name not in after}
    for name, value in after.items():
        former = before.get(name)
        if isinstance(former, dict) and isinstance(value, dict):
            inner = _patch(former, value)
            if inner:
                patch[name] = inner
        elif name not in before or former != value or type(former) is not type(value):
            patch[name] = value
    return patch


def patched_members(before: str, patch: str) -> str:
    """What stood in an object where a merge patch changes it, as canonical JSON text; what was absent is left out."""
    return _text(_patched(cast("JsonObject", orjson.loads(before)), cast("JsonObject", orjson.loads(patch))))


def _patched(before: JsonObject, patch: JsonObject) -> JsonObject:
    found: JsonObject = {}
    for name in patch.keys() & before.keys():
        former, change = before[name], patch[name]
        if isinstance(former, dict) and isinstance(change, dict):
            found[name] = _patched(former, change)
        else:
            found[name] = former
    return found


def still_standing(patch: str, seen: str, current: str) -> str:
    """The part of a merge patch that changes what stands in `current` just as its writer had seen it, in `seen`."""
    texts = (patch, seen, current)
    return _text(_standing(*(cast("JsonObject", orjson.loads(text)) for text in texts)))


def _standing(patch: JsonObject, seen: JsonObject, current: JsonObject) -> JsonObject:
    found: JsonObject = {}
    for name, change in patch.items():
        if name not in seen or name not in current:
            continue
        former, stands = seen[name], current[name]
        if isinstance(change, dict) and isinstance(former, dict) and isinstance(stands, dict):
            found[name] = _standing(change, former, stands)
        elif former == stands and type(former) is type(stands):
            found[name] = change
    return found


def without_removed(patch: str, seen: str, current: str) -> str:
    """The part of a merge patch that is left without what its writer had seen, in `seen`, and `current` lacks."""
    texts = (patch, seen, current)
    return _text(_left(*(cast("JsonObject", orjson.loads(text)) for text in texts)))


def _left(patch: JsonObject, seen: JsonObject, current: JsonObject) -> JsonObject:
    left: JsonObject = {}
    for name, change in patch.items():
        if name in seen and name not in current:
            continue
        former, stands = seen.get(name), current.get(name)
        if isinstance(change, dict) and isinstance(former, dict) and isinstance(stands, dict):
            left[name] = _left(change, former, stands)
        else:
            left[name] = change
    return left


def _text(value: JsonValue) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def merge_text(target: str, patch: str) -> str:
    """`merge_patch` on canonical JSON text."""
    merged = merge_patch(cast("JsonValue", orjson.loads(target)), cast("JsonValue", orjson.loads(patch)))
    return orjson.dumps(merged, option=orjson.OPT_SORT_KEYS).decode()


def merge_tags(first: str, second: str) -> str:
    """The union of two JSON arrays of tags, in order of first appearance."""
    if second in {first, "[]"}:
        return first
    both = cast("list[str]", orjson.loads(first)) + cast("list[str]", orjson.loads(second))
    return orjson.dumps(list(dict.fromkeys(both))).decode()


def searchable_text(content: JsonValue) -> str:
    """What search sees of a content: its strings, depth first, a line each."""
    found: list[str] = []
    _gather(content, found)
    return "\n".join(found)


def _gather(value: JsonValue, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            _gather(item, found)
    elif isinstance(value, list):
        for item in value:
            _gather(item, found)


def node_row(change: NodeChange, existing: NodeRow | None, *, now_us: int, stamp: int) -> NodeRow:
    """The row a change makes of what is there locally. A tombstone counts as absent, and so does what has expired."""
    rev = existing.rev if existing else 0
    if existing is None or existing.deleted_at is not None or _has_expired(existing, now_us):
        return _new_row(change, now_us=now_us, stamp=stamp, rev=rev)
    row = _changed_row(change, existing, now_us=now_us, stamp=stamp)
    return row._replace(row_hash=node_hash(row))


def _has_expired(row: NodeRow, now_us: int) -> bool:
    return row.expires_at is not None and row.expires_at <= now_us


def _new_row(change: NodeChange, *, now_us: int, stamp: int, rev: int) -> NodeRow:
    created_at = change.created_at or now_us
    importance = DEFAULT_IMPORTANCE if change.importance is None else change.importance
    tags = change.tags or "[]"
    content, text = change.content, change.text_content
    if change.rule is Rule.MERGE:
        # Merged into nothing: what a patch removes is not stored as null.
        content = merge_text("{}", content)
        text = searchable_text(cast("JsonValue", orjson.loads(content)))
    labels = change[10:15]  # entity_system to source_agent, as in NodeRow
    visible = (change.summary, tags, importance, *labels, created_at, change.expires_at)
    row_hash = _hash((change.namespace, change.key, change.context_type, content, text, *visible))
    # By position and in one go, for this is made for every write.
    return NodeRow(
        change.node_id,
        change.namespace,
        change.key,
        change.context_type,
        content,
        row_hash,
        text,
        change.summary,
        tags,
        importance,
        change.entity_system,
        change.entity_id,
        change.entity_type,
        change.session_id,
        change.source_agent,
        created_at,
        now_us,
        change.expires_at,
        None,
        stamp,
        rev,
    )


def _changed_row(change: NodeChange, live: NodeRow, *, now_us: int, stamp: int) -> NodeRow:
    content, text, tags = change.content, change.text_content, change.tags
    if change.rule is Rule.MERGE:
        content = merge_text(live.content, change.content)
        text = searchable_text(cast("JsonValue", orjson.loads(content)))
        tags = None if tags is None else merge_tags(live.tags, tags)
    return NodeRow(
        node_id=change.node_id,
        namespace=change.namespace,
        key=_kept(change.key, live.key),
        context_type=change.context_type,
        content=content,
        row_hash="",
        text_content=text,
        summary=_kept(change.summary, live.summary),
        tags=live.tags if tags is None else tags,
        importance=live.importance if change.importance is None else change.importance,
        entity_system=_kept(change.entity_system, live.entity_system),
        entity_id=_kept(change.entity_id, live.entity_id),
        entity_type=_kept(change.entity_type, live.entity_type),
        session_id=_kept(change.session_id, live.session_id),
        source_agent=_kept(change.source_agent, live.source_agent),
        created_at=live.created_at,
        updated_at=now_us,
        expires_at=change.expires_at,
        deleted_at=None,
        stamp=stamp,
        rev=live.rev,
    )


def _kept(wished: str | None, present: str | None) -> str | None:
    return present if wished is None else wished


def relationship_row(
    change: RelationshipChange, existing: RelationshipRow | None, *, now_us: int, stamp: int
) -> RelationshipRow:
    """The row a change makes of what is there locally."""
    live = existing if existing is not None and existing.deleted_at is None else None
    row = RelationshipRow(
        relationship_id=change.relationship_id,
        source_id=change.source_id,
        target_id=change.target_id,
        relationship_type=change.relationship_type,
        weight=change.weight,
        properties=change.properties,
        row_hash="",
        valid_from=live.valid_from if live else None,
        valid_to=live.valid_to if live else None,
        created_at=live.created_at if live else now_us,
        updated_at=now_us,
        deleted_at=None,
        stamp=stamp,
        rev=existing.rev if existing else 0,
    )
    return row._replace(row_hash=relationship_hash(row))
