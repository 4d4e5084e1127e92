"""Damage to the local file: it is found, set aside, what was queued is saved, and what is lost is named."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import Condition, HybridMemoryManager, UserMemory
from hybrid_memory.errors import StorageCorrupt
from hybrid_memory.events import FileQuarantined, NumbersMissing
from hybrid_memory.sqlite import mending
from hybrid_memory.sqlite.quarantine import Quarantine, quarantines
from hybrid_memory.sqlite.salvage import PAGE_BYTES
from tests.plugins.postgres import Database
from tests.support import images
from tests.support.beneath import tiers
from tests.support.gate import writers_wait
from tests.support.images import FILE, Damage, closed_file
from tests.support.managers import FACT, Ears, drained, opened
from tests.support.waiting import until

USERS = ("ada", "bob", "cyd")
WRITES = 150


class Killed(Exception):
    """Nothing of the product catches it."""


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledged write: its queue number, whose it is and where it stands."""

    seq: int
    user_id: str
    node_id: str


async def store_many(manager: HybridMemoryManager, count: int = WRITES) -> list[Ack]:
    """One caller's writes, so that the queue numbers are their order."""
    acks: list[Ack] = []
    for seq in range(1, count + 1):
        user_id = USERS[seq % len(USERS)]
        receipt = await manager.store_persistent_memory(user_id, {"text": f"note {seq} " + "x" * 300}, FACT, wait=0)
        acks.append(Ack(seq, user_id, receipt.node_id))
    return acks


async def move_log_into_file(manager: HybridMemoryManager) -> None:
    await tiers(manager).file.database.cut_log()


async def killed(tmp_path: Path, *, in_file: bool) -> tuple[Path, list[Ack]]:
    """What a process left that was killed with its queue full: in its file, or all in its log."""
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        acks = await store_many(manager)
        if in_file:
            await move_log_into_file(manager)
        # Of the same file, as if it had been killed here.
        return images.image(tmp_path / "first", tmp_path / "left"), acks


def numbers(runs: tuple[tuple[int, int], ...]) -> set[int]:
    return {seq for first, last in runs for seq in range(first, last + 1)}


async def readable(manager: HybridMemoryManager, acks: list[Ack]) -> set[int]:
    return {ack.seq for ack in acks if await manager.user(ack.user_id).get(ack.node_id) is not None}


async def durable_nodes(admin: asyncpg.Connection) -> list[str]:
    return [row["node_id"] for row in await admin.fetch("select node_id::text from memory.nodes")]


@pytest.mark.parametrize("damage", images.OF_THE_FILE, ids=lambda damage: damage.__name__)
async def test_every_acknowledged_write_of_a_damaged_file_is_saved_or_named_as_lost(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection, damage: Damage
) -> None:
    left, acks = await killed(tmp_path, in_file=True)
    damage(left)
    ears = Ears()
    async with opened(postgres, left, ears=ears) as manager:
        (quarantined,) = ears.all(FileQuarantined)
        saved = await readable(manager, acks)
        lost = numbers(quarantined.unaccounted)
        assert len(saved) == quarantined.salvaged
        assert saved | lost == {ack.seq for ack in acks}
        assert not saved & lost
        health = await manager.health()
        assert any(quarantined.folder in cause for cause in health.causes)
        await drained(manager)
        # New writes are numbered above all that was ever given out, lost or not.
        receipt = await manager.store_persistent_memory("ada", {"text": "after"}, FACT)
        assert receipt.rev is not None
    assert sorted(await durable_nodes(admin)) == sorted(
        [ack.node_id for ack in acks if ack.seq in saved] + [receipt.node_id]
    )


@pytest.mark.parametrize("damage", [images.ruin_header, images.ruin_first_page], ids=lambda damage: damage.__name__)
async def test_of_a_file_whose_first_page_is_gone_everything_queued_is_saved(tmp_path: Path, damage: Damage) -> None:
    left, acks = await killed(tmp_path, in_file=True)
    damage(left)
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        assert await readable(manager, acks) == {ack.seq for ack in acks}
        assert manager.queue().entries == WRITES


async def test_a_file_whose_damage_cannot_even_be_put_into_words_is_set_aside_and_its_queue_saved(
    tmp_path: Path,
) -> None:
    left, acks = await killed(tmp_path, in_file=True)
    # SQLite names the table whose definition it cannot parse, and this name is no text.
    whole, torn = b"tablenodesnodes", b"table\xff\xfe\xff\xfe\xffnodes"
    content = (left / FILE).read_bytes()
    (place,) = (found.start() for found in re.finditer(whole + rb".{1,3}CREATE", content, re.DOTALL))
    damaged = torn + content[place + len(whole) :].replace(b"CREATE", b"CREATX", 1)
    (left / FILE).write_bytes(content[:place] + damaged)
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        assert await readable(manager, acks) == {ack.seq for ack in acks}
        assert manager.queue().entries == WRITES


