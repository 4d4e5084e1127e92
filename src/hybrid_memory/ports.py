"""What the services need from the two tiers, in the words of the domain. Adapters live in `sqlite` and `postgres`."""

from __future__ import annotations

from asyncio import Future
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Protocol

from hybrid_memory.changes import NodeChange, Operation, RelationshipChange
from hybrid_memory.filters import Predicate
from hybrid_memory.graph import (
    Checkpoint,
    Digest,
    Direction,
    Hit,
    MemoryNode,
    Neighbour,
    NodeId,
    Page,
    TransientNode,
    Verdict,
)
from hybrid_memory.messages import (
    Accepted,
    BatchApplied,
    Cursor,
    DeadLetter,
    FlatRow,
    Head,
    Hold,
    Listing,
    Opening,
    QueueState,
)


class HotTier(Protocol):
    """Reads of the local copy: no network. A tombstone or an expired row is as good as absent."""

    def get(self, user_id: str, node_id: NodeId) -> MemoryNode | None:
        """The node, at once."""
        ...

    def cursor(self, user_id: str) -> Cursor | None:
        """How far the user's copy has come, or None if nothing of the user is held."""
        ...

    def queued_of(self, user_id: str) -> int:
        """How many of the user's operations wait for Postgres."""
        ...

    def cursors(self) -> list[Cursor]:
        """The cursors of all users held."""
        ...

    async def page(self, user_id: str, listing: Listing) -> Page[MemoryNode]:
        """One page of the user's nodes."""
        ...

    async def search(self, user_id: str, text: str, predicate: Predicate, limit: int) -> list[Hit]:
        """The nodes whose words fit `text` best, best first."""
        ...

    async def neighbours(
        self,
        user_id: str,
        node_id: NodeId,
        *,
        depth: int,
        types: frozenset[str] | None,
        direction: Direction,
        limit: int,
    ) -> list[Neighbour]:
        """The nodes within `depth` relationships, nearest first, then heaviest."""
        ...

    async def digest(self, user_id: str) -> Digest:
        """The user's fingerprint on this tier."""
        ...


class Outbox(Protocol):
    """The durable queue. Accepting writes the local rows and the queue entry in one fsynced transaction."""

    def accept_node(self, user_id: str, change: NodeChange, hold: Hold | None = None) -> Awaitable[Accepted]:
        """Store a node locally and queue it. Raises `Conflict`, `Backpressure`, `StorageFull`: nothing happened."""
        ...

    def accept_relationship(
        self, user_id: str, change: RelationshipChange, hold: Hold | None = None
    ) -> Awaitable[Accepted]:
        """Store a relationship locally and queue it. Raises `NotFound` when an end is not there."""
        ...

    def accept_deletion(self, user_id: str, node_id: NodeId, hold: Hold | None = None) -> Awaitable[Accepted]:
        """Bury a node and its relationships locally and queue that. Raises `NotFound`."""
        ...

    def claim(self, *, after_seq: int, limit: int, user_id: str | None = None) -> list[Operation]:
        """The next operations in order of acceptance, of one user or of all. Nothing is removed."""
        ...

    def settle(self, batch: BatchApplied) -> Awaitable[None]:
        """Take decided operations out of the queue, with their verdicts kept. May wait to ride on another commit."""
        ...

    def bury(self, operation: Operation, *, sqlstate: str, reason: str) -> Awaitable[list[Operation]]:
        """Move an operation to the dead letters, and with it what is queued behind it and depends on it.

        Returns what was moved, the operation itself first.
        """
        ...

    def verdict(self, accepted: Accepted) -> tuple[Verdict, int | None] | None:
        """What became of an operation, or None while it is queued."""
        ...

    def state(self) -> QueueState:
        """Counts, at once."""
        ...


class DeadLetters(Protocol):
    """What Postgres would never take, kept until a person decides."""

    async def list(self) -> list[DeadLetter]:
        """All of them, oldest first."""
        ...

    async def retry(self, op_ids: Sequence[str] | None) -> int:
        """Queue them again under new numbers (None: all). Returns how many."""
        ...

    async def discard(self, op_ids: Sequence[str] | None) -> int:
        """Drop them for good (None: all). Returns how many."""
        ...


