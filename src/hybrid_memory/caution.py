"""Keeps one operation's trouble from becoming everybody's: what to send after failures that may be its own doing. Pure.

Some refusals do not say whose fault they are: a lock that somebody holds on one user's rows, a statement that takes
too long, an error nobody knows. What was refused is sent again in halves, until one operation is left. Its user is set
aside then and tried alone now and then, while the others go on. Only where
others got through since the trouble began is it known that the server takes writes; an operation that goes on failing
alone is then to blame itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from hybrid_memory.changes import Operation
from hybrid_memory.retry import Backoff

# How often an operation may fail alone, while others get through, before it is held to be the cause.
STRIKES = 5
# A try takes as long as a statement may, and the others wait for it.
ALONE = Backoff(first_seconds=0.5, cap_seconds=15.0)


class Blame(Enum):
    """Whose failure it was, as far as can be told."""

    OPEN = auto()
    """The server's, perhaps."""
    ITS_OWN = auto()
    """This operation's or this user's: others get through."""
    PROVED = auto()
    """This operation's: it failed alone time and again, while others got through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is made of a failure. `strikes` and `pause_seconds` are for one that failed alone, else 0."""

    blame: Blame
    strikes: int = 0
    pause_seconds: float = 0.0


@dataclass(slots=True)
class _Suspect:
    seq: int
    code: str
    due: float
    strikes: int = 0
    others_got_through: bool = False


class Caution:
    """How many operations go at once, and which users wait until their first operation has gone alone."""

    def __init__(self, batch_size: int, uniform: Callable[[], float]) -> None:
        self._batch_size = batch_size
        self._uniform = uniform
        self._limit = batch_size
        self._suspects: dict[str, _Suspect] = {}
        # Something got through since the trouble began, or since an operation was last held to be the cause.
        self._others_got_through = False

    @property
    def most(self) -> int:
        """How many operations may go at once when all is well."""
        return self._batch_size

    @property
    def limit(self) -> int:
        """How many operations may go at once."""
        return self._limit

    @property
    def codes(self) -> dict[str, str]:
        """The users set aside, each with the code of its last failure, and what more is known of its cause."""
        return {user_id: suspect.code for user_id, suspect in self._suspects.items()}

    def is_aside(self, user_id: str) -> bool:
        """Whether the user's operations wait."""
        return user_id in self._suspects

    def due(self, now: float, *, others_wait: bool) -> str | None:
        """A user set aside whose first operation is to be tried alone now (monotonic seconds).

        While others wait who may tell whose fault it is, they go first.
        """
        for user_id, suspect in self._suspects.items():
            if suspect.due <= now and (suspect.others_got_through or not others_wait):
                return user_id
        return None

    def next_due(self) -> float | None:
        """When the next is to be tried, in monotonic seconds; None when nobody is set aside."""
        return min((suspect.due for suspect in self._suspects.values()), default=None)

    def failed(self, operations: Sequence[Operation], code: str, now: float) -> Judgement:
        """These operations were refused together for a reason that may be one's own."""
        self._limit = max(1, len(operations) // 2)
        if len(operations) > 1:
            return Judgement(blame=Blame.OPEN)
        (operation,) = operations
        suspect = self._suspects.get(operation.user_id)
        if suspect is None or suspect.seq != operation.seq:
            suspect = self._suspects[operation.user_id] = _Suspect(
                seq=operation.seq, code=code, due=now, others_got_through=self._others_got_through
            )
        suspect.strikes += 1
        suspect.code = code
        pause = ALONE.pause(suspect.strikes, self._uniform)
        suspect.due = now + pause
        blame = Blame.OPEN
        if suspect.others_got_through:
            blame = Blame.PROVED if suspect.strikes >= STRIKES else Blame.ITS_OWN
        if blame is Blame.PROVED:
            # Should it be the server after all, which has failed since, then no other pays for it.
            self._others_got_through = False
        return Judgement(blame=blame, strikes=suspect.strikes, pause_seconds=pause)

    def got_through(self, operations: Iterable[Operation]) -> bool:
        """These were decided, so their users are not set aside any more. Whether one of them was."""
        self._limit = min(self._batch_size, self._limit * 2)
        if not self._suspects:
            self._others_got_through = self._limit < self._batch_size
            return False
        self._others_got_through = True
        freed = [self.free(operation.user_id) for operation in operations]
        for suspect in self._suspects.values():
            suspect.others_got_through = True
        return any(freed)

    def free(self, user_id: str) -> bool:
        """What the user was set aside for is not queued any more. Whether the user was set aside."""
        return self._suspects.pop(user_id, None) is not None
