"""A local file belongs to one database: what is queued in it is carried to no other, whoever takes the file."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.errors import OtherDatabase
from hybrid_memory.events import Adopted
from hybrid_memory.health import Condition
from hybrid_memory.postgres.place import place_of
from tests.plugins.postgres import Database, connected
from tests.support.beneath import tiers
from tests.support.dead_owners import HASTY, Rounds, in_slot, leave_behind, left_in, meta_of, numbers_of
from tests.support.managers import FACT, Ears, contents, drained, opened
from tests.support.poison import poison
from tests.support.waiting import eventually, until

SECONDS = 20.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def renewed(database: Database) -> None:
    """Make a database another installation, as if it had been dropped and made again."""
    async with connected(database.admin_dsn) as admin:
        await admin.execute("truncate memory.heads, memory.nodes, memory.relationships, memory.applied cascade")
        await admin.execute(
            "create or replace function memory.installation() returns uuid language sql immutable"
            " as $$ select '00000000-0000-0000-0000-00000000000b'::uuid $$"
        )


async def test_a_process_leaves_the_file_of_another_database_alone_while_its_own_is_away(data: Path) -> None:
    here, there = (f"postgresql://nobody@/{name}?host={data.parent}" for name in ("here", "there"))
    async with opened(here, data, settings=HASTY) as manager:
        await manager.user("ada").store({"n": 1}, context_type=FACT, wait=0)
    async with opened(there, data, settings=HASTY) as manager:
        assert tiers(manager).file.slot.number == 1
        assert manager.queue().entries == 0
    async with opened(here, data, settings=HASTY) as manager:
        assert tiers(manager).file.slot.number == 0
        assert manager.queue().entries == 1


async def test_the_queue_of_a_dead_owner_that_worked_with_another_database_is_not_adopted(
    postgres: Database, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid_memory.staff.ADOPT_INTERVAL_SECONDS", 0.05)
    await leave_behind(1, data, ada=3)
    ears = Ears()
    async with opened(postgres, data, ears=ears) as manager:
        await Rounds(manager, monkeypatch).pass_by()
        assert ears.all(Adopted) == []
    assert left_in(1, data) == 3


async def test_what_is_queued_without_any_database_goes_to_the_first_one(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    async with HybridMemoryManager.open(data_dir=data, postgres="off") as manager:
        await manager.user("ada").store({"n": 1}, context_type=FACT, wait=0)
    async with opened(postgres, data) as manager:
        await drained(manager)
    assert await numbers_of(admin, "ada") == [1]


@pytest.mark.usefixtures("one_place")
async def test_nothing_is_sent_to_another_installation_that_answers_under_the_same_name(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    async with opened(postgres, data, settings=HASTY) as manager:
        await manager.user("ada").store({"n": 1}, context_type=FACT, wait=SECONDS)
        tiers(manager).file.on_accepted = lambda: None
        await manager.user("ada").store({"n": 2}, context_type=FACT, wait=0)
    await renewed(postgres)
    async with opened(postgres, data, settings=HASTY) as manager:

        async def refused() -> bool:
            return (await manager.health()).services["relay"] == "other_database"

        await eventually(refused)
        assert (await manager.health()).condition is Condition.FAILED
        with pytest.raises(OtherDatabase):
            await manager.ensure_user_memories("ada")
        assert [found["n"] for found in (await contents(manager.user("ada"))).values()] == [2, 1]
        assert manager.queue().entries == 1
    assert await numbers_of(admin, "ada") == []


@pytest.mark.usefixtures("one_place")
async def test_a_file_with_nothing_unsent_is_given_over_to_the_installation_that_answers(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    async with opened(postgres, data) as manager:
        await manager.user("ada").store({"n": 1}, context_type=FACT, wait=SECONDS)
        await manager.ensure_user_memories("ada")
    await renewed(postgres)
    async with opened(postgres, data) as manager:
        memory = manager.user("ada")

        async def given_over() -> bool:
            return await contents(memory) == {}

        await eventually(given_over)
        await manager.ensure_user_memories("ada")
        receipt = await memory.store({"n": 2}, context_type=FACT, wait=SECONDS)
        assert receipt.status == "DURABLE"
    assert await numbers_of(admin, "ada") == [2]
    assert meta_of(0, data)["database_installation"].endswith("b")


@pytest.mark.usefixtures("one_place")
async def test_a_file_with_dead_letters_is_not_given_over(postgres: Database, data: Path) -> None:
    async with in_slot(0, data) as owner:
        receipt = await owner.user("ada").store({"n": 1}, context_type=FACT, wait=0)
        await poison(owner, receipt.op_id, importance=7.0)
    async with opened(postgres, data) as manager:
        await until(lambda: manager.queue().dead_letters == 1)
    await renewed(postgres)
    async with opened(postgres, data) as manager:
        with pytest.raises(OtherDatabase):
            await manager.ensure_user_memories("ada")
        assert manager.queue().dead_letters == 1


async def test_a_file_opened_by_its_number_is_carried_to_its_database_under_a_new_name(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    async with opened(postgres, data, settings=HASTY) as manager:
        await manager.user("ada").store({"n": 1}, context_type=FACT, wait=SECONDS)
        tiers(manager).file.on_accepted = lambda: None
        await manager.user("ada").store({"n": 2}, context_type=FACT, wait=0)
    other_name = postgres.app_dsn + "&port=5432"
    async with HybridMemoryManager.open(dsn=other_name, data_dir=data, slot=0) as manager:
        await drained(manager)
    assert await numbers_of(admin, "ada") == [1, 2]


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://ada:secret@DB.example/memory", "db.example:5432/memory"),
        ("postgresql://ada:secret@db.example:6000/memory?sslmode=require", "db.example:6000/memory"),
        ("postgresql://ada@/memory?host=%2Frun%2Fx&port=6000", "/run/x:6000/memory"),
        ("postgresql://ada@a,b:6000/memory", "a:5432,b:6000/memory"),
        ("postgresql:///memory?host=a,b&port=1,2", "a:1,b:2/memory"),
        ("postgresql://[::1]/memory", "[::1]:5432/memory"),
        ("postgresql://ada@db", "db:5432/ada"),
    ],
)
def test_a_place_is_named_by_hosts_and_database_and_holds_no_secret(dsn: str, place: str) -> None:
    assert place_of(dsn) == place
