"""Bounded waiting for what has no event to wait on here: another process, another server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

STEP_SECONDS = 0.01


async def until(check: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait until `check` holds; fail when the time is over."""
    give_up = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < give_up, "it did not come about in time"
        await asyncio.sleep(STEP_SECONDS)


async def eventually(check: Callable[[], Awaitable[bool]], *, seconds: float = 10.0) -> None:
    """Like `until`, for a question that must itself be waited for."""
    give_up = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < give_up, "it did not come about in time"
        await asyncio.sleep(STEP_SECONDS)


async def turns(count: int) -> None:
    """Let the event loop go round so many times: for what is to happen at one of its steps, whichever that is."""
    for _ in range(count):
        await asyncio.sleep(0)
