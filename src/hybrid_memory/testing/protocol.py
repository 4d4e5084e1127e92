"""The messages between a client and Postgres, cut out of the bytes as they come: no more than a proxy has to know."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

TLS_REQUEST: Final = 80_877_103
GSS_REQUEST: Final = 80_877_104
FLUSH: Final = b"H\0\0\0\4"
"""Asks the server for what it has done so far, without the end of the transaction that a sync brings."""

_LENGTH: Final = struct.Struct("!I")
_HEAD: Final = 5


class Messages:
    """Cuts one direction of a connection into messages; what is not whole yet waits for more."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def cut(self, data: bytes) -> Iterator[bytes]:
        """The messages that `data` completes, each with its head: a letter and a length."""
        self._rest += data
        start = 0
        try:
            while len(self._rest) - start >= _HEAD:
                end = start + 1 + _LENGTH.unpack_from(self._rest, start + 1)[0]
                if end > len(self._rest):
                    return
                message = bytes(self._rest[start:end])
                start = end
                yield message
        finally:
            del self._rest[:start]


class Requests:
    """What a client sends: first a greeting without a letter, then messages, some of which carry a statement out."""

    def __init__(self) -> None:
        self._messages = Messages()
        self._greeting = bytearray()
        self._greeted = False
        # The statements prepared on this connection by name, and the one that is bound.
        self._prepared: dict[bytes, bytes] = {}
        self._bound = b""

    @property
    def greeted(self) -> bool:
        """Whether the greeting is over."""
        return self._greeted

    def greeting(self, data: bytes) -> bytes | None:
        """The next whole packet of the greeting, None while more is needed; what follows it is kept."""
        self._greeting += data
        if len(self._greeting) < _LENGTH.size:
            return None
        size = _LENGTH.unpack_from(self._greeting)[0]
        if len(self._greeting) < size:
            return None
        packet = bytes(self._greeting[:size])
        del self._greeting[:size]
        self._greeted = code_of(packet) not in {TLS_REQUEST, GSS_REQUEST}
        return packet

    def cut(self, data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Messages after the greeting, each with the statement that it has the server carry out, if it does."""
        early, self._greeting = bytes(self._greeting), bytearray()
        for message in self._messages.cut(early + data):
            yield message, self._statement(message)

    def _statement(self, message: bytes) -> bytes | None:
        match message[:1]:
            case b"P":
                name, statement, _ = message[_HEAD:].split(b"\0", 2)
                self._prepared[name] = statement
            case b"B":
                _, name, _ = message[_HEAD:].split(b"\0", 2)
                self._bound = self._prepared.get(name, b"")
            case b"E":
                return self._bound
            case b"Q":
                return message[_HEAD:]
            case _:
                pass
        return None


def code_of(packet: bytes) -> int:
    """What a packet of the greeting asks for: TLS, a cancellation, a version of the protocol."""
    code: int = _LENGTH.unpack_from(packet, _LENGTH.size)[0]
    return code
