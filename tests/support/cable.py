"""A network cable between this machine's own two ends, in network namespaces, that can really be pulled out.

Run as a program it is the far end: it makes both ends, forwards what comes over the cable to the unix socket of a
Postgres, starts the near end in a namespace of its own, pulls the cable when that has connected, and says on its output
how the near end's calls ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from hybrid_memory.errors import DurableTierError
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose
from hybrid_memory.testing.address import Address, address_of, through

REPOSITORY = Path(__file__).parents[2]
NEAR, FAR, PORT = "10.77.0.1", "10.77.0.2", 5432
# Ours would end the call later than any kernel that was told to watch the peer.
DEADLINE = timedelta(seconds=60)
PATIENCE_SECONDS = 90
# As root at once, else as the root of a user namespace, where those are allowed.
_WAYS = (("unshare", "--net"), ("unshare", "--user", "--map-root-user", "--net"))


def way_in() -> Sequence[str] | str:
    """The command that runs another with a network of its own, or why there can be none here."""
    refusal = "the programs unshare and ip are not installed"
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return refusal
    for way in _WAYS:
        tried = subprocess.run(
            [*way, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode == 0:
            return way
        refusal = tried.stderr.strip()
    return refusal


async def pulled(way: Sequence[str], dsn: str) -> dict[str, tuple[float, str]]:
    """Pull the cable under a call that waits and one sent just then: the seconds until each ended, and how."""
    process = await asyncio.create_subprocess_exec(
        *way,
        sys.executable,
        "-m",
        "tests.support.cable",
        "far",
        dsn,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return {name: (float(seconds), str(end)) for name, (seconds, end) in json.loads(told).items()}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while piece := await source.read(65_536):
        target.write(piece)


async def far_end(dsn: str) -> None:
    upstream = address_of(dsn)
    _ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    _ip("address", "add", f"{FAR}/24", "dev", "far")
    _ip("link", "set", "far", "up")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_unix_connection(upstream.socket)
        await asyncio.gather(_pass_on(reader, questions), _pass_on(answers, writer))

    server = await asyncio.start_server(forward, FAR, PORT)
    near = await asyncio.create_subprocess_exec(
        "unshare",
        "--net",
        sys.executable,
        "-m",
        "tests.support.cable",
        "near",
        through(dsn, Address(host=FAR, port=PORT)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert near.stdin is not None
    assert near.stdout is not None
    assert await near.stdout.readline() == b"apart\n"
    _ip("link", "set", "near", "netns", str(near.pid))
    near.stdin.write(b"plugged in\n")
    assert await near.stdout.readline() == b"connected\n"
    _ip("link", "set", "far", "down")
    near.stdin.write(b"pulled\n")
    _tell((await near.stdout.readline()).decode().strip())
    await near.wait()
    server.close()


async def near_end(dsn: str) -> None:
    _tell("apart")
    await asyncio.to_thread(sys.stdin.readline)
    _ip("address", "add", f"{NEAR}/24", "dev", "near")
    _ip("link", "set", "near", "up")
    purpose = Purpose(name="test", deadline=DEADLINE, statement_timeout=DEADLINE)
    links = [Link(PostgresSettings(dsn=dsn), replace(purpose, name=name)) for name in ("waits", "sends")]
    for link in links:
        await link.run(_answer)
    waits, sends = links
    waiting = asyncio.create_task(_ended(waits, _wait))
    _tell("connected")
    await asyncio.to_thread(sys.stdin.readline)
    sent, waited = await asyncio.gather(_ended(sends, _answer), waiting)
    _tell(json.dumps({"waits": waited, "sends": sent}))
    for link in links:
        await link.close()


async def _answer(connection: Connection) -> None:
    await connection.fetchval("select 42")


async def _wait(connection: Connection) -> None:
    await connection.execute("select pg_sleep(300)")


async def _ended(link: Link, work: Callable[[Connection], Awaitable[None]]) -> tuple[float, str]:
    began = time.monotonic()
    try:
        await link.run(work)
    except DurableTierError as error:
        return time.monotonic() - began, error.code
    return time.monotonic() - began, "ok"


def _tell(words: str) -> None:
    os.write(sys.stdout.fileno(), f"{words}\n".encode())


if __name__ == "__main__":
    end, where = sys.argv[1:]
    asyncio.run(far_end(where) if end == "far" else near_end(where))
