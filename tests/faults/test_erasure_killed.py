"""A process is killed with -9 as soon as it has said that a user is forgotten: nothing of the user comes back."""

from __future__ import annotations

import signal
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory.sqlite.slots import slot_path
from tests.faults.conftest import Sick
from tests.support.agent import agent
from tests.support.images import files_with
from tests.support.managers import FACT, both_tiers_agree, contents, drained, opened

CANARY = "canary-42e9"
SECONDS = 20.0
TABLES = ("nodes", "relationships", "node_history", "vectors", "relationship_history")


@pytest.mark.parametrize("postgres_is", ["away", "there"])
async def test_what_was_forgotten_stays_so_though_the_process_was_killed_on_saying_it(
    sick: Sick, tmp_path: Path, postgres_is: str
) -> None:
    async with opened(sick.database, tmp_path) as manager:
        for user in ("ada", "bo"):
            memory = await manager.ensure_user_memories(user)
            secret = CANARY if user == "ada" else "tea"
            for number in range(10):
                content = {"text": f"{secret} stored {number}" * 20}
                await memory.store(
                    content, context_type=FACT, key=f"{secret}-{number % 7}", tags=[secret], wait=SECONDS
                )
        bos = await contents(manager.user("bo"))
    async with agent(sick.database.app_dsn, tmp_path, "ada") as doomed:
        if postgres_is == "away":
            await sick.server.kill()
        # Changed again and new: some of it is queued or on its way when the erasure comes.
        for number in range(12):
            await doomed.ask("store", key=f"{CANARY}-{number}", text=f"{CANARY} queued {number}" * 20)
        assert files_with(tmp_path, CANARY.encode()) != []
        await doomed.ask("forget and die")
        assert await doomed.process.wait() == -signal.SIGKILL
    assert files_with(tmp_path, CANARY.encode()) == []
    assert slot_path(tmp_path, 0).exists()
    await sick.server.heal()

    async with opened(sick.database, tmp_path) as manager:
        assert await contents(manager.user("ada")) == {}
        ada = await manager.ensure_user_memories("ada")
        bo = await manager.ensure_user_memories("bo")
        await drained(manager)
        for memory in (ada, bo):
            await both_tiers_agree(manager, memory)
        assert await contents(ada) == {}
        assert await contents(bo) == bos
    assert files_with(tmp_path, CANARY.encode()) == []
    admin = await asyncpg.connect(sick.database.admin_dsn)
    try:
        for table in TABLES:
            assert await admin.fetchval(f"select count(*) from memory.{table} where user_id = 'ada'") == 0
        assert await admin.fetchval("select erased_rev from memory.heads where user_id = 'ada'") > 0
    finally:
        await admin.close()
