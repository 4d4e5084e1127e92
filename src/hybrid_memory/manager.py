"""HybridMemoryManager: the one door to both tiers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Self, get_args

from hybrid_memory import filters, validation
from hybrid_memory.access import Access, Liveness
from hybrid_memory.changes import NodeChange, Rule, searchable_text
from hybrid_memory.checkpoints import Checkpoints
from hybrid_memory.clock import Clock, IdSource, SteadyClock, SystemClock
from hybrid_memory.connect import PostgresChoice, PostgresMode, Tiers, connect
from hybrid_memory.control import ControlServer, Desk
from hybrid_memory.errors import InvalidInput, NotFound
from hybrid_memory.events import EventLog, Observer
from hybrid_memory.forking import forsake_in_child
from hybrid_memory.graph import Digest, Hit, JsonInput, NodeId, Progress, Receipt, TransientNode
from hybrid_memory.health import Health, assess
from hybrid_memory.jsontext import decode
from hybrid_memory.messages import QueueState
from hybrid_memory.ports import DeadLetters
from hybrid_memory.receipts import ReceiptDesk
from hybrid_memory.settings import Settings, check_opening, read_environment, settings_of
from hybrid_memory.staff import Staff
from hybrid_memory.user_memory import DEFAULT_WAIT_SECONDS, UserMemory, names

PersistentUsers = Callable[[str], bool]


class HybridMemoryManager:
    """Memory for the users of one process: reads local, writes durable, alive while Postgres is not.

    Use it as `async with HybridMemoryManager.open(...) as manager`. It belongs to the event loop and the process that
    opened it.
    """

    def __init__(
        self,
        tiers: Tiers,
        settings: Settings,
        clock: Clock,
        ids: IdSource,
        uniform: Callable[[], float],
        persistent: PersistentUsers,
        events: EventLog,
    ) -> None:
        self._tiers, self._settings = tiers, settings
        self._clock, self._ids = clock, ids
        self._persistent = persistent
        self._open_users: dict[str, None] = {}
        self._progressed = asyncio.Event()
        self._liveness = Liveness(asyncio.get_running_loop())
        self._check_open = self._liveness.check
        forsake_in_child(self, HybridMemoryManager._forked)
        self._ending: asyncio.Task[None] | None = None
        self._staff = Staff(
            tiers=tiers,
            settings=settings,
            clock=clock,
            uniform=uniform,
            events=events,
            is_persistent=persistent,
            open_users=lambda: [user for user in self._open_users if persistent(user)],
            on_decided=lambda _: self._progressed.set(),
            on_rest=self._progressed.set,
        )
        file, deliveries, most = tiers.file, self._staff.deliveries, settings.content_bytes
        self.checkpoints = Checkpoints(file.scratch, clock, max_bytes=most, check_open=self._check_open)
        """Workflow checkpoints, local to this file."""
        self.desk = Desk(self, hot=file.hot, outbox=file.outbox)
        """What the command line asks."""
        self._control = ControlServer(self.desk, file.slot.socket_path, events)
        self._access = Access(
            hot=file.hot,
            outbox=file.outbox,
            receipts=ReceiptDesk(outbox=file.outbox, deliveries=deliveries, is_away=self._is_away, clock=clock),
            preload=self._staff.preload,
            barrier=self._staff.barrier,
            recency=self._staff.recency,
            clock=clock,
            ids=ids,
            settings=settings,
            liveness=self._liveness,
            is_away=self._is_away,
        )

    @classmethod
    def open(
        cls,
        *,
        dsn: str | None = None,
        data_dir: Path | None = None,
        postgres: PostgresChoice = "auto",
        settings: Settings | None = None,
        persistent_users: PersistentUsers | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
        slot: int | None = None,
    ) -> AbstractAsyncContextManager[Self]:
        """Open both tiers for the length of the block.

        `postgres="auto"` takes the DSN given, else the environment's, else the embedded Postgres if its extra is
        installed, else works with SQLite alone and says so in `health()`. `"embedded"` insists on the embedded one,
        `"off"` uses none (with a temporary directory if no `data_dir` is given: for development). An external
        Postgres that is away does not keep it from opening.

        `persistent_users` rolls persistence out gradually: operations of users it denies stay queued locally until a
        later opening allows them. `observer` is called with every event. `slot` insists on that one of the
        data directory's files, as the command line does to carry a dead owner's queue.

        Raises `StorageFailed` and its kin, `DataDirBusy`, `Misconfigured`, `InvalidInput`.
        """
        return cls._opened(
            dsn=dsn,
            data_dir=data_dir,
            postgres=postgres,
            settings=settings,
            persistent=persistent_users or _everybody,
            events=EventLog(observer),
            clock=SteadyClock(clock or SystemClock()),
            slot=slot,
        )

    @classmethod
    @asynccontextmanager
    async def _opened(
        cls,
        *,
        dsn: str | None,
        data_dir: Path | None,
        postgres: PostgresChoice,
        settings: Settings | None,
        persistent: PersistentUsers,
        events: EventLog,
        clock: Clock,
        slot: int | None,
    ) -> AsyncGenerator[Self]:
        choices = get_args(PostgresChoice)
        check_opening(dsn=dsn, data_dir=data_dir, postgres=postgres, choices=choices, settings=settings)
        environment = read_environment()
        chosen = settings_of(environment, settings)
        ids = IdSource(clock)
        tiers = await connect(
            dsn=dsn,
            data_dir=data_dir,
            postgres=postgres,
            environment=environment,
            settings=chosen,
            clock=clock,
            ids=ids,
            slot=slot,
        )
        manager = cls(tiers, chosen, clock, ids, random.SystemRandom().random, persistent, events)
        manager._staff.start()
        try:
            for finding in tiers.file.findings:
                events.emit(finding)
            await manager._control.start()
            yield manager
        finally:
            await manager.close()

    async def close(self) -> None:
        """Let the queue run out for a moment, stop, and close. What is left is carried by the next opening."""
        if self._ending is None:
            self._check_open()
            self._ending = asyncio.get_running_loop().create_task(self._end(), name="hybrid-memory-close")
        # Who is cancelled here leaves, and the end goes on: half closed, the file would stay locked.
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            if not self._is_away():
                await self.drain(self._settings.drain_on_close)
        finally:
            self._liveness.open = False
            await self._control.stop()
            await self._staff.stop()
            await self._tiers.close()

    async def ensure_user_memories(
        self, user_id: str, *, progress: Callable[[Progress], None] | None = None
    ) -> UserMemory:
        """Bring the user's memory graph into this process and return the handle bound to the user.

        Callers at the same time share one load. A copy already here costs one round trip, one confirmed within the
        last minute none. With Postgres away the handle works on what the file has, and its `freshness()` says so.
        """
        handle = self.user(user_id)
        user_id = handle.user_id
        already_open = user_id in self._open_users
        self._open_users[user_id] = None
        asks_postgres = self._tiers.durable.mode is not PostgresMode.OFF and self._persistent(user_id)
        if asks_postgres and not (already_open and self._is_fresh(user_id)):
            await self._staff.preload.bring_up_to_date(user_id, progress)
        return handle

    def user(self, user_id: str) -> UserMemory:
        """A handle without loading anything: it reads what is here, and writes."""
        self._check_open()
        return UserMemory(validation.user_id(user_id), self._access)

    def _is_fresh(self, user_id: str) -> bool:
        cursor = self._tiers.file.hot.cursor(user_id)
        confirmed = self._staff.preload.confirmed_at(user_id)
        if cursor is None or not cursor.complete or confirmed is None:
            return False
        return self._clock.monotonic() - confirmed < self._settings.refresh_limit.total_seconds()

    async def store_persistent_memory(
        self,
        user_id: str,
        content: Mapping[str, JsonInput],
        context_type: str,
        *,
        tags: Iterable[str] = (),
        summary: str | None = None,
        wait: float = DEFAULT_WAIT_SECONDS,
    ) -> Receipt:
        """Store a memory of a user in both tiers; see `UserMemory.store`."""
        return await self.user(user_id).store(content, context_type=context_type, tags=tags, summary=summary, wait=wait)

    def store_transient_memory(
        self, thread_id: str, content: Mapping[str, JsonInput], context_type: str, *, ttl: timedelta | None = None
    ) -> Awaitable[NodeId]:
        """Store a memory of a thread in the local file only. It is enqueued at once; awaiting it waits for the disk."""
        self._check_open()
        now_us = self._clock.now_us()
        node = TransientNode(
            thread_id=validation.identifier("thread_id", thread_id),
            node_id=NodeId(self._ids.new()),
            context_type=validation.context_type(context_type),
            content=validation.content(content, max_bytes=self._settings.content_bytes),
            created_at=now_us,
            expires_at=None if ttl is None else now_us + validation.ttl(ttl),
        )
        stored = self._tiers.file.scratch.put(node)
        named: asyncio.Future[NodeId] = asyncio.get_running_loop().create_future()

        def tell(done: asyncio.Future[None]) -> None:
            if named.done():
                return
            error = done.exception()
            if error is None:
                named.set_result(node.node_id)
            else:
                named.set_exception(error)

        stored.add_done_callback(tell)
        return named

    def transient_memories(self, thread_id: str) -> list[TransientNode]:
        """The live transient memories of a thread, oldest first."""
        self._check_open()
        return self._tiers.file.scratch.of_thread(validation.identifier("thread_id", thread_id))

    async def promote(
        self, thread_id: str, node_id: NodeId, user_id: str, *, wait: float = DEFAULT_WAIT_SECONDS
    ) -> Receipt:
        """Turn a transient memory into a persistent one of a user, in one atomic step; it keeps its id.

        Raises `NotFound` when the thread has no such memory (any more).
        """
        self._check_open()
        owner = validation.user_id(user_id)
        wanted = validation.node_id("node_id", node_id)
        seconds = validation.wait(wait)
        thread = validation.identifier("thread_id", thread_id)
        found = [node for node in self._tiers.file.scratch.of_thread(thread) if node.node_id == wanted]
        if not found:
            raise NotFound("node_id names no transient memory of this thread")
        change = NodeChange(
            node_id=wanted,
            namespace="default",
            key=None,
            context_type=found[0].context_type,
            content=found[0].content,
            text_content=searchable_text(decode(found[0].content)),
            summary=None,
            tags=None,
            importance=None,
            session_id=thread,
            created_at=found[0].created_at,
            rule=Rule.APPEND,
        )
        receipts = self._access.receipts
        accepted = await self._tiers.file.scratch.promote(thread, wanted, owner, change, receipts.hold(seconds))
        return receipts.issue(accepted, wanted)

    async def persist_relationship(
        self,
        user_id: str,
        source_id: NodeId,
        target_id: NodeId,
        relationship_type: str,
        *,
        weight: float = 1.0,
        properties: Mapping[str, JsonInput] | None = None,
        wait: float = DEFAULT_WAIT_SECONDS,
    ) -> Receipt:
        """Relate two nodes of a user; see `UserMemory.relate`."""
        return await self.user(user_id).relate(
            source_id, target_id, relationship_type, weight=weight, properties=properties, wait=wait
        )

    async def retrieve_relevant(
        self,
        query_text: str,
        *,
        user_id: str,
        context_types: Iterable[str] | None = None,
        limit: int = 10,
        min_relevance: float = 0.0,
    ) -> list[Hit]:
        """The user's memories that fit the text best, best first, with a score of at least `min_relevance` (0..1)."""
        least = validation.number("min_relevance", min_relevance)
        if not 0.0 <= least <= 1.0:
            raise InvalidInput("min_relevance", "must lie in 0..1")
        where: filters.Filter | None = None
        if context_types is not None:
            where = {"context_type": {"in": names("context_types", context_types)}}
        hits = await self.user(user_id).search(query_text, where=where, limit=limit)
        return [hit for hit in hits if hit.score >= least]

    async def forget(self, user_id: str) -> Mapping[str, int]:
        """Erase a user everywhere; returns how many rows were removed from which local table.

        Here it is done when this returns, in Postgres as soon as it can be reached, in other processes by the feed.
        """
        self._check_open()
        erased = validation.user_id(user_id)
        self._open_users.pop(erased, None)
        await self._staff.preload.forget(erased)
        return await self._tiers.file.replica.erase(erased, erased_rev=None)

    async def drain(self, within: timedelta) -> int:
        """Wait until the queue is carried, at most so long; returns how many operations are left.

        What users who are not persistent yet have queued is left, and not waited for. How long it will take is told
        before by the event `Draining`, and all the while by `health().drain_seconds`.
        """
        if type(within) is not timedelta:
            raise InvalidInput("within", "must be a timedelta")
        now, relay = self._clock.monotonic, self._staff.relay
        deadline = now() + within.total_seconds()
        self._staff.carry()
        if within > timedelta():
            self._staff.tell_of_drain()
        while (left := self.queue().entries) and not relay.resting and (seconds := deadline - now()) > 0:
            self._progressed.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._progressed.wait()
            except TimeoutError:
                break
        return left

    def queue(self) -> QueueState:
        """The durable queue, at once."""
        self._check_open()
        return self._tiers.file.outbox.state()

    @property
    def dead_letters(self) -> DeadLetters:
        """What Postgres would never take."""
        self._check_open()
        return self._tiers.file.dead_letters

    async def durable_digest(self, user_id: str) -> Digest:
        """The durable tier's fingerprint of a user, to compare with the handle's. Raises `Unreachable`."""
        self._check_open()
        return await self._tiers.durable.feed.digest(validation.user_id(user_id))

    async def health(self) -> Health:
        """How the manager is, and why it is not better."""
        self._check_open()
        return assess(
            self._tiers,
            self._staff,
            control=self._control.state,
            users_open=len(self._open_users),
            now_us=self._clock.now_us(),
        )

    def _forked(self) -> None:
        self._liveness.open = False

    def _is_away(self) -> bool:
        return self._tiers.durable.mode is PostgresMode.OFF or self._staff.relay.away


def _everybody(_user_id: str) -> bool:
    return True
