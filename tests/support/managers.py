"""Managers as tests open them, an observer that can be waited on, and what both tiers hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import asyncpg

from hybrid_memory import HybridMemoryManager, Settings, UserMemory
from hybrid_memory.errors import Unreachable
from hybrid_memory.events import Event
from hybrid_memory.graph import JsonValue
from tests.plugins.postgres import Database
from tests.support.waiting import eventually

E = TypeVar("E")

BRISK = Settings(poll_interval=timedelta(milliseconds=50))
"""Polls often, for tests that wait for the feed."""

FACT = "conversation_fact"


@dataclass(slots=True)
class Ears:
    """Hears every event of a manager."""

    heard: list[Event] = field(default_factory=list[Event])
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        self._more.set()

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.heard if isinstance(event, kind)]

    async def hear(self, kind: type[E], *, times: int = 1, seconds: float = 20.0) -> list[E]:
        """Wait until so many events of a kind were heard, and give them."""
        async with asyncio.timeout(seconds):
            while len(found := self.all(kind)) < times:
                self._more.clear()
                await self._more.wait()
        return found


def opened(
    database: Database | str,
    data_dir: Path,
    *,
    ears: Ears | None = None,
    settings: Settings | None = None,
    persistent_users: Callable[[str], bool] | None = None,
) -> AbstractAsyncContextManager[HybridMemoryManager]:
    dsn = database if isinstance(database, str) else database.app_dsn
    return HybridMemoryManager.open(
        dsn=dsn, data_dir=data_dir, settings=settings or BRISK, observer=ears, persistent_users=persistent_users
    )


async def drained(manager: HybridMemoryManager, *, seconds: float = 20.0) -> None:
    left = await manager.drain(timedelta(seconds=seconds))
    assert left == 0, f"{left} operations are still queued"


async def both_tiers_agree(manager: HybridMemoryManager, memory: UserMemory, *, seconds: float = 10.0) -> None:
    async def equal() -> bool:
        try:
            return await memory.digest() == await manager.durable_digest(memory.user_id)
        except Unreachable:  # it has just come back, and the next attempt to connect is not due yet
            return False

    await eventually(equal, seconds=seconds)


async def contents(memory: UserMemory) -> dict[str, Mapping[str, JsonValue]]:
    """Everything a handle lists, by node id."""
    found: dict[str, Mapping[str, JsonValue]] = {}
    cursor: str | None = None
    while True:
        page = await memory.list(limit=1000, cursor=cursor)
        found |= {node.node_id: node.content for node in page.items}
        if (cursor := page.next_cursor) is None:
            return found


async def head_rev(admin: asyncpg.Connection, user_id: str) -> int:
    rev: int | None = await admin.fetchval("select rev from memory.heads where user_id = $1", user_id)
    return rev or 0
