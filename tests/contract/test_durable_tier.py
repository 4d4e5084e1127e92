"""What the relay may rely on when it hands operations to the durable tier."""

from __future__ import annotations

import asyncio
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import replace

import asyncpg
import orjson
import pytest

from hybrid_memory.changes import Operation, Rule
from hybrid_memory.errors import Fenced, PoisonOperation
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.messages import BatchApplied, Disputed
from hybrid_memory.ports import DurableTier
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from tests.plugins.author import Author, new_id
from tests.plugins.postgres import Database


@pytest.fixture
def tier(durable_tier: PostgresDurableTier) -> DurableTier:
    return durable_tier


@pytest.fixture
def author() -> Author:
    return Author()


async def decide_one(tier: DurableTier, author: Author, operation: Operation) -> tuple[Verdict, int | None]:
    batch = await tier.decide(author.opening, [operation], 0)
    return batch.operations[0].verdict, batch.operations[0].rev


async def text_of(admin: asyncpg.Connection, operation: Operation) -> str | None:
    found: str | None = await admin.fetchval(
        "select content->>'text' from memory.nodes where user_id = $1 and node_id = $2 and deleted_at is null",
        operation.user_id,
        operation.entity_id,
    )
    return found


def verdicts(batch: BatchApplied) -> list[tuple[int, Verdict, int | None]]:
    return [(one.operation.seq, one.verdict, one.rev) for one in batch.operations]


async def test_a_batch_of_many_users_takes_gapless_revisions_of_each(tier: DurableTier, author: Author) -> None:
    operations = [author.store(user) for user in ("zoe", "adam", "zoe", "zoë", "adam", "zoe")]
    batch = await tier.apply(author.opening, operations, {})
    revs: dict[str, list[int | None]] = {}
    for one in batch.operations:
        assert one.verdict is Verdict.APPLIED
        revs.setdefault(one.operation.user_id, []).append(one.rev)
    assert revs == {"zoe": [1, 2, 3], "adam": [1, 2], "zoë": [1]}
    assert {user.user_id: (user.before_rev, user.head_rev, user.as_sent) for user in batch.users} == {
        "zoe": (0, 3, True),
        "adam": (0, 2, True),
        "zoë": (0, 1, True),
    }


