"""A client whose operations look as the hot tier makes them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hybrid_memory import clock
from hybrid_memory.changes import (
    Kind,
    NodeChange,
    NodeRow,
    Operation,
    RelationshipChange,
    RelationshipRow,
    Rule,
    node_row,
    relationship_row,
)
from hybrid_memory.clock import IdSource, StampClock, SystemClock
from hybrid_memory.graph import NodeId
from hybrid_memory.jsontext import encode
from hybrid_memory.messages import Opening
from hybrid_memory.payloads import erasure_payload, node_payload, relationship_payload

_CLOCK = SystemClock()
_STAMPS = StampClock(_CLOCK)
_IDS = IdSource(_CLOCK)


def new_id() -> NodeId:
    return NodeId(_IDS.new())


def new_opening() -> Opening:
    return Opening(client_id=str(uuid.uuid4()), number=1, token=str(uuid.uuid4()))


@dataclass(slots=True)
class Author:
    """Numbers its operations without a gap, across all users, as a queue does."""

    opening: Opening = field(default_factory=new_opening)
    seq: int = 0
    rows: dict[str, NodeRow | RelationshipRow] = field(default_factory=dict)

    def reopened(self) -> Author:
        """The same file opened again."""
        later = replace(self.opening, number=self.opening.number + 1, token=str(uuid.uuid4()))
        return Author(opening=later, seq=self.seq, rows=dict(self.rows))

    def store(
        self,
        user_id: str,
        *,
        node_id: NodeId | None = None,
        text: str = "hello",
        base: int = 0,
        rule: Rule = Rule.REPLACE,
        patch: str | None = None,
        stamp: int | None = None,
        revive: bool = False,
        importance: float = 0.1,
        tags: Sequence[str] = ("a", "ü"),
        expires_at: int | None = None,
        delta: int | None = None,
    ) -> Operation:
        change = NodeChange(
            node_id=node_id or new_id(),
            namespace="default",
            key=None,
            context_type="fact",
            content=encode({"text": text}),
            text_content=text,
            summary=None,
            tags=encode(list(tags)),
            importance=importance,
            expires_at=expires_at,
            rule=rule,
        )
        row = node_row(change, None, now_us=_CLOCK.now_us(), stamp=stamp or _STAMPS.next())
        payload = node_payload(user_id, row, rule=rule, patch=patch, revive=revive)
        if delta is None:
            delta = 1 if base == 0 else 0
        return self._operation(user_id, Kind.NODE, row.node_id, row, base, delta, payload)

    def bury(self, user_id: str, stored: Operation, *, base: int | None = None) -> Operation:
        row = self.rows[stored.entity_id]
        assert isinstance(row, NodeRow)
        now = _CLOCK.now_us()
        tomb = row._replace(deleted_at=now, updated_at=now, stamp=_STAMPS.next())
        payload = node_payload(user_id, tomb, rule=Rule.REPLACE)
        base = -stored.seq if base is None else base
        return self._operation(user_id, Kind.NODE, tomb.node_id, tomb, base, -1, payload)

    def relate(
        self, user_id: str, source: str, target: str, *, weight: float = 1.0, base: int = 0, stamp: int | None = None
    ) -> Operation:
        change = RelationshipChange(
            relationship_id=clock.relationship_id(user_id, source, "knows", target),
            source_id=NodeId(source),
            target_id=NodeId(target),
            relationship_type="knows",
            weight=weight,
            properties="{}",
        )
        row = relationship_row(change, None, now_us=_CLOCK.now_us(), stamp=stamp or _STAMPS.next())
        payload = relationship_payload(user_id, row)
        delta = 1 if base == 0 else 0
        return self._operation(user_id, Kind.RELATIONSHIP, row.relationship_id, row, base, delta, payload)

    def erase(self, user_id: str, *, heard_of: int = -1) -> Operation:
        return self._operation(user_id, Kind.ERASE, user_id, None, 0, 0, erasure_payload(heard_of))

    @staticmethod
    def node_id(operation: Operation) -> NodeId:
        return NodeId(operation.entity_id)

    @staticmethod
    def renamed(operation: Operation, user_id: str) -> Operation:
        """The operation under another user's name, while its payload keeps the first one's."""
        return operation._replace(user_id=user_id)

    def _operation(
        self,
        user_id: str,
        kind: Kind,
        entity_id: str,
        row: NodeRow | RelationshipRow | None,
        base: int,
        delta: int,
        payload: str,
    ) -> Operation:
        self.seq += 1
        if row is not None:
            self.rows[entity_id] = row
        return Operation(
            seq=self.seq,
            op_id=f"{self.opening.client_id}:{self.seq}",
            user_id=user_id,
            kind=kind,
            entity_id=entity_id,
            base=base,
            delta=delta,
            stamp=row.stamp if row is not None else _STAMPS.next(),
            payload=payload,
            accepted_at=_CLOCK.now_us(),
        )
