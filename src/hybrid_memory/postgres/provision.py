"""A database of our own on a server that is ours: the embedded one."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Final, LiteralString

import asyncpg

from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose

_EXISTS: Final[LiteralString] = "select 1 from pg_database where datname = 'hybrid_memory'"
_CREATE: Final[LiteralString] = "create database hybrid_memory"


async def create_database(maintenance: PostgresSettings) -> None:
    """Make the database `hybrid_memory` if it is not there; `maintenance` leads to any other database of the server."""
    minute = timedelta(minutes=1)
    link = Link(maintenance, Purpose(name="provision", deadline=minute, statement_timeout=minute))

    async def work(connection: Connection) -> None:
        if await connection.fetchval(_EXISTS) is None:
            # Another process may have been quicker.
            with suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
                await connection.execute(_CREATE)

    try:
        await link.run(work)
    finally:
        await link.close()
