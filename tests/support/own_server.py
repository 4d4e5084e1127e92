"""A Postgres of the test's own, to be killed, frozen and brought back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hybrid_memory.embedded import EmbeddedPostgres
from tests.plugins.postgres import Database, Server, connected, prepare

TEMPLATE = "migrated"


@dataclass(slots=True, kw_only=True)
class OwnServer:
    """The server, and what can be done to it."""

    postgres: EmbeddedPostgres
    prepared: bool = False
    frozen: list[int] = field(default_factory=list[int])

    @property
    def server(self) -> Server:
        return Server(name="own", dsn=self._dsn, socket_dir=self.postgres.socket_dir)

    def _dsn(self, role: str, database: str) -> str:
        return self.postgres.admin_dsn(database).replace("//postgres@", f"//{role}@")

    async def kill(self) -> None:
        """Kill the postmaster with -9; its backends follow."""
        await self.postgres.kill()

    async def heal(self) -> None:
        """Let it run, whatever was done to it."""
        self.thaw()
        await self.postgres.ensure_running()

    def freeze(self) -> None:
        """Stop the postmaster and all its backends where they stand."""
        postmaster = self.postgres.pid
        assert postmaster is not None
        os.kill(postmaster, signal.SIGSTOP)  # first, so that it makes no more backends
        self.frozen = [postmaster]
        asked = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(postmaster)], capture_output=True, text=True, check=True
        )
        for pid in map(int, asked.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.frozen.append(pid)

    def thaw(self) -> None:
        """Let what was frozen go on."""
        for pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen.clear()

    @asynccontextmanager
    async def database(self) -> AsyncGenerator[Database]:
        """A migrated database for the length of a block."""
        await self.heal()
        if not self.prepared:
            await self._execute(f"create database {TEMPLATE}")
            await prepare(Database(name=TEMPLATE, server=self.server))
            self.prepared = True
        name = f"test_{uuid.uuid4().hex}"
        await self._execute(f"create database {name} template {TEMPLATE}")
        try:
            yield Database(name=name, server=self.server)
        finally:
            await self.heal()

    async def _execute(self, statement: str) -> None:
        async with connected(self.server.admin_dsn()) as connection:
            await connection.execute(statement)


@contextmanager
def short_folder() -> Generator[Path]:
    """A folder whose path is short enough for a socket in it, and open to the server's account."""
    folder = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def start(folder: Path) -> OwnServer:
    return OwnServer(postgres=await EmbeddedPostgres.start(folder / "postgres", settings={"max_connections": "60"}))
