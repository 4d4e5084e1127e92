"""What tiers and services hand to one another."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self, TypeAlias

from hybrid_memory.changes import Operation
from hybrid_memory.filters import Predicate
from hybrid_memory.graph import Verdict

FlatRow: TypeAlias = "Sequence[object]"
"""A row as it streams from tier to tier: the members of `NodeRow` or `RelationshipRow` in their declared order."""


class Disputed(Exception):
    """Some users' operations met a mark, an erasure or a row they had not seen; nothing of the batch was applied.

    `users` are those known to be concerned; empty when the tier could not tell.
    """

    def __init__(self, users: frozenset[str]) -> None:
        super().__init__(f"{len(users)} users to be decided one by one")
        self.users = users


class Start(NamedTuple):
    """An opening of a hot-tier file, and the first queue number that it may have given out."""

    number: int
    first: int
    token: str


class Mark(NamedTuple):
    """How far Postgres has one user's operations of a client: the last queue number, and the opening that sent it."""

    last_seq: int
    open_number: int
    open_token: str
    descent: tuple[tuple[str, int], ...] = ()
    """Openings, as token and first queue number, from the one that sent it back to the first that is ours as well.

    Empty where it is ours itself, or nothing is known of it.
    """


UNMARKED: Final = Mark(0, 0, "")
"""The mark of a client of whom Postgres has nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One opening of a hot-tier file: the file's client id, a number that grows, and a token that no copy shares.

    `starts` are this and earlier openings, as far as some of their queue numbers are still queued, and one before them.
    """

    client_id: str
    number: int
    token: str
    starts: tuple[Start, ...] = ()

    def covered(self, mark: Mark) -> int:
        """The last of our queue numbers that a mark in Postgres speaks of.

        A mark knows nothing of what a later opening accepted: where that has such a number too, the file had lost what
        the mark was set for, and the number was given out again. Nor does it know what was accepted in one copy of the
        file after the other, in which it was set, had gone its own way.
        """
        apart = [
            one.first - 1
            for one in self.starts
            if one.number > mark.open_number or (one.number == mark.open_number and one.token != mark.open_token)
        ]
        if mark.descent:
            apart += self._parted(mark)
        return min([mark.last_seq, *apart])

    def _parted(self, mark: Mark) -> list[int]:
        """The last number before a mark's opening and this one parted, by the one and by the other."""
        places = {one.token: place for place, one in enumerate(self.starts)}
        met, _ = mark.descent[-1]
        if met not in places:
            # They parted before all that is known here.
            is_later = bool(self.starts) and self.starts[0].number > mark.open_number
            return [] if is_later else [one.first - 1 for one in self.starts[:1]]
        ours = [one.first - 1 for one in self.starts[places[met] + 1 :][:1]]
        return ours + [first - 1 for _, first in mark.descent[-2:-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which server answers. `installation` is drawn when the schema is made, and goes along in a dump.

    `lineage` is another one after a failover that may have lost something, and after a restore from a backup or a dump;
    None of a standby, which has none of its own.
    """

    installation: str
    lineage: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A user's head in the durable tier. `timeline` tells servers apart that went different ways after a failover.

    `done_seq` is the last number of our own queue that it contains; only a snapshot's head knows it.
    """

    user_id: str
    epoch: str
    rev: int
    erased_rev: int
    timeline: int
    done_seq: int = 0


REWOUND: Final = -1
"""The timeline of a copy whose server has lost some of its past since, or may have: it must be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a user's local copy has come. Times are microseconds.

    `epoch` is None while the user has no head in Postgres or was not loaded; `erased_rev` is -1 while Postgres has
    not been asked; `timeline` is 0 while it is not known, and `REWOUND` when the copy is in doubt.
    """

    user_id: str
    epoch: str | None
    rev: int
    erased_rev: int
    timeline: int
    complete: bool
    confirmed_at: int | None


class Applied(NamedTuple):
    """What became of one operation. `rev` is None where no revision was taken for it."""

    operation: Operation
    verdict: Verdict
    rev: int | None


class AppliedUser(NamedTuple):
    """A user's head around a batch: `before_rev` is where it stood, `head_rev` where the batch left it."""

    user_id: str
    epoch: str
    before_rev: int
    head_rev: int
    as_sent: bool
    """Every operation was applied as its writer made it, so the local rows are the rows that stand."""


class BatchApplied(NamedTuple):
    """The outcome of a committed batch."""

    operations: tuple[Applied, ...]
    users: tuple[AppliedUser, ...]


class Accepted(NamedTuple):
    """An operation that is fsynced locally with its queue entry. Of a deletion's several, the node's own.

    `applied` is what became of it, where that was waited for and came in time.
    """

    seq: int
    op_id: str
    user_id: str
    entity_id: str
    applied: Applied | None = None

    @classmethod
    def of(cls, operation: Operation, applied: Applied | None = None) -> Self:
        """What is known of an operation."""
        return cls(operation.seq, operation.op_id, operation.user_id, operation.entity_id, applied)


Hold: TypeAlias = "Callable[[Operation, Future[Accepted]], None]"
"""Called when an operation is fsynced, to answer its future in good time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The durable queue at a moment: `oldest_at` in microseconds, None when empty."""

    entries: int
    payload_bytes: int
    oldest_at: int | None
    dead_letters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """What a dead owner left queued in a file: whose client's it is, and of which users."""

    client_id: str
    users: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An operation that Postgres will never take as it is, and why."""

    operation: Operation
    died_at: int
    sqlstate: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What to list: `order` names a column, `-` in front for descending."""

    predicate: Predicate
    order: str
    limit: int
    cursor: str | None
