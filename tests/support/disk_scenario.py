"""A process that does with a manager what it is told, each time in a fork of its own, while its disk fails or not.

A line of its input begins a fork and names its folder. Each line after that holds deeds, an empty one ends the fork.
Each is answered by a line; after deeds by how each of them ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import structlog

from hybrid_memory import HybridMemoryError, HybridMemoryManager, Settings
from tests.support.kill_worker import KIND

PATIENCE_SECONDS = 30
CANARY = "canary-7d1e"
BRISK = Settings(poll_interval=timedelta(milliseconds=50))


class Player:
    """Does deeds and tells how they ended: `ok`, the code of an error, or the name of one that is not ours."""

    def __init__(self, folder: Path, dsn: str | None) -> None:
        self._folder = folder
        self._dsn = dsn
        self._stack = AsyncExitStack()
        self._manager: HybridMemoryManager | None = None
        self.ends: list[tuple[str, str]] = []

    async def do(self, deed: str, *about: str) -> None:
        """Do it; nothing while no manager is open."""
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "open":
            await self._attempt(deed, self._open(0))
        elif deed == "open any":
            # Who insists on one slot leaves what dead owners left to others.
            await self._attempt(deed, self._open(None))
        elif (manager := self._manager) is None:
            return
        elif deed == "store":
            await asyncio.gather(*(self._attempt(f"store {key}", self._store(manager, key)) for key in about))
        elif deed == "close":
            self._manager = None
            await self._attempt(deed, self._stack.aclose())
        else:
            await self._attempt(deed, self._do(manager, deed))

    def _do(self, manager: HybridMemoryManager, deed: str) -> Awaitable[object]:
        match deed:
            case "secret":
                content = {"text": f"{CANARY} " * 100}
                return manager.user("bo").store(content, context_type=KIND, key=CANARY, wait=0)
            case "forget":
                return manager.forget("bo")
            case "transient":
                return self._transient(manager)
            case "find":
                return manager.user("ada").search("ada")
            case "list":
                return self._list(manager)
            case "drain":
                return self._drain(manager)
            case "health":
                return self._health(manager)
            case "adopter":
                return self._adopter(manager)
            case "why":
                return self._why(manager)
            case _:
                raise ValueError(deed)

    async def _attempt(self, deed: str, work: Awaitable[object]) -> None:
        try:
            await work
            self.ends.append((deed, "ok"))
        except HybridMemoryError as error:
            self.ends.append((deed, error.code))
        except Exception as error:  # noqa: BLE001 - what must not get out is what is looked for
            self.ends.append((deed, f"{type(error).__name__}: {error}"))

    async def _open(self, slot: int | None) -> None:
        opening = HybridMemoryManager.open(
            dsn=self._dsn,
            data_dir=self._folder,
            postgres="off" if self._dsn is None else "auto",
            slot=slot,
            settings=BRISK,
        )
        self._manager = await self._stack.enter_async_context(opening)

    async def _store(self, manager: HybridMemoryManager, key: str) -> None:
        wait = 5.0 if key.startswith("durable") else 0.0
        await manager.user("ada").store({"key": key}, context_type=KIND, key=key, wait=wait)

    async def _transient(self, manager: HybridMemoryManager) -> None:
        await manager.store_transient_memory("thread", {"n": 1}, KIND)

    async def _list(self, manager: HybridMemoryManager) -> None:
        found = await manager.user("ada").list(limit=1000)
        self.ends += [("there", str(node.key)) for node in found.items]

    async def _drain(self, manager: HybridMemoryManager) -> None:
        self.ends.append(("left", str(await manager.drain(timedelta(seconds=20)))))

    async def _health(self, manager: HybridMemoryManager) -> None:
        self.ends.append(("condition", (await manager.health()).condition))

    async def _adopter(self, manager: HybridMemoryManager) -> None:
        self.ends.append(("adopter", (await manager.health()).services["adopter"]))

    async def _why(self, manager: HybridMemoryManager) -> None:
        health = await manager.health()
        self.ends += [("condition", health.condition), ("queued", str(health.queued))]
        self.ends += [("cause", cause) for cause in health.causes]


def hear() -> bytes:
    # One line at a time is sent, and a fork must not find it taken into a buffer.
    return os.read(sys.stdin.fileno(), 65_536).strip()


def answer(ends: list[tuple[str, str]]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(ends).encode() + b"\n")


async def play(folder: Path, dsn: str | None) -> None:
    player = Player(folder, dsn)
    answer([("begun", "ok")])
    while deeds := await asyncio.to_thread(hear):
        signal.alarm(PATIENCE_SECONDS)  # what hangs is ended, and seen to have
        for deed in json.loads(deeds):
            await player.do(*deed)
        answer(player.ends)
        player.ends = []


def main() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    while line := hear():
        child = os.fork()
        if child == 0:
            about = json.loads(line)
            asyncio.run(play(Path(about["folder"]), about["dsn"]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        answer([("ended", str(status))])


if __name__ == "__main__":
    main()
