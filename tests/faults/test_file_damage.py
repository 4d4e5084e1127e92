"""A short run of the campaign that damages the local file at random."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.changes import Operation
from hybrid_memory.events import FileQuarantined
from hybrid_memory.sqlite.salvage import PAGE_BYTES
from tests.campaigns import file_damage
from tests.support.beneath import tiers
from tests.support.images import FILE, closed_file, image, overwrite
from tests.support.managers import FACT, Ears
from tests.support.poison import queued


@pytest.mark.parametrize("seed", [5, 6])
async def test_a_randomly_damaged_file_loses_no_write_unnamed(seed: int) -> None:
    tallies = await asyncio.to_thread(file_damage.run, seconds=2.0, seed=seed)
    assert sum(tally.injected for tally in tallies) > 0
    assert sum(tally.lost + tally.diverged for tally in tallies) == 0, tallies


async def test_an_entry_that_a_damaged_page_has_lost_without_a_word_is_named(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        for number in range(40):
            await manager.store_persistent_memory("ada", {"text": f"{number}" * 40}, FACT)
        first, second = tiers(manager).file.outbox.claim(after_seq=0, limit=2)
        await tiers(manager).file.database.cut_log()
        image(tmp_path / "first", tmp_path / "left")
    content = bytearray((tmp_path / "left" / FILE).read_bytes())
    # The first entry of a page lies at its end. Nothing is left of it, and of the second not all.
    at = content.index(second.payload[-40:].encode())
    assert content.index(first.op_id.encode()) // PAGE_BYTES == at // PAGE_BYTES
    end = (at // PAGE_BYTES + 1) * PAGE_BYTES
    content[at:end] = bytes(end - at)
    (tmp_path / "left" / FILE).write_bytes(content)
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "left", observer=ears) as manager:
        queued = {one.seq for one in tiers(manager).file.outbox.claim(after_seq=0, limit=100)}
    (found,) = ears.all(FileQuarantined)
    named = {seq for low, high in found.unaccounted for seq in range(low, high + 1)}
    assert {first.seq, second.seq} <= named
    assert queued | named == set(range(1, 41))


async def left_with_forty(tmp_path: Path) -> tuple[Path, list[Operation]]:
    """What a process leaves that was killed with forty operations queued, all of them in the file."""
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path / "first") as manager:
        for number in range(40):
            await manager.store_persistent_memory("ada", {"text": f"{number} " * 40}, FACT)
        await tiers(manager).file.database.cut_log()
        return image(tmp_path / "first", tmp_path / "left"), queued(manager)


async def saved_and_named(left: Path) -> tuple[list[Operation], set[int]]:
    """What is queued in a damaged file once it is mended, and the numbers that are named as lost."""
    ears = Ears()
    async with HybridMemoryManager.open(postgres="off", data_dir=left, observer=ears) as manager:
        saved = queued(manager)
    (found,) = ears.all(FileQuarantined)
    return saved, {seq for low, high in found.unaccounted for seq in range(low, high + 1)}


@pytest.mark.parametrize("member", ["op_id", "base", "delta", "stamp", "payload", "accepted_at", "kind", "seq"])
async def test_no_part_of_a_queued_operation_changes_unnoticed(tmp_path: Path, member: str) -> None:
    left, stored = await left_with_forty(tmp_path)
    last = stored[-1]
    changed = {
        "op_id": stored[0].op_id,
        "base": 7,
        "delta": 0,
        "stamp": last.stamp ^ 1,
        # Only the name of a member: the row that it carries has the hash that it says.
        "payload": last.payload.replace('"rule":"append"', '"rule":"merge"'),
        "accepted_at": last.accepted_at ^ 1,
        "kind": "erase",
        "seq": last.seq + 2,
    }
    with closed_file(left) as connection:
        # A whole row, so that SQLite finds nothing wrong with it.
        connection.execute(f"update outbox set {member} = ? where seq = ?", (changed[member], last.seq))
    saved, named = await saved_and_named(left)
    assert saved == stored[:-1]
    assert last.seq in named


async def test_a_member_whose_name_was_damaged_is_not_taken_for_sound(tmp_path: Path) -> None:
    left, stored = await left_with_forty(tmp_path)
    content = (left / FILE).read_bytes()
    place = content.index(b'{"user_id":"ada","node_id":"' + stored[20].entity_id.encode())
    overwrite(left / FILE, place + len('{"us'), b"a")
    saved, named = await saved_and_named(left)
    assert saved == [one for one in stored if one.seq != 21]
    assert named == {21}


async def test_entries_that_a_page_has_dropped_from_its_count_are_named(tmp_path: Path) -> None:
    left, stored = await left_with_forty(tmp_path)
    content = bytearray((left / FILE).read_bytes())
    page = content.index(stored[20].op_id.encode()) // PAGE_BYTES * PAGE_BYTES
    count = int.from_bytes(content[page + 3 : page + 5])
    content[page + 3 : page + 5] = (count - 1).to_bytes(2)
    (left / FILE).write_bytes(content)
    saved, named = await saved_and_named(left)
    assert len(saved) == len(stored) - 1
    assert {one.seq for one in saved} | named == {one.seq for one in stored}
    assert named
    assert all(one == stored[one.seq - 1] for one in saved)
