"""Loads a user's graph at session start: the difference where the copy is known, all of it otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

from hybrid_memory.clock import Clock
from hybrid_memory.errors import DurableTierError
from hybrid_memory.events import LoadFinished, LoadStarted, Rewritten, Sink
from hybrid_memory.files import Past
from hybrid_memory.graph import Progress
from hybrid_memory.messages import REWOUND, Cursor, FlatRow, Head
from hybrid_memory.ports import ChangeFeed, HotTier, Replica

ProgressHook = Callable[[Progress], None]

# Chunks on their way into the file at once: one being written while the next is read from the network.
CHUNKS_IN_FLIGHT = 2


class Preload:
    """Brings users' copies up to date. Many callers for one user share one load; leaving it does not stop it."""

    def __init__(
        self, *, hot: HotTier, replica: Replica, past: Past, feed: ChangeFeed, clock: Clock, events: Sink
    ) -> None:
        self._hot = hot
        self._past = past
        self._replica = replica
        self._feed = feed
        self._clock = clock
        self._events = events
        self._flights: dict[str, asyncio.Task[bool]] = {}
        self._watchers: dict[str, list[ProgressHook]] = {}
        # Users about whose head somebody is asking, with nothing to load yet.
        self._asking: set[str] = set()
        # When Postgres last said that a user's copy was up to date, on the monotonic clock.
        self._confirmed: dict[str, float] = {}

    async def bring_up_to_date(self, user_id: str, progress: ProgressHook | None = None) -> bool:
        """Make the copy current. False when that cannot be now: the copy is what the file has.

        It cannot while Postgres is out of reach, and while an erasure of the user is queued or comes in between.

        Raises `DurableTierError` only for what a person must mend.
        """
        if user_id not in self._flights and user_id not in self._asking:
            current = await self._ask(user_id)
            if current is not None:
                if current and progress is not None:
                    progress(Progress(user_id=user_id, loaded=0, total=0, finished=True))
                return current
        flight = self._flights.get(user_id)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._bring(user_id), name="hybrid-memory-load")
            self._flights[user_id] = flight
            flight.add_done_callback(lambda _: self._landed(user_id))
        if progress is not None:
            self._watchers.setdefault(user_id, []).append(progress)
        # Not awaited itself: leaving must not stop it, nor its being stopped look like our own cancellation.
        await asyncio.wait([flight])
        return not flight.cancelled() and flight.result()

    async def _ask(self, user_id: str) -> bool | None:
        """Whether the copy is current as it is, False when that cannot be told now; None when something is to be done.

        This is how nearly every session starts where the file is kept. Nothing is changed by it, so it needs no task
        of its own: who leaves takes only the question away.
        """
        cursor = self._hot.cursor(user_id)
        if cursor is None or not cursor.complete:
            return None
        self._asking.add(user_id)
        asked_at = self._clock.monotonic()
        try:
            heads = await self._feed.heads([user_id])
        except DurableTierError as error:
            if not error.retryable:
                raise
            return False
        finally:
            self._asking.discard(user_id)
        if not is_current(cursor, heads[0] if heads else None):
            return None
        self.confirm(user_id, asked_at)
        return True

    def _landed(self, user_id: str) -> None:
        self._flights.pop(user_id, None)
        self._watchers.pop(user_id, None)

    def confirmed_at(self, user_id: str) -> float | None:
        """When the copy was last known to be up to date, in monotonic seconds."""
        return self._confirmed.get(user_id)

    def confirm(self, user_id: str, asked_at: float) -> None:
        """Postgres, asked then (in monotonic seconds), has said what the copy now holds."""
        self._confirmed[user_id] = max(asked_at, self._confirmed.get(user_id, asked_at))

    async def forget(self, user_id: str) -> None:
        """The user is to be erased: stop a load that is under way, so that nothing of it comes after."""
        while (flight := self._flights.get(user_id)) is not None:
            flight.cancel()
            await asyncio.wait([flight])
        self._confirmed.pop(user_id, None)

    async def close(self) -> None:
        """Stop what is under way; what was loaded out of sight is swept at the next opening."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _bring(self, user_id: str) -> bool:
        asked_at = self._clock.monotonic()
        try:
            loaded = await self._load(user_id)
        except DurableTierError as error:
            if not error.retryable:
                raise
            return False
        if loaded:
            self.confirm(user_id, asked_at)
        return loaded

    async def _load(self, user_id: str) -> bool:
        cursor = self._hot.cursor(user_id)
        if cursor is not None and cursor.complete:
            heads = await self._feed.heads([user_id])
            if await self._take_difference(cursor, heads[0] if heads else None):
                self._report(user_id, 0, 0, finished=True)
                return True
            if await self._still_agrees(cursor):
                self._report(user_id, 0, 0, finished=True)
                return True
        return await self._load_all(user_id)

    async def _still_agrees(self, cursor: Cursor) -> bool:
        """Whether a copy in doubt is what the server holds all the same: then comparing is all it takes."""
        user_id = cursor.user_id
        if cursor.timeline != REWOUND or self._hot.queued_of(user_id):
            return False
        ours, theirs = await self._hot.digest(user_id), await self._feed.digest(user_id)
        heads = await self._feed.heads([user_id])
        now = self._hot.cursor(user_id)
        if ours != theirs or not heads or now is None or not continues(replace(now, timeline=0), heads[0]):
            return False
        await self._past.copy_stands(heads[0])
        return is_current(replace(now, timeline=0), heads[0])

    async def _take_difference(self, cursor: Cursor, head: Head | None) -> bool:
        """Absorb what is newer than the cursor; False when the copy cannot be continued and must be loaded anew."""
        if head is None:
            return cursor.epoch is None
        if not continues(cursor, head):
            return False
        if head.rev > cursor.rev:
            await self.absorb_difference(cursor)
        return True

    async def absorb_difference(self, cursor: Cursor) -> None:
        """Take in every row newer than the cursor."""
        started = self._clock.monotonic()
        async with self._feed.snapshot(cursor.user_id, after_rev=cursor.rev) as snapshot:
            nodes = [row async for chunk in snapshot.nodes() for row in chunk]
            relationships = [row async for chunk in snapshot.relationships() for row in chunk]
            head = snapshot.head
        await self._replica.absorb(head, nodes, relationships)
        self._finished(cursor.user_id, len(nodes), len(relationships), started, full=False)

    async def _load_all(self, user_id: str) -> bool:
        self._events.emit(LoadStarted(user_id=user_id))
        started = self._clock.monotonic()
        former = self._hot.cursor(user_id)
        known = former is not None and (former.complete or former.timeline == REWOUND)
        # To tell what was lost from what was deleted, the tombstones are needed too.
        after_rev = 0 if known else None
        async with self._feed.snapshot(user_id, after_rev=after_rev) as snapshot:
            await self.obey_erasure(user_id, snapshot.head)
            generation = await self._replica.begin_load(snapshot.head)
            if generation is None:
                return False
            nodes = await self._stream(
                user_id, snapshot.nodes(), generation, self._replica.add_nodes, 0, snapshot.expected
            )
            edges = await self._stream(
                user_id, snapshot.relationships(), generation, self._replica.add_relationships, nodes, snapshot.expected
            )
        restored = await self._replica.show_load(generation, complete=True)
        if restored is None:
            return False
        if former is not None and former.complete:
            self._events.emit(Rewritten(user_id=user_id, queued_again=restored))
        self._report(user_id, nodes + edges, nodes + edges, finished=True)
        self._finished(user_id, nodes, edges, started, full=True)
        return True

    async def obey_erasure(self, user_id: str, head: Head) -> None:
        """Let go of all that is held of a user if the head tells of an erasure that the copy has not heard of."""
        cursor = self._hot.cursor(user_id)
        if cursor is not None and 0 <= cursor.erased_rev < head.erased_rev:
            await self._replica.erase(user_id, erased_rev=head.erased_rev)

    async def _stream(
        self,
        user_id: str,
        chunks: AsyncIterator[Sequence[FlatRow]],
        generation: int,
        add: Callable[[int, Sequence[FlatRow]], Awaitable[None]],
        done: int,
        expected: int,
    ) -> int:
        count = 0
        in_flight: list[Awaitable[None]] = []
        async for chunk in chunks:
            if len(in_flight) >= CHUNKS_IN_FLIGHT:
                await in_flight.pop(0)
            in_flight.append(add(generation, chunk))
            count += len(chunk)
            self._report(user_id, done + count, expected, finished=False)
        for pending in in_flight:
            await pending
        return count

    def _report(self, user_id: str, loaded: int, total: int, *, finished: bool) -> None:
        for hook in self._watchers.get(user_id, ()):
            hook(Progress(user_id=user_id, loaded=loaded, total=max(total, loaded), finished=finished))

    def _finished(self, user_id: str, nodes: int, relationships: int, started: float, *, full: bool) -> None:
        seconds = round(self._clock.monotonic() - started, 6)
        self._events.emit(
            LoadFinished(user_id=user_id, nodes=nodes, relationships=relationships, seconds=seconds, full=full)
        )


def is_current(cursor: Cursor, head: Head | None) -> bool:
    """Whether a copy at `cursor` is what stands in Postgres, where the user has that head, or none."""
    if head is None:
        return cursor.epoch is None
    return continues(cursor, head) and cursor.rev == head.rev


def continues(cursor: Cursor, head: Head) -> bool:
    """Whether a copy at `cursor` can be carried on to `head`, or the past was rewritten or erased in between.

    A copy that never met a head (the user was new) continues with the first one.
    """
    if cursor.epoch is None:
        return cursor.rev == 0 and head.erased_rev == 0
    return (
        cursor.epoch == head.epoch
        and cursor.timeline in (0, head.timeline)
        and cursor.rev <= head.rev
        and cursor.erased_rev == head.erased_rev
    )
