"""A Redis to compare point reads with, where `redis-server` is installed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

_TRIES = 200
_BETWEEN_TRIES = 0.02


class Redis:
    """One plain connection, speaking no more of the protocol (RESP 2) than is compared."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def set(self, key: str, value: bytes) -> None:
        """Store a value."""
        self._send(b"SET", key.encode(), value)
        answer = await self._reader.readline()
        assert answer == b"+OK\r\n", answer

    async def get(self, key: str) -> bytes:
        """The value of a key that is there."""
        self._send(b"GET", key.encode())
        head = await self._reader.readline()
        assert head.startswith(b"$"), head
        value = await self._reader.readexactly(int(head[1:]) + 2)
        return value[:-2]

    def _send(self, *parts: bytes) -> None:
        self._writer.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))


@asynccontextmanager
async def redis(folder: Path) -> AsyncGenerator[Redis | None, None]:
    """A server of our own on a unix socket, keeping nothing on disk; None where Redis is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    socket = folder / "redis.sock"
    server = await asyncio.create_subprocess_exec(
        program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(folder),
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with connected(socket) as client:
            yield client
    finally:
        server.terminate()
        await server.wait()


@asynccontextmanager
async def connected(socket: Path) -> AsyncGenerator[Redis, None]:
    """A connection to the server at this socket, which may still be starting."""
    for _ in range(_TRIES):
        if socket.exists():
            break
        await asyncio.sleep(_BETWEEN_TRIES)
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        yield Redis(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
