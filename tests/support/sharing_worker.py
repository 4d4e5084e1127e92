"""A process that writes the same users' graphs as others do, by every merge rule, and says what was acknowledged."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import structlog

from hybrid_memory import Conflict, HybridMemoryManager, NotFound, Receipt, Settings, UserMemory
from hybrid_memory.errors import Unreachable
from hybrid_memory.events import Diverged, Event, ServiceFailed
from hybrid_memory.graph import JsonInput
from tests.support.kill_worker import say

KIND: Final = "shared"
KEPT: Final = "kept"
"""Keys that are never deleted: of two contents the later stands."""
DOOMED: Final = "doomed"
"""Keys that are deleted and stored again: deletion wins over what did not see it."""
COUNTED: Final = "counted"
"""One key, raised by one where it still stands as it was read: an increment lost would be seen."""
SYSTEM: Final = "shared"
ERASED: Final = "eve"
"""The user who is forgotten now and then."""
USERS: Final = ("ann", "bob", ERASED)
GENERATION_SIZE: Final = 100_000

# Few enough that processes meet on them all the time.
KEPT_KEYS: Final = 4
DOOMED_KEYS: Final = 3
# So many numbers of a writer go by before all merge into the next entity, so that it does not grow without end.
NUMBERS_AN_ENTITY: Final = 100
FORGET_EVERY: Final = 150
DEEDS: Final = {"store": 5, "put": 3, "delete": 2, "merge": 4, "count": 3, "mark": 1, "relate": 3}
WAITS: Final = (0.0, 0.0, 0.05)
MOST_THOUGHT_SECONDS: Final = 0.04
"""Between two writes of an author, as between those of somebody who thinks."""
VERDICT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker is told by the first line of its input."""

    dsn: str
    data_dir: str
    name: str
    generation: int
    seed: int
    forgets: bool

    def text(self) -> str:
        return json.dumps(asdict(self))


@dataclass(slots=True, kw_only=True)
class Author:
    """Writes one user, one write after the other. What each write left behind is known by a value of its own."""

    manager: HybridMemoryManager
    memory: UserMemory
    task: Task
    number: int
    random: Random
    receipts: list[tuple[str, Receipt]] = field(default_factory=list["tuple[str, Receipt]"])

    async def write(self, stop: asyncio.Event) -> None:
        """Write until it is to stop; the last write is finished."""
        while not stop.is_set():
            self.number += 1
            if self.task.forgets and self.memory.user_id == ERASED and self.number % FORGET_EVERY == 0:
                await self.manager.forget(ERASED)
                await self.manager.ensure_user_memories(ERASED)
            (deed,) = self.random.choices(list(DEEDS), list(DEEDS.values()))
            await self._attempt(deed)
            await asyncio.sleep(self.random.uniform(0.0, MOST_THOUGHT_SECONDS))

    async def _attempt(self, deed: str) -> None:
        value = f"{self.task.name}.{self.memory.user_id}.{self.number}"
        wait, began = WAITS[self.number % len(WAITS)], time.monotonic()
        on, write = self._deed(deed, value)
        try:
            receipt = await write(wait)
        except (NotFound, Conflict):
            return  # it did nothing, for others were there before
        over = round(time.monotonic() - began - wait, 3)
        say(
            at="ok",
            value=value,
            user=self.memory.user_id,
            deed=deed,
            on=on or receipt.node_id,
            n=self.number,
            over=over,
        )
        self.receipts.append((value, receipt))

    def _deed(self, deed: str, value: str) -> tuple[str, Callable[[float], Awaitable[Receipt]]]:
        """What it is done to, and the write, given how long it waits."""
        memory, random = self.memory, self.random
        store = partial(memory.store, {"v": value}, context_type=KIND)
        kept, doomed = f"k{random.randrange(KEPT_KEYS)}", f"d{random.randrange(DOOMED_KEYS)}"
        match deed:
            case "store":
                return kept, lambda wait: store(namespace=KEPT, key=kept, wait=wait)
            case "put":
                return doomed, lambda wait: store(namespace=DOOMED, key=doomed, wait=wait)
            case "delete":
                return doomed, partial(self._delete, doomed)
            case "merge":
                entity = f"e{self.number % GENERATION_SIZE // NUMBERS_AN_ENTITY}"
                data: dict[str, JsonInput] = {value: self.number, "last": value}
                return entity, lambda wait: memory.store_entity(SYSTEM, entity, "thing", data, wait=wait)
            case "count":
                return COUNTED, partial(self._count, value)
            case "mark":
                return "", lambda wait: store(wait=wait)
            case _:
                return f"{kept} {doomed}", partial(self._relate, value, kept, doomed)

    async def _named(self, namespace: str, key: str) -> str:
        found = await self.memory.list(where={"namespace": namespace, "key": key}, limit=1)
        if not found.items:
            raise NotFound("nobody has stored it yet")
        return found.items[0].node_id

    async def _delete(self, key: str, wait: float) -> Receipt:
        return await self.memory.delete(await self._named(DOOMED, key), wait=wait)

    async def _relate(self, value: str, kept: str, doomed: str, wait: float) -> Receipt:
        source, target = await self._named(KEPT, kept), await self._named(DOOMED, doomed)
        return await self.memory.relate(source, target, "led_to", properties={"v": value}, wait=wait)

    async def _count(self, value: str, wait: float) -> Receipt:
        found = await self.memory.list(where={"namespace": COUNTED, "key": COUNTED}, limit=1)
        count, rev = (int(str(found.items[0].content["n"])), found.items[0].rev) if found.items else (0, 0)
        content: dict[str, JsonInput] = {"v": value, "n": count + 1}
        return await self.memory.store(
            content, context_type=KIND, namespace=COUNTED, key=COUNTED, expected_rev=rev, wait=wait
        )

    async def tell(self) -> None:
        """Say what became of every write since this was last asked."""
        receipts, self.receipts = self.receipts, []
        for value, receipt in receipts:
            try:
                final = await receipt.durable(VERDICT_SECONDS)
            except TimeoutError:
                continue  # whoever listens hears nothing of it, and says so
            say(at="verdict", value=value, verdict=final.verdict, rev=final.rev)


