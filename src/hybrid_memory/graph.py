"""The values of the memory graph: what callers hand in and get back. All are frozen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Generic, Literal, NewType, TypeAlias, TypeVar

NodeId = NewType("NodeId", str)
"""A node's identity within its user: canonical lower-case UUID text."""

RelationshipId = NewType("RelationshipId", str)
"""A relationship's identity within its user: canonical lower-case UUID text."""

JsonValue: TypeAlias = "None | bool | int | float | str | list[JsonValue] | dict[str, JsonValue]"
"""What decoded JSON can be."""

JsonInput: TypeAlias = "None | bool | int | float | str | Sequence[JsonInput] | Mapping[str, JsonInput]"
"""What a caller may hand in as JSON; only the exact built-in types pass validation."""

Direction: TypeAlias = Literal["out", "in", "both"]

T_co = TypeVar("T_co", covariant=True)


class Status(StrEnum):
    """Where an acknowledged write is safe."""

    DURABLE = "DURABLE"
    """Committed in Postgres."""
    PENDING = "PENDING"
    """Fsynced in the local file together with its queue entry."""


class Verdict(StrEnum):
    """What became of an operation in Postgres."""

    APPLIED = "applied"
    MERGED = "merged"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNode:
    """One memory. Times are aware UTC; `rev` is the user's revision in Postgres, 0 while no commit there is known."""

    node_id: NodeId
    user_id: str
    namespace: str
    key: str | None
    context_type: str
    content: dict[str, JsonValue]
    summary: str | None
    tags: tuple[str, ...]
    importance: float
    entity_system: str | None
    entity_id: str | None
    entity_type: str | None
    session_id: str | None
    source_agent: str | None
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relationship:
    """A typed, weighted, directed edge between two nodes of one user."""

    relationship_id: RelationshipId
    user_id: str
    source_id: NodeId
    target_id: NodeId
    relationship_type: str
    weight: float
    properties: dict[str, JsonValue]
    valid_from: datetime | None
    valid_to: datetime | None
    created_at: datetime
    updated_at: datetime
    rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A search result: the node, and a score in 0..1 where higher is more relevant within one search."""

    node: MemoryNode
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A node reached from another: by which relationship, and after how many steps (`depth`, 1 for the nearest)."""

    node: MemoryNode
    relationship: Relationship
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T_co]):
    """A slice of a listing. `next_cursor` is None on the last page; it stays valid while rows come and go."""

    items: tuple[T_co, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """How far a user's local copy may be behind. `age` is None before Postgres has ever confirmed it."""

    complete: bool
    rev: int
    age: timedelta | None
    queued: int
    degraded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a load has come. `total` counts nodes and relationships expected, 0 when nothing had to be loaded."""

    user_id: str
    loaded: int
    total: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A user's fingerprint on one tier: XOR over live rows, and how many rows went in."""

    value: int
    nodes: int
    relationships: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A workflow checkpoint: `state` is canonical JSON text, `created_at` microseconds since the epoch."""

    thread_id: str
    checkpoint_id: str
    parent_id: str | None
    state: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransientNode:
    """A transient memory of a thread: `content` is canonical JSON text, times microseconds since the epoch."""

    thread_id: str
    node_id: NodeId
    context_type: str
    content: str
    created_at: int
    expires_at: int | None


async def _no_outcome(_timeout: timedelta | None) -> Receipt:
    raise RuntimeError("this receipt was not issued by a manager")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The word given for a write: it is safe from now on, `status` says where.

    `rev` and `verdict` are known once Postgres has committed the operation, else None.
    """

    op_id: str
    node_id: NodeId
    status: Status
    rev: int | None = None
    verdict: Verdict | None = None
    outcome: Callable[[timedelta | None], Awaitable[Receipt]] = field(default=_no_outcome, repr=False, compare=False)

    async def durable(self, timeout: timedelta | float | None = None) -> Receipt:
        """Wait until Postgres has decided the operation and return the final receipt.

        `timeout` is a timedelta or seconds; without one it waits for as long as Postgres is away. Raises
        `TimeoutError` when the time is over: the operation stays queued and safe.
        """
        if self.status is Status.DURABLE:
            return self
        if isinstance(timeout, (int, float)):
            timeout = timedelta(seconds=timeout)
        return await self.outcome(timeout)

    def decided(self, *, rev: int | None, verdict: Verdict) -> Receipt:
        """The same receipt after Postgres has spoken; a dead operation is not durable."""
        status = Status.PENDING if verdict is Verdict.DEAD else Status.DURABLE
        return replace(self, status=status, rev=rev, verdict=verdict)
