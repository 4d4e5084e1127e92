"""Two managers on one user: they converge, and conflicts are decided by the written rules and told to the writer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import HybridMemoryManager, NotFound, Settings, UserMemory, Verdict
from hybrid_memory.changes import Operation
from hybrid_memory.graph import JsonValue
from hybrid_memory.messages import BatchApplied, Opening
from tests.faults.conftest import Sick
from tests.plugins.postgres import Database
from tests.support.agent import agent
from tests.support.beneath import tiers
from tests.support.managers import FACT, both_tiers_agree, contents, drained, opened
from tests.support.waiting import eventually, until

SECONDS = 20.0
USER = "ada"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two managers on one data directory, in a slot each, that both hold the user."""

    first: HybridMemoryManager
    second: HybridMemoryManager
    here: UserMemory
    there: UserMemory

    async def converged(self) -> None:
        """Both queues have run out, and both copies are what Postgres holds."""
        for manager in (self.first, self.second):
            await drained(manager)
        await both_tiers_agree(self.first, self.here)
        await both_tiers_agree(self.second, self.there)
        assert await contents(self.here) == await contents(self.there)


@asynccontextmanager
async def paired(database: Database, data_dir: Path, settings: Settings | None = None) -> AsyncGenerator[Pair]:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened(database, data_dir, settings=settings))
        second = await stack.enter_async_context(opened(database, data_dir, settings=settings))
        here, there = await first.ensure_user_memories(USER), await second.ensure_user_memories(USER)
        yield Pair(first=first, second=second, here=here, there=there)


@pytest.fixture
async def pair(postgres: Database, tmp_path: Path) -> AsyncIterator[Pair]:
    async with paired(postgres, tmp_path) as held:
        yield held


@asynccontextmanager
async def apart(sick: Sick) -> AsyncGenerator[None]:
    """Nothing reaches Postgres in the block."""
    sick.server.freeze()
    try:
        yield
    finally:
        sick.server.thaw()


@pytest.fixture
async def sick_pair(sick: Sick, tmp_path: Path) -> AsyncIterator[Pair]:
    async with paired(sick.database, tmp_path) as held:
        yield held


async def test_what_one_stores_relates_and_deletes_is_seen_by_the_other(pair: Pair) -> None:
    nodes = [await pair.here.store({"n": number}, context_type=FACT, wait=0) for number in range(20)]
    await pair.here.relate(nodes[0].node_id, nodes[1].node_id, "led_to", wait=0)
    await pair.here.relate(nodes[1].node_id, nodes[2].node_id, "led_to", wait=0)
    await pair.converged()
    await pair.there.delete(nodes[1].node_id, wait=0)
    await pair.converged()
    assert await pair.here.get(nodes[1].node_id) is None
    assert await pair.here.neighbours(nodes[0].node_id) == []


async def test_the_same_entity_stored_apart_becomes_one_node_with_the_fields_of_both(
    sick: Sick, sick_pair: Pair
) -> None:
    async with apart(sick):
        mine = await sick_pair.here.store_entity("crm", "7", "customer", {"name": "Ada", "city": "York"}, wait=0)
        yours = await sick_pair.there.store_entity("crm", "7", "customer", {"name": "Ada L.", "phone": "1"}, wait=0)
    assert mine.node_id == yours.node_id
    verdicts = {(await receipt.durable(SECONDS)).verdict for receipt in (mine, yours)}
    assert verdicts == {Verdict.APPLIED, Verdict.MERGED}
    await sick_pair.converged()
    node = await sick_pair.here.get(mine.node_id)
    assert node is not None
    # The field that both wrote has the later value, whichever came first to Postgres.
    assert node.content["entity_data"] == {"name": "Ada L.", "city": "York", "phone": "1"}


async def test_of_two_contents_written_apart_the_later_stands_and_the_other_is_in_history(
    sick: Sick, sick_pair: Pair
) -> None:
    async with apart(sick):
        earlier = await sick_pair.here.store({"text": "earlier"}, context_type=FACT, key="k", wait=0)
        later = await sick_pair.there.store({"text": "later"}, context_type=FACT, key="k", wait=0)
    receipts = [await receipt.durable(SECONDS) for receipt in (earlier, later)]
    await sick_pair.converged()
    assert receipts[1].verdict is Verdict.APPLIED
    assert receipts[0].verdict in {Verdict.APPLIED, Verdict.SUPERSEDED}
    assert list((await contents(sick_pair.here)).values()) == [{"text": "later"}]
    async with asyncio.timeout(SECONDS):
        connection = await asyncpg.connect(sick.database.admin_dsn)
        kept = await connection.fetch("select content->>'text' as text from memory.node_history")
        await connection.close()
    assert [row["text"] for row in kept] == ["earlier"]


