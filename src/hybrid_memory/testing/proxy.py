"""A wire to Postgres that can be cut, slowed, silenced and led elsewhere, and that knows which statement passes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Self

from hybrid_memory.testing.address import Address, address_of, through
from hybrid_memory.testing.weather import CLEAR, Weather
from hybrid_memory.testing.wire import Loss, Notices, Way, Wire

__all__ = ["Loss", "Notices", "Proxy", "Way", "Weather"]

_LOOPBACK: Final = "127.0.0.1"


@dataclass(slots=True, kw_only=True)
class _Plan:
    words: bytes
    loss: Loss
    passes: int


class Proxy:
    """Listens on a unix socket or on loopback and forwards to a Postgres; make it with `Proxy.before`.

    Faults count from the moment they are asked for. One that concerns the wire (`way`, `weather`, `notices`) holds
    for connections that are there and for new ones until it is taken back; one that concerns a statement (`lose`)
    strikes once. It offers no TLS.
    """

    def __init__(self, upstream: Address, *, seed: int = 0) -> None:
        self._upstream = upstream
        self._random = Random(seed)  # noqa: S311 - jitter that can be had again, no secret
        self._way = Way.OPEN
        self._weather = CLEAR
        self._plans: deque[_Plan] = deque()
        self._wires: set[Wire] = set()
        self._listener: asyncio.Server | None = None
        self._struck = asyncio.Event()
        self._dsn = ""
        self._address = upstream
        self.notices = Notices.PASS
        self.losses: list[Loss] = []
        """What was lost of statements so far, in order."""
        self.made_at: list[float] = []
        """When each connection was made, by the loop's clock."""

    @classmethod
    @asynccontextmanager
    async def before(cls, dsn: str, folder: Path | None = None, *, seed: int = 0) -> AsyncGenerator[Self]:
        """A proxy in front of the server that a DSN names, for the length of the block.

        It listens on a unix socket in `folder` (whose path must be short), without one on a free port of loopback.
        `seed` decides the jitter.
        """
        proxy = cls(address_of(dsn), seed=seed)
        port = proxy._upstream.port
        proxy._address = Address(host=_LOOPBACK, port=0) if folder is None else Address(host=str(folder), port=port)
        await proxy._listen()
        proxy._dsn = through(dsn, proxy._address)
        try:
            yield proxy
        finally:
            proxy._hang_up()
            proxy.cut()

    @property
    def dsn(self) -> str:
        """The DSN that leads through the proxy."""
        return self._dsn

    def dsn_of(self, dsn: str) -> str:
        """The DSN for another role or database of the same server, through the proxy."""
        return through(dsn, self._address)

    @property
    def connections(self) -> int:
        """How many connections there are now, given up ones included while nobody was told."""
        return len(self._wires)

    @property
    def way(self) -> Way:
        """How what comes is taken."""
        return self._way

    @property
    def weather(self) -> Weather:
        """How slow and rough the wire is."""
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = weather
        for wire in list(self._wires):
            wire.go_on()

    def lose(self, words: str, loss: Loss, *, passes: int = 0) -> None:
        """Of the next statement that holds `words`, after `passes` that pass, lose this.

        What was asked for first must strike first.
        """
        self._plans.append(_Plan(words=words.encode(), loss=loss, passes=passes))

    async def struck(self, times: int) -> None:
        """Wait until so many statements were struck since the beginning. Cancel it to give up."""
        while len(self.losses) < times:
            self._struck.clear()
            await self._struck.wait()

    def stall(self) -> None:
        """Become a black hole."""
        self._way = Way.STALLED

    def go_silent(self) -> None:
        """Pull the cable: what is on its way is lost too."""
        self._way = Way.SILENT
        for wire in list(self._wires):
            wire.drop()

    def shut(self) -> None:
        """Cut every connection, new ones as soon as they are made."""
        self._way = Way.SHUT
        self.cut()

    def refuse(self) -> None:
        """Stop listening: whoever comes is refused by the system. Connections that are there stay."""
        self._hang_up()

    def cut(self) -> int:
        """Reset every connection on both sides, whatever is on its way; says how many."""
        wires = list(self._wires)
        for wire in wires:
            wire.cut()
        return len(wires)

    async def heal(self) -> None:
        """Listen, and let everything pass. What was planned for statements stands; who has gone is told of now."""
        self._way = Way.OPEN
        self._weather = CLEAR
        self.notices = Notices.PASS
        if self._listener is None:
            await self._listen()
        for wire in list(self._wires):
            wire.go_on()

    def lead_to(self, dsn: str) -> None:
        """Forward new connections to another server; those that are there stay until `cut`."""
        self._upstream = address_of(dsn)

    def fate_of(self, statement: bytes) -> Loss | None:
        """What becomes of a statement that passes now; carries the plan out."""
        if not self._plans or self._plans[0].words not in statement:
            return None
        if self._plans[0].passes:
            self._plans[0].passes -= 1
            return None
        loss = self._plans.popleft().loss
        self.losses.append(loss)
        self._struck.set()
        return loss

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self._address.is_socket:
            path = self._address.socket
            with suppress(FileNotFoundError):
                path.unlink()
            self._listener = await loop.create_unix_server(self._taken_on, path)
            return
        self._listener = await loop.create_server(self._taken_on, self._address.host, self._address.port)
        self._address = Address(host=self._address.host, port=self._listener.sockets[0].getsockname()[1])

    def _hang_up(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _taken_on(self) -> asyncio.Protocol:
        self.made_at.append(asyncio.get_running_loop().time())
        wire = Wire(self, self._random)
        self._wires.add(wire)
        return wire.client

    @property
    def upstream(self) -> Address:
        """Where new connections are forwarded to."""
        return self._upstream

    def forget(self, wire: Wire) -> None:
        """The wire is gone."""
        self._wires.discard(wire)
