"""How slow and rough a wire is, and one direction of it that lets bytes through accordingly."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol, Self

# Of a piece's length; short enough that a thin line does not look like bursts.
_PIECE_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What happens to bytes on their way, in each direction by itself. The default changes nothing.

    They come `latency_seconds` later, and up to `jitter_seconds` more, never out of order; in pieces of at most
    `piece_bytes` (0: as they were sent) with `piece_seconds` between two.
    """

    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    piece_bytes: int = 0
    piece_seconds: float = 0.0

    @classmethod
    def narrow(cls, bytes_per_second: int) -> Self:
        """A line that carries no more than so much."""
        piece = max(1, int(bytes_per_second * _PIECE_SECONDS))
        return cls(piece_bytes=piece, piece_seconds=piece / bytes_per_second)

    @classmethod
    def trickle(cls) -> Self:
        """One byte every 100 ms: never silent, and never done."""
        return cls(piece_bytes=1, piece_seconds=0.1)

    @classmethod
    def sliced(cls, piece_bytes: int) -> Self:
        """Every message is torn into pieces, at once one after the other."""
        return cls(piece_bytes=piece_bytes)


CLEAR: Final = Weather()
"""A wire that leaves nothing to be desired."""


class Writable(Protocol):
    """Where a direction ends."""

    def write(self, data: bytes) -> None:
        """Take bytes on."""
        ...


class Direction:
    """One direction of a wire. It has no end until `to` is set, and lets nothing through while it is blocked."""

    def __init__(self, random: Random, weather: Callable[[], Weather], blocked: Callable[[], bool]) -> None:
        self._random = random
        self._weather = weather
        self._blocked = blocked
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._next_piece = 0.0
        self.to: Writable | None = None

    def send(self, data: bytes) -> None:
        """Put bytes on their way."""
        weather = self._weather()
        if self.to is not None and weather == CLEAR and not self._under_way and not self._blocked():
            self.to.write(data)
            return
        due = self._loop.time() + weather.latency_seconds + self._random.random() * weather.jitter_seconds
        self._under_way.append((due, data))
        self.go_on()

    def go_on(self) -> None:
        """Let through what is due; called again whenever the direction was opened or the weather has changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._under_way and self.to is not None and not self._blocked():
            due = max(self._under_way[0][0], self._next_piece)
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.go_on)
                return
            self._let_through(self.to)

    def drop(self) -> None:
        """What is under way is lost."""
        self._under_way.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_through(self, to: Writable) -> None:
        weather = self._weather()
        sent, data = self._under_way.popleft()
        piece = weather.piece_bytes or len(data)
        if len(data) > piece:
            self._under_way.appendleft((sent, data[piece:]))
        to.write(data[:piece])
        if weather.piece_bytes:
            self._next_piece = self._loop.time() + weather.piece_seconds