async def test_a_delete_beats_an_update_that_had_not_seen_it(sick: Sick, sick_pair: Pair) -> None:
    stored = await sick_pair.here.store({"text": "old"}, context_type=FACT, key="k", wait=SECONDS)
    await sick_pair.converged()
    async with apart(sick):
        await sick_pair.here.delete(stored.node_id, wait=0)
        await sick_pair.there.store({"text": "new"}, context_type=FACT, key="k", wait=0)
    await sick_pair.converged()
    assert await contents(sick_pair.there) == {}


async def test_a_store_that_knows_of_the_delete_revives_the_node(pair: Pair) -> None:
    stored = await pair.here.store({"text": "old"}, context_type=FACT, key="k", wait=SECONDS)
    await pair.here.delete(stored.node_id, wait=SECONDS)
    await pair.converged()
    await pair.there.store({"text": "new"}, context_type=FACT, key="k", wait=SECONDS)
    await pair.converged()
    assert await contents(pair.here) == {stored.node_id: {"text": "new"}}


async def test_an_expected_revision_that_another_has_passed_is_rejected_and_theirs_stands(
    sick: Sick, sick_pair: Pair
) -> None:
    stored = await sick_pair.here.store({"text": "old"}, context_type=FACT, key="k", wait=SECONDS)
    await sick_pair.converged()
    async with apart(sick):
        theirs = await sick_pair.there.store({"text": "theirs"}, context_type=FACT, key="k", wait=0)
        ours = await sick_pair.here.store({"text": "ours"}, context_type=FACT, key="k", expected_rev=stored.rev, wait=0)
    outcomes = {(await theirs.durable(SECONDS)).verdict, (await ours.durable(SECONDS)).verdict}
    await sick_pair.converged()
    assert Verdict.APPLIED in outcomes
    assert await contents(sick_pair.there) in (
        {stored.node_id: {"text": "theirs"}},
        # Ours came first to Postgres: then it was no conflict, and theirs met it with an earlier stamp.
        {stored.node_id: {"text": "ours"}},
    )


async def test_a_hint_brings_a_change_long_before_the_next_poll(postgres: Database, tmp_path: Path) -> None:
    async with paired(postgres, tmp_path, Settings(poll_interval=timedelta(minutes=5))) as pair:
        listening = "select count(*) from pg_stat_activity where query like 'LISTEN%' and datname = $1"
        connection = await asyncpg.connect(postgres.admin_dsn)

        async def both_listen() -> bool:
            return bool(await connection.fetchval(listening, postgres.name) == 2)

        await eventually(both_listen)
        await connection.close()
        stored = await pair.here.store({"n": 1}, context_type=FACT, wait=SECONDS)

        async def seen() -> bool:
            return await pair.there.get(stored.node_id) is not None

        await eventually(seen, seconds=5)


async def test_hints_that_come_while_the_feed_rests_from_a_large_round_bring_what_they_told_of(
    postgres: Database, tmp_path: Path
) -> None:
    async with paired(postgres, tmp_path, Settings(poll_interval=timedelta(minutes=5))) as pair:
        for _ in range(4):
            # Enough for a rest as long as can be, in several batches, the last of which are hinted at during it.
            await asyncio.gather(*(pair.here.store({"n": n}, context_type=FACT, wait=SECONDS) for n in range(200)))
        await pair.converged()


@pytest.mark.parametrize("without", [{"hints": False}, {"pooler": "transaction"}], ids=["hints off", "behind a pooler"])
async def test_polling_alone_brings_every_change_where_no_hint_can_come(
    postgres: Database, tmp_path: Path, without: dict[str, object]
) -> None:
    deaf = Settings.model_validate({"poll_interval": timedelta(milliseconds=100), **without})
    async with paired(postgres, tmp_path, deaf) as pair:
        for number in range(5):
            await pair.here.store({"n": number}, context_type=FACT, wait=0)
            await pair.there.store({"n": number}, context_type=FACT, wait=0)
        await pair.converged()
        assert len(await contents(pair.here)) == 10


