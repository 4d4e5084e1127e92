"""What Postgres decided against is not shown; of erasures it hears what was known when a change was stored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hybrid_memory import Verdict
from hybrid_memory.absent import AbsentPostgres
from hybrid_memory.changes import Operation
from hybrid_memory.events import EventLog
from hybrid_memory.graph import NodeId
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied, Disputed, Opening
from hybrid_memory.payloads import carried_node
from hybrid_memory.sqlite.hot_file import HotFile
from tests.plugins.postgres import Database
from tests.support.clocks import HandClock
from tests.support.hot_files import (
    EPOCH,
    carried,
    edge_from_postgres,
    fresh,
    head,
    keyed,
    load,
    node_from_postgres,
    related,
)
from tests.support.managers import FACT, both_tiers_agree, drained, opened
from tests.support.relays import relay_between

ERASED = 5


def decided(file: HotFile, verdict: Verdict, rev: int | None = None) -> BatchApplied:
    """What Postgres answers for all that is queued."""
    operations = file.outbox.claim(after_seq=0, limit=100)
    user = AppliedUser("ada", EPOCH, before_rev=6, head_rev=rev or 6, as_sent=False)
    return BatchApplied(operations=tuple(Applied(one, verdict, rev) for one in operations), users=(user,))


async def settled(file: HotFile, batch: BatchApplied) -> None:
    waiting = file.outbox.settle(batch)
    await file.database.write(lambda _: None)
    await waiting


async def show(file: HotFile, rev: int, *, erased_rev: int) -> None:
    generation = await file.replica.begin_load(head(rev, erased_rev=erased_rev))
    assert generation is not None
    assert await file.replica.show_load(generation, complete=True) is not None


@pytest.mark.parametrize("verdict", [Verdict.REJECTED, Verdict.SUPERSEDED])
async def test_a_new_row_that_lost_is_gone_though_a_load_had_laid_it_over(file: HotFile, verdict: Verdict) -> None:
    change = keyed("tea")
    await load(file, 3, [])
    await file.outbox.accept_node("ada", change)
    await load(file, 6, [])
    assert file.hot.get("ada", change.node_id) is not None
    await settled(file, decided(file, verdict))
    assert file.hot.get("ada", change.node_id) is None
    digest = await file.hot.digest("ada")
    assert (digest.value, digest.nodes) == (0, 0)


async def test_a_new_relationship_that_lost_is_gone_though_a_load_had_laid_it_over(file: HotFile) -> None:
    ends = [node_from_postgres(keyed(key), rev) for rev, key in enumerate(("tea", "rye"), 1)]
    await load(file, 3, ends)
    await file.outbox.accept_relationship("ada", related(ends[0].node_id, ends[1].node_id))
    await load(file, 6, ends)
    await settled(file, decided(file, Verdict.SUPERSEDED))
    assert (await file.hot.digest("ada")).relationships == 0


async def test_a_relationship_brought_back_that_lost_is_gone_though_nothing_comes_of_it_any_more(file: HotFile) -> None:
    ends = [node_from_postgres(keyed(key), rev) for rev, key in enumerate(("tea", "rye"), 1)]
    wish = related(ends[0].node_id, ends[1].node_id)
    edge = edge_from_postgres(wish, 3)
    await load(file, 3, ends, [edge])
    await file.replica.absorb(head(5), [], [edge._replace(rev=5, deleted_at=edge.updated_at)])
    await file.outbox.accept_relationship("ada", wish)
    assert (await file.hot.digest("ada")).relationships == 1
    # When it came to Postgres an end was deleted, which is back by now.
    await settled(file, decided(file, Verdict.SUPERSEDED))
    assert (await file.hot.digest("ada")).relationships == 0


async def test_a_deletion_that_an_erasure_beat_hides_nothing_that_is_loaded_after_it(file: HotFile) -> None:
    await file.outbox.accept_node("ada", keyed("tea"))
    await settled(file, decided(file, Verdict.APPLIED, 1))
    await file.outbox.accept_deletion("ada", keyed("tea").node_id)
    await settled(file, decided(file, Verdict.REJECTED))
    generation = await file.replica.begin_load(head(8, erased_rev=ERASED))
    assert generation is not None
    # Another node of that name, which has expired, and what relates it.
    edge = edge_from_postgres(related(keyed("tea").node_id, keyed("tea").node_id), 7)
    await file.replica.add_relationships(generation, [edge])
    assert await file.replica.show_load(generation, complete=True) is not None
    assert (await file.hot.digest("ada")).relationships == 1


async def test_what_was_applied_although_it_went_with_an_erasure_here_is_still_to_come_by_the_feed(
    file: HotFile,
) -> None:
    await file.outbox.accept_node("ada", fresh("after the erasure, of which nobody here had heard"))
    operations = file.outbox.claim(after_seq=0, limit=9)
    await file.replica.erase("ada", erased_rev=ERASED)
    await show(file, ERASED, erased_rev=ERASED)
    await settled(file, carried(operations, before_rev=ERASED))
    cursor = file.hot.cursor("ada")
    assert cursor is not None
    assert cursor.rev == ERASED


async def test_a_later_change_of_a_row_that_lost_is_still_shown(file: HotFile) -> None:
    await load(file, 3, [])
    await file.outbox.accept_node("ada", keyed("tea", "first"))
    batch = decided(file, Verdict.SUPERSEDED)
    await file.outbox.accept_node("ada", keyed("tea", "second"))
    await settled(file, batch)
    node = file.hot.get("ada", keyed("tea").node_id)
    assert node is not None
    assert node.content["text"] == "second"


async def test_a_copy_that_showed_a_row_rejected_for_an_erasure_is_loaded_anew(file: HotFile) -> None:
    change = keyed("tea", "before the erasure")
    await load(file, 3, [node_from_postgres(keyed("tea", "old"), 2)])
    await file.outbox.accept_node("ada", change)
    generation = await file.replica.begin_load(head(6, erased_rev=ERASED))
    assert generation is not None
    await file.replica.add_nodes(generation, [node_from_postgres(keyed("tea", "since"), 6, stamp=1)])
    assert await file.replica.show_load(generation, complete=True) is not None
    await settled(file, decided(file, Verdict.REJECTED))
    cursor = file.hot.cursor("ada")
    assert cursor is not None
    assert not cursor.complete


async def test_a_row_merged_with_another_does_not_pass_for_the_merged_one(file: HotFile) -> None:
    change = keyed("tea")
    await load(file, 3, [node_from_postgres(change, 3)])
    await file.outbox.accept_node("ada", change)
    file.outbox.settling.begin(decided(file, Verdict.MERGED, rev=9))
    node = file.hot.get("ada", change.node_id)
    assert node is not None
    assert node.rev == 3


async def test_what_was_stored_before_any_erasure_was_known_goes_to_postgres_before_a_load(file: HotFile) -> None:
    await file.outbox.accept_node("ada", keyed("tea"))
    assert await file.replica.begin_load(head(6, erased_rev=ERASED)) is None
    await settled(file, decided(file, Verdict.REJECTED))
    assert await file.replica.begin_load(head(6, erased_rev=ERASED)) is not None


async def test_a_load_on_its_way_when_its_user_is_evicted_is_never_shown(file: HotFile) -> None:
    await load(file, 9, [node_from_postgres(keyed("tea", "newer"), 9)])
    generation = await file.replica.begin_load(head(6))
    assert generation is not None
    assert await file.replica.evict("ada")
    assert await file.replica.show_load(generation, complete=True) is None
    assert file.hot.cursor("ada") is None


class Obeying(AbsentPostgres):
    """Disputes a batch; while it does, the process obeys somebody's erasure and loads what stands since."""

    def __init__(self, file: HotFile) -> None:
        super().__init__("a model")
        self._file = file
        self.told: list[int] = []

    async def handshake(self, opening: Opening) -> None:
        del opening

    async def apply(self, opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]) -> BatchApplied:
        del opening, operations, erased
        await self._file.replica.erase("ada", erased_rev=ERASED)
        await show(self._file, 6, erased_rev=ERASED)
        raise Disputed(frozenset({"ada"}))

    async def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        del opening
        self.told.append(erased_rev)
        return BatchApplied(operations=tuple(Applied(one, Verdict.REJECTED, None) for one in operations), users=())


