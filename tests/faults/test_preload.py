"""Loading a user: one load for many callers, beside everybody's writes, whole or not to be seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from hybrid_memory import HybridMemoryManager, Progress, Settings, Status, UserMemory
from hybrid_memory.changes import Operation
from hybrid_memory.events import LoadFinished, LoadStarted, Rewritten
from hybrid_memory.messages import BatchApplied, FlatRow, Opening
from hybrid_memory.postgres.change_feed import PostgresChangeFeed
from tests.plugins.postgres import Database, connected
from tests.support.beneath import staff, tiers
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, drained, opened
from tests.support.waiting import until

USER = "ada"
NODES = 5_000
"""More than two chunks."""
SECONDS = 20.0
NO_FEED = Settings(poll_interval=timedelta(minutes=5), pooler="transaction")


async def fill(memory: UserMemory, nodes: int) -> list[str]:
    receipts = await asyncio.gather(*(memory.store({"n": n}, context_type=FACT, wait=0) for n in range(nodes)))
    ids = [str(receipt.node_id) for receipt in receipts]
    await asyncio.gather(*(memory.relate(a, b, "led_to", wait=0) for a, b in pairwise(ids[:101])))
    return ids


@pytest.fixture
async def filled(postgres: Database, tmp_path: Path) -> AsyncIterator[HybridMemoryManager]:
    """Another manager, which has stored the user's graph."""
    async with opened(postgres, tmp_path / "other") as other:
        await fill(await other.ensure_user_memories(USER), NODES)
        await drained(other)
        yield other


class Gate:
    """Holds what a load adds, until it is opened."""

    def __init__(self, manager: HybridMemoryManager, patched: pytest.MonkeyPatch, adding: str) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        replica = tiers(manager).file.replica
        self._add: Callable[[int, Sequence[FlatRow]], Awaitable[None]] = getattr(replica, adding)
        patched.setattr(replica, adding, self.add)

    def add(self, generation: int, rows: Sequence[FlatRow]) -> asyncio.Task[None]:
        self.reached.set()
        return asyncio.get_running_loop().create_task(self._pass(generation, rows))

    async def _pass(self, generation: int, rows: Sequence[FlatRow]) -> None:
        await self.open.wait()
        await self._add(generation, rows)


@pytest.mark.usefixtures("filled")
async def test_many_callers_share_one_load_and_one_who_leaves_does_not_stop_it(
    postgres: Database, tmp_path: Path
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears, settings=NO_FEED) as manager:
        callers = [asyncio.create_task(manager.ensure_user_memories(USER)) for _ in range(50)]
        await ears.hear(LoadStarted)
        for leaving in callers[::7]:
            leaving.cancel()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        left = [outcome for outcome in outcomes if isinstance(outcome, asyncio.CancelledError)]
        assert len(left) == len(callers[::7])
        handle = await manager.ensure_user_memories(USER)
        assert len(await contents(handle)) == NODES
        assert len(ears.all(LoadStarted)) == len(ears.all(LoadFinished)) == 1


@pytest.mark.usefixtures("filled")
async def test_a_load_goes_on_although_every_caller_has_left(postgres: Database, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears, settings=NO_FEED) as manager:
        caller = asyncio.create_task(manager.ensure_user_memories(USER))
        await ears.hear(LoadStarted)
        caller.cancel()
        await ears.hear(LoadFinished)
        await both_tiers_agree(manager, manager.user(USER))


async def test_a_warm_restart_loads_only_what_changed(
    postgres: Database, tmp_path: Path, filled: HybridMemoryManager
) -> None:
    async with opened(postgres, tmp_path / "data", settings=NO_FEED) as manager:
        await manager.ensure_user_memories(USER)
    theirs = await filled.user(USER).store({"new": 1}, context_type=FACT, wait=SECONDS)
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears, settings=NO_FEED) as manager:
        memory = await manager.ensure_user_memories(USER)
        assert await memory.get(theirs.node_id) is not None
        (load,) = ears.all(LoadFinished)
        assert (load.nodes, load.relationships, load.full) == (1, 0, False)
        await both_tiers_agree(manager, memory)


@pytest.mark.usefixtures("filled")
async def test_a_warm_restart_loads_nothing_where_nothing_changed(postgres: Database, tmp_path: Path) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path / "data", settings=NO_FEED) as manager:
        await manager.ensure_user_memories(USER)
    async with opened(postgres, tmp_path / "data", ears=ears, settings=NO_FEED) as manager:
        memory = await manager.ensure_user_memories(USER)
        assert ears.all(LoadFinished) == []
        assert memory.freshness().complete
        assert len(await contents(memory)) == NODES


@pytest.mark.usefixtures("filled")
async def test_progress_is_told_to_everybody_who_waits_and_ends_with_all(postgres: Database, tmp_path: Path) -> None:
    first: list[Progress] = []
    second: list[Progress] = []
    async with opened(postgres, tmp_path / "data", settings=NO_FEED) as manager:
        await asyncio.gather(
            manager.ensure_user_memories(USER, progress=first.append),
            manager.ensure_user_memories(USER, progress=second.append),
        )
    assert first == second
    assert len(first) > 3
    assert [step.loaded for step in first] == sorted(step.loaded for step in first)
    assert [step.finished for step in first] == [False] * (len(first) - 1) + [True]
    assert first[-1].loaded == first[-1].total == NODES + 100


