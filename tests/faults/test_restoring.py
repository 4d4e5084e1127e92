"""What a copy has queued again when its server lost a part of the past: all it held, and nothing that was erased."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid_memory.changes import NodeRow, Operation, Rule
from hybrid_memory.graph import Verdict
from hybrid_memory.jsontext import encode
from hybrid_memory.merging import decide_node, decide_relationship
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied, Head
from hybrid_memory.payloads import carried_node, carried_relationship, node_payload
from hybrid_memory.sqlite.binding import Binding
from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.inspection import inspect_file
from tests.simulation.disk import copy_file
from tests.support.hot_files import (
    ENTITY,
    EPOCH,
    carried,
    edge_from_postgres,
    entity,
    fresh,
    head,
    hot_file,
    load,
    node_from_postgres,
)
from tests.support.hot_files import related as relation


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[HotFile]:
    async with hot_file(tmp_path / "data") as opened:
        await opened.meet(Binding(installation="one", lineage="before"))
        yield opened


def queued(file: HotFile) -> list[Operation]:
    return file.outbox.claim(after_seq=0, limit=99)


def behind(rev: int, *, erased_rev: int = 0) -> Head:
    """The head on the server that has taken over."""
    return replace(head(rev, erased_rev=erased_rev), timeline=2)


async def decided(file: HotFile, verdict: Verdict, rev: int) -> None:
    """Postgres has decided all that is queued, otherwise than it was sent."""
    operations = tuple(Applied(one, verdict, rev) for one in queued(file))
    user = AppliedUser(user_id="ada", epoch=EPOCH, before_rev=rev - 1, head_rev=rev, as_sent=False)
    await file.outbox.settle(BatchApplied(operations=operations, users=(user,)))


async def taken_over(file: HotFile, head_there: Head, nodes: Sequence[NodeRow] = ()) -> int | None:
    """The tail is lost: a standby takes over, and the user is loaded from there."""
    await file.meet(Binding(installation="one", lineage="after"))
    generation = await file.replica.begin_load(head_there)
    assert generation is not None
    await file.replica.add_nodes(generation, nodes)
    return await file.replica.show_load(generation, complete=True)


def entity_of(file: HotFile) -> object:
    node = file.hot.get("ada", ENTITY)
    return None if node is None else node.content["entity_data"]


async def test_what_is_queued_again_is_no_damage_to_who_opens_the_file_next(file: HotFile, tmp_path: Path) -> None:
    ends = [fresh("a"), fresh("b")]
    for end in ends:
        await file.outbox.accept_node("ada", end)
    await file.outbox.accept_relationship("ada", relation(ends[0].node_id, ends[1].node_id))
    await file.outbox.settle(carried(queued(file)))
    assert await taken_over(file, behind(0)) == 3
    # As a process that dies now leaves it.
    copy_file(file.slot.path, tmp_path / "left" / "slot-00.db")
    inspect_file(tmp_path / "left" / "slot-00.db", choose_driver(), None)


async def test_a_field_that_another_copy_brought_back_is_not_removed_by_one_that_never_had_it(file: HotFile) -> None:
    await file.outbox.accept_node("ada", entity(age="9"))
    await decided(file, Verdict.MERGED, 2)
    theirs = node_from_postgres(entity(name="ada"), 1, stamp=1)
    assert await taken_over(file, behind(1), [theirs]) == 1
    (again,) = queued(file)
    decision = decide_node(carried_node(again.payload), theirs, seen=again.base == theirs.rev)
    assert decision.row is not None
    assert decision.row.content == encode({"entity_data": {"age": "9", "name": "ada"}})
    assert entity_of(file) == {"age": "9", "name": "ada"}


async def test_a_field_that_was_merged_and_lost_comes_back_behind_another_that_is_queued(file: HotFile) -> None:
    await file.outbox.accept_node("ada", entity(name="ada"))
    await decided(file, Verdict.MERGED, 2)
    await file.outbox.accept_node("ada", entity(age="9"))
    assert await taken_over(file, behind(0)) == 1
    assert entity_of(file) == {"age": "9", "name": "ada"}
    assert carried_node(queued(file)[-1].payload).row.content == encode({"entity_data": {"age": "9", "name": "ada"}})


async def test_a_merge_that_was_lost_comes_back_where_what_was_queued_behind_it_is_applied_first(file: HotFile) -> None:
    await file.outbox.accept_node("ada", entity(age="9"))
    await decided(file, Verdict.MERGED, 2)
    await file.outbox.accept_node("ada", fresh("tea"))
    await file.meet(Binding(installation="one", lineage="after"))
    (tea,) = queued(file)
    await file.outbox.settle(carried([tea], before_rev=1))
    theirs = node_from_postgres(entity(name="ada"), 1)
    there = replace(behind(2), done_seq=tea.seq)
    generation = await file.replica.begin_load(there)
    assert generation is not None
    await file.replica.add_nodes(generation, [theirs, carried_node(tea.payload).row._replace(rev=2)])
    assert await file.replica.show_load(generation, complete=True) == 1
    assert entity_of(file) == {"age": "9", "name": "ada"}


@pytest.mark.parametrize("erased_here", [-1, 5])
async def test_what_may_have_been_erased_goes_to_postgres_undated_before_it_is_shown(
    file: HotFile, erased_here: int
) -> None:
    change = fresh("old")
    await file.outbox.accept_node("ada", change)
    await file.outbox.settle(carried(queued(file)))

    def heard_of(connection: sqlite3.Connection) -> None:
        connection.execute("update users set erased_rev = ?", (erased_here,))

    await file.database.write(heard_of)
    # The erasure was repeated there by whoever had asked for it.
    assert await taken_over(file, behind(1, erased_rev=1)) is None
    (again,) = queued(file)
    assert file.erased_rev("ada") == -1
    assert await file.replica.begin_load(behind(1, erased_rev=1)) is None
    rejected = BatchApplied(operations=(Applied(again, Verdict.REJECTED, None),), users=())
    await file.outbox.settle(rejected)
    assert file.hot.get("ada", change.node_id) is None
    assert await taken_over(file, behind(1, erased_rev=1)) == 0
    assert queued(file) == []


async def test_an_entity_that_others_have_added_to_is_queued_again_once_where_it_is_held_against_an_erasure(
    file: HotFile,
) -> None:
    await file.outbox.accept_node("ada", entity(age="9"))
    (stored,) = queued(file)
    await file.outbox.settle(carried([stored]))
    theirs = node_from_postgres(entity(name="ada"), 2, stamp=1)
    assert await taken_over(file, behind(2, erased_rev=1), [theirs]) is None
    (again,) = queued(file)
    merged = decide_node(carried_node(again.payload), theirs, seen=False).row
    assert merged is not None
    await decided(file, Verdict.MERGED, 3)
    assert await taken_over(file, behind(3, erased_rev=1), [merged._replace(rev=3)]) == 0
    assert queued(file) == []
    assert entity_of(file) == {"age": "9", "name": "ada"}


async def test_a_deletion_that_was_lost_is_done_again_also_where_the_user_was_loaded_since(file: HotFile) -> None:
    change = fresh("tea")
    await load(file, 1, [node_from_postgres(change, 1)])
    await file.outbox.accept_deletion("ada", change.node_id)
    await file.outbox.settle(carried(queued(file), before_rev=1))
    await load(file, 2, [])
    assert await taken_over(file, behind(1), [node_from_postgres(change, 1, stamp=1)]) == 1
    (again,) = queued(file)
    assert carried_node(again.payload).row.deleted_at is not None
    assert file.hot.get("ada", change.node_id) is None


async def test_a_relationship_that_was_withdrawn_is_not_queued_again(file: HotFile) -> None:
    ends = [fresh("a"), fresh("b")]
    await load(file, 2, [node_from_postgres(end, rev) for rev, end in enumerate(ends, 1)])
    await file.outbox.accept_relationship("ada", relation(ends[0].node_id, ends[1].node_id))
    await decided(file, Verdict.SUPERSEDED, 3)
    assert await taken_over(file, behind(2), [node_from_postgres(end, rev) for rev, end in enumerate(ends, 1)]) == 0


async def test_a_relationship_of_an_expired_node_is_shown_as_it_stands_while_it_is_queued_again(file: HotFile) -> None:
    ends = [fresh("a"), fresh("b")]
    for end in ends:
        await file.outbox.accept_node("ada", end)
    edge = relation(ends[0].node_id, ends[1].node_id)
    await file.outbox.accept_relationship("ada", edge)
    await file.outbox.settle(carried(queued(file)))

    def expire(connection: sqlite3.Connection) -> None:
        connection.execute("update nodes set expires_at = 1 where node_id = ?", (ends[1].node_id,))

    await file.database.write(expire)
    assert await taken_over(file, behind(0)) == 2
    node, related = queued(file)
    # Another copy has brought both back before us.
    theirs = carried_relationship(related.payload).row._replace(rev=2)
    await file.replica.absorb(behind(2), [carried_node(node.payload).row._replace(rev=1)], [theirs])
    as_it_stands = tuple(Applied(one, Verdict.APPLIED, None) for one in (node, related))
    await file.outbox.settle(BatchApplied(operations=as_it_stands, users=()))
    live = await file.database.read(_live_relationships)
    assert live == [(edge.relationship_id, 2)]


def _live_relationships(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    return connection.execute(
        "select relationship_id, r.rev from users join relationships r using (user_no) where deleted_at is null"
    ).fetchall()


async def test_what_was_merged_stays_visible_over_an_older_row_that_arrives(file: HotFile) -> None:
    await load(file, 2, [node_from_postgres(entity(name="ada"), 2, stamp=1)])
    await file.outbox.accept_node("ada", entity(age="9"))
    await decided(file, Verdict.MERGED, 4)
    # It was read before the merge.
    await file.replica.absorb(head(3), [node_from_postgres(entity(name="eve"), 3, stamp=2)], [])
    assert entity_of(file) == {"age": "9", "name": "ada"}
    merged = entity(age="9", name="eve")
    await file.replica.absorb(head(4), [node_from_postgres(merged, 4)], [])
    assert entity_of(file) == {"age": "9", "name": "eve"}


def test_the_same_write_from_a_second_copy_stands_and_is_not_taken_back() -> None:
    row = node_from_postgres(fresh("tea"), 3)
    again = carried_node(node_payload("ada", row, rule=Rule.REPLACE))
    decision = decide_node(again, row, seen=False)
    assert (decision.verdict, decision.row, decision.lost) == (Verdict.APPLIED, None, False)
    edge = edge_from_postgres(relation(row.node_id, ENTITY), 4)
    told = decide_relationship(edge, edge, seen=False, revive=False)
    assert (told.verdict, told.row) == (Verdict.APPLIED, None)
