"""A hot-tier file with its schema in place and no identity yet: what every simulated process begins with."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from tests.support.hot_files import hot_file


def make_template(folder: Path) -> Path:
    """Make it, in that folder, as the product does."""
    return asyncio.run(_make(folder))


async def _make(folder: Path) -> Path:
    async with hot_file(folder) as file:
        path = file.slot.path
        await file.database.write(_forget_who_made_it)
    return path


def _forget_who_made_it(connection: sqlite3.Connection) -> None:
    connection.execute("delete from meta where key in ('client_id', 'open_number', 'open_token')")