@pytest.mark.usefixtures("filled")
async def test_others_write_while_a_load_is_under_way(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres, tmp_path / "data", settings=NO_FEED) as manager:
        gate = Gate(manager, monkeypatch, "add_relationships")
        loading = asyncio.create_task(manager.ensure_user_memories(USER))
        await gate.reached.wait()
        other = await manager.user("bo").store({"n": 1}, context_type=FACT, wait=SECONDS)
        assert other.status is Status.DURABLE
        assert await contents(manager.user(USER)) == {}, "half a graph can be seen"
        gate.open.set()
        memory = await loading
        assert len(await contents(memory)) == NODES


@pytest.mark.usefixtures("filled")
async def test_own_writes_made_during_a_load_are_there_after_it_relayed_or_not(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres, tmp_path / "data", settings=NO_FEED) as manager:
        gate = Gate(manager, monkeypatch, "add_relationships")
        memory = manager.user(USER)
        before = await memory.store({"when": "before"}, context_type=FACT, wait=SECONDS)
        loading = asyncio.create_task(manager.ensure_user_memories(USER))
        await gate.reached.wait()
        relayed = await memory.store({"when": "relayed"}, context_type=FACT, wait=SECONDS)
        gone = await memory.store({"when": "gone"}, context_type=FACT, wait=SECONDS)
        await memory.delete(gone.node_id, wait=SECONDS)
        await memory.relate(before.node_id, relayed.node_id, "led_to", wait=SECONDS)
        await staff(manager).relay_service.stop()
        queued = await memory.store({"when": "queued"}, context_type=FACT, wait=0)
        gate.open.set()
        await loading
        for receipt in (before, relayed, queued):
            assert await memory.get(receipt.node_id) is not None
        assert await memory.get(gone.node_id) is None
        assert [near.node.node_id for near in await memory.neighbours(before.node_id)] == [relayed.node_id]
        staff(manager).relay_service.start()
        await drained(manager)
        await both_tiers_agree(manager, memory)


async def test_queued_writes_stay_visible_through_a_reload(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = Ears()
    async with opened(postgres, tmp_path / "data", ears=ears, settings=NO_FEED) as manager:
        memory = await manager.ensure_user_memories(USER)
        kept = await memory.store({"v": 1}, context_type=FACT, key="k", wait=SECONDS)
        doomed = await memory.store({"v": 1}, context_type=FACT, wait=SECONDS)
        tier, sent = tiers(manager).durable.tier, asyncio.Event()

        async def never(_opening: Opening, _batch: Sequence[Operation], _erased: Mapping[str, int]) -> BatchApplied:
            sent.set()
            await asyncio.Event().wait()
            raise AssertionError

        with monkeypatch.context() as patched:
            patched.setattr(tier, "apply", never)
            await memory.store({"v": 2}, context_type=FACT, key="k", wait=0)
            await memory.store_entity("crm", "7", "customer", {"name": "Ada"}, wait=0)
            await memory.delete(doomed.node_id, wait=0)
            await sent.wait()
            async with connected(postgres.admin_dsn) as admin:
                await admin.execute("update memory.heads set epoch = gen_random_uuid()")
            await staff(manager).preload.bring_up_to_date(USER)
            assert len(ears.all(Rewritten)) == 1
            node = await memory.get(kept.node_id)
            assert node is not None
            assert node.content == {"v": 2}
            assert await memory.get(doomed.node_id) is None
            assert len(await contents(memory)) == 2
            await staff(manager).relay_service.stop()
        staff(manager).relay_service.start()
        await drained(manager)
        await staff(manager).preload.bring_up_to_date(USER)
        await both_tiers_agree(manager, memory)


@pytest.mark.usefixtures("filled")
async def test_a_load_cut_short_leaves_nothing_to_see_and_the_next_one_starts_afresh(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(opened(postgres, tmp_path / "data", settings=NO_FEED))
        with monkeypatch.context() as patched:
            # In small chunks, so that most are still to come.
            feed = tiers(manager).durable.feed
            assert isinstance(feed, PostgresChangeFeed)
            patched.setattr(feed, "_settings", replace(vars(feed)["_settings"], chunk_rows=500))
            gate = Gate(manager, patched, "add_nodes")
            loading = asyncio.create_task(manager.ensure_user_memories(USER))
            await gate.reached.wait()
            # The connection that the snapshot is read from is lost in the middle.
            async with connected(postgres.admin_dsn) as admin:
                await admin.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null"
                )
            gate.open.set()
            memory = await loading
        assert await contents(memory) == {}
        assert not memory.freshness().complete
        memory = await manager.ensure_user_memories(USER)
        assert len(await contents(memory)) == NODES
        await both_tiers_agree(manager, memory)
        replica = tiers(manager).file.replica
        while await replica.sweep_generations():
            pass
        kept = await tiers(manager).file.database.read(
            lambda connection: connection.execute("select count(*) from nodes").fetchone()[0]
        )
        assert kept == NODES, "rows of the load that was cut short stay in the file"


@pytest.mark.usefixtures("one_place")
async def test_a_handle_works_on_what_the_file_has_while_postgres_is_away(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path / "data") as manager:
        memory = await manager.ensure_user_memories(USER)
        stored = await memory.store({"n": 1}, context_type=FACT, wait=SECONDS)
    async with opened(f"postgresql://nobody@/none?host={tmp_path}", tmp_path / "data") as manager:
        memory = await manager.ensure_user_memories(USER)
        assert await memory.get(stored.node_id) is not None
        await until(lambda: memory.freshness().degraded)
        assert memory.freshness().complete
        assert memory.freshness().age is None
