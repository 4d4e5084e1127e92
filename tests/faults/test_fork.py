"""A process forks with a manager open: the child can do no harm with it, and keeps nobody out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory.sqlite.slots import try_slot
from tests.plugins.postgres import Database
from tests.support.agent import REPOSITORY
from tests.support.images import closed_file
from tests.support.managers import drained, opened
from tests.support.waiting import until


@dataclass(slots=True)
class Forked:
    """A process that has forked, and what it and its child say."""

    process: asyncio.subprocess.Process

    async def heard(self) -> dict[str, object]:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            line = await self.process.stdout.readline()
        told: dict[str, object] = json.loads(line)
        return told

    async def has_stored(self) -> object:
        """Have the parent store something, and wait for Postgres."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"store\n")
        return (await self.heard())["status"]

    async def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def forked(database: Database, data_dir: Path, ending: str) -> AsyncGenerator[Forked]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.forker",
        database.app_dsn,
        str(data_dir),
        ending,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    try:
        yield Forked(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("ending", ["exits", "leaves"])
async def test_a_child_is_refused_and_its_end_does_the_parent_no_harm(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection, ending: str
) -> None:
    async with forked(postgres, tmp_path, ending) as parent:
        child = await parent.heard()
        assert (child["who"], child["refused"]) == ("child", True)
        assert int(str(child["held"])) > 0
        assert (child["closed"], child["shut"]) == (0, 0), "what is inherited must not be closed, not by forgetting it"
        assert child["slot"] == 1, "the parent's file must stay the parent's"
        assert await parent.heard() == {"who": "parent", "status": 0}
        assert try_slot(tmp_path, 0) is None, "the child's end must not free the parent's lock"
        for _ in range(10):
            assert await parent.has_stored() == "DURABLE"
        assert await parent.end() == 0
    assert await admin.fetchval("select count(*) from memory.nodes where user_id = 'ada'") == 15
    assert await admin.fetchval("select rev from memory.heads where user_id = 'ada'") == 15
    with closed_file(tmp_path) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        assert connection.execute("select count(*) from nodes").fetchone() == (15,)


async def test_a_child_that_outlives_its_parent_does_not_keep_the_parents_file(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    async with forked(postgres, tmp_path, "stays") as parent:
        child = await parent.heard()
        pid = int(str(child["pid"]))
        try:
            assert try_slot(tmp_path, 0) is None
            parent.process.kill()
            # Not `wait`, which waits for its pipes too, and the child holds them.
            await until(lambda: parent.process.returncode is not None)
            os.kill(pid, 0)  # the child lives
            async with opened(postgres, tmp_path) as manager:
                await drained(manager)
                assert manager.user("ada").freshness().queued == 0
            assert (tmp_path / "slot-00.lock").read_text().split()[0] == str(os.getpid())
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert await admin.fetchval("select count(*) from memory.nodes where user_id = 'ada'") == 5
