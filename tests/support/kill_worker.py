"""Processes that write without end and say on their output what they try and what was acknowledged, to be killed.

Each is a fork of one that has its modules loaded: a line of input begins one, and when it has ended, that is said too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog

from hybrid_memory import HybridMemoryManager, NotFound, Receipt, Settings, UserMemory

KEYS = 3
ENTITIES = 2
DELETES_EVERY = 5
WAITS = (0.0, 0.0, 0.05)
GENERATION_SIZE = 100_000
NAMESPACE = "keyed"
KIND = "kill_loop"
SYSTEM = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker is told by a line of its input."""

    dsn: str
    data_dir: str
    users: tuple[str, ...]
    generation: int

    def text(self) -> str:
        return json.dumps(asdict(self))


def say(**words: object) -> None:
    """One line in one write: a kill leaves it whole or out."""
    os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


@dataclass(slots=True, kw_only=True)
class Lane:
    """One writer of one user; its writes follow one another."""

    memory: UserMemory
    number: int
    say: Callable[..., None] = say
    waits: Sequence[float] = WAITS
    """How long each write waits for Postgres, in turn, in seconds."""

    async def attempt(self, deed: str, on: str, write: Callable[[float], Awaitable[Receipt]]) -> str | None:
        """Make one write, announced before and acknowledged after; gives the node's id."""
        self.number += 1
        about = {"user": self.memory.user_id, "deed": deed, "on": on, "n": self.number}
        self.say(at="try", **about)
        wait, began = self.waits[self.number % len(self.waits)], time.monotonic()
        try:
            receipt = await write(wait)
        except NotFound:
            self.say(at="refused", **about)
            return None
        self.say(at="ok", over=round(time.monotonic() - began - wait, 3), **about)
        return receipt.node_id

    async def keyed(self) -> None:
        """Updates and deletes a few keys for ever."""
        found: dict[str, str] = {}
        while True:
            key = f"k{self.number % KEYS}"
            if self.number % DELETES_EVERY == 0 and key in found:
                await self.attempt("delete", key, partial(self._delete, found.pop(key)))
            elif (stored := await self.attempt("store", key, partial(self._store, key))) is not None:
                found[key] = stored

    async def _store(self, key: str, wait: float) -> Receipt:
        return await self.memory.store({"n": self.number}, context_type=KIND, namespace=NAMESPACE, key=key, wait=wait)

    async def _delete(self, node_id: str, wait: float) -> Receipt:
        return await self.memory.delete(node_id, wait=wait)

    async def fresh(self) -> None:
        """Adds nodes, each related to the one before it."""
        last: str | None = None
        while True:
            mark = str(self.number + 1)
            stored = await self.attempt("mark", mark, partial(self._mark, mark))
            if stored is not None and last is not None:
                await self.attempt("relate", f"{last} {stored}", partial(self._relate, last, stored))
            last = stored

    async def _mark(self, mark: str, wait: float) -> Receipt:
        return await self.memory.store({"mark": mark}, context_type=KIND, wait=wait)

    async def _relate(self, source: str, target: str, wait: float) -> Receipt:
        return await self.memory.relate(source, target, "led_to", wait=wait)

    async def entities(self) -> None:
        """Merges a new field into one of a few entities, for ever."""
        while True:
            name = f"e{self.number % ENTITIES}"
            await self.attempt("merge", name, partial(self._merge, name))

    async def _merge(self, entity: str, wait: float) -> Receipt:
        field = {f"f{self.number}": self.number}
        return await self.memory.store_entity(SYSTEM, entity, "thing", field, wait=wait)


async def work(task: Task) -> None:
    say(at="opening", pid=os.getpid())
    settings = Settings(poll_interval=timedelta(milliseconds=200))
    async with HybridMemoryManager.open(dsn=task.dsn, data_dir=Path(task.data_dir), settings=settings) as manager:
        say(at="open")
        start = task.generation * GENERATION_SIZE
        async with asyncio.TaskGroup() as lanes:
            for user_id in task.users:
                memory = await manager.ensure_user_memories(user_id)
                for lane in (Lane.keyed, Lane.fresh, Lane.entities):
                    lanes.create_task(lane(Lane(memory=memory, number=start)))


def told(line: str) -> Task:
    words = cast("dict[str, Any]", json.loads(line))
    words["users"] = tuple(words["users"])
    return Task(**words)


def main() -> None:
    # What is said goes to the standard output, and nothing else does.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            asyncio.run(work(told(line)))
            os._exit(0)
        os.waitpid(child, 0)
        say(at="ended")


if __name__ == "__main__":
    main()
