"""The file forgets queue numbers that it gave out: what is stored after that is not taken for what had them before."""

from __future__ import annotations

import asyncio
import os
import uuid
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.errors import StorageFailed
from hybrid_memory.events import NumbersMissing, QueueRenumbered
from hybrid_memory.graph import Status
from hybrid_memory.sqlite.side_record import Noted, SideRecord, read_side_record, side_record_path
from tests.plugins.postgres import Database
from tests.support import images
from tests.support.beneath import tiers
from tests.support.gate import writers_wait
from tests.support.hot_files import fresh, hot_file, keyed
from tests.support.images import FILE, closed_file
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, drained, opened

LOST = 10


async def shortened(tmp_path: Path, database: Database, *, records_too: bool) -> Path:
    """A directory whose file has lost the log of its last opening, in which Postgres took ten operations of Ada's.

    With `records_too` nothing beside the file knows of it either, as where a machine was set back.
    """
    async with opened(database, tmp_path / "first") as manager:
        file = tiers(manager).file
        await file.database.cut_log()
        for number in range(LOST):
            await manager.store_persistent_memory("ada", {"text": f"first {number}"}, FACT)
        left = images.image(tmp_path / "first", tmp_path / "left")
    images.remove_log(left)
    if records_too:
        side_record_path(left / FILE).unlink()
    return left


async def texts_in_postgres(admin: asyncpg.Connection, user_id: str = "ada") -> list[str]:
    rows = await admin.fetch("select content->>'text' as text from memory.nodes where user_id = $1", user_id)
    return sorted(row["text"] for row in rows)


FIRST = [f"first {number}" for number in range(LOST)]


@pytest.mark.parametrize("records_too", [False, True])
async def test_what_is_stored_over_a_shortened_log_while_postgres_is_away_is_not_skipped(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection, *, records_too: bool
) -> None:
    left = await shortened(tmp_path, postgres, records_too=records_too)
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=left, observer=ears) as manager:
        for number in range(4):
            await manager.store_persistent_memory("ada", {"text": f"second {number}"}, FACT)
        missing = ears.all(NumbersMissing)
        assert [(one.first_seq, one.last_seq) for one in missing] == ([] if records_too else [(1, LOST)])
    async with opened(postgres, left, ears=ears) as manager:
        await drained(manager)
        health = await manager.health()
    assert await texts_in_postgres(admin) == FIRST + [f"second {number}" for number in range(4)]
    renumbered = ears.all(QueueRenumbered)
    assert [(one.user_id, one.first_seq, one.last_seq) for one in renumbered] == (
        [("ada", 1, LOST)] if records_too else []
    )
    assert any("forgotten" in cause for cause in health.causes) == records_too


