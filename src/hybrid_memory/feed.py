"""Keeps open users' copies up to date: polling is the truth, hints only make it poll sooner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.messages import Cursor, Head
from hybrid_memory.ports import ChangeFeed, HotTier
from hybrid_memory.retry import Backoff

# The shortest time between two hints of this process (faults.md P29: a commit-wide lock is held for each).
HINT_INTERVAL_SECONDS = 0.02
# After a round that brought a lot, hints wait a little: taking in what 64 callers write in rounds of 20 ms cost these
# callers a fifth of their throughput where all share a machine, in rounds of 0.1 s a third of that. What a lone write
# brings is one revision, and the pause after it nothing that anybody notices.
REST_SECONDS_PER_REVISION = 0.001
LONGEST_REST_SECONDS = 0.1
# Copies that nobody has open are asked about so often: they need not be up to date, but whoever was erased must go.
HELD_INTERVAL_SECONDS = 5.0
# Comparing a thousand heads takes some milliseconds, in which nobody else would run.
COMPARED_AT_ONCE = 250


class Feed:
    """Asks for the heads of all open users with one statement and takes in what is newer.

    Of users whose copies are held and not open only erasures are obeyed, within some seconds.
    """

    name = "feed"

    def __init__(
        self,
        *,
        hot: HotTier,
        feed: ChangeFeed,
        open_users: Callable[[], Sequence[str]],
        absorb: Callable[[Cursor], Awaitable[None]],
        load: Callable[[str], Awaitable[bool]],
        obey_erasure: Callable[[str, Head], Awaitable[None]],
        confirm: Callable[[str, float], None],
        continues: Callable[[Cursor, Head], bool],
        poll_seconds: float,
        monotonic: Callable[[], float],
        uniform: Callable[[], float],
    ) -> None:
        self._hot = hot
        self._feed = feed
        self._open_users = open_users
        self._absorb = absorb
        self._load = load
        self._obey_erasure = obey_erasure
        self._confirm = confirm
        self._continues = continues
        self._poll_seconds = poll_seconds
        self._monotonic = monotonic
        self._uniform = uniform
        self._backoff = Backoff(first_seconds=0.1, cap_seconds=5.0)
        self._failures = 0
        self._asked_at: float | None = None
        self._held_due = monotonic()

    @property
    def silent_seconds(self) -> float:
        """For how long Postgres has owed an answer, 0 when it owes none."""
        return 0.0 if self._asked_at is None else self._monotonic() - self._asked_at

    async def run_once(self) -> float | None:
        """Poll once. Returns the pause to the next poll, with jitter so that processes do not poll in step."""
        users, held = self._open_users(), self._held()
        before = [self._hot.cursor(user_id) for user_id in users]
        asked_at = self._monotonic()
        heads = {head.user_id: head for head in await self._ask([*users, *held])}
        brought = 0
        for number, (user_id, cursor) in enumerate(zip(users, before, strict=True), 1):
            head = heads.get(user_id)
            # Of a thousand open users nearly all are as they were: they cost no more than this question.
            if self._stands(self._hot.cursor(user_id), head):
                self._confirm(user_id, asked_at)
            else:
                brought += await self._compare(user_id, cursor, head, asked_at)
            if number % COMPARED_AT_ONCE == 0:
                await asyncio.sleep(0)
        for user_id in held:
            if user_id in heads:
                await self._obey_erasure(user_id, heads[user_id])
        self._failures = 0
        pause = self._poll_seconds * (0.8 + self._uniform() * 0.3)
        rest = min(brought * REST_SECONDS_PER_REVISION, LONGEST_REST_SECONDS, pause)
        # Slept here and not between rounds, where the next hint would end it.
        await asyncio.sleep(rest)
        return pause - rest

    def _held(self) -> Sequence[str]:
        """The users held and not open, when it is time to ask about them."""
        now = self._monotonic()
        if now < self._held_due:
            return ()
        self._held_due = now + HELD_INTERVAL_SECONDS
        open_users = set(self._open_users())
        return [cursor.user_id for cursor in self._hot.cursors() if cursor.user_id not in open_users]

    async def _ask(self, users: Sequence[str]) -> Sequence[Head]:
        # Also when nobody's head is wanted: so an outage is known of before somebody needs Postgres.
        self._asked_at = self._monotonic()
        try:
            return await self._feed.heads(users)
        finally:
            self._asked_at = None

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - every error means: not now
        """Seconds to leave Postgres alone."""
        self._failures += 1
        return self._backoff.pause(self._failures, self._uniform)

    def _stands(self, cursor: Cursor | None, head: Head | None) -> bool:
        """Whether a whole copy is just what the head speaks of."""
        if cursor is None or head is None or not cursor.complete or cursor.epoch is None:
            return False
        return cursor.rev == head.rev and self._continues(cursor, head)

    async def _compare(self, user_id: str, before: Cursor | None, head: Head | None, asked_at: float) -> int:
        """Bring one copy up to date. Returns how many revisions were taken in, as far as they are counted.

        `before` is how far it had come when the head was asked for.
        """
        cursor = self._hot.cursor(user_id)
        if cursor is None or not cursor.complete:
            await self._load(user_id)
        elif (head is None and cursor.epoch is None) or self._has_passed(before, cursor, head):
            self._confirm(user_id, asked_at)
        elif head is None or not self._continues(cursor, head):
            await self._load(user_id)
        else:
            if head.rev > cursor.rev or cursor.epoch is None:
                await self._absorb(cursor)
            self._confirm(user_id, asked_at)
            return max(0, head.rev - cursor.rev)
        return 0

    def _has_passed(self, before: Cursor | None, cursor: Cursor, head: Head | None) -> bool:
        """Whether the copy is ahead of the head because of own writes that were decided since it was asked for.

        Only when nobody else wrote in between do own writes move a copy on, so it has all that the head speaks of. A
        head behind what the copy was when it was asked for is another matter: that tells of a lost past.
        """
        if before is None or head is None or cursor.rev <= max(head.rev, before.rev):
            return False
        same_past = (before.epoch, before.erased_rev, before.timeline) == (
            cursor.epoch,
            cursor.erased_rev,
            cursor.timeline,
        )
        return same_past and self._continues(before, head)


class Listener:
    """Waits for other processes' hints and wakes the feed."""

    name = "listener"

    def __init__(self, feed: ChangeFeed, on_hint: Callable[[], None], uniform: Callable[[], float]) -> None:
        self._feed = feed
        self._on_hint = on_hint
        self._uniform = uniform
        self._backoff = Backoff(first_seconds=0.2, cap_seconds=5.0)
        self._failures = 0

    async def run_once(self) -> float | None:
        """Listen until the link is lost. A hint missed in between costs one poll interval."""
        await self._feed.listen(self._on_hint)
        self._failures = 0
        return HINT_INTERVAL_SECONDS

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - every error means: not now
        """Seconds to leave Postgres alone."""
        self._failures += 1
        return self._backoff.pause(self._failures, self._uniform)


class Hinter:
    """Hints to other processes that something changed: at once, then at most every 20 ms."""

    name = "hinter"

    def __init__(self, feed: ChangeFeed, uniform: Callable[[], float]) -> None:
        self._feed = feed
        self._uniform = uniform
        self._pending = False
        self._backoff = Backoff(first_seconds=0.2, cap_seconds=5.0)
        self._failures = 0

    def note(self) -> None:
        """Something was committed to Postgres."""
        self._pending = True

    async def run_once(self) -> float | None:
        """Send one hint for all that was noted."""
        if not self._pending:
            return None
        self._pending = False
        await self._feed.hint()
        self._failures = 0
        # Slept here and not between rounds, where the next commit's wake-up would end it.
        await asyncio.sleep(HINT_INTERVAL_SECONDS)
        return 0.0 if self._pending else None

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - every error means: not now
        """Seconds to leave Postgres alone; the polls of the others find what was not hinted at."""
        self._failures += 1
        return self._backoff.pause(self._failures, self._uniform)