async def test_an_operation_on_its_way_is_sent_with_the_erasures_known_when_it_was_claimed(file: HotFile) -> None:
    await load(file, 3, [])
    await file.outbox.accept_node("ada", keyed("tea"))
    postgres, clock = Obeying(file), HandClock()
    relay = relay_between(file, postgres, clock=clock, uniform=lambda: 0.5, batch_size=8, events=EventLog(None))
    await relay.run_once()
    assert postgres.told == [0]


async def test_an_erasure_whose_caller_left_has_the_relay_look_all_the_same(file: HotFile) -> None:
    looked: list[int] = []
    file.on_accepted = lambda: looked.append(file.outbox.state().entries)
    forgetting = asyncio.get_running_loop().create_task(file.replica.erase("ada", erased_rev=None))
    await asyncio.sleep(0)
    forgetting.cancel()
    await file.database.write(lambda _: None)
    assert looked == [1]


async def test_a_change_of_what_a_complete_copy_has_not_says_as_of_when(file: HotFile) -> None:
    await load(file, 7, [])
    await file.outbox.accept_node("ada", keyed("tea"))
    (queued,) = file.outbox.claim(after_seq=0, limit=10)
    assert carried_node(queued.payload).absent_at == 7


async def test_what_is_stored_where_another_process_had_deleted_stands(postgres: Database, tmp_path: Path) -> None:
    async with opened(postgres, tmp_path) as first:
        here = await first.ensure_user_memories("ada")
        stored = await here.store({"text": "old"}, context_type=FACT, key="tea")
        other = await here.store({"text": "other"}, context_type=FACT, key="rye")
        await here.relate(stored.node_id, other.node_id, "led_to")
        await here.delete(stored.node_id)
        await drained(first)
        async with opened(postgres, tmp_path) as second:
            # Its copy is loaded without tombstones.
            there = await second.ensure_user_memories("ada")
            again = await (await there.store({"text": "new"}, context_type=FACT, key="tea")).durable(20)
            edge = await (await there.relate(again.node_id, other.node_id, "led_to")).durable(20)
            assert (again.verdict, edge.verdict) == (Verdict.APPLIED, Verdict.APPLIED)
            await both_tiers_agree(second, there)
            await both_tiers_agree(first, here)
            node = await here.get(NodeId(again.node_id))
            assert node is not None
            assert node.content == {"text": "new"}
