"""A process that writes so much and no more, and says what it tries and what was acknowledged: to be recorded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import structlog

from hybrid_memory import HybridMemoryManager, Receipt, Settings
from hybrid_memory.sqlite import driver
from tests.support.kill_worker import GENERATION_SIZE, KIND, Lane, say

SECRETS = 3
# Small, so that SQLite's log is moved into the file often.
SMALL_LOG_BYTES = 64 * 1024
FORGOTTEN = "gone"


@dataclass(slots=True, kw_only=True)
class Work:
    """What a worker is told by a line of its input."""

    data_dir: str
    dsn: str | None
    """None: without Postgres, so that everything acknowledged is acknowledged by the file alone."""
    users: tuple[str, ...]
    watched: tuple[str, ...] = ()
    """Users whose writes come from elsewhere."""
    generation: int = 0
    writes: int = 30
    """By each of the lanes of each user."""
    erasures: int = 0
    log_bytes: int = SMALL_LOG_BYTES
    """At this size SQLite's log is moved into the file."""

    def text(self) -> str:
        return json.dumps(asdict(self))


def told(line: str) -> Work:
    words = cast("dict[str, Any]", json.loads(line))
    words["users"], words["watched"] = tuple(words["users"]), tuple(words["watched"])
    return Work(**words)


class Enough(Exception):
    """A lane has made its writes."""


@dataclass(slots=True, kw_only=True)
class FiniteLane(Lane):
    """A lane that comes to an end."""

    left: int

    async def attempt(self, deed: str, on: str, write: Callable[[float], Awaitable[Receipt]]) -> str | None:
        if self.left == 0:
            raise Enough
        self.left -= 1
        # Not by `super()`: a class with slots is made a second time, and the first one is meant there.
        return await Lane.attempt(self, deed, on, write)

    async def run(self, lane: Callable[[Lane], Awaitable[None]]) -> None:
        with suppress(Enough):
            await lane(self)


def canary(generation: int, number: int) -> str:
    """Stands in everything that is erased by that number.

    No two are alike in any part, so that a write torn in the midst of one cannot make another.
    """
    return hashlib.blake2b(f"{generation} {number}".encode(), digest_size=10).hexdigest()


async def erase_again_and_again(manager: HybridMemoryManager, work: Work) -> None:
    """Users who tell secrets and are forgotten."""
    for number in range(work.erasures):
        user_id, secret = f"{FORGOTTEN}{number % 2}", canary(work.generation, number)
        about = {"user": user_id, "on": secret, "n": number}
        memory = manager.user(user_id)
        stored: list[str] = []
        for copy in range(SECRETS):
            receipt = await memory.store(
                {"text": f"{secret} " * 60}, context_type=KIND, key=f"{secret}{copy}", tags=[secret], wait=0
            )
            stored.append(receipt.node_id)
        await memory.relate(stored[0], stored[1], "led_to", properties={secret: 1}, wait=0.02)
        say(at="try", deed="erase", **about)
        await manager.forget(user_id)
        say(at="ok", deed="erase", **about)


async def run(work: Work) -> None:
    driver.__dict__["LOG_SIZE_LIMIT"] = work.log_bytes
    say(at="opening")
    async with HybridMemoryManager.open(
        dsn=work.dsn,
        data_dir=Path(work.data_dir),
        postgres="off" if work.dsn is None else "auto",
        settings=Settings(poll_interval=timedelta(milliseconds=50)),
    ) as manager:
        say(at="open")
        for user_id in work.watched:
            await manager.ensure_user_memories(user_id)
        start = work.generation * GENERATION_SIZE
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(erase_again_and_again(manager, work))
            for user_id in work.users:
                memory = await manager.ensure_user_memories(user_id)
                for lane in (Lane.keyed, Lane.fresh, Lane.entities):
                    lanes.create_task(FiniteLane(memory=memory, number=start, left=work.writes).run(lane))


def main() -> None:
    # What is said goes to the standard output, and nothing else does.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(run(told(sys.stdin.readline())))


if __name__ == "__main__":
    main()
