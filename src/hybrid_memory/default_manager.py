"""The one convenience without a manager at hand: a default manager made from the environment."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from hybrid_memory.manager import HybridMemoryManager
from hybrid_memory.user_memory import UserMemory


@dataclass(slots=True)
class _Default:
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    manager: HybridMemoryManager | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


_default = _Default()


async def ensure_user_memories(user_id: str) -> UserMemory:
    """The handle of a user from a default manager, which is opened from the environment at the first call.

    It serves the event loop that made the first call, until `close_default`.
    """
    async with _default.opening:
        if _default.manager is None:
            _default.manager = await _default.stack.enter_async_context(HybridMemoryManager.open())
        manager = _default.manager
    return await manager.ensure_user_memories(user_id)


async def close_default() -> None:
    """Close the default manager, if there is one; the next call opens another."""
    async with _default.opening:
        stack, _default.stack = _default.stack, AsyncExitStack()
        _default.manager = None
        await stack.aclose()
    # A lock belongs to the event loop in which somebody first waited for it; the next manager may have another.
    _default.opening = asyncio.Lock()
