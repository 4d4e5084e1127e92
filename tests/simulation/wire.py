"""A simulated process's way to the server: the ports `DurableTier` and `ChangeFeed`, by messages that can be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from enum import Enum
from functools import partial
from typing import Final, TypeAlias, TypeVar

from hybrid_memory.changes import Operation
from hybrid_memory.clock import Clock
from hybrid_memory.errors import DurableTierError, Misconfigured, OutcomeUnknown, ReadOnly, Unreachable
from hybrid_memory.graph import Digest
from hybrid_memory.messages import BatchApplied, Disputed, FlatRow, Head, Identity, Opening
from hybrid_memory.ports import Snapshot
from tests.simulation.postgres import Image
from tests.simulation.server import Server, lost_connection

T = TypeVar("T")

LATENCY: Final = 0.02
DEADLINE: Final = 2.0
CHUNK: Final = 2

Meet: TypeAlias = "Callable[[Identity], Awaitable[None]]"


class Link(Enum):
    """The connections that a process has to a server."""

    RELAY = "relay"
    FEED = "feed"
    LOAD = "load"
    LISTENER = "listener"


# Whatever runs there: a question goes to the server that stands at the moment.
_ANY_BOOT: Final = -1


class Wire:
    """`DurableTier` and `ChangeFeed` of one opening of one process.

    Of each new connection `meet` is told which server it has reached, before anything is asked there. Where there is
    only one server, and nobody to be told, nothing is asked of it either and connections need not be made.
    """

    def __init__(
        self,
        server: Server,
        process: str,
        client_id: str,
        clock: Clock,
        *,
        hints_lost: float,
        meet: Meet | None = None,
    ) -> None:
        self._server = server
        self._process = process
        self._client_id = client_id
        self._clock = clock
        self._hints_lost = hints_lost
        self._meet = meet
        # How often the server had been started when a connection was made.
        self._boots: dict[Link, int] = {}

    async def ask(self, work: Callable[[], Awaitable[T]], link: Link, *, writes: bool = False) -> T:
        """Have the server do something. What it does, it does also when the answer is lost or nobody waits for it."""
        boots = await self.connected(link)
        try:
            return await self.ask_there(work, boots, writes=writes)
        except (Unreachable, ReadOnly, OutcomeUnknown):
            self._cut(link, boots)
            raise

    async def connected(self, link: Link) -> int:
        """Connect if need be, and be told which server that is: of a standby each time.

        Returns which of its starts the connection is to.
        """
        if self._meet is None:
            return _ANY_BOOT
        known = self._boots.get(link)
        if known is not None:
            return known

        async def work() -> tuple[int, Identity]:
            return self._server.boots, self._server.identity()

        boots, identity = await self.ask_there(work, _ANY_BOOT)
        await self._meet(identity)
        if identity.lineage is not None:
            self._boots[link] = boots
        return boots

    def _cut(self, link: Link, boots: int) -> None:
        if self._boots.get(link) == boots:
            del self._boots[link]

    async def ask_there(self, work: Callable[[], Awaitable[T]], boots: int, *, writes: bool = False) -> T:
        """Ask on a connection that was made to one start of the server."""
        loop = self._server.loop
        reply: asyncio.Future[T] = loop.create_future()
        loop.create_task(self._serve(work, reply, boots, writes=writes), context=self._server.context)
        deadline = loop.call_later(DEADLINE, _give_up, reply, lost_connection(writes=writes))
        try:
            return await reply
        finally:
            deadline.cancel()

    async def _serve(
        self, work: Callable[[], Awaitable[T]], reply: asyncio.Future[T], made_to: int, *, writes: bool
    ) -> None:
        server = self._server
        await server.loop.pause(server.delay(LATENCY))
        if not server.reaches(self._process) or made_to not in {_ANY_BOOT, server.boots}:
            await self._break(reply, Unreachable("no way there"))
            return
        if server.chance.random() < server.weather.lossy / 2:
            server.loop.trace(self._process, "a request was lost")
            await self._break(reply, lost_connection(writes=writes))
            return
        boots = server.boots
        outcome: T | BaseException
        try:
            outcome = await work()
        except (DurableTierError, Disputed) as error:
            outcome = error
        await server.loop.pause(server.delay(LATENCY))
        cut = boots != server.boots or not server.reaches(self._process)
        if cut or server.chance.random() < server.weather.lossy / 2:
            server.loop.trace(self._process, "a reply was lost")
            await self._break(reply, lost_connection(writes=writes))
        elif not reply.done():
            if isinstance(outcome, BaseException):
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome)

    async def _break(self, reply: asyncio.Future[T], error: DurableTierError) -> None:
        """The client hears of it sooner or later, or must find out by itself."""
        if self._server.chance.random() < 0.2:
            return
        await self._server.loop.pause(self._server.delay(0.5))
        if not reply.done():
            reply.set_exception(error)

    async def handshake(self, opening: Opening) -> None:
        del opening

        async def work() -> None:
            if self._server.weather.read_only:
                raise ReadOnly("a standby", sqlstate="25006")
            if self._server.weather.misconfigured:
                raise Misconfigured("a table is missing", sqlstate="42P01")

        await self.ask(work, Link.RELAY)

    async def apply(self, opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]) -> BatchApplied:
        entities = [one.entity_id for one in operations]
        assert len(entities) == len(set(entities)), "an entity comes twice in one transaction"
        change = partial(self._server.postgres.apply, opening, operations, erased)
        users = {one.user_id for one in operations}
        return await self.ask(partial(self._server.transact, users, operations, change), Link.RELAY, writes=True)

    async def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        (user_id,) = {one.user_id for one in operations}

        async def work() -> BatchApplied:
            account = self._server.postgres.accounts.get(user_id)
            mark = account.marks.get(opening.client_id) if account else None
            fresh = [one for one in operations if mark is None or one.seq > mark.seq]
            change = partial(self._server.postgres.decide, opening, operations, erased_rev)
            return await self._server.transact({user_id}, fresh, change)

        return await self.ask(work, Link.RELAY, writes=True)

    async def erase(self, opening: Opening, operation: Operation) -> int:
        change = partial(self._server.postgres.erase, opening, operation)
        erase = partial(self._server.transact, {operation.user_id}, [operation], change)
        return await self.ask(erase, Link.RELAY, writes=True)

    async def heads(self, user_ids: Sequence[str]) -> list[Head]:
        async def work() -> list[Head]:
            found = [self._server.postgres.head(user_id) for user_id in user_ids]
            return [head for head in found if head is not None]

        return await self.ask(work, Link.FEED)

    def snapshot(self, user_id: str, *, after_rev: int | None) -> AbstractAsyncContextManager[Snapshot]:
        return self._snapshot(user_id, after_rev)

    @asynccontextmanager
    async def _snapshot(self, user_id: str, after_rev: int | None) -> AsyncGenerator[Snapshot]:
        async def work() -> Image:
            return self._server.postgres.image(user_id, self._client_id, after_rev, self._clock.now_us())

        # Each load has a connection of its own, and ends with it.
        boots = await self.connected(Link.LOAD)
        try:
            yield Streamed(await self.ask_there(work, boots), self, boots)
            await self.ask_there(_nothing, boots)
        except (Unreachable, ReadOnly):
            self._cut(Link.LOAD, boots)
            raise

    async def head_for(self, user_id: str, client_id: str) -> Head:
        async def work() -> Head:
            return self._server.postgres.ensured_head(user_id, client_id)

        return await self.ask(work, Link.FEED)

    async def digest(self, user_id: str) -> Digest:
        async def work() -> Digest:
            return self._server.postgres.digest(user_id, self._clock.now_us())

        return await self.ask(work, Link.FEED)

    async def listen(self, on_hint: Callable[[], None]) -> None:
        await self.ask(_nothing, Link.LISTENER)
        lost: asyncio.Future[None] = self._server.loop.create_future()
        here = copy_context()
        loop = self._server.loop

        def hinted() -> None:
            loop.call_soon(on_hint, context=here)

        self._server.listeners[lost] = (self._process, hinted, lost)
        try:
            await lost
        finally:
            self._server.listeners.pop(lost, None)
            self._boots.pop(Link.LISTENER, None)
        raise Unreachable("the listening connection was lost")

    async def hint(self) -> None:
        async def work() -> None:
            self._server.hint(self._process, self._hints_lost)

        await self.ask(work, Link.FEED)

    async def close(self) -> None:
        return


class Streamed:
    """`Snapshot` over an image, a few rows at a time."""

    def __init__(self, image: Image, wire: Wire, boots: int) -> None:
        self._image = image
        self._wire = wire
        self._boots = boots

    @property
    def head(self) -> Head:
        return self._image.head

    @property
    def expected(self) -> int:
        return len(self._image.nodes) + len(self._image.relationships)

    def nodes(self) -> AsyncIterator[Sequence[FlatRow]]:
        return self._chunks(self._image.nodes)

    def relationships(self) -> AsyncIterator[Sequence[FlatRow]]:
        return self._chunks(self._image.relationships)

    async def _chunks(self, rows: list[FlatRow]) -> AsyncIterator[Sequence[FlatRow]]:
        for start in range(0, len(rows), CHUNK):
            await self._wire.ask_there(_nothing, self._boots)
            yield rows[start : start + CHUNK]


def _give_up(reply: asyncio.Future[T], error: DurableTierError) -> None:
    if not reply.done():
        reply.set_exception(error)


async def _nothing() -> None:
    """A round trip."""
