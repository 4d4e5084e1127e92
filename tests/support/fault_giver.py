"""A process of its own that owns a Postgres and the wire to it, and makes them sick as it is told.

What is measured in the process that asks is then that process's alone: neither the wire's work nor the server's
management runs on its event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final, cast

import structlog

from hybrid_memory.testing.postgres import short_folder
from hybrid_memory.testing.proxy import Proxy
from tests.campaigns import network, outages
from tests.plugins.postgres import Database
from tests.support.own_server import OwnServer

FAULTS: Final = (*network.FAULTS, *outages.FAULTS)
"""All it knows to do."""
_REPOSITORY: Final = Path(__file__).parents[2]


class FaultGiver:
    """The other end of such a process; make it with `running`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.dsn = ""
        """For the application, through the wire."""
        self.admin_dsn = ""
        """For a superuser, beside it."""

    @classmethod
    @asynccontextmanager
    async def running(cls, *, seed: int) -> AsyncGenerator[FaultGiver]:
        """A server with a migrated database for the length of the block."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.fault_giver", str(seed),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=_REPOSITORY,
        )  # fmt: skip
        giver = cls(process)
        try:
            said = await giver._hear()
            giver.dsn, giver.admin_dsn = said["dsn"], said["admin_dsn"]
            yield giver
        finally:
            await process.communicate(b"")  # the end of its input tells it to go

    async def inject(self, fault: str, seed: str) -> str:
        """Inject one fault and wait until it is over; gives what went wrong about it, or nothing."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"fault": fault, "seed": seed}).encode() + b"\n")
        return (await self._hear())["wrong"]

    async def _hear(self) -> Mapping[str, str]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the process that owns the server has ended"
        return cast("Mapping[str, str]", json.loads(line))


def _say(**words: str) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def _inject(fault: str, seed: str, server: OwnServer, database: Database, proxy: Proxy) -> str:
    random = Random(seed)
    try:
        if fault in network.FAULTS:
            await network.FAULTS[fault](proxy, random)
        else:
            await outages.FAULTS[fault](server, database, random)
    except TimeoutError:
        return f"{fault}: nothing passed that could be struck"
    return ""


async def _serve(seed: int) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with short_folder() as folder:
        server = await OwnServer.start(folder)
        try:
            wire = folder / "wire"
            wire.mkdir(mode=0o755)
            async with server.database() as database, Proxy.before(database.app_dsn, wire, seed=seed) as proxy:
                _say(dsn=proxy.dsn, admin_dsn=database.admin_dsn)
                while line := await reader.readline():
                    told = cast("Mapping[str, str]", json.loads(line))
                    _say(wrong=await _inject(told["fault"], told["seed"], server, database, proxy))
        finally:
            await server.stop()


def main() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
