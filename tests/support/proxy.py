"""A wire to Postgres that loses requests and replies: it reads the protocol and knows which statement passes."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

SSL_REQUEST = 80_877_103
LENGTH = struct.Struct("!I")


class Loss(Enum):
    """What is lost of a statement, together with the connection."""

    REQUEST = auto()
    """The server never sees it."""
    REPLY = auto()
    """The server has done it, and its answer is lost."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """The next statement that holds `words`, after `passes` that pass, loses its request or its reply."""

    words: bytes
    loss: Loss
    passes: int = 0


@dataclass(slots=True)
class Proxy:
    """Listens on a unix socket and forwards to another one."""

    upstream: Path
    plans: deque[Plan] = field(default_factory=deque[Plan])
    losses: list[Loss] = field(default_factory=list[Loss])
    _tasks: set[asyncio.Task[None]] = field(default_factory=set["asyncio.Task[None]"])

    def plan(self, words: str, loss: Loss, *, passes: int = 0) -> None:
        self.plans.append(Plan(words=words.encode(), loss=loss, passes=passes))

    def sentence(self, statement: bytes) -> Loss | None:
        """What becomes of a statement; carries the plan out."""
        if not self.plans or self.plans[0].words not in statement:
            return None
        if self.plans[0].passes:
            self.plans[0].passes -= 1
            return None
        loss = self.plans.popleft().loss
        self.losses.append(loss)
        return loss

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_unix_connection(self.upstream)
        except OSError:
            writer.transport.abort()
            return
        wire = _Wire(proxy=self, client=(reader, writer), server=upstream)
        await wire.run()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self.serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True, kw_only=True)
class _Wire:
    proxy: Proxy
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    # The statements prepared on this connection by name, and the one that is bound.
    prepared: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    bound: bytes = b""
    swallowing: bool = False

    async def run(self) -> None:
        ways = [asyncio.create_task(self._requests()), asyncio.create_task(self._replies())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for _, writer in (self.client, self.server):
                writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self) -> None:
        with suppress(OSError, EOFError):
            await self._greeting()
            while True:
                kind, message = await _message(self.client[0])
                if self._statement(kind, message) is Loss.REQUEST:
                    return
                self.server[1].write(message)

    async def _greeting(self) -> None:
        while True:
            head = await self.client[0].readexactly(4)
            body = await self.client[0].readexactly(LENGTH.unpack(head)[0] - 4)
            self.server[1].write(head + body)
            if LENGTH.unpack(body[:4])[0] != SSL_REQUEST:
                return

    def _statement(self, kind: bytes, message: bytes) -> Loss | None:
        loss = None
        match kind:
            case b"P":
                name, statement, _ = message[5:].split(b"\0", 2)
                self.prepared[name] = statement
            case b"B":
                _, name, _ = message[5:].split(b"\0", 2)
                self.bound = self.prepared.get(name, b"")
            case b"E":
                loss = self.proxy.sentence(self.bound)
            case b"Q":
                loss = self.proxy.sentence(message[5:])
            case _:
                pass
        if loss is Loss.REPLY:
            self.swallowing = True
        return loss

    async def _replies(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                kind, message = await _message(self.server[0])
                if self.swallowing:
                    if kind == b"Z":
                        return  # the transaction of the statement has ended: now the reply is lost for good
                    continue
                self.client[1].write(message)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(LENGTH.unpack(head[1:])[0] - 4)


@asynccontextmanager
async def lossy(dsn: str, folder: Path) -> AsyncGenerator[tuple[Proxy, str]]:
    """A proxy in front of the unix socket that a DSN names, and the DSN that leads through it."""
    parts = urlsplit(dsn)
    asked = parse_qs(parts.query)
    port = asked.get("port", ["5432"])[0]
    proxy = Proxy(Path(asked["host"][0]) / f".s.PGSQL.{port}")
    listener = await asyncio.start_unix_server(proxy.connected, folder / f".s.PGSQL.{port}")
    try:
        yield proxy, parts._replace(query=f"host={quote(str(folder), safe='')}&port={port}").geturl()
    finally:
        listener.close()
        await proxy.close()
        await listener.wait_closed()
