"""SQLite gets no memory: the write that needs it is refused as a whole, and the process goes on with the others."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from hybrid_memory import HybridMemoryManager
from tests.support.agent import REPOSITORY
from tests.support.images import closed_file
from tests.support.managers import contents
from tests.support.short_of_memory import LARGE


async def test_a_write_that_gets_no_memory_leaves_nothing_half_and_the_next_one_goes_through(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.short_of_memory",
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == 0
    outcome = json.loads(said)
    told: dict[str, str] = outcome["told"]
    assert [end for end in told.values() if end != "ok"] == ["MemoryError"]
    assert told["afterwards"] == "ok"
    stored = {key for key, end in told.items() if end == "ok"}
    assert outcome["queued"] == len(stored)
    with closed_file(tmp_path) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        numbers = [seq for (seq,) in connection.execute("select seq from outbox order by seq").fetchall()]
        assert numbers == list(range(1, len(stored) + 1))
    async with HybridMemoryManager.open(data_dir=tmp_path, postgres="off") as manager:
        found = {node.key for node in (await manager.user("ada").list(limit=1000)).items}
        assert found == stored
        sizes = {len(str(content["text"])) for content in (await contents(manager.user("ada"))).values()}
        assert sizes == {10, LARGE}
