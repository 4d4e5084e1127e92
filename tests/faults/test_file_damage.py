"""A short run of the campaign that damages the local file at random."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager
from hybrid_memory.events import FileQuarantined
from hybrid_memory.sqlite.salvage import PAGE_BYTES
from tests.campaigns import file_damage
from tests.support.beneath import tiers
from tests.support.images import FILE, image
from tests.support.managers import FACT, Ears


@pytest.mark.parametrize("seed", [5, 6])
async def test_a_randomly_damaged_file_loses_no_write_unnamed(seed: int) -> None:
    tallies = await asyncio.to_thread(file_damage.run, seconds=2.0, seed=seed)
    assert sum(tally.injected for tally in tallies) > 0
    assert sum(tally.lost for tally in tallies) == 0, tallies


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
