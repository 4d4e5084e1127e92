"""What became of the local row of a write that was buried: kept until a person decides, and then as was decided."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, UserMemory, Verdict
from hybrid_memory.events import Diverged
from hybrid_memory.verifier import Verifier
from tests.plugins.postgres import Database
from tests.support.beneath import staff, tiers
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, drained, opened
from tests.support.waiting import until

SECONDS = 20.0
ROUNDS = 6


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_memory.staff.VERIFY_INTERVAL_SECONDS", 0.02)


@pytest.fixture(autouse=True)
async def picky(admin: asyncpg.Connection) -> None:
    """A Postgres that refuses one content for good."""
    await admin.execute("alter table memory.nodes add constraint picky check (text_content <> $$poison$$)")


async def relent(admin: asyncpg.Connection) -> None:
    await admin.execute("alter table memory.nodes drop constraint picky")


async def verified(manager: HybridMemoryManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until as many comparisons more have ended as would tell of a difference."""
    (service,) = [one for one in staff(manager).services if one.name == "verifier"]
    verifier = cast("Verifier", vars(service)["_work"])
    run_once, begun = verifier.run_once, 0

    async def counted() -> float | None:
        nonlocal begun
        begun += 1
        return await run_once()

    monkeypatch.setattr(verifier, "run_once", counted)
    await until(lambda: begun > ROUNDS, seconds=SECONDS)


async def buried(memory: UserMemory, key: str) -> str:
    dead = await memory.store({"text": "poison"}, context_type=FACT, key=key, wait=SECONDS)
    assert dead.verdict is Verdict.DEAD
    return dead.op_id


async def test_until_a_person_decides_a_buried_write_is_read_here_and_is_no_difference(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"text": "tea"}, context_type=FACT, key="old", wait=SECONDS)
        op_ids = {await buried(memory, "old"), await buried(memory, "new")}
        await verified(manager, monkeypatch)
        assert ears.all(Diverged) == []
        assert list((await contents(memory)).values()) == [{"text": "poison"}] * 2
        assert {letter.operation.op_id for letter in await manager.dead_letters.list()} == op_ids
        assert "2 dead letters wait for a person" in (await manager.health()).causes


async def test_what_a_person_discards_is_gone_here_too_and_does_not_come_back(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"text": "tea"}, context_type=FACT, key="old", wait=SECONDS)
        await buried(memory, "old")
        await buried(memory, "new")
        await relent(admin)
        assert await manager.dead_letters.discard(None) == 2
        await both_tiers_agree(manager, memory)
        await verified(manager, monkeypatch)
        assert list((await contents(memory)).values()) == [{"text": "tea"}]
        assert ears.all(Diverged) == []
        assert (manager.queue().entries, manager.queue().dead_letters) == (0, 0)
    assert await admin.fetchval("select count(*) from memory.nodes") == 1


async def test_what_was_written_over_a_discarded_letter_stays(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection
) -> None:
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await buried(memory, "k")
        await memory.store({"text": "milk"}, context_type=FACT, key="k", wait=SECONDS)
        assert await manager.dead_letters.discard(None) == 1
        await both_tiers_agree(manager, memory)
        assert list((await contents(memory)).values()) == [{"text": "milk"}]
    assert await admin.fetchval("select count(*) from memory.nodes") == 1


async def test_a_letter_retried_after_its_row_was_loaded_away_is_read_here_again(
    postgres: Database, tmp_path: Path, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path, ears=ears) as manager:
        memory = await manager.ensure_user_memories("ada")
        await buried(memory, "k")
        await admin.execute("update memory.heads set epoch = gen_random_uuid()")
        await tiers(manager).file.past.doubt_copy("ada")
        await staff(manager).preload.bring_up_to_date("ada")
        await relent(admin)
        assert await manager.dead_letters.retry(None) == 1
        await drained(manager)
        await both_tiers_agree(manager, memory)
        await verified(manager, monkeypatch)
        assert list((await contents(memory)).values()) == [{"text": "poison"}]
        assert ears.all(Diverged) == []
