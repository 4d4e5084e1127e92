"""Keeps the server of the durable side up: takes an embedded Postgres over when its owner died."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hybrid_memory.errors import HybridMemoryError

LOOK_AGAIN_SECONDS = 1.0


class Keeper:
    """Asks once a second; an answer is a few system calls."""

    name = "keeper"

    def __init__(self, keep_up: Callable[[], Awaitable[None]]) -> None:
        self._keep_up = keep_up

    async def run_once(self) -> float | None:
        """Make sure that the server runs."""
        await self._keep_up()
        return LOOK_AGAIN_SECONDS

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - whatever it was, the next look may find it mended
        """Seconds to the next look."""
        return LOOK_AGAIN_SECONDS
