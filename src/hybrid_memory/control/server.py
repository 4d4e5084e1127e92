"""The socket on which a running manager answers the command line."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, cast

import orjson

from hybrid_memory.control.address import short_address
from hybrid_memory.control.answers import Failure
from hybrid_memory.control.desk import Data, Desk
from hybrid_memory.errors import HybridMemoryError, InvalidInput
from hybrid_memory.events import ServiceFailed, Sink
from hybrid_memory.graph import JsonValue

NAME: Final = "control"
# A request names at most some hundred operations of 36 characters.
MOST_REQUEST_BYTES: Final = 64 * 1024
# A person at a terminal, and a few scripts.
MOST_CLIENTS: Final = 16
SILENCE_SECONDS: Final = 10.0

_PRIVATE: Final = 0o600


class ControlServer:
    """Serves a desk on a socket file that its owner alone may open. Whatever a client does harms that client alone.

    A request is a line `{"call": NAME, "arguments": {…}}`, its answer a line `{"ok": true, "data": {…}}` or
    `{"ok": false, "error": {…}}`. A line that is none ends the connection, as does silence.
    """

    def __init__(self, desk: Desk, path: Path, events: Sink, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._desk = desk
        self._path = path
        self._events = events
        self._silence = silence_seconds
        self._server: asyncio.Server | None = None
        self._held = ExitStack()
        self._clients: set[asyncio.Task[None]] = set()
        self.state = "closed"
        """`ok`, or why nobody can ask."""

    async def start(self) -> None:
        """Begin to answer. Where no socket can be made, `state` says so and all else goes on."""
        try:
            listener = self._bound()
        except OSError as refused:
            self._held.close()
            self.state = f"no socket in the data directory ({type(refused).__name__})"
            return
        self._server = await asyncio.start_unix_server(self._arrived, sock=listener, limit=MOST_REQUEST_BYTES)
        self.state = "ok"

    async def stop(self) -> None:
        """Stop answering and remove the socket file. Call it while the slot is still ours."""
        self.state = "closed"
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._held.close()

    def _bound(self) -> socket.socket:
        # The lock of the slot is ours, so a socket that lies here belonged to an owner who is dead.
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(self._path.lstat().st_mode):
                self._path.unlink()
        # Kept for as long as we listen: the event loop may look at the address again when it closes.
        address = self._held.enter_context(short_address(self._path))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # On Linux the file then has these rights from the moment it exists. Elsewhere the directory, closed to
            # others, keeps them out until the rights are set below; and nobody can connect before we listen.
            with suppress(OSError):
                os.fchmod(listener.fileno(), _PRIVATE)
            listener.bind(address)
            self._path.chmod(_PRIVATE)
        except OSError:
            listener.close()
            raise
        return listener

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MOST_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.get_running_loop().create_task(self._serve(reader, writer), name=f"hybrid-memory-{NAME}")
        self._clients.add(client)
        client.add_done_callback(self._left)

    def _left(self, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        if not client.cancelled() and (error := client.exception()) is not None:
            self._events.emit(ServiceFailed(service=NAME, error=type(error).__name__))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # With no buffer of its own, `drain` returns only when all has been taken.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            while (line := await self._request(reader)) is not None:
                reply, goes_on = await self._reply(line)
                writer.write(reply)
                async with asyncio.timeout(self._silence):
                    await writer.drain()
                if not goes_on:
                    return
        except (TimeoutError, ConnectionError):
            return
        finally:
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next line; None at the end, empty for one that is too long."""
        async with asyncio.timeout(self._silence):
            try:
                return await reader.readline() or None
            except ValueError:
                return b""

    async def _reply(self, line: bytes) -> tuple[bytes, bool]:
        """The line to answer, and whether another request may follow."""
        try:
            call, arguments = _parsed(line)
        except InvalidInput as garbage:
            return _line({"ok": False, "error": Failure.of(garbage).as_json()}), False
        try:
            return _line({"ok": True, "data": await self._desk.answer(call, arguments)}), True
        except HybridMemoryError as error:
            return _line({"ok": False, "error": Failure.of(error).as_json()}), True


def _line(document: Data) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _parsed(line: bytes) -> tuple[str, dict[str, JsonValue]]:
    try:
        request = cast("JsonValue", orjson.loads(line))
    except orjson.JSONDecodeError:
        # Not chained: the decoder's error carries the whole text.
        raise InvalidInput("request", "is not a line of JSON, or is too long") from None
    if not isinstance(request, dict):
        raise InvalidInput("request", "is not an object")
    call, arguments = request.get("call"), request.get("arguments", {})
    if not isinstance(call, str) or not isinstance(arguments, dict):
        raise InvalidInput("request", "needs a call (a string) and may have arguments (an object)")
    return call, arguments
