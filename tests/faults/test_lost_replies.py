"""Replies and requests lost on the wire: whatever was sent, each operation takes effect once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import asyncpg
import orjson
import pytest

from hybrid_memory import HybridMemoryManager, Status, UserMemory, Verdict
from hybrid_memory.events import PersistFailed
from hybrid_memory.testing.proxy import Loss, Proxy
from tests.plugins.postgres import Database
from tests.support.managers import FACT, Ears, both_tiers_agree, contents, drained, head_rev, opened

# Of one user, or of many.
APPLY = "memory.apply"
LONG_ENOUGH = 20.0
CUTS = (Loss.REQUEST, Loss.COMMIT, Loss.REPLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A manager whose way to Postgres leads through a wire that can be cut."""

    proxy: Proxy
    manager: HybridMemoryManager
    memory: UserMemory
    ears: Ears
    admin: asyncpg.Connection


@pytest.fixture
async def wire(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, socket_folder: Path
) -> AsyncIterator[Wire]:
    ears = Ears()
    async with (
        Proxy.before(postgres.app_dsn, socket_folder) as proxy,
        opened(proxy.dsn, tmp_path, ears=ears) as manager,
    ):
        memory = await manager.ensure_user_memories("ada")
        yield Wire(proxy=proxy, manager=manager, memory=memory, ears=ears, admin=admin)


@pytest.mark.parametrize("loss", CUTS)
async def test_a_store_cut_off_in_its_commit_is_applied_once(wire: Wire, loss: Loss) -> None:
    wire.proxy.lose(APPLY, loss)
    receipt = await wire.memory.store({"text": "tea"}, context_type=FACT, wait=0)
    final = await receipt.durable(LONG_ENOUGH)
    assert wire.proxy.losses == [loss]
    assert (final.status, final.verdict, final.rev) == (Status.DURABLE, Verdict.APPLIED, 1)
    assert await head_rev(wire.admin, "ada") == 1
    assert len(await wire.admin.fetch("select from memory.nodes")) == 1
    await both_tiers_agree(wire.manager, wire.memory)


@pytest.mark.parametrize("loss", CUTS)
async def test_updates_of_one_node_keep_their_order_through_cuts(wire: Wire, loss: Loss) -> None:
    for passes in (0, 1, 2, 0):
        wire.proxy.lose(APPLY, loss, passes=passes)
    receipts = [await wire.memory.store({"n": n}, context_type=FACT, key="one", wait=0) for n in range(12)]
    assert await asyncio.gather(*(receipt.durable(LONG_ENOUGH) for receipt in receipts))
    await drained(wire.manager)
    assert wire.proxy.losses == [loss] * 4
    # Every content was there once, one after the other: eleven in history, the last one standing.
    past = await wire.admin.fetch(
        "select content->>'n' as n from memory.node_history where reason = 'replaced' order by rev"
    )
    assert [int(row["n"]) for row in past] == list(range(11))
    assert await head_rev(wire.admin, "ada") == 12
    await both_tiers_agree(wire.manager, wire.memory)


@pytest.mark.parametrize("loss", CUTS)
async def test_a_conflict_cut_off_in_its_commit_is_decided_once(wire: Wire, loss: Loss) -> None:
    first = await wire.memory.store_entity("crm", "7", "customer", {"a": 1}, wait=LONG_ENOUGH)
    # Another client has changed the row, which the copy here does not know yet.
    await wire.admin.execute(
        "update memory.nodes set rev = 2, base = 1, writer = gen_random_uuid(), content ="
        " jsonb_set(content::jsonb, '{entity_data,b}', '2')::json where node_id = $1",
        first.node_id,
    )
    wire.proxy.lose("commit", loss)
    receipt = await wire.memory.store_entity("crm", "7", "customer", {"c": 3}, wait=0)
    await wire.admin.execute("update memory.heads set rev = 2")
    await receipt.durable(LONG_ENOUGH)
    merged: str = await wire.admin.fetchval("select content->>'entity_data' from memory.nodes")
    assert orjson.loads(merged) == {"a": 1, "b": 2, "c": 3}
    await both_tiers_agree(wire.manager, wire.memory)
    assert await head_rev(wire.admin, "ada") == 3


