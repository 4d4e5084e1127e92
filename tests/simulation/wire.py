"""A simulated process's way to the server: the ports `DurableTier` and `ChangeFeed`, by messages that can be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Final, TypeVar

from hybrid_memory.changes import Operation
from hybrid_memory.clock import Clock
from hybrid_memory.errors import DurableTierError, Misconfigured, ReadOnly, Unreachable
from hybrid_memory.graph import Digest
from hybrid_memory.messages import BatchApplied, Disputed, FlatRow, Head, Opening
from hybrid_memory.ports import Snapshot
from tests.simulation.postgres import Image
from tests.simulation.server import Server, lost_connection

T = TypeVar("T")

LATENCY: Final = 0.02
DEADLINE: Final = 2.0
CHUNK: Final = 2


class Wire:
    """`DurableTier` and `ChangeFeed` of one opening of one process."""

    def __init__(self, server: Server, process: str, client_id: str, clock: Clock, *, hints_lost: float) -> None:
        self._server = server
        self._process = process
        self._client_id = client_id
        self._clock = clock
        self._hints_lost = hints_lost

    async def ask(self, work: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        """Have the server do something. What it does, it does also when the answer is lost or nobody waits for it."""
        loop = self._server.loop
        reply: asyncio.Future[T] = loop.create_future()
        loop.create_task(self._serve(work, reply, writes=writes), context=self._server.context)
        deadline = loop.call_later(DEADLINE, _give_up, reply, lost_connection(writes=writes))
        try:
            return await reply
        finally:
            deadline.cancel()

    async def _serve(self, work: Callable[[], Awaitable[T]], reply: asyncio.Future[T], *, writes: bool) -> None:
        server = self._server
        await server.loop.pause(server.delay(LATENCY))
        if not server.reaches(self._process):
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

        await self.ask(work)

    async def apply(self, opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]) -> BatchApplied:
        entities = [one.entity_id for one in operations]
        assert len(entities) == len(set(entities)), "an entity comes twice in one transaction"
        change = partial(self._server.postgres.apply, opening, operations, erased)
        users = {one.user_id for one in operations}
        return await self.ask(partial(self._server.transact, users, operations, change), writes=True)

    async def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        (user_id,) = {one.user_id for one in operations}

        async def work() -> BatchApplied:
            account = self._server.postgres.accounts.get(user_id)
            mark = account.marks.get(opening.client_id) if account else None
            fresh = [one for one in operations if mark is None or one.seq > mark.seq]
            change = partial(self._server.postgres.decide, opening, operations, erased_rev)
            return await self._server.transact({user_id}, fresh, change)

        return await self.ask(work, writes=True)

    async def erase(self, opening: Opening, operation: Operation) -> int:
        change = partial(self._server.postgres.erase, opening, operation)
        return await self.ask(partial(self._server.transact, {operation.user_id}, [operation], change), writes=True)

    async def heads(self, user_ids: Sequence[str]) -> list[Head]:
        async def work() -> list[Head]:
            found = [self._server.postgres.head(user_id) for user_id in user_ids]
            return [head for head in found if head is not None]

        return await self.ask(work)

    def snapshot(self, user_id: str, *, after_rev: int | None) -> AbstractAsyncContextManager[Snapshot]:
        return self._snapshot(user_id, after_rev)

    @asynccontextmanager
    async def _snapshot(self, user_id: str, after_rev: int | None) -> AsyncGenerator[Snapshot]:
        async def work() -> Image:
            return self._server.postgres.image(user_id, self._client_id, after_rev, self._clock.now_us())

        yield Streamed(await self.ask(work), self)
        await self.ask(_nothing)

    async def head_for(self, user_id: str, client_id: str) -> Head:
        async def work() -> Head:
            return self._server.postgres.ensured_head(user_id, client_id)

        return await self.ask(work)

    async def digest(self, user_id: str) -> Digest:
        async def work() -> Digest:
            return self._server.postgres.digest(user_id, self._clock.now_us())

        return await self.ask(work)

    async def listen(self, on_hint: Callable[[], None]) -> None:
        await self.ask(_nothing)
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
        raise Unreachable("the listening connection was lost")

    async def hint(self) -> None:
        async def work() -> None:
            self._server.hint(self._process, self._hints_lost)

        await self.ask(work)

    async def close(self) -> None:
        return


class Streamed:
    """`Snapshot` over an image, a few rows at a time."""

    def __init__(self, image: Image, wire: Wire) -> None:
        self._image = image
        self._wire = wire

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
            await self._wire.ask(_nothing)
            yield rows[start : start + CHUNK]


def _give_up(reply: asyncio.Future[T], error: DurableTierError) -> None:
    if not reply.done():
        reply.set_exception(error)


async def _nothing() -> None:
    """A round trip."""
