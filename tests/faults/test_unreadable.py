"""A disk that does not give what it holds is no damage: nothing is set aside, all is there when it is well again."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory.testing.disk import Call, DiskFault, FaultDisk
from tests.plugins.postgres import Database
from tests.support.dead_owners import give_head, in_slot, left_in, numbers_of, store, user_locked
from tests.support.images import FILE, ruin_first_page
from tests.support.sick_disk import Ends, Puppet
from tests.support.waiting import eventually, until

READS = frozenset({Call.READ})
NEVER = 10**9
SAMPLE = 8
SECONDS = 30.0
STORED = set("abc")


async def left(player: Puppet, folder: Path, *, closed: bool) -> Path:
    """A data directory whose owner has closed it, or died without."""
    await player.begin(folder)
    await player.do(("open",), ("store", *sorted(STORED)))
    if closed:
        await player.do(("close",))
        await player.end()
    else:
        await player.kill()
    return folder


def content(folder: Path) -> dict[str, str]:
    """What is in the file, its log and its record, wherever they lie."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        path.name: hashlib.sha256(held).hexdigest()
        for path, held in found.items()
        # An empty log is none.
        if held and not path.name.endswith((".lock", "-shm"))
    }


def there(ends: Ends) -> set[str]:
    return {key for deed, key in ends if deed == "there"}


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("suffix", ["", FILE, f"{FILE}-wal"], ids=["everything", "the file", "the log"])
async def test_what_cannot_be_read_is_left_as_it_is_and_opens_when_the_disk_is_well(
    disk: FaultDisk, player: Puppet, suffix: str, closed: bool
) -> None:
    folder = await left(player, disk.root / f"{closed}{suffix}", closed=closed)
    before = content(folder)
    await player.begin(folder)
    disk.arm(DiskFault(calls=READS, suffix=suffix, times=None))
    told = await player.do(("open",))
    struck = disk.struck
    disk.disarm()
    if struck:
        assert told == [("open", "storage_failed")]
        assert content(folder) == before
    else:
        assert (closed, suffix) == (True, f"{FILE}-wal"), "after a close there is no log"
        await player.do(("close",))
    again = await player.do(("open",), ("list",), ("store", "z"), ("close",))
    assert {end for deed, end in again if deed != "there"} == {"ok"}
    assert there(again) == STORED
    assert not (folder / "quarantine").exists()
    await player.end()


@pytest.mark.parametrize("times", [1, None], ids=["once", "for ever"])
async def test_whichever_read_of_an_opening_fails_nothing_is_set_aside(
    disk: FaultDisk, player: Puppet, times: int | None
) -> None:
    folder = await left(player, disk.root / f"count{times}", closed=False)
    await player.begin(folder)
    disk.arm(DiskFault(calls=READS, nth=NEVER))
    assert ("open", "ok") in await player.do(("open",))
    reads = disk.matched
    disk.disarm()
    await player.end()
    assert reads > SAMPLE
    for nth in sorted(random.Random(f"{times}").sample(range(1, reads + 1), SAMPLE)):
        folder = await left(player, disk.root / f"{times}-{nth}", closed=False)
        await player.begin(folder)
        disk.arm(DiskFault(calls=READS, nth=nth, times=times))
        ((_, end),) = await player.do(("open",))
        disk.disarm()
        assert end in {"ok", "storage_failed"}, nth
        again = await player.do(("close",), ("open",), ("list",), ("store", "z"), ("close",))
        assert {told for deed, told in again if deed != "there"} == {"ok"}, nth
        assert there(again) == STORED, nth
        assert not (folder / "quarantine").exists(), nth
        await player.end()


async def test_a_damaged_file_that_cannot_be_read_is_mended_once_it_can(disk: FaultDisk, player: Puppet) -> None:
    folder = await left(player, disk.root / "both", closed=True)
    ruin_first_page(folder)
    before = content(folder)
    await player.begin(folder)
    disk.arm(DiskFault(calls=READS, suffix=FILE, times=None))
    assert await player.do(("open",)) == [("open", "storage_failed")]
    disk.disarm()
    assert content(folder) == before
    again = await player.do(("open",), ("list",))
    assert ("open", "ok") in again
    assert there(again) == STORED
    assert (folder / "quarantine").exists()
    await player.end()


