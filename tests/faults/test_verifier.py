"""A copy that is not what Postgres holds at its revision is found by its digest, told of, and loaded anew."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory.events import Diverged, LoadFinished
from tests.plugins.postgres import Database
from tests.support.beneath import staff, tiers
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, opened
from tests.support.waiting import until

SECONDS = 20.0


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_memory.staff.VERIFY_INTERVAL_SECONDS", 0.02)


def damage(connection: sqlite3.Connection) -> None:
    connection.execute("update nodes set content = '{}', row_hash = 'x'")


async def test_a_copy_damaged_in_the_middle_is_loaded_anew(postgres: Database, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        receipt = await memory.store({"text": "the sound content"}, context_type=FACT, wait=SECONDS)
        await tiers(manager).file.database.write(damage)
        assert (await contents(memory))[receipt.node_id] == {}
        (told,) = await ears.hear(Diverged)
        assert (told.user_id, told.rev) == ("ada", receipt.rev)
        await both_tiers_agree(manager, memory)
        assert (await contents(memory))[receipt.node_id] == {"text": "the sound content"}
        assert manager.queue().entries == 0


async def test_a_row_lost_beside_the_feed_is_found(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        for number in range(3):
            await memory.store({"n": number}, context_type=FACT, wait=SECONDS)
        await admin.execute("delete from memory.nodes where content->>'n' = '1'")
        await ears.hear(Diverged)
        # It had been acknowledged, so it is sent again.
        await both_tiers_agree(manager, memory)
        assert len(await contents(memory)) == 3
    assert await admin.fetchval("select count(*) from memory.nodes") == 3


async def test_writes_on_their_way_are_no_difference(postgres: Database, tmp_path: Path) -> None:
    ears = Ears()
    async with (
        opened(postgres, tmp_path / "one", ears=ears) as one,
        opened(postgres, tmp_path / "two", ears=ears) as two,
    ):
        here, there = await one.ensure_user_memories("ada"), await two.ensure_user_memories("ada")
        for number in range(150):
            await here.store({"n": number}, context_type=FACT, key="hot", wait=0)
            await there.store_entity("jira", "T-1", "ticket", {f"f{number % 7}": number}, wait=0.02)
        await both_tiers_agree(one, here)
        await both_tiers_agree(two, there)
        await until(lambda: len(ears.all(LoadFinished)) > 0)
        assert ears.all(Diverged) == []
        assert {service.last_error for service in staff(one).services} == {None}
