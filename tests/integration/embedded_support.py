"""What the tests of the embedded Postgres share: workers, waiting for other processes, erasing what was made."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.errors import DataDirBusy

ROOT = os.geteuid() == 0
WORKER = Path(__file__).with_name("embedded_worker.py")
SOURCES = Path(__file__).parents[2] / "src"
CAPABILITY = "dac_override"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    owner: bool
    pid: int
    dsn: str
    uid: int
    child: int | None


class Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def state(self) -> State:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "the worker ended"
        return State(**json.loads(line))

    async def ask(self, command: str) -> State:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        return await self.state()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def dismiss(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert await self.process.wait() == 0


@asynccontextmanager
async def worker(
    data_dir: Path, *flags: str, command: tuple[str, ...] = (sys.executable,), path: str = ""
) -> AsyncGenerator[Worker]:
    process = await asyncio.create_subprocess_exec(
        *command,
        str(WORKER),
        str(data_dir),
        *flags,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{path}:{SOURCES}" if path else str(SOURCES)},
        cwd="/",
    )
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def as_nobody() -> tuple[str, ...]:
    """The command that runs Python as `nobody`: a plain one if that account can reach an interpreter and our files."""
    change = ("setpriv", "--reuid=nobody", f"--regid={pwd.getpwnam('nobody').pw_gid}", "--clear-groups")
    for interpreter in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = (*change, "env", interpreter)  # setpriv itself still reaches what only root may
        asked = subprocess.run(
            [*command, "-c", f"import sys; open({str(WORKER)!r}); import orjson, asyncpg"],
            env={"PYTHONPATH": site_packages()},
            capture_output=True,
            check=False,
            cwd="/",
        )
        if asked.returncode == 0:
            return command
    # All lies under a closed home: let the account pass through, and be ordinary in all else.
    return (*change, f"--inh-caps=+{CAPABILITY}", f"--ambient-caps=+{CAPABILITY}", "env", sys.executable)


def site_packages() -> str:
    return sysconfig.get_path("platlib")


async def eventually(check: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait for something in another process, which has no event to wait on here."""
    give_up = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < give_up, "it did not come about in time"
        await asyncio.sleep(0.01)


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has reaped yet."""
    asked = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return asked.stdout.strip()[:1] in {"", "Z"}


async def erase(data_dir: Path) -> None:
    """Erase what a test made, as soon as the last process of its server is gone."""
    give_up = time.monotonic() + 30
    while True:
        try:
            return await EmbeddedPostgres.erase(data_dir)
        except DataDirBusy:
            assert time.monotonic() < give_up, "the server lives on"
            await asyncio.sleep(0.02)


async def value(dsn: str, statement: str) -> object:
    """Run a statement in a session of its own and give its single value."""
    session = await asyncpg.connect(dsn)
    try:
        return await session.fetchval(statement)
    finally:
        await session.close()
