"""What a dead owner left queued is carried by whoever lives on the same directory: once, in order, and only then."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, Settings
from hybrid_memory.events import Adopted, PersistFailed
from hybrid_memory.postgres.place import place_of
from hybrid_memory.sqlite.slots import slot_path
from tests.faults.conftest import Sick
from tests.plugins.postgres import Database, connected
from tests.support.agent import agent
from tests.support.beneath import staff, tiers
from tests.support.dead_owners import (
    HASTY,
    Rounds,
    adopter_of,
    cut_off,
    give_head,
    in_slot,
    is_free,
    leave_behind,
    left_in,
    meta_of,
    named,
    numbers_of,
    slots_taken,
    spoil,
    store,
    user_locked,
    waits_at_a_lock,
)
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, drained, head_rev, opened
from tests.support.poison import poison
from tests.support.waiting import eventually, until

SECONDS = 20.0


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead owners are looked for many times a second."""
    monkeypatch.setattr("hybrid_memory.staff.ADOPT_INTERVAL_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server that is away and the one that answers are one, at different times."""
    away = place_of(f"postgresql://nobody@/none?host={tmp_path}")
    named(monkeypatch, away)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_the_queues_of_two_dead_owners_are_carried_once_and_in_order(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, data: Path
) -> None:
    async with AsyncExitStack() as owners:
        outage = f"postgresql://nobody@/none?host={tmp_path}"
        first = await owners.enter_async_context(opened(outage, data, settings=HASTY))
        second = await owners.enter_async_context(opened(outage, data, settings=HASTY))
        for number in range(30):
            await store(first.user("ada"), 1, first=number)
            await store(second.user("bo"), 1, first=number)
            await second.user("bo").store({"n": 1000 + number}, context_type=FACT, key="hot", wait=0)
            await store(second.user("ada"), 1, first=100 + number)
    ears = Ears()
    async with opened(postgres, data, ears=ears) as manager:
        assert tiers(manager).file.slot.number == 0
        assert await ears.hear(Adopted) == [Adopted(slot=1, operations=90)]
        await drained(manager)
        await until(lambda: is_free(1, data))
        assert await adopter_of(manager) == "ok"
        for user in ("ada", "bo"):
            await both_tiers_agree(manager, await manager.ensure_user_memories(user))
    assert await numbers_of(admin, "bo") == [*range(30), 1029]
    ada = await numbers_of(admin, "ada")
    assert [n for n in ada if n < 100] == list(range(30))
    assert [n for n in ada if n >= 100] == list(range(100, 130))
    assert (await head_rev(admin, "ada"), await head_rev(admin, "bo")) == (60, 60)
    assert left_in(1, data) == 0
    assert left_in(1, data, "receipts") > 0
    meta = meta_of(1, data)
    assert (meta["open_number"], meta["clean"]) == ("2", "1")


async def test_an_owner_that_lives_or_is_only_stopped_is_left_alone(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = Ears()
    async with agent(f"postgresql://nobody@/none?host={tmp_path}", data, "ada") as other:
        for number in range(5):
            await other.ask("store", key=f"k{number}", text="written in the outage")
        async with opened(postgres, data, ears=ears) as manager:
            rounds = Rounds(manager, monkeypatch)
            await rounds.pass_by()
            os.kill(other.process.pid, signal.SIGSTOP)
            await rounds.pass_by()
            os.kill(other.process.pid, signal.SIGCONT)
            assert (await other.ask("digest"))["queued"] == 5
            assert ears.all(Adopted) == []
            assert await head_rev(admin, "ada") == 0
            await other.kill()
            assert await ears.hear(Adopted) == [Adopted(slot=0, operations=5)]
    assert await head_rev(admin, "ada") == 5
    assert meta_of(0, data)["open_number"] == "2"


async def test_in_an_outage_the_slot_stays_free_and_its_queue_is_carried_after_it(sick: Sick, data: Path) -> None:
    ears = Ears()
    async with opened(sick.database, data, ears=ears) as manager:
        await sick.server.kill()
        await leave_behind(1, data, bo=20)
        openings = meta_of(1, data)["open_number"]

        async def reported() -> bool:
            return await adopter_of(manager) == "unreachable"

        await eventually(reported)
        tries = len(ears.all(PersistFailed))
        await ears.hear(PersistFailed, times=tries + 3)
        async with in_slot(1, data) as newcomer:
            assert newcomer.queue().entries == 20
        assert meta_of(1, data)["open_number"] == str(int(openings) + 1)
        await sick.server.heal()
        assert await ears.hear(Adopted) == [Adopted(slot=1, operations=20)]
        await until(lambda: is_free(1, data))

        async def mended() -> bool:
            return await adopter_of(manager) == "ok"

        await eventually(mended)
    async with connected(sick.database.admin_dsn) as admin:
        assert await numbers_of(admin, "bo") == list(range(20))
    assert left_in(1, data) == 0


async def test_a_slot_is_given_up_when_postgres_dies_in_the_middle(sick: Sick, data: Path) -> None:
    await give_head(sick.database, data, "bo")
    await leave_behind(1, data, ada=300, bo=20)
    ears = Ears()
    async with opened(sick.database, data, ears=ears) as manager:
        async with cut_off(sick.database.admin_dsn) as admin, user_locked(sick.database.admin_dsn, "bo"):
            await eventually(lambda: waits_at_a_lock(admin, sick.database))
            assert not is_free(1, data)
            await sick.server.kill()
        await until(lambda: is_free(1, data))
        assert 0 < left_in(1, data) < 320
        await sick.server.heal()
        await ears.hear(Adopted, times=2)
        await until(lambda: is_free(1, data) and left_in(1, data) == 0)
        assert sum(event.operations for event in ears.all(Adopted)) == 320
        assert await adopter_of(manager) in {"ok", "unreachable"}
    async with connected(sick.database.admin_dsn) as admin:
        assert await numbers_of(admin, "ada") == list(range(300))
        assert await numbers_of(admin, "bo") == [-1, *range(20)]
        assert (await head_rev(admin, "ada"), await head_rev(admin, "bo")) == (300, 21)


async def test_what_was_stored_after_an_erasure_left_behind_stands_also_if_nobody_here_knew_the_user(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    async with in_slot(1, data, postgres.app_dsn) as owner:
        await owner.user("ada").store({"n": 1}, context_type=FACT, wait=SECONDS)
    async with in_slot(1, data) as owner:
        await owner.forget("ada")
        await store(owner.user("ada"), 2, first=7)
    ears = Ears()
    async with opened(postgres, data, ears=ears):
        assert await ears.hear(Adopted) == [Adopted(slot=1, operations=3)]
    assert await numbers_of(admin, "ada") == [7, 8]


async def test_an_erasure_left_behind_is_carried_and_obeyed_here(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    ears = Ears()
    async with opened(postgres, data, ears=ears) as manager:
        async with in_slot(1, data, postgres.app_dsn) as owner:
            await owner.ensure_user_memories("ada")
            await owner.user("ada").store({"n": 1}, context_type=FACT, wait=SECONDS)
            await drained(owner)
        memory = await manager.ensure_user_memories("ada")
        assert len(await contents(memory)) == 1
        async with in_slot(1, data) as owner:
            await owner.forget("ada")
            await store(owner.user("ada"), 2, first=7)
        assert await ears.hear(Adopted) == [Adopted(slot=1, operations=3)]
        assert await numbers_of(admin, "ada") == [7, 8]
        await both_tiers_agree(manager, memory)
        assert sorted((await contents(memory)).values(), key=str) == [{"n": 7}, {"n": 8}]
    assert left_in(1, data) == 0


@pytest.mark.parametrize("fault", ["not a database", "of a later version"])
async def test_a_file_beyond_use_is_reported_once_and_keeps_no_other_waiting(
    postgres: Database, admin: asyncpg.Connection, data: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    await leave_behind(1, data, ada=200)
    await leave_behind(2, data, bo=5)
    code = spoil(slot_path(data, 1), data, fault)
    ears = Ears()
    async with opened(postgres, data, ears=ears) as manager:
        rounds = Rounds(manager, monkeypatch)
        assert await ears.hear(Adopted) == [Adopted(slot=2, operations=5)]

        async def reported() -> bool:
            return await adopter_of(manager) == code

        await eventually(reported)
        await rounds.pass_by()
        taken = slots_taken(manager, monkeypatch)
        await rounds.pass_by()
        assert taken == []
        assert await adopter_of(manager) == code
        assert [event.code for event in ears.all(PersistFailed)] == [code]
        await until(lambda: is_free(1, data))
        await leave_behind(3, data, cy=5)
        await ears.hear(Adopted, times=2)
    assert await numbers_of(admin, "bo") == await numbers_of(admin, "cy") == list(range(5))
    assert await numbers_of(admin, "ada") == []


async def test_the_queue_of_a_damaged_file_is_saved_and_carried(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    await leave_behind(1, data, ada=200)
    spoil(slot_path(data, 1), data, "damaged")
    ears = Ears()
    async with opened(postgres, data, ears=ears):
        assert await ears.hear(Adopted) == [Adopted(slot=1, operations=200)]
    assert await numbers_of(admin, "ada") == list(range(200))


async def test_a_queue_that_postgres_refuses_for_now_keeps_no_other_waiting(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    await give_head(postgres, data, "bo")
    await leave_behind(1, data, bo=3)
    await leave_behind(2, data, ada=3)
    ears = Ears()
    async with opened(postgres, data, ears=ears):
        async with user_locked(postgres.admin_dsn, "bo"):
            assert await ears.hear(Adopted) == [Adopted(slot=2, operations=3)]
        await ears.hear(Adopted, times=2)
    assert await numbers_of(admin, "bo") == [-1, 0, 1, 2]


async def test_an_adopter_killed_in_the_middle_loses_and_doubles_nothing(
    postgres: Database, admin: asyncpg.Connection, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the other process calls it.
    place = place_of(postgres.app_dsn)
    named(monkeypatch, place)
    await give_head(postgres, data, "bo")
    await leave_behind(1, data, ada=300, bo=20)
    async with user_locked(postgres.admin_dsn, "bo"), agent(postgres.app_dsn, data, "cy") as other:
        await eventually(lambda: waits_at_a_lock(admin, postgres))
        assert not is_free(1, data)
        await other.kill()
    # What was under way then may still be committed now: the server notices the death only when it answers.
    assert 0 < left_in(1, data) <= 320
    assert meta_of(1, data)["clean"] == "0"
    ears = Ears()
    async with opened(postgres, data, ears=ears):
        await ears.hear(Adopted)
        await until(lambda: is_free(1, data))
    assert left_in(1, data) == 0
    assert await numbers_of(admin, "ada") == list(range(300))
    assert await numbers_of(admin, "bo") == [-1, *range(20)]
    assert (await head_rev(admin, "ada"), await head_rev(admin, "bo")) == (300, 21)
    assert meta_of(1, data)["open_number"] == "3"


async def test_a_manager_that_closes_in_the_middle_gives_the_slot_up(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    await give_head(postgres, data, "bo")
    await leave_behind(1, data, ada=300, bo=20)
    async with user_locked(postgres.admin_dsn, "bo"):
        async with opened(postgres, data, settings=HASTY):
            await eventually(lambda: waits_at_a_lock(admin, postgres))
        assert is_free(1, data)
        assert 0 < left_in(1, data) < 320
        assert meta_of(1, data)["clean"] == "1"
    ears = Ears()
    async with opened(postgres, data, ears=ears):
        await ears.hear(Adopted)
    assert await numbers_of(admin, "ada") == list(range(300))
    assert await numbers_of(admin, "bo") == [-1, *range(20)]


async def test_a_file_with_nothing_to_carry_is_neither_opened_nor_touched(
    postgres: Database, admin: asyncpg.Connection, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave_behind(1, data)
    await leave_behind(2, data, bo=3)
    await leave_behind(3, data, ada=4, bo=4)
    ears = Ears()
    async with opened(postgres, data, ears=ears, persistent_users=lambda user: user != "bo") as manager:
        rounds = Rounds(manager, monkeypatch)
        assert await ears.hear(Adopted) == [Adopted(slot=3, operations=4)]
        await rounds.pass_by()
        before = listing(data)
        taken = slots_taken(manager, monkeypatch)
        await rounds.pass_by()
        assert taken == []
        assert listing(data) == before
        assert [name for name in before if name.endswith(("-wal", "-shm")) and not name.startswith("slot-00")] == []
        assert await adopter_of(manager) == "ok"
    assert [meta_of(slot, data)["open_number"] for slot in (1, 2, 3)] == ["1", "1", "2"]
    assert [meta_of(slot, data)["clean"] for slot in (1, 2, 3)] == ["1", "1", "1"]
    assert [left_in(slot, data) for slot in (1, 2, 3)] == [0, 3, 4]
    assert await numbers_of(admin, "ada") == list(range(4))
    assert await numbers_of(admin, "bo") == []


def listing(data: Path) -> dict[str, tuple[int, int]]:
    """Names, sizes and times of the files of all slots but our own."""
    seen = {path.name: path.stat() for path in data.glob("slot-*") if path.name != "slot-00.db"}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in seen.items()}


async def test_what_was_killed_with_its_log_full_is_found_and_carried(
    sick: Sick, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = Ears()
    async with opened(sick.database, data, ears=ears) as manager:
        rounds = Rounds(manager, monkeypatch)
        async with agent(f"postgresql://nobody@/none?host={data.parent}", data, "ada") as other:
            for number in range(8):
                await other.ask("store", key=f"k{number}", text="in the log only")
            await rounds.pass_by()
            await other.kill()
        assert await ears.hear(Adopted) == [Adopted(slot=1, operations=8)]
        await both_tiers_agree(manager, await manager.ensure_user_memories("ada"))


async def test_rows_of_an_open_user_are_fetched_at_once(postgres: Database, data: Path) -> None:
    slow = Settings(poll_interval=timedelta(minutes=5), pooler="transaction")
    async with opened(postgres, data, settings=slow) as manager:
        memory = await manager.ensure_user_memories("ada")
        await leave_behind(1, data, ada=3)

        async def seen() -> bool:
            return len(await contents(memory)) == 3

        await eventually(seen)


async def test_what_postgres_will_never_take_is_buried_in_the_file_it_was_queued_in(
    postgres: Database, admin: asyncpg.Connection, data: Path
) -> None:
    async with in_slot(1, data) as owner:
        await store(owner.user("ada"), 4)
        receipt = await owner.user("ada").store({"n": 9}, context_type=FACT, wait=0)
        await poison(owner, receipt.op_id, importance=7.0)
    ears = Ears()
    async with opened(postgres, data, ears=ears) as manager:
        assert await ears.hear(Adopted) == [Adopted(slot=1, operations=4)]
        assert manager.queue().dead_letters == 0
    assert (left_in(1, data), left_in(1, data, "dead_letters")) == (0, 1)
    assert await numbers_of(admin, "ada") == list(range(4))


async def test_a_file_whose_copy_has_taken_over_is_tried_once_and_left_alone(
    postgres: Database, admin: asyncpg.Connection, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave_behind(1, data, ada=5)
    (tmp_path / "copy").mkdir(mode=0o700)
    shutil.copyfile(slot_path(data, 1), slot_path(tmp_path / "copy", 0))
    for number in range(4):
        async with opened(postgres, tmp_path / "copy") as copy:
            await copy.user("ada").store({"n": 100 + number}, context_type=FACT, wait=SECONDS)
    ears = Ears()
    async with opened(postgres, data, ears=ears) as manager:
        rounds = Rounds(manager, monkeypatch)
        assert [event.code for event in await ears.hear(PersistFailed)] == ["fenced"]
        await rounds.pass_by()
        assert len(ears.all(PersistFailed)) == 1
        await until(lambda: is_free(1, data))
    assert left_in(1, data) == 5
    assert meta_of(1, data)["open_number"] == "2"
    assert await numbers_of(admin, "ada") == [0, 1, 2, 3, 4, 100, 101, 102, 103]


async def test_who_asks_for_one_slot_or_has_no_postgres_adopts_nothing(postgres: Database, data: Path) -> None:
    async with in_slot(0, data, postgres.app_dsn) as manager:
        assert "adopter" not in (await manager.health()).services
    async with HybridMemoryManager.open(data_dir=data, postgres="off") as manager:
        assert "adopter" not in (await manager.health()).services
        assert [service.name for service in staff(manager).services] == ["sweeper", "sentinel"]
