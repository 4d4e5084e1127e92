"""Whatever call of the disk fails: what was acknowledged is there, what failed says so, and a restart goes on.

The disk fails beneath a real process (see `hybrid_memory.testing.disk`): with EIO, without room, with half a write.
"""

from __future__ import annotations

import errno
import random
from itertools import cycle

import asyncpg
import pytest

from hybrid_memory.testing.disk import FULL, Call, DiskFault, FaultDisk
from tests.plugins.postgres import Database
from tests.support.sick_disk import OURS, SHORT, Ends, Puppet, Trial, attempt
from tests.support.waiting import until

SAMPLE = 16
# More calls than the scenario makes: nothing fails, and they are counted.
NEVER = 10**9


def wrong(trials: list[Trial]) -> list[tuple[DiskFault, str]]:
    return [(trial.fault, one) for trial in trials for one in trial.wrong]


async def calls(player: Puppet, disk: FaultDisk, fault: DiskFault) -> int:
    """How many calls of the fault's kinds the whole scenario makes."""
    healthy = await attempt(player, disk, fault)
    assert healthy.wrong == []
    assert healthy.acked == 9
    return disk.matched


@pytest.mark.parametrize("times", [1, None], ids=["once", "for ever"])
async def test_whichever_call_fails_what_was_acknowledged_survives_and_a_restart_works(
    disk: FaultDisk, player: Puppet, times: int | None
) -> None:
    made = await calls(player, disk, DiskFault(nth=NEVER))
    assert made > 200
    chosen = sorted(random.Random(f"{times}").sample(range(1, made + 1), SAMPLE))
    trials = [
        await attempt(player, disk, DiskFault(error=error, nth=nth, times=times))
        for nth, error in zip(chosen, cycle((errno.EIO, errno.ENOSPC)), strict=False)
    ]
    assert wrong(trials) == []
    assert sum(trial.struck > 0 for trial in trials) > SAMPLE / 2


async def test_half_a_write_and_then_no_room_leaves_nothing_half(disk: FaultDisk, player: Puppet) -> None:
    writes = frozenset({Call.WRITE})
    made = await calls(player, disk, DiskFault(nth=NEVER, calls=writes))
    chosen = random.Random(1).sample(range(1, made + 1), SAMPLE)
    trials = [
        await attempt(player, disk, DiskFault(error=errno.ENOSPC, nth=nth, times=3, calls=writes, half_first=True))
        for nth in sorted(chosen)
    ]
    assert wrong(trials) == []


async def test_after_an_fsync_that_failed_nothing_is_acknowledged_or_synced_again_until_a_restart(
    disk: FaultDisk, player: Puppet
) -> None:
    folder = disk.root / "fsync"
    await player.begin(folder)
    assert await player.do(("open",), ("store", "a"), ("secret",)) == [
        ("open", "ok"),
        ("store a", "ok"),
        ("secret", "ok"),
    ]
    disk.arm(DiskFault(calls=frozenset({Call.SYNC}), suffix="-wal"))
    assert await player.do(("store", "b")) == [("store b", "storage_failed")]
    assert disk.struck == 1
    told = await player.do(("store", "c", "d"), ("forget",), ("transient",), ("list",), ("health",), ("close",))
    assert {end for deed, end in told if deed.startswith(("store", "forget", "transient"))} == {"storage_failed"}
    assert ("there", "a") in told, "reads go on"
    assert ("condition", "failed") in told
    assert ("close", "ok") in told
    assert disk.matched == 1, "the log was synced again"
    disk.disarm()
    again = await player.do(("open",), ("list",), ("store", "z"), ("forget",), ("health",), ("close",))
    assert {key for deed, key in again if deed == "there"} in ({"a"}, {"a", "b"})
    assert {end for deed, end in again if deed != "there"} == {"ok", "degraded"}
    await player.end()


async def test_what_cannot_be_read_is_said_to_have_failed_and_is_read_when_the_disk_is_well_again(
    disk: FaultDisk, player: Puppet
) -> None:
    await player.begin(disk.root / "reading")
    await player.do(("open",), ("store", *"abc"), ("close",), ("open",))
    disk.arm(DiskFault(calls=frozenset({Call.READ}), times=None))
    told = await player.do(("why",), ("list",), ("find",), ("why",))
    assert disk.struck > 0
    assert {end for deed, end in told if deed in {"list", "find"}} <= OURS - {"ok"}, told
    assert [end for deed, end in told if deed == "why"] == ["ok", "ok"], "health answers whatever it has to tell of"
    assert [end for deed, end in told if deed == "condition"] == ["failed", "failed"]
    assert [end for deed, end in told if deed == "queued"] == ["3", "3"], "what waits is known without the file"
    assert sum("cannot be read" in end for deed, end in told if deed == "cause") == 2
    disk.disarm()
    again = await player.do(("list",), ("find",), ("health",))
    assert {key for deed, key in again if deed == "there"} == set("abc")
    assert {end for deed, end in again if deed not in {"there", "condition"}} == {"ok"}
    await player.end()


