"""Processes on a disk that fails or is recorded: started, told what to do, and judged by what they leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from hybrid_memory.testing.disk import DiskFault, FaultDisk
from tests.support.disk_scenario import CANARY
from tests.support.disk_worker import Work
from tests.support.power_judge import FILE, complaints, judge_numbers, judge_pairs, judge_whole
from tests.support.witness import Verdict

REPOSITORY = Path(__file__).parents[2]
ANSWER_SECONDS = 60
Ends = list[tuple[str, str]]
Deed = Sequence[str]

# Each store, alone or with others, an erasure, something transient, reads between them.
SHORT: Sequence[Deed] = (
    ("open",),
    ("store", "a", "b", "c"),
    ("secret",),
    ("find",),
    ("forget",),
    ("store", "d"),
    ("transient",),
    ("store", "a", "e"),
    ("list",),
    ("close",),
)
RESTART: Sequence[Deed] = (("close",), ("open",), ("list",), ("store", "z"), ("health",), ("close",))
# What a call may end with when the disk fails.
OURS = {"ok", "storage_failed", "storage_full", "storage_corrupt"}
STOPPING = {"storage_failed", "storage_corrupt"}
WRITES = ("store", "secret", "forget", "transient")


async def record(disk: FaultDisk, work: Work, *, kill_after: int | None = None, may_fail: bool = False) -> None:
    """Have a worker do its work on a recorded disk; killed with -9 after it has said so much, if asked for."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.disk_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, **disk.environment(records=True, marks_fd=1)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    complained = asyncio.create_task(process.stderr.read())
    process.stdin.write(f"{work.text()}\n".encode())
    said = 0
    async with asyncio.timeout(ANSWER_SECONDS):
        while await process.stdout.readline():
            said += 1
            if said == kill_after:
                process.kill()
        ended = await process.wait()
    words = (await complained).decode()
    assert may_fail or ended == 0 or (kill_after is not None and said >= kill_after), words
    assert disk.unlogged == 0


@dataclass(slots=True)
class Puppet:
    """A process that plays on a sick disk, one fork at a time."""

    process: asyncio.subprocess.Process

    async def begin(self, folder: Path, dsn: str | None = None) -> None:
        """Have it begin a fork for a data directory."""
        await self._tell({"folder": str(folder), "dsn": dsn})
        assert await self._hear() == [("begun", "ok")]

    async def do(self, *deeds: Deed) -> Ends:
        """Have the fork do deeds; how each ended."""
        await self._tell(deeds)
        ends = await self._hear()
        assert "ended" not in {deed for deed, _ in ends}, "the fork died or hung"
        return ends

    async def end(self) -> None:
        """End the fork."""
        await self._tell("")
        assert await self._hear() == [("ended", "0")]

    async def kill(self) -> None:
        """Have the fork killed with -9."""
        await self._tell([("die",)])
        assert await self._hear() == [("ended", str(int(signal.SIGKILL)))]

    async def _tell(self, words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n" if words == "" else json.dumps(words).encode() + b"\n")
        await self.process.stdin.drain()

    async def _hear(self) -> Ends:
        assert self.process.stdout is not None
        async with asyncio.timeout(ANSWER_SECONDS):
            line = await self.process.stdout.readline()
        assert line, "the process ended"
        return [(deed, end) for deed, end in json.loads(line)]


@asynccontextmanager
async def puppet(disk: FaultDisk) -> AsyncGenerator[Puppet]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.disk_scenario",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, **disk.environment()},
    )
    try:
        yield Puppet(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(slots=True, kw_only=True)
class Trial:
    """One run of the short scenario with one fault, and what it came to."""

    fault: DiskFault
    struck: int = 0
    acked: int = 0
    wrong: list[str] = field(default_factory=list[str])


async def attempt(player: Puppet, disk: FaultDisk, fault: DiskFault) -> Trial:
    """Play the short scenario with the fault armed, then heal the disk, restart in the same process, and judge."""
    folder = disk.root / uuid.uuid4().hex
    trial = Trial(fault=fault)
    await player.begin(folder)
    disk.arm(fault)
    try:
        ends = await player.do(*SHORT)
    finally:
        trial.struck = disk.struck
        disk.disarm()
    after = await player.do(*RESTART)
    await player.end()
    trial.acked = sum(deed.startswith(WRITES) and end == "ok" for deed, end in ends)
    trial.wrong = [*_wrong_at_first(ends), *_wrong_after(ends, after), *_wrong_in_the_file(ends, folder)]
    return trial


def _wrong_at_first(ends: Ends) -> list[str]:
    wrong = [f"{deed} ended with {end}" for deed, end in ends if deed != "there" and end not in OURS]
    writes = [(deed, end) for deed, end in ends if deed.startswith(WRITES)]
    stopped = next((at for at, (_, end) in enumerate(writes) if end in STOPPING), len(writes))
    # Stores made at once are told of in any order; so those of one group are not held against one another.
    group = 3
    wrong += [
        f"{deed} was acknowledged after the writer had stopped"
        for deed, end in writes[stopped + group :]
        if end == "ok"
    ]
    return wrong


def _wrong_after(ends: Ends, after: Ends) -> list[str]:
    there = {key for deed, key in after if deed == "there"}
    acked = {deed.removeprefix("store ") for deed, end in ends if deed.startswith("store ") and end == "ok"}
    tried = {deed.removeprefix("store ") for deed, _ in ends if deed.startswith("store ")}
    wrong = [f"{key} was acknowledged and is lost" for key in acked - there]
    wrong += [f"{key} was never written" for key in there - tried]
    wrong += [
        f"after the restart {deed} ended with {end}"
        for deed, end in after
        if deed != "there" and end not in {"ok", "degraded"}
    ]
    wrong += [] if ("open", "ok") in after else ["no restart"]
    return wrong


def _wrong_in_the_file(ends: Ends, folder: Path) -> list[str]:
    verdict = Verdict()
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as connection:
        if connection.execute("select 1 from sqlite_master where name = 'outbox'").fetchone() is None:
            return ["the file has no tables"]
        judge_whole(connection, verdict)
        judge_pairs(connection, verdict)
        judge_numbers(connection, verdict)
    wrong = list(complaints(verdict))
    if ("forget", "ok") in ends:
        wrong += [
            f"the canary is in {path.name}"
            for path in folder.iterdir()
            if path.is_file() and CANARY.encode() in path.read_bytes()
        ]
    return wrong
