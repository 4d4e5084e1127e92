"""What Postgres has decided and the file does not say yet: its settling waits to ride on another commit."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from hybrid_memory.graph import Verdict
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied, Cursor

Revs: TypeAlias = dict[tuple[str, str], int]
"""Revisions by user and entity."""


class Settling:
    """Batches between their decision and their commit here, laid over what is read from the file meanwhile.

    On the event loop only. Losing it costs nothing: the operations are sent again and meet their mark.
    """

    def __init__(self) -> None:
        self._batches: list[BatchApplied] = []
        # Nobody may ask before they are written down, so they are sorted in when somebody does.
        self._unsorted: list[BatchApplied] = []
        self._decided: dict[int, Applied] = {}
        self._revs: Revs = {}
        self._heads: dict[str, list[AppliedUser]] = {}

    def __len__(self) -> int:
        return sum([len(batch.operations) for batch in self._batches])

    def __bool__(self) -> bool:
        return bool(self._batches)

    def __contains__(self, seq: int) -> bool:
        self._sort()
        return seq in self._decided

    def begin(self, batch: BatchApplied) -> None:
        """Take note of a decision."""
        self._batches.append(batch)
        self._unsorted.append(batch)

    def end(self, batch: BatchApplied) -> None:
        """It is written down now."""
        self._batches = [one for one in self._batches if one is not batch]
        left = [one for one in self._unsorted if one is not batch]
        if len(left) < len(self._unsorted):
            self._unsorted = left
        else:
            self._take_out(batch)

    def _take_out(self, batch: BatchApplied) -> None:
        for operation, _, rev in batch.operations:
            self._decided.pop(operation.seq, None)
            entity = operation.user_id, operation.entity_id
            if self._revs.get(entity) == rev:
                self._revs.pop(entity, None)
        for user in batch.users:
            heads = [head for head in self._heads.get(user.user_id, ()) if head.head_rev > user.head_rev]
            if heads:
                self._heads[user.user_id] = heads
            else:
                self._heads.pop(user.user_id, None)

    def _sort(self) -> None:
        for batch in self._unsorted:
            self._sort_in(batch)
        self._unsorted.clear()

    def _sort_in(self, batch: BatchApplied) -> None:
        for applied in batch.operations:
            operation, verdict, rev = applied
            self._decided[operation.seq] = applied
            # A row decided otherwise comes by the feed; ours is not that of this revision.
            if rev is not None and verdict is Verdict.APPLIED:
                self._revs[operation.user_id, operation.entity_id] = rev
        for user in batch.users:
            if user.as_sent:
                self._heads.setdefault(user.user_id, []).append(user)

    def decision(self, seq: int) -> Applied | None:
        """What became of an operation, if it is known and not written down."""
        self._sort()
        return self._decided.get(seq)

    def rev(self, user_id: str, entity_id: str, known: int) -> int:
        """The revision of a node or relationship that stands at `known` in the file."""
        self._sort()
        return max(known, self._revs.get((user_id, entity_id), 0))

    def revs(self) -> Revs:
        """The revisions known by now, for rows that are about to be read: when they have been, these may be gone."""
        self._sort()
        return self._revs.copy()

    def cursor(self, cursor: Cursor) -> Cursor:
        """How far a copy has come whose cursor in the file is this: our own writes move it on, as they will there."""
        self._sort()
        rev, epoch = cursor.rev, cursor.epoch
        if cursor.complete:
            for head in self._heads.get(cursor.user_id, ()):
                if head.before_rev == rev and epoch in {None, head.epoch}:
                    rev, epoch = head.head_rev, head.epoch
        return cursor if rev == cursor.rev else replace(cursor, rev=rev, epoch=epoch)

    def of_user(self, user_id: str) -> int:
        """How many operations of a user."""
        return sum(one.operation.user_id == user_id for batch in self._batches for one in batch.operations)
