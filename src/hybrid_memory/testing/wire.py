"""One connection through a proxy: forwards both ways what the proxy's rules let through."""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import Enum, auto
from random import Random
from typing import Final, Protocol, cast

from hybrid_memory.testing.address import Address
from hybrid_memory.testing.protocol import FLUSH, GSS_REQUEST, TLS_REQUEST, Messages, Requests, code_of
from hybrid_memory.testing.weather import Direction, Weather

# To close with it sends a reset, where a plain close would say goodbye.
_LINGER: Final = struct.pack("ii", 1, 0)


class Loss(Enum):
    """What is lost of a statement, and how."""

    REQUEST = auto()
    """The server never sees it; the connection is cut."""
    COMMIT = auto()
    """The server has done it, and never hears that its transaction may commit; the connection is cut.

    Of a statement that is a transaction of its own the message is lost that would end it; where `commit` is the
    statement, it is lost itself.
    """
    REPLY = auto()
    """The server has done and committed it, its answer is lost; the connection is cut."""
    HANG = auto()
    """The server has done it; the answer stops in the middle and the connection stays, silent for ever."""


class Way(Enum):
    """How a wire takes what comes."""

    OPEN = auto()
    """All passes."""
    STALLED = auto()
    """A black hole: connections are taken on, nothing passes, nothing is lost; opened, it passes all it held."""
    SILENT = auto()
    """A pulled cable: what is sent is lost both ways, and nobody is told that the other side has gone."""
    SHUT = auto()
    """Every connection is cut as soon as it is made."""


class Notices(Enum):
    """What becomes of the hints (`NOTIFY`) that the server sends to a listener."""

    PASS = auto()
    SWALLOWED = auto()
    TWICE = auto()


class Rules(Protocol):
    """What a wire asks of the proxy it belongs to."""

    @property
    def way(self) -> Way:
        """How what comes is taken."""
        ...

    @property
    def weather(self) -> Weather:
        """How slow and rough the wire is."""
        ...

    @property
    def notices(self) -> Notices:
        """What becomes of hints."""
        ...

    @property
    def upstream(self) -> Address:
        """Where new connections are forwarded to."""
        ...

    def fate_of(self, statement: bytes) -> Loss | None:
        """What becomes of a statement that passes now."""
        ...

    def forget(self, wire: Wire) -> None:
        """The wire is gone."""
        ...


class _Side(asyncio.Protocol):
    """One end of a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.transport: asyncio.Transport | None = None
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of a stream both ways, whatever event loop made it.
        self.transport = cast("asyncio.Transport", transport)
        self._wire.made(self)

    def data_received(self, data: bytes) -> None:
        self._wire.received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.gone = True
        self._wire.lost()

    def pause_writing(self) -> None:
        self._wire.slow_down(self)

    def resume_writing(self) -> None:
        self._wire.speed_up(self)

    def reset(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        sock: socket.socket = self.transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self.transport.abort()


class Wire:
    """One connection through the proxy."""

    def __init__(self, rules: Rules, random: Random) -> None:
        self._rules = rules
        self.client = _Side(self)
        self._server = _Side(self)
        self._out = Direction(random, lambda: rules.weather, self._is_blocked)
        self._back = Direction(random, lambda: rules.weather, self._is_blocked)
        self._requests = Requests()
        self._replies = Messages()
        self._loss: Loss | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._cut = False
        self._hangs = False

    def made(self, side: _Side) -> None:
        """A side is connected."""
        if self._cut:
            side.reset()
        elif side is self._server:
            self._out.to = side.transport
            self._out.go_on()
        elif self._rules.way is Way.SHUT:
            self.cut()
        else:
            self._back.to = side.transport
            self.go_on()

    def go_on(self) -> None:
        """The wire was opened, or its weather has changed."""
        if self._is_blocked() or self._cut:
            return
        if self.client.gone or self._server.gone:
            self.cut()
            return
        if self._dialling is None:
            self._dialling = asyncio.get_running_loop().create_task(self._dial())
        self._out.go_on()
        self._back.go_on()

    async def _dial(self) -> None:
        upstream, loop = self._rules.upstream, asyncio.get_running_loop()
        try:
            if upstream.is_socket:
                await loop.create_unix_connection(lambda: self._server, str(upstream.socket))
            else:
                await loop.create_connection(lambda: self._server, upstream.host, upstream.port)
        except OSError:
            self.cut()

    def received(self, side: _Side, data: bytes) -> None:
        """Bytes came in on one side."""
        if self._cut or self._hangs or self._rules.way is Way.SILENT:
            return
        if side is self.client:
            self._asked(data)
        else:
            self._answered(data)

    def _asked(self, data: bytes) -> None:
        while not self._requests.greeted:
            packet = self._requests.greeting(data)
            if packet is None:
                return
            data = b""
            if code_of(packet) in {TLS_REQUEST, GSS_REQUEST}:
                self._back.send(b"N")
            else:
                self._out.send(packet)
        passed: list[bytes] = []
        for message, statement in self._requests.cut(data):
            if statement is not None and self._loss is None:
                self._loss = self._rules.fate_of(statement)
                is_own_transaction = message.startswith(b"E")
                if self._loss is Loss.REQUEST or (self._loss is Loss.COMMIT and not is_own_transaction):
                    self.cut()
                    return
            # Without this the server does not commit; it is only asked for what it has done so far.
            ends = self._loss is Loss.COMMIT and message.startswith(b"S")
            passed.append(FLUSH if ends else message)
        if passed:
            self._out.send(b"".join(passed))

    def _answered(self, data: bytes) -> None:
        passed: list[bytes] = []
        for message in self._replies.cut(data):
            match self._loss, message[:1]:
                case (Loss.COMMIT, b"C" | b"E") | (Loss.REPLY, b"Z"):
                    self.cut()
                    return
                case Loss.HANG, _:
                    self._hangs = True
                    passed.append(message[: len(message) // 2])
                    break
                case ((Loss.COMMIT | Loss.REPLY), _):
                    pass
                case _, b"A" if self._rules.notices is not Notices.PASS:
                    passed += [message, message] if self._rules.notices is Notices.TWICE else []
                case _:
                    passed.append(message)
        if passed:
            self._back.send(b"".join(passed))

    def lost(self) -> None:
        """A side has gone; the other one is told unless the wire is blocked."""
        if not self._is_blocked():
            self.cut()

    def slow_down(self, side: _Side) -> None:
        """A side takes no more for now."""
        if (source := self._opposite(side).transport) is not None:
            source.pause_reading()

    def speed_up(self, side: _Side) -> None:
        """A side takes more again."""
        source = self._opposite(side).transport
        if source is not None and not source.is_closing():
            source.resume_reading()

    def drop(self) -> None:
        """What is under way is lost."""
        self._out.drop()
        self._back.drop()

    def cut(self) -> None:
        """Reset both sides."""
        self._cut = True
        self.drop()
        if self._dialling is not None and not self._dialling.done():
            self._dialling.cancel()
        for side in (self.client, self._server):
            side.reset()
        self._rules.forget(self)

    def _opposite(self, side: _Side) -> _Side:
        return self._server if side is self.client else self.client

    def _is_blocked(self) -> bool:
        return self._rules.way in {Way.STALLED, Way.SILENT}