async def test_the_revision_told_is_the_revision_stored(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    one, two = author.store("u"), author.store("u")
    knows = author.relate("u", one.entity_id, two.entity_id)
    batch = await tier.apply(author.opening, [one, two, knows], {})
    rows = await admin.fetch(
        """
        select node_id::text as id, rev from memory.nodes
        union all
        select relationship_id::text, rev from memory.relationships
        """
    )
    assert {row["id"]: row["rev"] for row in rows} == {one.operation.entity_id: one.rev for one in batch.operations}


async def test_a_batch_sent_again_is_disputed_and_changes_nothing(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    operations = [author.store("u"), author.store("v")]
    await tier.apply(author.opening, operations, {})
    before = await everything(admin)
    with pytest.raises(Disputed) as disputed:
        await tier.apply(author.opening, operations, {})
    assert disputed.value.users == {"u", "v"}
    assert await everything(admin) == before


@pytest.mark.parametrize("users", [["u"], ["u", "v"]])
async def test_a_number_at_or_below_the_mark_is_refused_even_for_rows_that_nobody_has(
    tier: DurableTier, author: Author, admin: asyncpg.Connection, users: list[str]
) -> None:
    await tier.apply(author.opening, [author.store(user) for user in users for _ in range(3)], {})
    before = await everything(admin)
    late = [author.store(user)._replace(seq=place) for place, user in enumerate(users, start=1)]
    with pytest.raises(Disputed) as disputed:
        await tier.apply(author.opening, late, {})
    assert "u" in disputed.value.users
    assert await everything(admin) == before


async def test_a_replay_after_a_lost_reply_is_told_as_applied_with_its_revision(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    sent = [author.store("u"), author.store("u")]
    await tier.apply(author.opening, sent, {})
    before = await everything(admin)
    more = author.store("u")
    assert verdicts(await tier.decide(author.opening, sent, 0)) == [(1, Verdict.APPLIED, 1), (2, Verdict.APPLIED, 2)]
    assert await everything(admin) == before
    batch = await tier.decide(author.opening, [*sent, more], 0)
    assert verdicts(batch) == [(1, Verdict.APPLIED, 1), (2, Verdict.APPLIED, 2), (3, Verdict.APPLIED, 3)]
    # What was applied before this batch may have been decided otherwise then.
    assert not batch.users[0].as_sent


async def test_a_conflict_undoes_the_whole_batch(tier: DurableTier, admin: asyncpg.Connection) -> None:
    first, second = Author(), Author()
    shared = new_id()
    await tier.apply(first.opening, [first.store("u", node_id=shared)], {})
    bystander = second.store("v")
    with pytest.raises(Disputed):
        await tier.apply(second.opening, [second.store("u", node_id=shared, text="other"), bystander], {})
    assert await text_of(admin, bystander) is None
    assert await admin.fetchval("select count(*) from memory.applied where user_id = 'v'") == 0


async def test_operations_queued_upon_one_another_need_no_deciding(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    made = author.store("u", text="one")
    changed = author.store("u", node_id=made_id(made), text="two", base=-made.seq)
    again = author.store("u", node_id=made_id(made), text="three", base=-changed.seq)
    for operation in (made, changed, again):
        assert (await tier.apply(author.opening, [operation], {})).users[0].as_sent
    assert await text_of(admin, made) == "three"
    history = await admin.fetch("select content->>'text', rev, reason from memory.node_history order by rev")
    assert [tuple(row) for row in history] == [("one", 1, "replaced"), ("two", 2, "replaced")]


async def test_a_decided_row_is_not_taken_for_one_that_was_seen(tier: DurableTier) -> None:
    # A merged row carries the writer's name; the same writer, having forgotten it, has still seen nothing of it.
    first, second = Author(), Author()
    shared = new_id()
    await tier.apply(first.opening, [first.store("u", node_id=shared)], {})
    merged = second.store("u", node_id=shared, rule=Rule.MERGE, patch='{"more":1}')
    assert await decide_one(tier, second, merged) == (Verdict.MERGED, 2)
    with pytest.raises(Disputed):
        await tier.apply(second.opening, [second.store("u", node_id=shared, text="blind")], {})


async def test_an_operation_accepted_before_an_erasure_is_refused_after_it(
    tier: DurableTier, admin: asyncpg.Connection
) -> None:
    late, eraser = Author(), Author()
    await tier.apply(late.opening, [late.store("u")], {})
    queued = late.store("u")
    erased_rev = await tier.erase(eraser.opening, eraser.erase("u"))
    with pytest.raises(Disputed) as disputed:
        await tier.apply(late.opening, [queued], {"u": 0})
    assert disputed.value.users == {"u"}
    assert verdicts(await tier.decide(late.opening, [queued], 0)) == [(2, Verdict.REJECTED, None)]
    # Nothing of it is kept, not even as a loser; and the mark has passed it.
    assert await admin.fetchval("select count(*) from memory.nodes") == 0
    assert await admin.fetchval("select count(*) from memory.node_history") == 0
    assert await admin.fetchval("select last_seq from memory.applied where client_id = $1", late.opening.client_id) == 2
    batch = await tier.apply(late.opening, [late.store("u")], {"u": erased_rev})
    assert batch.users[0].before_rev == erased_rev


async def test_an_erasure_sent_again_erases_nothing_that_came_after_it(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    await tier.apply(author.opening, [author.store("u")], {})
    erasure = author.erase("u")
    erased_rev = await tier.erase(author.opening, erasure)
    after = author.store("u", text="after")
    await tier.apply(author.opening, [after], {"u": erased_rev})
    assert await tier.erase(author.opening, erasure) == erased_rev
    assert await text_of(admin, after) == "after"


async def test_what_follows_two_erasures_of_ones_own_stands_though_the_first_was_on_its_way_at_the_second(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    await tier.apply(author.opening, [author.store("u")], {})
    await tier.erase(author.opening, author.erase("u", heard_of=0))
    second = author.erase("u", heard_of=0)
    erased_rev = await tier.erase(author.opening, second)
    assert await tier.erase(author.opening, second) == erased_rev, "the same again, should the answer be lost"
    after = author.store("u", text="after")
    await tier.apply(author.opening, [after], {"u": erased_rev})
    assert await text_of(admin, after) == "after"


async def test_a_user_of_whom_a_lost_erasure_is_known_is_not_made_anew_as_if_it_stood(
    tier: DurableTier, author: Author
) -> None:
    queued = author.store("u")
    for others in ([], [author.store("v")]):
        with pytest.raises(Disputed) as disputed:
            await tier.apply(author.opening, [queued, *others], {"u": 7})
        assert disputed.value.users == {"u"}
    assert verdicts(await tier.decide(author.opening, [queued], 7)) == [(1, Verdict.APPLIED, 1)]


async def test_an_erasure_leaves_no_row_of_the_user_but_that_it_happened(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    one, two = author.store("u"), author.store("u")
    kept = author.store("v")
    await tier.apply(author.opening, [one, two, author.relate("u", one.entity_id, two.entity_id), kept], {})
    await tier.apply(author.opening, [author.store("u", node_id=made_id(one), text="new", base=-1)], {})
    other = Author()
    await tier.decide(other.opening, [other.relate("u", one.entity_id, two.entity_id, stamp=1)], 0)
    assert await admin.fetchval("select count(*) from memory.relationship_history") == 1
    await tier.erase(author.opening, author.erase("u"))
    for table in ("nodes", "relationships", "vectors", "node_history", "relationship_history"):
        assert await admin.fetchval(f"select count(*) from memory.{table} where user_id = 'u'") == 0
    log = await admin.fetch("select operation, node_id, request from memory.access_log where user_id = 'u'")
    assert [tuple(row) for row in log] == [("erase", None, None)]
    assert await text_of(admin, kept) == "hello"


async def test_a_poison_operation_leaves_nothing_of_its_batch(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    good = author.store("u")
    orphan = author.relate("v", new_id(), new_id())
    before = await everything(admin)
    with pytest.raises(PoisonOperation) as poison:
        await tier.apply(author.opening, [good, orphan], {})
    assert poison.value.sqlstate == "23503"
    assert await everything(admin) == before
    # The connection is as good as new.
    await tier.apply(author.opening, [good], {})


async def test_a_poison_operation_to_be_decided_leaves_nothing_and_can_be_left_out(
    tier: DurableTier, author: Author
) -> None:
    good, orphan = author.store("u"), author.relate("u", new_id(), new_id())
    with pytest.raises(PoisonOperation):
        await tier.decide(author.opening, [good, orphan], 0)
    assert verdicts(await tier.decide(author.opening, [good], 0)) == [(1, Verdict.APPLIED, 1)]


async def test_an_error_tells_its_code_and_nothing_of_the_rows(
    tier: DurableTier, author: Author, caplog: pytest.LogCaptureFixture
) -> None:
    orphan = author.relate("secret-user", new_id(), new_id())
    with pytest.raises(PoisonOperation) as poison:
        await tier.apply(author.opening, [orphan], {})
    told = f"{poison.value} {poison.value.__cause__} {poison.value.__cause__!r} {poison.value.__cause__.__dict__}"
    assert "secret-user" not in told
    assert orphan.entity_id not in told
    assert "23503" in told
    assert not caplog.records


@pytest.mark.parametrize(
    "members", [{"importance": "the lilac code"}, {"summary": "the lilac code \0"}], ids=["22P02", "22P05"]
)
async def test_an_error_tells_nothing_of_the_value_that_was_refused(
    tier: DurableTier, author: Author, members: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    stored = author.store("u")
    # Beneath the validator. Postgres repeats the one in its message, the other in the context of it.
    changed = orjson.dumps({**orjson.loads(stored.payload), **members}).decode()
    with pytest.raises(PoisonOperation) as poison:
        await tier.apply(author.opening, [stored._replace(payload=changed)], {})
    cause = poison.value.__cause__
    assert cause is not None
    logged = "".join(traceback.format_exception(poison.value))
    assert "lilac" not in f"{poison.value!r} {poison.value.fix} {cause!r} {vars(cause)} {logged}"
    assert not caplog.records


async def test_users_are_locked_in_ascending_order_whatever_the_order_of_their_operations(
    tier: DurableTier, author: Author, admin: asyncpg.Connection
) -> None:
    await tier.apply(author.opening, [author.store("a"), author.store("b")], {})
    async with admin.transaction():
        await admin.execute("select 1 from memory.heads where user_id = 'a' for update")
        waiting = asyncio.create_task(tier.apply(author.opening, [author.store("b"), author.store("a")], {}))
        blocked = "select count(*) from pg_locks where not granted"
        async with asyncio.timeout(10):
            while await admin.fetchval(blocked) == 0:
                assert not waiting.done()
        # Whoever waits for the first must not yet hold the second.
        await admin.execute("select 1 from memory.heads where user_id = 'b' for update nowait")
    await waiting


async def test_two_writers_of_the_same_users_never_deadlock(postgres: Database, admin: asyncpg.Connection) -> None:
    users = [f"user{number}" for number in range(20)]
    rounds = 15

    async def write(order: Sequence[str]) -> None:
        author, tier = Author(), PostgresDurableTier(postgres.settings)
        for _ in range(rounds):
            await tier.apply(author.opening, [author.store(user) for user in order], {})
        await tier.close()

    await asyncio.gather(write(users), write(users[::-1]), write(users[10:] + users[:10]))
    assert {row["rev"] for row in await admin.fetch("select rev from memory.heads")} == {3 * rounds}
    gaps = "select user_id from memory.nodes group by user_id having max(rev) <> count(*) or min(rev) <> 1"
    assert await admin.fetch(gaps) == []


async def test_a_buried_node_takes_relationships_of_others_along_each_with_a_revision(
    tier: DurableTier, admin: asyncpg.Connection
) -> None:
    owner, other = Author(), Author()
    one, two = owner.store("u"), owner.store("u")
    await tier.apply(owner.opening, [one, two], {})
    knows = other.relate("u", one.entity_id, two.entity_id)
    await tier.apply(other.opening, [knows], {})
    batch = await tier.apply(owner.opening, [owner.bury("u", one)], {})
    assert batch.users[0].head_rev == 4
    assert not batch.users[0].as_sent
    row = await admin.fetchrow("select deleted_at is not null as dead, rev, writer_seq from memory.relationships")
    assert row is not None
    assert (row["dead"], row["rev"], row["writer_seq"]) == (True, 5, 0)
    head = await admin.fetchrow("select rev, nodes, relationships from memory.heads")
    assert head is not None
    assert tuple(head) == (5, 1, 0)


async def test_a_later_opening_fences_the_earlier_one_off(tier: DurableTier, author: Author) -> None:
    await tier.apply(author.opening, [author.store("u")], {})
    later = author.reopened()
    await tier.apply(later.opening, [later.store("u")], {})
    stale = author.store("u")._replace(seq=10)
    with pytest.raises(Disputed):
        await tier.apply(author.opening, [stale], {})
    with pytest.raises(Fenced):
        await tier.decide(author.opening, [stale], 0)
    with pytest.raises(Fenced):
        await tier.erase(author.opening, author.erase("u"))


async def test_a_copied_file_is_fenced_off_though_its_number_is_the_same(tier: DurableTier, author: Author) -> None:
    await tier.apply(author.opening, [author.store("u")], {})
    copied = Author(opening=replace(author.opening, token=str(uuid.uuid4())), seq=5)
    with pytest.raises(Disputed):
        await tier.apply(copied.opening, [copied.store("u")], {})
    with pytest.raises(Fenced):
        await tier.decide(copied.opening, [copied.store("u")], 0)


async def test_counts_on_the_head_follow_every_road(tier: DurableTier, admin: asyncpg.Connection) -> None:
    first, second = Author(), Author()
    one, two, three = (first.store("u") for _ in range(3))
    await tier.apply(first.opening, [one, two, three, first.relate("u", one.entity_id, two.entity_id)], {})
    await tier.apply(first.opening, [first.bury("u", three)], {})
    # Decided: an entity both have made counts once, a tombstone laid over it takes it away again.
    await tier.decide(second.opening, [second.store("u", node_id=made_id(one), text="later")], 0)
    second.rows[two.entity_id] = first.rows[two.entity_id]
    await tier.decide(second.opening, [second.bury("u", two, base=0)], 0)
    counted = await admin.fetchrow(
        """
        select (select count(*) from memory.nodes where deleted_at is null),
               (select count(*) from memory.relationships where deleted_at is null)
        """
    )
    head = await admin.fetchrow("select nodes, relationships from memory.heads")
    assert counted is not None
    assert head is not None
    assert tuple(head) == tuple(counted) == (1, 0)


def made_id(operation: Operation) -> NodeId:
    return NodeId(operation.entity_id)


async def everything(admin: asyncpg.Connection) -> list[list[tuple[object, ...]]]:
    """All rows of all tables that an operation could touch."""
    tables = ("heads", "nodes", "relationships", "node_history", "relationship_history", "applied")
    return [
        [tuple(row) for row in await admin.fetch(f"select * from memory.{table} order by 1, 2, 3")] for table in tables
    ]
