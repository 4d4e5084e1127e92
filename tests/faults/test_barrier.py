"""A token of one process, waited for in another: what was seen and stored there is here, or it is said not to be."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, InvalidInput, Settings, Status
from hybrid_memory.sqlite import last_operations
from tests.faults.conftest import Sick
from tests.faults.test_two_managers import paired
from tests.plugins.postgres import Database
from tests.support.beneath import staff, tiers, unheard
from tests.support.managers import FACT, contents, drained, opened

pytestmark = pytest.mark.usefixtures("one_place")

# Nothing comes but what is asked for: no poll, no hint.
DEAF = Settings(poll_interval=timedelta(minutes=5), pooler="transaction")
OTHER_EPOCH = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("wait", [0.0, 20.0])
async def test_what_one_process_stored_another_sees_behind_the_barrier(
    postgres: Database, tmp_path: Path, wait: float
) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair:
        for round_number in range(5):
            stored = [
                await pair.here.store({"n": n, "round": round_number}, context_type=FACT, wait=wait) for n in range(3)
            ]
            assert await pair.there.barrier(pair.here.token(), wait=20)
            assert [await pair.there.get(one.node_id) is not None for one in stored] == [True] * 3
            back = await pair.there.store({"n": -1}, context_type=FACT, wait=wait)
            assert await pair.here.barrier(pair.there.token(), wait=20)
            assert await pair.here.get(back.node_id) is not None


async def test_what_one_process_has_seen_of_a_third_another_sees_too(postgres: Database, tmp_path: Path) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair, opened(postgres, tmp_path, settings=DEAF) as third:
        memory = await third.ensure_user_memories("ada")
        stored = await memory.store({"n": 1}, context_type=FACT, wait=20)
        await staff(pair.first).preload.bring_up_to_date("ada")
        assert await pair.there.barrier(pair.here.token(), wait=20)
        assert await pair.there.get(stored.node_id) is not None


async def test_a_write_that_was_read_before_its_caller_heard_of_it_is_waited_for(
    postgres: Database, tmp_path: Path
) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair:
        await pair.here.store({"n": 0}, context_type=FACT, key="tea", wait=20)
        relay = staff(pair.first).relay_service
        await relay.stop()
        storing = pair.here.store({"n": 1}, context_type=FACT, key="tea", wait=0)
        async with unheard(tiers(pair.first).file, storing):
            seen = await pair.here.list()
            token = pair.here.token()
        assert [node.content["n"] for node in seen.items] == [1]
        assert not await pair.there.barrier(token, wait=0.2)
        relay.start()
        assert await pair.there.barrier(token, wait=20)
        assert [node.content["n"] for node in (await pair.there.list()).items] == [1]


async def test_a_write_of_an_earlier_life_is_waited_for_although_the_user_was_never_loaded(
    postgres: Database, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "one", settings=DEAF) as manager:
        stored = await manager.user("ada").store({"n": 1}, context_type=FACT, wait=20)
    async with opened(postgres, tmp_path / "two", settings=DEAF) as other:
        memory = await other.ensure_user_memories("ada")
        async with opened(postgres, tmp_path / "one", settings=DEAF) as successor:
            await successor.user("ada").store({"n": 2}, context_type=FACT, wait=20)
        async with opened(postgres, tmp_path / "one", settings=DEAF) as successor:
            seen = await successor.user("ada").list()
            token = successor.user("ada").token()
            assert await successor.user("ada").barrier(token, wait=0)
        assert len(seen.items) == 2
        assert await memory.get(stored.node_id) is not None
        assert await memory.barrier(token, wait=20)
        assert sorted(str(node.content["n"]) for node in (await memory.list()).items) == ["1", "2"]


async def test_what_came_by_the_feed_and_was_read_before_the_feed_heard_of_it_is_waited_for(
    postgres: Database, tmp_path: Path
) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair, opened(postgres, tmp_path, settings=DEAF) as third:
        memory = await third.ensure_user_memories("ada")
        stored = await memory.store({"n": 1}, context_type=FACT, wait=20)
        async with unheard(tiers(pair.first).file, staff(pair.first).preload.bring_up_to_date("ada")):
            assert await pair.here.get(stored.node_id) is not None
            token = pair.here.token()
        assert await pair.there.barrier(token, wait=20)
        assert await pair.there.get(stored.node_id) is not None


async def test_what_is_still_queued_there_is_waited_for_and_missed_in_time(
    postgres: Database, sick: Sick, tmp_path: Path
) -> None:
    del postgres
    async with paired(sick.database, tmp_path, DEAF) as pair:
        relay = staff(pair.first).relay_service
        await relay.stop()
        stored = await pair.here.store({"n": 1}, context_type=FACT, wait=0)
        token = pair.here.token()
        assert not await pair.there.barrier(token, wait=0.2)
        assert await pair.here.barrier(token, wait=0), "its own writes are there at once"
        waiting = asyncio.create_task(pair.there.barrier(token, wait=20))
        await asyncio.sleep(0)
        relay.start()
        assert await waiting
        assert await pair.there.get(stored.node_id) is not None
        sick.server.freeze()
        try:
            await pair.here.store({"n": 2}, context_type=FACT, wait=0)
            began = time.monotonic()
            assert not await pair.there.barrier(pair.here.token(), wait=0.3)
            assert time.monotonic() - began < 0.3 + 0.5
        finally:
            sick.server.thaw()
        assert await pair.there.barrier(pair.here.token(), wait=20)


async def test_a_token_outlives_its_maker_and_speaks_of_what_its_successor_finds_queued(
    postgres: Database, tmp_path: Path
) -> None:
    nowhere = f"postgresql://nobody@/none?host={tmp_path}"
    async with opened(nowhere, tmp_path / "one") as manager:
        stored = await manager.user("ada").store({"n": 1}, context_type=FACT, wait=0)
        token = manager.user("ada").token()
    async with opened(nowhere, tmp_path / "one") as manager:
        assert manager.user("ada").token() == token
    async with opened(postgres, tmp_path / "two", settings=DEAF) as other:
        memory = await other.ensure_user_memories("ada")
        assert not await memory.barrier(token, wait=0.1)
        async with opened(postgres, tmp_path / "one", settings=DEAF) as successor:
            await drained(successor)
            later = successor.user("ada").token()
        assert await memory.barrier(token, wait=20)
        assert await memory.get(stored.node_id) is not None
        assert await memory.barrier(later, wait=20)


async def test_an_erasure_there_is_done_here_behind_the_barrier(postgres: Database, tmp_path: Path) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair:
        await pair.here.store({"n": 1}, context_type=FACT, wait=20)
        assert await pair.there.barrier(pair.here.token(), wait=20)
        await pair.first.forget("ada")
        assert await pair.there.barrier(pair.here.token(), wait=20)
        assert await contents(pair.there) == {}


async def test_a_token_from_before_the_past_was_rewritten_or_of_another_user_is_refused(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair:
        await pair.here.store({"n": 1}, context_type=FACT, wait=20)
        await staff(pair.first).preload.bring_up_to_date("ada")
        bo = await pair.second.ensure_user_memories("bo")
        await bo.store({"n": 1}, context_type=FACT, wait=20)
        with pytest.raises(InvalidInput, match="token"):
            await bo.barrier(pair.here.token(), wait=20)
        token = pair.here.token()
        await admin.execute("update memory.heads set epoch = $1::uuid where user_id = 'ada'", OTHER_EPOCH)
        with pytest.raises(InvalidInput, match="token"):
            await pair.there.barrier(token, wait=20)


async def test_a_user_nobody_has_stored_anything_for_is_no_reason_to_wait(postgres: Database, tmp_path: Path) -> None:
    async with paired(postgres, tmp_path, DEAF) as pair:
        assert await pair.there.barrier(pair.first.user("new").token(), wait=20)
        assert (await pair.here.store({"n": 1}, context_type=FACT, wait=20)).status is Status.DURABLE


async def test_its_own_token_is_no_reason_to_wait_without_postgres_either(tmp_path: Path) -> None:
    async with HybridMemoryManager.open(postgres="off", data_dir=tmp_path) as manager:
        memory = manager.user("ada")
        assert await memory.barrier(memory.token(), wait=0)
        await memory.store({"n": 1}, context_type=FACT)
        assert await memory.barrier(memory.token(), wait=0)
        other = memory.token().replace(memory.token().split(".")[3], OTHER_EPOCH)
        assert not await memory.barrier(other, wait=0.05)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "1",
        None,
        b"1",
        "1.-.0.nobody.0",
        f"1.-.-1.{OTHER_EPOCH}.0",
        f"1.-.0.{OTHER_EPOCH}.9999999999999999999",
        f"2.-.0.{OTHER_EPOCH}.0",
        f"1.-.0.{OTHER_EPOCH}.0 ",
        f"1.-.٣.{OTHER_EPOCH}.0",
        f"1.{OTHER_EPOCH}.0.-.0",
    ],
)
async def test_what_is_no_token_is_refused_by_name(tmp_path: Path, token: str) -> None:
    async with opened(f"postgresql://nobody@/none?host={tmp_path}", tmp_path) as manager:
        memory = manager.user("ada")
        with pytest.raises(InvalidInput) as refused:
            await memory.barrier(token)
        assert refused.value.field == "token"
        with pytest.raises(InvalidInput, match="wait"):
            await memory.barrier(memory.token(), wait=-1)


@pytest.mark.parametrize("kept", [10_000, 0], ids=["remembered", "forgotten"])
async def test_what_was_stored_for_a_user_who_was_let_go_since_is_waited_for(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(last_operations, "_MOST_LET_GO", kept)
    async with paired(postgres, tmp_path, DEAF) as pair:
        gone, known = pair.first.user("bo"), await pair.second.ensure_user_memories("bo")
        stored = await gone.store({"n": 1}, context_type=FACT, wait=20)
        await drained(pair.first)
        file = tiers(pair.first).file
        assert await file.replica.evict("bo")
        remembered = vars(file.outbox.last)
        assert "bo" not in remembered["_last"]
        assert len(remembered["_let_go"]) == (kept > 0)
        assert await known.get(stored.node_id) is None
        assert await known.barrier(gone.token(), wait=20)
        assert await known.get(stored.node_id) is not None
        # Loaded again, the copy speaks for all that was stored before.
        again = await pair.first.ensure_user_memories("bo")
        assert await known.barrier(again.token(), wait=20)
