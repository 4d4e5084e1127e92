"""A process whose SQLite gets less and less memory: it stores until that is refused, and says what it was told."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import sys
from functools import partial
from pathlib import Path

import structlog

from hybrid_memory import HybridMemoryManager
from tests.support.beneath import tiers

KIND = "conversation_fact"
LARGE = 200_000
FIRST_LIMIT = 2**25
# From one limit to the next.
SHRINKS = 0.9


def limit_heap(size: int, connection: sqlite3.Connection) -> None:
    """Only ever lower, and for every connection of the process: that is why this needs one of its own."""
    connection.execute(f"pragma hard_heap_limit = {size}")


def give_memory_back(connection: sqlite3.Connection) -> None:
    connection.execute("pragma shrink_memory")


async def attempt(manager: HybridMemoryManager, key: str, size: int) -> str:
    try:
        content = {"text": "x" * size}
        await manager.user("ada").store(content, context_type=KIND, key=key, wait=0)
    except Exception as error:  # noqa: BLE001 - which ones get out is what is asked
        return type(error).__name__
    return "ok"


async def work(data_dir: Path) -> None:
    told: dict[str, str] = {}
    async with HybridMemoryManager.open(data_dir=data_dir, postgres="off") as manager:
        for number in range(10):
            told[f"small {number}"] = await attempt(manager, f"small {number}", 10)
        size, number = FIRST_LIMIT, 0
        while set(told.values()) == {"ok"}:
            await tiers(manager).file.database.prepare(partial(limit_heap, size))
            told[f"large {number}"] = await attempt(manager, f"large {number}", LARGE)
            size, number = int(size * SHRINKS), number + 1
        # A limit that was set cannot be raised again; what the connection holds can be given back.
        await tiers(manager).file.database.prepare(give_memory_back)
        told["afterwards"] = await attempt(manager, "afterwards", 10)
        health = await manager.health()
    sys.stdout.write(json.dumps({"told": told, "queued": health.queued}))


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(work(Path(sys.argv[1])))