class Desk:
    """Does what the lines of the input say; an answer to each."""

    def __init__(self, manager: HybridMemoryManager, authors: list[Author]) -> None:
        self._manager = manager
        self._authors = authors
        self._stop = asyncio.Event()
        self._writing: list[asyncio.Task[None]] = []

    async def answer(self, do: str) -> object:
        match do:
            case "write":
                self._stop.clear()
                self._writing = [asyncio.create_task(author.write(self._stop)) for author in self._authors]
            case "rest":
                self._stop.set()
                await asyncio.gather(*self._writing)
            case "drain":
                left = await self._manager.drain(timedelta(seconds=120))
                letters = await self._manager.dead_letters.list()
                dead = [f"{one.sqlstate} on {one.operation.kind} of {one.operation.user_id}" for one in letters]
                return {"left": left, "dead": dead}
            case "tell":
                for author in self._authors:
                    await author.tell()
            case "digests":
                return {author.memory.user_id: await self._digests(author.memory) for author in self._authors}
            case _:
                raise ValueError(do)
        return None

    async def _digests(self, memory: UserMemory) -> list[object]:
        """This copy's and Postgres' own, None while it cannot be asked."""
        try:
            durable = str(await self._manager.durable_digest(memory.user_id))
        except Unreachable:
            durable = None
        return [str(await memory.digest()), durable]


def _told(event: Event) -> None:
    """What must never happen, whether or not it mends itself."""
    match event:
        case Diverged(user_id=user_id, rev=rev):
            say(at="wrong", what=f"the copy of {user_id} had diverged at revision {rev}")
        case ServiceFailed(service=service, error=error):
            say(at="wrong", what=f"{service} failed: {error}")
        case _:
            pass


async def work(task: Task) -> None:
    settings = Settings(poll_interval=timedelta(milliseconds=200), drain_on_close=timedelta(0))
    async with HybridMemoryManager.open(
        dsn=task.dsn, data_dir=Path(task.data_dir), settings=settings, observer=_told
    ) as manager:
        authors = [
            Author(
                manager=manager,
                memory=await manager.ensure_user_memories(user_id),
                task=task,
                number=task.generation * GENERATION_SIZE,
                random=Random(f"{task.seed} {task.name} {task.generation} {user_id}"),
            )
            for user_id in USERS
        ]
        desk = Desk(manager, authors)
        while line := await asyncio.to_thread(sys.stdin.readline):
            say(at="answer", answer=await desk.answer(str(json.loads(line)["do"])))


def main() -> None:
    # What is said goes to the standard output, and nothing else does.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    if line := sys.stdin.readline():
        asyncio.run(work(Task(**cast("dict[str, Any]", json.loads(line)))))


if __name__ == "__main__":
    main()