@pytest.mark.parametrize("seed", range(3))
async def test_two_that_write_the_same_things_at_once_agree_in_the_end(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)

    async def write(memory: UserMemory, name: str) -> None:
        for number in range(60):
            wait = chance.choice((0, 0, 0.05))
            match chance.randrange(5):
                case 0 | 1:
                    # A null removes what others may be setting at the same moment.
                    data = {chance.choice("abcd"): chance.choice((None, f"{name}{number}")) for _ in range(2)}
                    await memory.store_entity("crm", str(chance.randrange(2)), "customer", data, wait=wait)
                case 2:
                    await memory.store({"by": name, "n": number}, context_type=FACT, key=chance.choice("xy"), wait=wait)
                case 3:
                    listed = (await memory.list(limit=50)).items
                    if len(listed) > 1:
                        source, target = chance.sample(listed, 2)
                        await relate(memory, source.node_id, target.node_id, wait)
                case _:
                    listed = (await memory.list(limit=50)).items
                    if listed and chance.random() < 0.5:
                        await delete(memory, chance.choice(listed).node_id, wait)

    await asyncio.gather(write(pair.here, "h"), write(pair.there, "t"))
    await pair.converged()


async def relate(memory: UserMemory, source: str, target: str, wait: float) -> None:
    """Relate two nodes, unless the other manager has deleted one of them meanwhile."""
    try:
        await memory.relate(source, target, "relates_to", weight=random.random(), wait=wait)
    except NotFound:
        return


async def delete(memory: UserMemory, node_id: str, wait: float) -> None:
    try:
        await memory.delete(node_id, wait=wait)
    except NotFound:
        return


async def test_two_processes_on_one_user_agree(postgres: Database, tmp_path: Path) -> None:
    async with agent(postgres.app_dsn, tmp_path, USER) as other, opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories(USER)
        for number in range(20):
            await other.ask("store", key=f"k{number % 5}", text=f"theirs {number}")
            await memory.store({"text": f"ours {number}"}, context_type=FACT, key=f"k{number % 7}", wait=0)

        async def agree() -> bool:
            ours, theirs = await memory.digest(), await other.ask("digest")
            return theirs == {"value": ours.value, "nodes": ours.nodes, "queued": 0} and manager.queue().entries == 0

        await eventually(agree)
        await both_tiers_agree(manager, memory)
        assert len(await contents(memory)) == 7


async def test_a_file_whose_owner_was_killed_is_carried_on_by_the_next_process(sick: Sick, tmp_path: Path) -> None:
    async with agent(sick.database.app_dsn, tmp_path, USER) as other:
        await sick.server.kill()
        stored = [await other.ask("store", key=f"k{number}", text="written in the outage") for number in range(10)]
        await other.kill()
    await sick.server.heal()
    async with opened(sick.database, tmp_path) as manager:
        assert tiers(manager).file.slot.number == 0
        memory = await manager.ensure_user_memories(USER)
        await drained(manager)
        assert set(await contents(memory)) == {answer["node_id"] for answer in stored}
        await both_tiers_agree(manager, memory)
        await until(lambda: memory.freshness().queued == 0)


async def test_a_slow_reply_does_not_undo_what_another_has_written_on_top(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tiers(pair.first).durable.tier
    apply, applied, go_on = tier.apply, asyncio.Event(), asyncio.Event()

    async def reply_slowly(
        opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]
    ) -> BatchApplied:
        outcome = await apply(opening, operations, erased)
        applied.set()
        await go_on.wait()
        return outcome

    async def entity_of(memory: UserMemory, node_id: str) -> JsonValue:
        node = await memory.get(node_id)
        return None if node is None else node.content["entity_data"]

    stored = await pair.here.store_entity("crm", "7", "customer", {"kept": 1}, wait=SECONDS)
    await pair.converged()
    monkeypatch.setattr(tier, "apply", reply_slowly)
    await pair.here.store_entity("crm", "7", "customer", {"passing": 1}, wait=0)
    await applied.wait()

    async def there_has(data: JsonValue) -> bool:
        return await entity_of(pair.there, stored.node_id) == data

    await eventually(lambda: there_has({"kept": 1, "passing": 1}))
    removed = await pair.there.store_entity("crm", "7", "customer", {"passing": None}, wait=SECONDS)
    assert removed.verdict is Verdict.APPLIED
    rev = removed.rev or 0
    await until(lambda: pair.here.freshness().rev >= rev)
    go_on.set()
    await pair.converged()
    assert await entity_of(pair.here, stored.node_id) == {"kept": 1}