async def test_a_dead_owners_file_that_could_not_be_read_is_adopted_when_it_can(
    disk: FaultDisk, player: Puppet, postgres: Database, admin: asyncpg.Connection
) -> None:
    folder = disk.root / "adopted"
    await give_head(postgres, folder, "ada")
    async with user_locked(postgres.admin_dsn, "ada"), in_slot(1, folder, postgres.app_dsn) as owner:
        await store(owner.user("ada"), 3)
    assert left_in(1, folder) == 3
    await player.begin(folder, postgres.app_dsn)
    # Not the first: that SQLite tells of as what it is.
    disk.arm(DiskFault(calls=READS, suffix="slot-01.db", nth=4, times=None))
    await player.do(("open any",))
    await until(lambda: disk.struck > 0, seconds=SECONDS)
    # Until its look is over; the next one comes a second later at the soonest.
    told: Ends = []
    while ("adopter", "storage_failed") not in told:
        told = await player.do(("adopter",))
        assert ("adopter", "storage_corrupt") not in told
    disk.disarm()

    async def adopted() -> bool:
        return await numbers_of(admin, "ada") == [-1, 0, 1, 2]

    await eventually(adopted, seconds=SECONDS)
    await player.do(("close",))
    await player.end()
    assert not (folder / "quarantine").exists()


async def reads_of_a_mending(disk: FaultDisk, player: Puppet, folder: Path) -> int:
    """How often the copy is read that is made of a file whose first page is ruined."""
    ruin_first_page(await left(player, folder, closed=True))
    await player.begin(folder)
    disk.arm(DiskFault(calls=READS, suffix="copy.db", nth=NEVER))
    assert ("open", "ok") in await player.do(("open",))
    reads = disk.matched
    disk.disarm()
    await player.end()
    return reads


@pytest.mark.parametrize("times", [1, 4], ids=["once", "four times"])
async def test_a_read_that_fails_for_a_moment_costs_a_damaged_file_nothing_of_its_queue(
    disk: FaultDisk, player: Puppet, times: int
) -> None:
    reads = await reads_of_a_mending(disk, player, disk.root / f"moment{times}")
    for nth in sorted(random.Random(f"moment{times}").sample(range(1, reads + 1), SAMPLE // 2)):
        folder = await left(player, disk.root / f"moment{times}-{nth}", closed=True)
        ruin_first_page(folder)
        await player.begin(folder)
        disk.arm(DiskFault(calls=READS, suffix="copy.db", nth=nth, times=times))
        ((_, end),) = await player.do(("open",))
        disk.disarm()
        assert end in {"ok", "storage_failed"}, nth
        again = await player.do(("close",), ("open",), ("list",), ("close",))
        assert {told for deed, told in again if deed != "there"} == {"ok"}, nth
        assert there(again) == STORED, nth
        await player.end()


async def test_a_disk_that_fails_while_a_damaged_file_is_read_costs_nothing_of_its_queue(
    disk: FaultDisk, player: Puppet
) -> None:
    reads = await reads_of_a_mending(disk, player, disk.root / "midway")
    for nth in (1, reads // 2, reads):
        folder = await left(player, disk.root / f"midway-{nth}", closed=True)
        ruin_first_page(folder)
        await player.begin(folder)
        disk.arm(DiskFault(calls=READS, suffix="copy.db", nth=nth, times=None))
        assert await player.do(("open",)) == [("open", "storage_failed")], nth
        disk.disarm()
        again = await player.do(("open",), ("list",), ("close",))
        assert {told for deed, told in again if deed != "there"} == {"ok"}, nth
        assert there(again) == STORED, nth
        await player.end()