async def test_an_erasure_whose_reply_was_lost_is_done_once(wire: Wire) -> None:
    await wire.memory.store({"text": "tea"}, context_type=FACT, wait=LONG_ENOUGH)
    wire.proxy.lose("commit", Loss.REPLY)
    await wire.manager.forget("ada")
    await drained(wire.manager)
    assert wire.proxy.losses == [Loss.REPLY]
    head = await wire.admin.fetchrow("select rev, erased_rev, nodes from memory.heads")
    assert head is not None
    assert tuple(head) == (2, 2, 0)


async def test_relationships_and_deletes_survive_cuts_between_them(wire: Wire) -> None:
    for passes in (0, 1, 1, 0, 2):
        wire.proxy.lose(APPLY, Loss.REPLY, passes=passes)
    nodes = [await wire.memory.store({"n": number}, context_type=FACT, wait=0) for number in range(4)]
    for source, target in pairwise(nodes):
        await wire.memory.relate(source.node_id, target.node_id, "led_to", wait=0)
    await wire.memory.delete(nodes[1].node_id, wait=0)
    for number in range(6):
        await wire.memory.store({"n": number}, context_type=FACT, key="k", wait=0)
    await drained(wire.manager)
    assert len(wire.ears.all(PersistFailed)) >= len(wire.proxy.losses) > 0
    # Four nodes, three relationships, the burial of two of these and of a node, six updates.
    assert await head_rev(wire.admin, "ada") == 4 + 3 + 3 + 6
    await both_tiers_agree(wire.manager, wire.memory)


async def test_a_relationship_whose_reply_was_lost_is_told_as_applied_though_another_deleted_it_meanwhile(
    wire: Wire, postgres: Database, tmp_path: Path
) -> None:
    ends = [await wire.memory.store({"n": number}, context_type=FACT, wait=LONG_ENOUGH) for number in range(2)]
    wire.proxy.refuse()
    wire.proxy.lose(APPLY, Loss.REPLY)
    receipt = await wire.memory.relate(ends[0].node_id, ends[1].node_id, "led_to", wait=0)
    await wire.proxy.struck(1)
    async with opened(postgres, tmp_path / "other") as other:
        there = await other.ensure_user_memories("ada")
        await there.delete(ends[1].node_id, wait=LONG_ENOUGH)
    await wire.proxy.heal()
    assert (await receipt.durable(LONG_ENOUGH)).verdict is Verdict.APPLIED
    await both_tiers_agree(wire.manager, wire.memory)
    assert await wire.memory.neighbours(ends[0].node_id) == []


async def test_an_erasure_whose_reply_was_lost_does_not_hide_that_of_another_process(
    wire: Wire, postgres: Database, tmp_path: Path
) -> None:
    await wire.memory.store({"text": "tea"}, context_type=FACT, wait=LONG_ENOUGH)
    wire.proxy.refuse()
    wire.proxy.lose("commit", Loss.REPLY)
    await wire.manager.forget("ada")
    await wire.proxy.struck(1)
    behind = await wire.memory.store({"text": "behind our own erasure"}, context_type=FACT, wait=0)
    async with opened(postgres, tmp_path / "other") as other:
        await other.forget("ada")
        await drained(other)
    await wire.proxy.heal()
    assert (await behind.durable(LONG_ENOUGH)).verdict is Verdict.REJECTED
    await both_tiers_agree(wire.manager, wire.memory)
    assert await contents(wire.memory) == {}
    # It has heard of both when it is loaded.
    await wire.manager.ensure_user_memories("ada")
    anew = await wire.memory.store({"text": "anew"}, context_type=FACT, wait=LONG_ENOUGH)
    assert anew.verdict is Verdict.APPLIED