class Replica(Protocol):
    """The local copy as the durable tier fills it."""

    async def begin_load(self, head: Head) -> int | None:
        """Start an invisible generation for a snapshot of a user, in place of one begun before.

        None when the user was erased after the snapshot: the erasure is queued here, or has just been carried. None
        also while operations are queued of which Postgres alone can say whether they come before the last erasure.
        """
        ...

    def add_nodes(self, generation: int, rows: Sequence[FlatRow]) -> Awaitable[None]:
        """Add nodes to an invisible generation."""
        ...

    def add_relationships(self, generation: int, rows: Sequence[FlatRow]) -> Awaitable[None]:
        """Add relationships to an invisible generation."""
        ...

    async def show_load(self, generation: int, *, complete: bool) -> int | None:
        """Make the generation visible with its cursor in one step, our queued changes laid over it.

        Where the copy it replaces was in doubt, what it held and the generation lacks is queued again; returns how many
        operations that took. None when it is not to be shown: the user was erased meanwhile, or a later load was begun,
        or what was queued again must first be held against an erasure.
        """
        ...

    async def absorb(self, head: Head, nodes: Sequence[FlatRow], relationships: Sequence[FlatRow]) -> int:
        """Take in newer rows and move the cursor to the head, in one step. Returns how many rows changed."""
        ...

    async def sweep_generations(self) -> int:
        """Remove some rows that nobody sees any more; 0 when none are left."""
        ...

    async def evict(self, user_id: str) -> bool:
        """Drop a user's copy; False (and nothing done) while operations of it are queued."""
        ...

    async def erase(self, user_id: str, *, erased_rev: int | None) -> Mapping[str, int]:
        """Remove every byte of the user: `erased_rev` None starts an erasure (and queues it), else obeys one.

        Returns how many rows were removed from which table.
        """
        ...


class Scratch(Protocol):
    """Transient memory and checkpoints: local only, gone when they expire or their thread is stale."""

    def put(self, node: TransientNode) -> Future[None]:
        """Store a transient memory; enqueued at once."""
        ...

    def of_thread(self, thread_id: str) -> list[TransientNode]:
        """A thread's live transient memories, oldest first."""
        ...

    def promote(
        self, thread_id: str, node_id: NodeId, user_id: str, change: NodeChange, hold: Hold | None = None
    ) -> Awaitable[Accepted]:
        """Turn a transient memory into a persistent one in one transaction. Raises `NotFound`."""
        ...

    async def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint, replacing one of the same id."""
        ...

    def load(self, thread_id: str, checkpoint_id: str | None) -> Checkpoint | None:
        """A checkpoint of the thread, the newest without an id."""
        ...

    def history(self, thread_id: str, limit: int) -> list[Checkpoint]:
        """A thread's checkpoints, newest first."""
        ...

    async def delete(self, thread_id: str, checkpoint_id: str | None) -> int:
        """Delete one checkpoint, or all of the thread. Returns how many."""
        ...

    async def sweep(self, *, now_us: int, idle: timedelta, receipts_kept: timedelta) -> Mapping[str, int]:
        """Remove what has expired, threads idle for longer, old receipts; how many rows from which table."""
        ...


class DurableTier(Protocol):
    """Postgres as the relay sees it. Raises the `DurableTierError`s; every call has a deadline of its own."""

    async def handshake(self, opening: Opening) -> None:
        """Check the server, the schema and the role. Raises `Misconfigured` and its kin, `Unreachable`, `ReadOnly`."""
        ...

    async def apply(self, opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]) -> BatchApplied:
        """Apply many users' operations in one transaction, all or nothing: no entity twice, each user's in order.

        `erased` gives the erasure known for each user. Raises `Disputed`, `PoisonOperation`.
        """
        ...

    async def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        """Apply one user's operations, deciding conflicts by the merge rules. Raises `Fenced`, `PoisonOperation`.

        Operations from before an erasure are rejected; an `erased_rev` of -1 says that the sender never asked which
        erasure was the last, and then the times of acceptance and erasure decide.
        """
        ...

    async def erase(self, opening: Opening, operation: Operation) -> int:
        """Erase a user, beating whatever comes late. Returns the revision below which all is dead to the writer.

        That is of the erasure it had heard of, where somebody else's has come in between.
        """
        ...

    async def close(self) -> None:
        """Let go of the server."""
        ...


class Snapshot(Protocol):
    """One user's graph as of one head."""

    @property
    def head(self) -> Head:
        """The head all rows belong to."""
        ...

    @property
    def expected(self) -> int:
        """About how many rows will come."""
        ...

    def nodes(self) -> AsyncIterator[Sequence[FlatRow]]:
        """Nodes in chunks."""
        ...

    def relationships(self) -> AsyncIterator[Sequence[FlatRow]]:
        """Relationships in chunks."""
        ...


class ChangeFeed(Protocol):
    """What others wrote."""

    async def heads(self, user_ids: Sequence[str]) -> list[Head]:
        """The heads of those users that have one. It asks the server also for nobody's, to see whether it answers."""
        ...

    def snapshot(self, user_id: str, *, after_rev: int | None) -> AbstractAsyncContextManager[Snapshot]:
        """The live graph (`after_rev` None) or all rows newer than a revision, tombstones included, in one snapshot."""
        ...

    async def head_for(self, user_id: str, client_id: str) -> Head:
        """The user's head, `done_seq` being the last number of that client's queue that it contains."""
        ...

    async def digest(self, user_id: str) -> Digest:
        """The user's fingerprint in the durable tier."""
        ...

    async def listen(self, on_hint: Callable[[], None]) -> None:
        """Call `on_hint` whenever another process hints at a change; returns or raises when the link is lost."""
        ...

    async def hint(self) -> None:
        """Hint to other processes that something changed."""
        ...

    async def close(self) -> None:
        """Let go of the server."""
        ...
