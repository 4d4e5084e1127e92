"""Postgres made to keep writers waiting for a while."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def writers_wait(admin: asyncpg.Connection) -> AsyncGenerator[None]:
    """For the length of the block nothing is applied; reads go on. Shorter than a lock's time-out, or they fail."""
    async with admin.transaction():
        await admin.execute("lock table memory.heads in exclusive mode")
        yield