@pytest.mark.parametrize("times", [1, None], ids=["once", "for ever"])
async def test_a_write_that_finds_a_page_unreadable_says_that_the_disk_failed_and_not_that_the_file_is_damaged(
    disk: FaultDisk, player: Puppet, times: int | None
) -> None:
    await player.begin(disk.root / f"unread{times}")
    await player.do(("open",), ("store", *"abc"), ("close",), ("open",))
    disk.arm(DiskFault(calls=frozenset({Call.READ}), times=times))
    told = await player.do(("store", "d"), ("store", "e"), ("why",))
    assert disk.struck > 0
    disk.disarm()
    assert {end for deed, end in told if deed.startswith("store")} == {"storage_failed"}, told
    assert not any("damaged" in end for deed, end in told if deed == "cause"), told
    again = await player.do(("close",), ("open",), ("list",), ("store", "z"), ("close",))
    assert {end for deed, end in again if deed != "there"} == {"ok"}
    assert {key for deed, key in again if deed == "there"} >= set("abc")
    await player.end()


async def test_a_disk_that_fails_for_good_as_an_opening_ends_does_not_keep_the_slot(
    disk: FaultDisk, player: Puppet
) -> None:
    await player.begin(disk.root / "healthy")
    disk.arm(DiskFault(nth=NEVER))
    await player.do(("open",))
    calls = disk.matched
    disk.disarm()
    await player.end()
    for nth in range(calls - 2, calls + 1):
        trial = await attempt(player, disk, DiskFault(nth=nth, times=None))
        assert trial.wrong == [], f"call {nth} of {calls}"


async def test_a_read_that_fails_once_is_read_again_and_writing_goes_on(disk: FaultDisk, player: Puppet) -> None:
    await player.begin(disk.root / "rereading")
    await player.do(("open",), ("store", *"abc"), ("close",), ("open",))
    for deed in ("list", "find"):
        disk.arm(DiskFault(calls=frozenset({Call.READ})))
        told = await player.do((deed,))
        assert (deed, "ok") in told
    disk.disarm()
    told = await player.do(("list",), ("store", "d"), ("health",))
    assert {key for deed, key in told if deed == "there"} == set("abc")
    assert ("store d", "ok") in told
    assert ("condition", "failed") not in told
    await player.end()


async def test_reads_that_fail_do_not_stop_the_writing_once_the_disk_is_well(disk: FaultDisk, player: Puppet) -> None:
    await player.begin(disk.root / "well")
    await player.do(("open",), ("store", *"abc"), ("close",), ("open",))
    disk.arm(DiskFault(calls=frozenset({Call.READ}), times=None))
    told = await player.do(("list",), ("find",))
    assert disk.struck > 0
    assert {end for deed, end in told if deed != "there"} == {"storage_failed"}, told
    disk.disarm()
    told = await player.do(("list",), ("store", "d"), ("health",))
    assert {key for deed, key in told if deed == "there"} == set("abc")
    assert ("store d", "ok") in told
    await player.end()


async def test_on_a_full_disk_stores_are_refused_reads_go_on_and_room_that_returns_is_used(
    disk: FaultDisk, player: Puppet
) -> None:
    folder = disk.root / "full"
    await player.begin(folder)
    await player.do(("open",), ("store", "a"), ("secret",))
    disk.arm(FULL)
    told = await player.do(("store", "b"), ("store", "c", "d"), ("transient",), ("forget",), ("list",), ("health",))
    refused = {deed: end for deed, end in told if deed.startswith(("store", "transient", "forget"))}
    assert set(refused.values()) == {"storage_full"}, refused
    assert [key for deed, key in told if deed == "there"] == ["a"]
    assert ("condition", "failed") not in told
    disk.disarm()
    again = await player.do(("store", "b"), ("forget",), ("transient",), ("list",), ("close",))
    assert {end for deed, end in again if deed != "there"} == {"ok"}
    assert {key for deed, key in again if deed == "there"} == {"a", "b"}
    await player.end()


async def test_a_full_disk_at_the_end_does_not_keep_the_slot(disk: FaultDisk, player: Puppet) -> None:
    await player.begin(disk.root / "closing")
    await player.do(("open",), ("store", "a"))
    disk.arm(FULL)
    told = await player.do(("close",))
    disk.disarm()
    assert told == [("close", "storage_full")]
    assert await player.do(("open",), ("list",), ("close",)) == [
        ("open", "ok"),
        ("there", "a"),
        ("list", "ok"),
        ("close", "ok"),
    ]
    await player.end()


async def test_what_cannot_be_settled_for_want_of_room_is_sent_again_and_applied_once(
    disk: FaultDisk, player: Puppet, postgres: Database, admin: asyncpg.Connection
) -> None:
    await player.begin(disk.root / "settling", postgres.app_dsn)
    await player.do(("open",), ("store", "durable"))
    async with admin.transaction():
        await admin.execute("select from memory.heads for update")  # the relay waits for it
        await player.do(("store", *"abcdefgh"))
        disk.arm(FULL)
    await until(lambda: disk.struck > 1, seconds=20)
    assert ("condition", "failed") not in await player.do(("health",))
    disk.disarm()
    told: Ends = await player.do(("drain",), ("close",))
    assert ("left", "0") in told
    assert {end for deed, end in told if deed != "left"} <= OURS
    await player.end()
    assert await admin.fetchval("select rev from memory.heads") == 9
    assert await admin.fetchval("select count(*) from memory.nodes") == 9


async def test_the_scenario_meets_every_kind_of_call(disk: FaultDisk, player: Puppet) -> None:
    before = {call: disk.count(call) for call in Call}
    await player.begin(disk.root / "kinds")
    await player.do(*SHORT)
    await player.end()
    made = {call for call in Call if disk.count(call) > before[call]}
    assert made >= {Call.OPEN, Call.READ, Call.WRITE, Call.TRUNCATE, Call.SYNC, Call.UNLINK, Call.MKDIR}