async def test_a_receipt_given_out_before_the_queue_was_renumbered_stays_good(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    left = await shortened(tmp_path, postgres, records_too=True)
    ears = Ears()
    async with opened(postgres, left, ears=ears) as manager:
        memory = manager.user("ada")
        async with writers_wait(admin):
            first = await memory.store({"text": "second"}, context_type=FACT, key="k", wait=0)
            again = await memory.store({"text": "third"}, context_type=FACT, key="k", wait=0)
            waiting = asyncio.ensure_future(memory.store({"text": "fourth"}, context_type=FACT, wait=15))
            await asyncio.sleep(0)
        told = [await first.durable(timedelta(seconds=15)), await again.durable(timedelta(seconds=15)), await waiting]
        assert [one.status for one in told] == [Status.DURABLE] * 3
        # The second was made on the first and is not in conflict with it.
        revs = [one.rev for one in told]
        assert revs == [LOST + 1, LOST + 2, LOST + 3]
        assert ears.all(QueueRenumbered)
        memory = await manager.ensure_user_memories("ada")
        await both_tiers_agree(manager, memory)
    assert await texts_in_postgres(admin) == sorted([*FIRST, "third", "fourth"])


async def test_a_file_that_has_lost_all_but_its_tables_still_knows_whose_it_is(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        client_id = tiers(manager).file.opening.client_id
        for number in range(LOST):
            await manager.store_persistent_memory("ada", {"n": number}, FACT)
    with closed_file(tmp_path) as connection:
        for table in ("meta", "outbox", "nodes", "users"):
            connection.execute(f"delete from {table}")
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path, observer=ears) as manager:
        assert tiers(manager).file.opening.client_id == client_id
        assert [(one.first_seq, one.last_seq) for one in ears.all(NumbersMissing)] == [(1, LOST)]


async def test_own_writes_are_read_while_their_numbers_are_still_those_of_lost_ones(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    left = await shortened(tmp_path, postgres, records_too=True)
    async with opened(postgres, left, persistent_users=lambda _: True) as manager:
        async with writers_wait(admin):
            receipt = await manager.store_persistent_memory("ada", {"text": "second"}, FACT, wait=0)
            # The snapshot holds a mark above the number that this write has.
            memory = await manager.ensure_user_memories("ada")
            assert receipt.node_id in await contents(memory)
        await drained(manager)
        assert len(await contents(memory)) == LOST + 1


async def test_of_two_users_only_the_one_concerned_is_renumbered_and_nothing_is_doubled(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    left = await shortened(tmp_path, postgres, records_too=True)
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        for number in range(6):
            await manager.store_persistent_memory("ada", {"text": f"second {number}"}, FACT)
            await manager.store_persistent_memory("bob", {"text": f"second {number}"}, FACT)
    async with opened(postgres, left) as manager:
        await drained(manager)
    second = [f"second {number}" for number in range(6)]
    assert await texts_in_postgres(admin) == FIRST + second
    assert await texts_in_postgres(admin, "bob") == second
    revs = await admin.fetch("select user_id, rev from memory.heads order by user_id")
    assert [tuple(row) for row in revs] == [("ada", LOST + 6), ("bob", 6)]


async def test_renumbering_moves_one_users_operations_in_their_order_with_what_they_were_made_on(
    tmp_path: Path,
) -> None:
    async with hot_file(tmp_path) as file:
        for user_id, text in (("ada", "1"), ("bob", "1"), ("ada", "2"), ("ada", "3")):
            await file.outbox.accept_node(user_id, keyed("k", text, user_id=user_id))
        await file.outbox.renumber("ada", covered=1, above=50)
        await file.outbox.accept_node("ada", keyed("k", "4"))
        told = [(one.user_id, one.seq, one.base) for one in file.outbox.claim(after_seq=0, limit=10)]
        # What was sent of Bob's may have been applied under the number that it has.
        expected = [("ada", 1, 0), ("bob", 2, 0), ("ada", 52, -1), ("ada", 53, -52), ("ada", 54, -53)]
        assert told == expected
        assert file.outbox.last_accepted_of("ada") == 54
    async with hot_file(tmp_path) as file:
        assert [one.seq for one in file.outbox.claim(after_seq=0, limit=10)] == [1, 2, 52, 53, 54]
        await file.outbox.accept_node("bob", fresh())
        assert file.outbox.last_accepted_of("bob") == 55


async def test_an_erasure_under_a_number_that_was_used_before_is_done(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    left = await shortened(tmp_path, postgres, records_too=True)
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        await manager.forget("ada")
        await manager.store_persistent_memory("ada", {"text": "anew"}, FACT)
    async with opened(postgres, left) as manager:
        await drained(manager)
    assert await texts_in_postgres(admin) == ["anew"]


async def test_the_side_record_follows_every_commit_and_outlives_the_process(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        opening = tiers(manager).file.opening
        for number in range(1, 6):
            await manager.store_persistent_memory("ada", {"text": "tea"}, FACT)
            noted = read_side_record(tmp_path / FILE)
            assert noted is not None
            assert (noted.client_id, noted.open_number, noted.last_seq) == (opening.client_id, opening.number, number)


def test_of_a_note_that_was_torn_the_one_before_is_left(tmp_path: Path) -> None:
    path = tmp_path / FILE
    noted = read_side_record(path)
    assert noted is None
    record = SideRecord(path, Noted(client_id=str(uuid.UUID(int=5)), open_number=3, last_seq=7))
    record.note(8)
    record.note(9)
    record.close()
    content = bytearray(side_record_path(path).read_bytes())
    newest = max(range(len(content)), key=lambda at: bytes(content[at : at + 8]) == (9).to_bytes(8, "little"))
    content[newest] ^= 1
    side_record_path(path).write_bytes(content)
    noted = read_side_record(path)
    assert noted is not None
    assert noted.last_seq == 8


def test_a_side_record_of_which_only_half_was_written_is_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def half(fd: int, content: bytes, offset: int) -> int:
        return pwrite(fd, content[:10], offset)

    monkeypatch.setattr(os, "pwrite", half)
    noted = Noted(client_id=str(uuid.UUID(int=5)), open_number=3, last_seq=7)
    with pytest.raises(StorageFailed):
        SideRecord(tmp_path / "slot-00.db", noted)
    monkeypatch.undo()
    SideRecord(tmp_path / "slot-00.db", noted).close()
    assert read_side_record(tmp_path / "slot-00.db") == noted
