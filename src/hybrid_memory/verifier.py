"""Holds the copies of open users against Postgres, one after the other, and has one that differs loaded anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.events import Diverged, Sink
from hybrid_memory.files import Past
from hybrid_memory.messages import Cursor, Head
from hybrid_memory.ports import ChangeFeed, HotTier
from hybrid_memory.retry import Backoff

# A comparison reads the user's rows on both sides, at about a microsecond a row on each.
VERIFY_INTERVAL_SECONDS: Final = 5.0
# Something may expire between the two readings, by two clocks.
_DIFFERENCES_BELIEVED: Final = 2


class Verifier:
    """Compares one user's digests each interval, in turn.

    What is on its way either way is no difference. A user of whom something lies in the dead letters is left out.
    Revisions tell what is missing at the end, and not what went wrong in the middle: a row damaged on the disk, or one
    that somebody changed beside the feed. No error is known that makes a copy differ; this says so when there is one.
    """

    name = "verifier"

    def __init__(
        self,
        *,
        hot: HotTier,
        feed: ChangeFeed,
        past: Past,
        is_current: Callable[[Cursor, Head], bool],
        bring_up_to_date: Callable[[str], Awaitable[bool]],
        open_users: Callable[[], Sequence[str]],
        events: Sink,
        interval_seconds: float,
        uniform: Callable[[], float],
    ) -> None:
        self._hot = hot
        self._feed = feed
        self._past = past
        self._is_current = is_current
        self._bring_up_to_date = bring_up_to_date
        self._open_users = open_users
        self._events = events
        self._interval_seconds = interval_seconds
        self._uniform = uniform
        self._backoff = Backoff(first_seconds=interval_seconds, cap_seconds=60.0)
        self._failures = 0
        self._last = ""
        self._differed: dict[str, int] = {}

    async def run_once(self) -> float | None:
        """Compare one user; returns the pause to the next, with jitter so that processes do not do it in step."""
        user_id = self._next()
        if user_id is not None:
            await self._compare(user_id)
        self._failures = 0
        return self._interval_seconds * (0.75 + self._uniform() / 2)

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - every error means: not now
        """Seconds to leave Postgres alone."""
        self._failures += 1
        return self._backoff.pause(self._failures, self._uniform)

    def _next(self) -> str | None:
        users = sorted(self._open_users())
        following = [user_id for user_id in users if user_id > self._last] or users
        if not following:
            return None
        # One that differed is looked at again first.
        self._last = next((user_id for user_id in users if user_id in self._differed), following[0])
        return self._last

    async def _compare(self, user_id: str) -> None:
        before = await self._settled(user_id)
        if before is None:
            self._differed.pop(user_id, None)
            return
        ours, theirs = await self._hot.digest(user_id), await self._feed.digest(user_id)
        if ours == theirs or await self._settled(user_id) != before:
            self._differed.pop(user_id, None)
            return
        self._differed[user_id] = self._differed.get(user_id, 0) + 1
        if self._differed[user_id] >= _DIFFERENCES_BELIEVED:
            del self._differed[user_id]
            self._events.emit(Diverged(user_id=user_id, rev=before.rev))
            await self._past.doubt_copy(user_id)
            await self._bring_up_to_date(user_id)

    async def _settled(self, user_id: str) -> Cursor | None:
        """The cursor of a copy that should be just what stands in Postgres; None while something is on its way."""
        heads = await self._feed.heads([user_id])
        cursor = self._hot.cursor(user_id)
        if cursor is None or not cursor.complete or not heads or self._hot.queued_of(user_id):
            return None
        if self._past.has_dead_letters(user_id):
            return None  # they differ, and are left so until a person decides
        return cursor if self._is_current(cursor, heads[0]) else None