async def test_most_of_a_queue_around_damaged_pages_is_saved(tmp_path: Path) -> None:
    left, acks = await killed(tmp_path, in_file=True)
    images.zero_the_middle(left)
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        assert len(await readable(manager, acks)) > WRITES * 0.8


@pytest.mark.parametrize("damage", images.OF_THE_LOG, ids=lambda damage: damage.__name__)
async def test_what_a_damaged_log_loses_is_named_although_sqlite_is_silent(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection, damage: Damage
) -> None:
    left, acks = await killed(tmp_path, in_file=False)
    damage(left)
    ears = Ears()
    async with opened(postgres, left, ears=ears) as manager:
        missing = [numbers(((one.first_seq, one.last_seq),)) for one in ears.all(NumbersMissing)]
        missing += [numbers(one.unaccounted) for one in ears.all(FileQuarantined)]
        assert len(missing) == 1
        saved = await readable(manager, acks)
        assert saved | missing[0] == {ack.seq for ack in acks}
        assert not saved & missing[0]
        assert missing[0]
        assert (await manager.health()).condition is Condition.DEGRADED
        await drained(manager)
        after = await manager.store_persistent_memory("ada", {"text": "after"}, FACT)
        assert after.rev is not None
    assert sorted(await durable_nodes(admin)) == sorted(
        [ack.node_id for ack in acks if ack.seq in saved] + [after.node_id]
    )


async def test_what_was_saved_of_a_damaged_file_and_had_been_applied_is_not_applied_again(
    tmp_path: Path, postgres: Database, admin: asyncpg.Connection
) -> None:
    async with opened(postgres, tmp_path / "first") as manager:
        async with writers_wait(admin):
            acks = await store_many(manager, 30)
            await move_log_into_file(manager)
            # Here it is killed, while all of this is on its way.
            left = images.image(tmp_path / "first", tmp_path / "left")
        await drained(manager)
    # What is applied once more would come back.
    await admin.execute("delete from memory.nodes where user_id = 'ada'")
    revs = await admin.fetch("select user_id, rev from memory.heads order by user_id")
    images.ruin_first_page(left)
    ears = Ears()
    async with opened(postgres, left, ears=ears) as manager:
        assert ears.all(FileQuarantined)[0].salvaged == len(acks)
        await drained(manager)
        after = await manager.store_persistent_memory("dan", {"text": "after"}, FACT)
        assert after.rev == 1
    assert await admin.fetch("select user_id, rev from memory.heads where user_id <> 'dan' order by user_id") == revs
    assert await admin.fetchval("select count(*) from memory.nodes where user_id = 'ada'") == 0


async def test_what_is_in_the_log_of_a_damaged_file_is_saved_with_it(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        acks = await store_many(manager, 100)
        await move_log_into_file(manager)
        receipts = [await manager.store_persistent_memory("dan", {"n": n}, FACT) for n in range(20)]
        left = images.image(tmp_path / "first", tmp_path / "left")
    images.zero_the_middle(left)
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=left, observer=ears) as manager:
        (quarantined,) = ears.all(FileQuarantined)
        acks += [Ack(seq, "dan", receipt.node_id) for seq, receipt in enumerate(receipts, 101)]
        saved = await readable(manager, acks)
        assert set(range(101, 121)) <= saved
        assert saved | numbers(quarantined.unaccounted) == set(range(1, 121))


async def test_what_a_damaged_file_kept_alone_is_saved_too(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        receipt = await manager.store_persistent_memory("ada", {"text": "poison"}, FACT)
        file = tiers(manager).file
        (operation,) = file.outbox.claim(after_seq=0, limit=10)
        await file.outbox.bury(operation, sqlstate="22P02", reason="a test")
        thought = await manager.store_transient_memory("thread", {"text": "a thought"}, "agent_thought")
        await manager.checkpoints.save("thread", "one", {"step": 1})
        await move_log_into_file(manager)
        left = images.image(tmp_path / "first", tmp_path / "left")
    images.ruin_first_page(left)
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=left, observer=ears) as manager:
        (quarantined,) = ears.all(FileQuarantined)
        assert (quarantined.salvaged, quarantined.dead_letters, quarantined.unaccounted) == (0, 1, ())
        (letter,) = await manager.dead_letters.list()
        assert (letter.operation.op_id, letter.sqlstate) == (receipt.op_id, "22P02")
        assert [node.node_id for node in manager.transient_memories("thread")] == [thought]
        saved = await manager.checkpoints.load("thread")
        assert saved is not None
        assert saved.state == {"step": 1}


