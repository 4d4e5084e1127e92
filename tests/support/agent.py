"""Another process with a manager of its own: it does what lines of its input say and answers each by a line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import structlog

from hybrid_memory import HybridMemoryManager, Settings

REPOSITORY = Path(__file__).parents[2]
KIND = "conversation_fact"


class Agent:
    """The other process as a test holds it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, deed: str, **words: object) -> dict[str, object]:
        """Have it do something for its user, and give its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"deed": deed, **words}).encode() + b"\n")
        async with asyncio.timeout(30):
            line = await self.process.stdout.readline()
        assert line, "the agent ended"
        answer: dict[str, object] = json.loads(line)
        return answer

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def agent(dsn: str, data_dir: Path, user_id: str) -> AsyncGenerator[Agent]:
    """A process that has opened the data directory and holds the user."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.agent",
        dsn,
        str(data_dir),
        user_id,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env=os.environ,
    )
    try:
        held = Agent(process)
        await held.ask("digest")  # it has opened
        yield held
    finally:
        if process.returncode is None:
            await process.communicate(b"")


async def serve(dsn: str, data_dir: Path, user_id: str) -> None:
    settings = Settings(poll_interval=timedelta(milliseconds=50))
    async with HybridMemoryManager.open(dsn=dsn, data_dir=data_dir, settings=settings) as manager:
        memory = await manager.ensure_user_memories(user_id)
        while line := await asyncio.to_thread(sys.stdin.readline):
            words: dict[str, object] = json.loads(line)
            answer: dict[str, object] = {}
            match words["deed"]:
                case "store":
                    key, text = str(words["key"]), str(words["text"])
                    receipt = await memory.store({"text": text}, context_type=KIND, key=key, wait=0)
                    answer["node_id"] = receipt.node_id
                case "forget and die":
                    await manager.forget(user_id)
                    os.write(sys.stdout.fileno(), b"{}\n")
                    # From within: what was only begun before the answer does not get the time that a pipe takes.
                    os.kill(os.getpid(), signal.SIGKILL)
                case "digest":
                    digest = await memory.digest()
                    answer = {"value": digest.value, "nodes": digest.nodes, "queued": manager.queue().entries}
                case deed:
                    raise ValueError(deed)
            os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
