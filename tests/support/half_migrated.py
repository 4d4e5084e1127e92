"""A process that dies in the middle of the local file's migration."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

from hybrid_memory import HybridMemoryManager, migrations
from hybrid_memory.migrations import Migration
from hybrid_memory.sqlite import database, hot_file
from hybrid_memory.sqlite.driver import configure_writer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def able_to_die(connection: sqlite3.Connection) -> None:
    configure_writer(connection)
    connection.create_function("die", 0, die)


async def main(data_dir: Path) -> None:
    shipped = migrations.load("sqlite")
    sql = "create table half (a integer); insert into half values (1); select die(); create table other (a integer);"
    deadly = Migration(version=len(shipped) + 1, name="deadly", sql=sql, checksum="x")

    def load(_tier: str) -> tuple[Migration, ...]:
        return (*shipped, deadly)

    database.__dict__["configure_writer"] = able_to_die
    hot_file.__dict__["load"] = load
    async with HybridMemoryManager.open(postgres="off", data_dir=data_dir):
        raise AssertionError


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