async def test_nothing_is_written_to_a_file_after_it_was_found_damaged(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        await store_many(manager)
        await move_log_into_file(manager)
        left = images.image(tmp_path / "first", tmp_path / "left")
    with closed_file(left) as connection:  # as after a clean end, so that it is not looked through at once
        connection.execute("update meta set value = '1' where key = 'clean'")
        (page,) = connection.execute("select rootpage from sqlite_master where name = 'nodes_by_id'").fetchone()
    images.overwrite(left / FILE, (page - 1) * PAGE_BYTES, bytes(PAGE_BYTES))
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        await manager.checkpoints.save("thread", "one", {"step": 1})  # it is sound as far as this goes
        with pytest.raises(StorageCorrupt):
            await manager.store_persistent_memory("ada", {"text": "next"}, FACT, wait=0)
        before = images.digest(left)
        health = await manager.health()
        assert health.condition is Condition.FAILED
        assert "damaged" in health.causes[-1]
        with pytest.raises(StorageCorrupt):
            await manager.checkpoints.save("thread", "two", {"step": 2})
        loaded = await manager.checkpoints.load("thread")
        assert loaded is not None  # reads go on where they can
    assert images.digest(left) == before
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=left, observer=ears) as manager:
        (quarantined,) = ears.all(FileQuarantined)
        assert (quarantined.salvaged, quarantined.unaccounted) == (WRITES, ())


async def _freshness(memory: UserMemory, _node_id: str) -> None:
    memory.freshness()


@pytest.mark.parametrize(
    ("index", "ask"),
    [
        ("nodes_by_id", UserMemory.get),
        ("relationships_by_source", UserMemory.neighbours),
        ("outbox_by_entity", _freshness),
    ],
)
async def test_a_read_that_meets_damage_stops_the_writing_too(
    tmp_path: Path, index: str, ask: Callable[[UserMemory, str], Awaitable[object]]
) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        acks = await store_many(manager, 60)
        await move_log_into_file(manager)
        left = images.image(tmp_path / "first", tmp_path / "left")
    with closed_file(left) as connection:
        connection.execute("update meta set value = '1' where key = 'clean'")
        asked = "select rootpage from sqlite_master where name = ?"
        (page,) = connection.execute(asked, (index,)).fetchone()
    images.overwrite(left / FILE, (page - 1) * PAGE_BYTES, bytes(PAGE_BYTES))
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        with pytest.raises(StorageCorrupt):
            await ask(manager.user("bob"), acks[0].node_id)
        await until(lambda: tiers(manager).file.database.failure is not None)
        with pytest.raises(StorageCorrupt):
            await manager.checkpoints.save("thread", "one", {"step": 1})


@pytest.mark.parametrize("step", ["take_in", "read_damaged", "_fill", "conclude", "hand_over"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_mending_that_was_killed_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        acks = await store_many(manager, 30)
        await move_log_into_file(manager)
        left = images.image(tmp_path / "first", tmp_path / "left")
    images.ruin_header(left)
    owner: object = Quarantine if hasattr(Quarantine, step) else mending
    real: Callable[..., object] = getattr(owner, step)

    def killed_here(*given: object, **named: object) -> object:
        if when == "after":
            real(*given, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed_here)
        with pytest.raises(Killed):
            async with HybridMemoryManager.open(postgres="off", data_dir=left):
                raise AssertionError
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        assert await readable(manager, acks) == {ack.seq for ack in acks}
        assert manager.queue().entries == len(acks)
    (one,) = quarantines(left)
    assert one.is_finished


async def test_an_erasure_leaves_no_byte_of_the_user_in_what_was_set_aside(tmp_path: Path) -> None:
    secret = hashlib.sha256(b"ada").hexdigest()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        await manager.store_persistent_memory("ada", {"text": secret}, FACT)
        await manager.store_persistent_memory("bob", {"text": "tea"}, FACT)
        await move_log_into_file(manager)
        left = images.image(tmp_path / "first", tmp_path / "left")
    images.ruin_header(left)
    async with HybridMemoryManager.open(postgres="off", data_dir=left) as manager:
        assert images.files_with(left, secret.encode())
        removed = await manager.forget("ada")
        assert removed["quarantine"] == 1
        assert not images.files_with(left, secret.encode())
        assert len((await manager.user("bob").list()).items) == 1
        assert await manager.forget("bob")  # with nothing set aside any more


async def test_a_file_of_another_program_in_our_place_is_refused_and_left(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        await store_many(manager, 3)
    (tmp_path / FILE).unlink()
    theirs = sqlite3.connect(tmp_path / FILE)
    theirs.execute("create table theirs (a)")
    theirs.close()
    before = images.digest(tmp_path)
    with pytest.raises(StorageCorrupt):
        async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path):
            raise AssertionError
    assert images.digest(tmp_path) == before
    assert not (tmp_path / "quarantine").exists()
