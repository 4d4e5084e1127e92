"""The number of each user's last own operation, which a token tells, kept for no more users than can be held."""

from __future__ import annotations

from typing import Final, cast

from hybrid_memory.sqlite.numbering import Moved
from hybrid_memory.sqlite.point_reader import PointReader

# So many who were let go are still told of exactly; some megabytes at most.
_MOST_LET_GO: Final = 10_000
# Reached by the mark of anybody of whom Postgres has taken anything from here; a barrier then waits for what it has.
_ANY: Final = 1


class LastOperations:
    """Numbers by user: of all who were written for while they are held here, and of the last who were let go.

    Of one let go before those, whose operations have all been decided, it is only known that there may have been some.
    """

    def __init__(self, point: PointReader) -> None:
        self._point = point
        self._last: dict[str, int] = {}
        self._let_go: dict[str, int] = {}
        self._has_forgotten = False

    def note(self, user_id: str, seq: int) -> None:
        """The user's last operation has this number; 0: there is none."""
        self._last[user_id] = seq
        self._let_go.pop(user_id, None)

    def renumbered(self, user_id: str, moved: Moved) -> None:
        """The user's operations have other numbers now."""
        if user_id in self._last:
            self._last[user_id] = moved.number(self._last[user_id])

    def let_go(self, user_id: str) -> None:
        """The user is held no more, or was erased: from now on the number is kept only as one of the last let go."""
        seq = self._last.pop(user_id, 0)
        if seq == 0:
            return
        self._let_go[user_id] = seq
        if len(self._let_go) > _MOST_LET_GO:
            del self._let_go[next(iter(self._let_go))]
            self._has_forgotten = True

    def erasure_settled(self, user_id: str, seq: int) -> None:
        """The user's erasure of that number is decided: where it was the last operation, no more need be held."""
        if self._last.get(user_id) == seq:
            self.let_go(user_id)

    def of(self, user_id: str) -> int:
        """The number of the user's last operation in this opening, else of the last that is queued; 0 for none.

        Also of one that is fsynced and whose caller has not heard of it yet: reads see it already. Of a user who is not
        held and may have been forgotten a number that every mark of theirs has reached.
        """
        row = self._point.one("select max(seq) from outbox where user_id = ?", (user_id,))
        queued = 0 if row is None else cast("int", row[0] or 0)
        last = self._last.get(user_id, self._let_go.get(user_id))
        if last is not None:
            return max(queued, last)
        if queued or not self._has_forgotten:
            return queued
        # A copy that was loaded since has all that was decided before.
        held = self._point.one("select 1 from users where user_id = ?", (user_id,))
        return _ANY if held is None else 0
