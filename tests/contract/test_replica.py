"""What the local copy promises to whoever fills it: out of sight until whole, never older, ours laid over theirs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from hybrid_memory.filters import parse
from hybrid_memory.graph import NodeId
from hybrid_memory.sqlite.hot_file import HotFile
from tests.support.beneath import after_each_commit
from tests.support.hot_files import (
    ENTITY,
    carried,
    count,
    edge_from_postgres,
    entity,
    fresh,
    head,
    hot_file,
    keyed,
    load,
    node_from_postgres,
    related,
)

OTHER_EPOCH = "0f0b6a56-57a5-4ed3-8f0c-2a8d5a1f6c77"


def text_of(file: HotFile, node_id: NodeId) -> object:
    node = file.hot.get("ada", node_id)
    return None if node is None else node.content["text"]


def rev_of(file: HotFile) -> int:
    cursor = file.hot.cursor("ada")
    return -1 if cursor is None else cursor.rev


async def test_a_load_is_seen_in_one_step_with_its_cursor(file: HotFile) -> None:
    rows = [node_from_postgres(fresh(str(n)), n) for n in range(1, 4)]
    edge = edge_from_postgres(related(rows[0].node_id, rows[1].node_id), 4)
    generation = await file.replica.begin_load(head(4))
    assert generation is not None
    await file.replica.add_nodes(generation, rows[:2])
    await file.replica.add_nodes(generation, rows[2:])
    await file.replica.add_relationships(generation, [edge])
    assert [file.hot.get("ada", row.node_id) for row in rows] == [None] * 3
    assert file.hot.cursor("ada") is None
    await file.replica.show_load(generation, complete=True)
    assert [text_of(file, row.node_id) for row in rows] == ["1", "2", "3"]
    cursor = file.hot.cursor("ada")
    assert cursor is not None
    assert (cursor.rev, cursor.complete, cursor.erased_rev) == (4, True, 0)
    digest = await file.hot.digest("ada")
    assert (digest.nodes, digest.relationships) == (3, 1)


async def test_a_load_that_was_never_shown_is_swept_and_nobody_sees_it(tmp_path: Path) -> None:
    rows = [node_from_postgres(fresh(str(n)), n) for n in range(1, 4)]
    async with hot_file(tmp_path) as file:
        generation = await file.replica.begin_load(head(3))
        assert generation is not None
        await file.replica.add_nodes(generation, rows)
    async with hot_file(tmp_path) as file:
        assert file.hot.get("ada", rows[0].node_id) is None
        while await file.replica.sweep_generations():
            pass
        assert await count(file, "nodes") == 0
        await load(file, 3, rows)
        assert text_of(file, rows[2].node_id) == "3"


async def test_what_is_seen_after_a_load_from_a_rewritten_past_is_no_further_than_that_past(file: HotFile) -> None:
    rows = [node_from_postgres(fresh(str(n)), n) for n in range(1, 4)]
    await load(file, 3, rows)
    before = file.hot.cursor_seen("ada")
    await load(file, 2, rows[:2])
    after = file.hot.cursor_seen("ada")
    assert before is not None
    assert after is not None
    assert (before.rev, after.rev) == (3, 2)


async def test_a_load_under_way_is_not_swept_and_the_copy_it_replaces_is(file: HotFile) -> None:
    rows = [node_from_postgres(fresh(str(n)), n) for n in range(1, 4)]
    await load(file, 3, rows)
    generation = await file.replica.begin_load(head(5))
    assert generation is not None
    await file.replica.add_nodes(generation, rows[:1])
    while await file.replica.sweep_generations():
        pass
    assert await count(file, "nodes") == 4
    await file.replica.show_load(generation, complete=True)
    while await file.replica.sweep_generations():
        pass
    assert await count(file, "nodes") == 1
    assert await count(file, "generations") == 0


async def test_a_load_begun_again_replaces_the_one_that_failed(file: HotFile) -> None:
    rows = [node_from_postgres(fresh(str(n)), n) for n in range(1, 4)]
    failed = await file.replica.begin_load(head(3))
    assert failed is not None
    await file.replica.add_nodes(failed, rows)
    await load(file, 3, rows)
    while await file.replica.sweep_generations():
        pass
    assert await count(file, "nodes") == 3


async def test_newer_rows_are_absorbed_and_older_ones_are_not(file: HotFile) -> None:
    row = node_from_postgres(keyed("k", "first"), 5)
    await load(file, 5, [row])
    newer = node_from_postgres(keyed("k", "second"), 7)
    assert await file.replica.absorb(head(7), [newer], []) == 1
    assert await file.replica.absorb(head(7), [row, newer], []) == 0
    assert text_of(file, row.node_id) == "second"
    assert rev_of(file) == 7


async def test_the_rows_of_a_difference_and_its_cursor_come_with_one_commit(file: HotFile) -> None:
    await load(file, 3, [])
    committed: list[tuple[int, int]] = []

    def look() -> None:
        with closing(file.database.driver.connect(file.database.path, read_only=True)) as connection:
            statement = "select (select max(rev) from users), (select coalesce(max(rev), 0) from nodes)"
            committed.append(connection.execute(statement).fetchone())

    after_each_commit(file, look)
    await file.replica.absorb(head(5), [node_from_postgres(fresh("a"), 5)], [])
    # A crash between two would leave a cursor that never asks for the rows again.
    assert committed == [(5, 5)]


async def test_a_tombstone_takes_the_node_away_and_does_not_come_back_to_life(file: HotFile) -> None:
    row = node_from_postgres(keyed("k"), 5)
    await load(file, 5, [row])
    tomb = row._replace(deleted_at=row.updated_at + 1, rev=6)
    await file.replica.absorb(head(6), [tomb], [])
    assert text_of(file, row.node_id) is None
    await file.replica.absorb(head(6), [row], [])
    assert text_of(file, row.node_id) is None


async def test_the_cursor_never_goes_back(file: HotFile) -> None:
    await load(file, 9, [])
    await file.replica.absorb(head(7), [], [])
    assert rev_of(file) == 9


@pytest.mark.parametrize(
    "change",
    [head(9, erased_rev=8), head(9, epoch=OTHER_EPOCH), head(9, user_id="never loaded")],
    ids=["erased", "rewritten", "never loaded"],
)
async def test_a_difference_that_continues_another_past_is_not_absorbed(file: HotFile, change: object) -> None:
    await load(file, 5, [])
    row = node_from_postgres(keyed("k"), 9)
    moved = change
    assert isinstance(moved, type(head(0)))
    assert await file.replica.absorb(moved, [row], []) == 0
    assert text_of(file, row.node_id) is None
    assert rev_of(file) == 5
    assert file.hot.cursor("never loaded") is None


async def test_a_queued_change_stays_visible_over_an_older_one_that_arrives(file: HotFile) -> None:
    row = node_from_postgres(keyed("k", "theirs, early"), 5, stamp=1)
    await load(file, 4, [])
    await file.outbox.accept_node("ada", keyed("k", "ours"))
    await file.replica.absorb(head(5), [row], [])
    assert text_of(file, row.node_id) == "ours"


async def test_a_queued_change_yields_to_a_later_one_as_postgres_will_decide(file: HotFile) -> None:
    await load(file, 4, [])
    await file.outbox.accept_node("ada", keyed("k", "ours"))
    later = node_from_postgres(keyed("k", "theirs, late"), 5, stamp=(1 << 62))
    await file.replica.absorb(head(5), [later], [])
    assert text_of(file, later.node_id) == "theirs, late"


async def test_a_queued_delete_hides_an_update_that_arrives(file: HotFile) -> None:
    row = node_from_postgres(keyed("k", "theirs"), 5)
    await load(file, 5, [row])
    await file.outbox.accept_deletion("ada", row.node_id)
    await file.replica.absorb(head(6), [row._replace(rev=6, stamp=1 << 62)], [])
    assert text_of(file, row.node_id) is None


async def test_what_postgres_had_done_already_is_not_laid_over_its_rows_again(file: HotFile) -> None:
    await load(file, 4, [])
    accepted = await file.outbox.accept_node("ada", keyed("k", "ours"))
    stands = node_from_postgres(keyed("k", "theirs, on top of ours"), 6, stamp=1)
    await file.replica.absorb(head(6, done_seq=accepted.seq), [stands], [])
    assert text_of(file, stands.node_id) == "theirs, on top of ours"
    await file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=1), before_rev=4))
    node = file.hot.get("ada", stands.node_id)
    assert node is not None
    assert (node.content["text"], node.rev) == ("theirs, on top of ours", 6)


async def test_settling_an_own_write_moves_the_cursor_so_that_no_echo_is_fetched(file: HotFile) -> None:
    await load(file, 4, [])
    await file.outbox.accept_node("ada", fresh())
    await file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=1), before_rev=4))
    assert rev_of(file) == 5
    await file.outbox.accept_node("ada", fresh())
    # Somebody else wrote in between: their row must still be fetched.
    await file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=1), before_rev=6))
    assert rev_of(file) == 5


async def test_a_user_with_a_queue_is_not_evicted_and_one_without_is(file: HotFile) -> None:
    row = node_from_postgres(keyed("k"), 5)
    await load(file, 5, [row])
    await file.outbox.accept_node("ada", fresh())
    assert not await file.replica.evict("ada")
    assert text_of(file, row.node_id) == "tea"
    await file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=1), before_rev=5))
    assert await file.replica.evict("ada")
    assert text_of(file, row.node_id) is None
    assert file.hot.cursor("ada") is None
    assert not await file.replica.evict("nobody")


async def test_an_erasure_counts_what_it_removed_and_leaves_other_users_alone(file: HotFile) -> None:
    rows = [node_from_postgres(fresh(str(n)), n) for n in range(1, 4)]
    await load(file, 4, rows, [edge_from_postgres(related(rows[0].node_id, rows[1].node_id), 4)])
    kept = await file.outbox.accept_node("bo", fresh())
    await file.outbox.accept_node("ada", fresh())
    removed = await file.replica.erase("ada", erased_rev=None)
    assert {name: removed[name] for name in ("nodes", "relationships", "outbox", "users")} == {
        "nodes": 4,
        "relationships": 1,
        "outbox": 1,
        "users": 1,
    }
    assert file.hot.get("bo", NodeId(kept.entity_id)) is not None
    assert file.hot.cursor("ada") is None


async def test_no_load_from_before_an_erasure_begins_and_none_under_way_is_shown(file: HotFile) -> None:
    rows = [node_from_postgres(fresh(str(n)), n) for n in range(1, 4)]
    generation = await file.replica.begin_load(head(4))
    assert generation is not None
    await file.replica.add_nodes(generation, rows)
    await file.replica.erase("ada", erased_rev=None)
    assert await file.replica.show_load(generation, complete=True) is None
    assert file.hot.get("ada", rows[0].node_id) is None
    assert file.hot.cursor("ada") is None
    assert await count(file, "nodes") == 0
    assert await file.replica.begin_load(head(4)) is None
    assert await file.replica.begin_load(head(4, user_id="bo")) is not None
    await file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=1)))
    assert await file.replica.begin_load(head(4, erased_rev=0)) is None
    assert await file.replica.begin_load(head(5, erased_rev=1)) is not None


async def test_obeying_an_erasure_queues_none(file: HotFile) -> None:
    await load(file, 4, [node_from_postgres(fresh(), 4)])
    await file.replica.erase("ada", erased_rev=7)
    assert file.outbox.claim(after_seq=0, limit=10) == []
    assert await count(file, "nodes") == 0


# Later than any clock says: a row with it wins over whatever is written now.
FAR_AHEAD = 1 << 62


async def test_what_was_applied_is_shown_though_it_had_lost_here_against_a_row_that_was_deleted_since(
    file: HotFile,
) -> None:
    ours = keyed("k", "ours")
    await file.outbox.accept_node("ada", ours)
    (queued,) = file.outbox.claim(after_seq=0, limit=9)
    await load(file, 2, [node_from_postgres(keyed("k", "theirs"), 2, stamp=FAR_AHEAD)])
    assert text_of(file, ours.node_id) == "theirs"
    # Revision 3 was the deletion of theirs, which the copy has not seen yet.
    await file.outbox.settle(carried([queued], before_rev=3))
    node = file.hot.get("ada", ours.node_id)
    assert node is not None
    assert (node.content["text"], node.rev) == ("ours", 4)
    found = await file.hot.search("ada", "ours", parse(None), 5)
    assert [hit.node.node_id for hit in found] == [ours.node_id]


async def test_what_was_merged_here_and_applied_there_over_a_deletion_is_shown_as_it_was_applied(file: HotFile) -> None:
    await file.outbox.accept_node("ada", entity(name="ours"))
    (queued,) = file.outbox.claim(after_seq=0, limit=9)
    await load(file, 2, [node_from_postgres(entity(age="theirs"), 2, stamp=1)])
    node = file.hot.get("ada", ENTITY)
    assert node is not None
    assert node.content["entity_data"] == {"name": "ours", "age": "theirs"}
    # Revision 3 was the deletion of theirs, which the copy has not seen yet.
    await file.outbox.settle(carried([queued], before_rev=3))
    node = file.hot.get("ada", ENTITY)
    assert node is not None
    assert (node.content["entity_data"], node.rev) == ({"name": "ours"}, 4)


async def test_a_later_change_of_ours_stays_visible_over_what_was_applied(file: HotFile) -> None:
    ours = keyed("k", "ours")
    await file.outbox.accept_node("ada", ours)
    await load(file, 2, [node_from_postgres(keyed("k", "theirs"), 2, stamp=1)])
    await file.outbox.accept_node("ada", keyed("k", "later"))
    (queued,) = file.outbox.claim(after_seq=0, limit=1)
    await file.outbox.settle(carried([queued], before_rev=3))
    node = file.hot.get("ada", ours.node_id)
    assert node is not None
    assert (node.content["text"], node.rev) == ("later", 4)


async def test_a_relationship_that_was_applied_is_shown_though_it_had_lost_here(file: HotFile) -> None:
    ends = [fresh("a"), fresh("b")]
    for end in ends:
        await file.outbox.accept_node("ada", end)
    wish = related(ends[0].node_id, ends[1].node_id)
    await file.outbox.accept_relationship("ada", wish)
    *nodes, queued = file.outbox.claim(after_seq=0, limit=9)
    theirs = edge_from_postgres(wish, 3)._replace(stamp=FAR_AHEAD, weight=0.25)
    shown = [node_from_postgres(end, rev) for rev, end in enumerate(ends, 1)]
    await load(file, 3, shown, [theirs])
    await file.outbox.settle(carried(nodes))
    await file.outbox.settle(carried([queued], before_rev=4))
    (neighbour,) = await file.hot.neighbours("ada", ends[0].node_id, depth=1, types=None, direction="out", limit=5)
    assert (neighbour.relationship.weight, neighbour.relationship.rev) == (1.0, 5)
