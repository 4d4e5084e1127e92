"""Another process with a manager of its own: it stores what lines of its input ask for, and tells when it was safe."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import orjson
import structlog

from benchmarks import references
from benchmarks.memories import Memories
from benchmarks.stand import connection
from hybrid_memory import HybridMemoryManager
from hybrid_memory.graph import Status

HINT: str = "bench_hint"
"""The channel on which the bare reference tells of its rows."""

_LONG_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0


class OtherProcess:
    """The process as a benchmark holds it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def store(self, ids: Sequence[str], pauses: Sequence[float], *, bare: bool = False) -> list[int]:
        """Store these nodes for its first user, pausing so many seconds before each.

        Gives when each was durable, in nanoseconds of `time.monotonic_ns`, which is one clock for all processes. `bare`
        has single rows upserted on a bare connection instead, and each told of by NOTIFY.
        """
        return await self._ask({"ids": list(ids), "pauses": list(pauses), "bare": bare})

    async def _ask(self, asked: dict[str, object]) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps(asked) + b"\n")
        async with asyncio.timeout(_PATIENCE_SECONDS):
            line = await self._process.stdout.readline()
        assert line, "the other process has ended"
        told: list[int] = orjson.loads(line)
        return told

    async def answers(self) -> None:
        """Wait until it has opened its manager and its users."""
        await self._ask({"ids": [], "pauses": [], "bare": False})


@asynccontextmanager
async def other_process(dsn: str, data_dir: Path, users: Sequence[str]) -> AsyncGenerator[OtherProcess]:
    """A process that holds these users in a data directory of its own, gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.other_process",
        dsn,
        str(data_dir),
        *users,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).resolve().parent.parent,
    )
    try:
        held = OtherProcess(process)
        await held.answers()
        yield held
    finally:
        # The end of its input ends it.
        await process.communicate(b"")


async def serve(dsn: str, data_dir: Path, users: Sequence[str]) -> None:
    """Do what the lines of the input ask for until it ends."""
    memories = Memories(Random("the other process"))
    async with connection(dsn) as bare, HybridMemoryManager.open(dsn=dsn, data_dir=data_dir) as manager:
        handles = [await manager.ensure_user_memories(user) for user in users]
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = orjson.loads(line)
            told: list[int] = []
            for node_id, pause in zip(asked["ids"], asked["pauses"], strict=True):
                await asyncio.sleep(pause)
                if asked["bare"]:
                    row = next(memories.nodes(1))
                    record = references.node_record(users[0], (node_id, *row[1:]), 1)
                    await bare.execute(references.PLAIN_UPSERT, *record)
                    told.append(time.monotonic_ns())
                    await bare.execute(f"notify {HINT}")
                    continue
                content = memories.content()
                receipt = await handles[0].store(
                    content, context_type="conversation_fact", node_id=node_id, wait=_LONG_SECONDS
                )
                told.append(time.monotonic_ns())
                assert receipt.status is Status.DURABLE
            os.write(sys.stdout.fileno(), orjson.dumps(told) + b"\n")


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
