"""A relationship does not outlive the deletion of its end by somebody else, however the two meet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory import Verdict
from hybrid_memory.changes import NodeRow, Operation, RelationshipChange
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied
from hybrid_memory.sqlite.hot_file import HotFile
from tests.plugins.postgres import Database
from tests.support.hot_files import (
    CLOCK,
    EPOCH,
    edge_from_postgres,
    head,
    hot_file,
    keyed,
    load,
    node_from_postgres,
    related,
)
from tests.support.managers import FACT, both_tiers_agree, contents, drained, opened

SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A copy of two nodes that stand at the revisions 1 and 2, and of what relates them, if anything."""

    file: HotFile
    source: NodeRow
    target: NodeRow

    @property
    def edge(self) -> RelationshipChange:
        return related(self.source.node_id, self.target.node_id)

    def tomb(self, rev: int) -> NodeRow:
        """The target as somebody deleted it."""
        return self.target._replace(deleted_at=CLOCK.now_us(), rev=rev)

    async def relate(self) -> Operation:
        """Relate the two here; Postgres does not hear of it."""
        await self.file.outbox.accept_relationship("ada", self.edge)
        return self.file.outbox.claim(after_seq=0, limit=100)[-1]

    async def settle(self, operation: Operation, verdict: Verdict, rev: int | None) -> None:
        """Postgres has decided, after others had written as well."""
        user = AppliedUser("ada", EPOCH, before_rev=(rev or 9) - 1, head_rev=rev or 9, as_sent=False)
        waiting = self.file.outbox.settle(BatchApplied(operations=(Applied(operation, verdict, rev),), users=(user,)))
        await self.file.database.write(lambda _: None)
        await waiting

    async def shown(self) -> int:
        """How many relationships the copy shows."""
        return (await self.file.hot.digest("ada")).relationships


@pytest.fixture
async def copy(tmp_path: Path) -> AsyncIterator[Copy]:
    source, target = (node_from_postgres(keyed(key), rev) for rev, key in enumerate(("tea", "rye"), 1))
    async with hot_file(tmp_path) as file:
        await load(file, 2, [source, target])
        yield Copy(file=file, source=source, target=target)


async def test_a_queued_relationship_is_shown_while_its_ends_live_and_no_longer(copy: Copy) -> None:
    relating = await copy.relate()
    assert await copy.shown() == 1
    await copy.file.replica.absorb(head(3), [copy.tomb(3)], [])
    assert await copy.shown() == 0
    # Somebody brings the end back before the relationship has come to Postgres: there it is applied.
    await copy.file.replica.absorb(head(4), [copy.target._replace(rev=4)], [])
    assert await copy.shown() == 1
    await copy.settle(relating, Verdict.APPLIED, 5)
    assert await copy.shown() == 1


async def test_a_relationship_that_postgres_did_not_take_is_gone_though_its_end_comes_back(copy: Copy) -> None:
    relating = await copy.relate()
    await copy.file.replica.absorb(head(3), [copy.tomb(3)], [])
    await copy.settle(relating, Verdict.SUPERSEDED, None)
    await copy.file.replica.absorb(head(4), [copy.target._replace(rev=4)], [])
    assert await copy.shown() == 0


async def test_a_load_that_leaves_the_deleted_end_out_leaves_the_queued_relationship_out_too(copy: Copy) -> None:
    await copy.relate()
    await load(copy.file, 3, [copy.source])
    assert await copy.shown() == 0
    await copy.file.replica.absorb(head(4), [copy.target._replace(rev=4)], [])
    assert await copy.shown() == 1


@pytest.mark.parametrize("whole", [True, False])
async def test_what_another_relates_to_an_end_that_is_deleted_here_is_not_shown(copy: Copy, whole: bool) -> None:
    await copy.file.outbox.accept_deletion("ada", copy.target.node_id)
    edge = edge_from_postgres(copy.edge, 3)
    if whole:
        await load(copy.file, 3, [copy.source, copy.target], [edge])
    else:
        await copy.file.replica.absorb(head(3), [], [edge])
    assert await copy.shown() == 0


async def test_a_relationship_that_was_applied_before_its_ends_revival_is_heard_of_is_shown_after_it(
    copy: Copy,
) -> None:
    relating = await copy.relate()
    await copy.file.replica.absorb(head(3), [copy.tomb(3)], [])
    # Between them Postgres has brought the end back; the copy has not heard of that yet.
    await copy.settle(relating, Verdict.APPLIED, 5)
    assert await copy.shown() == 0
    revived, edge = copy.target._replace(rev=4), edge_from_postgres(copy.edge, 5)
    await copy.file.replica.absorb(head(5), [revived], [edge])
    assert await copy.shown() == 1
    assert (await copy.file.hot.neighbours("ada", copy.source.node_id, depth=1, types=None, direction="out", limit=9))[
        0
    ].relationship.rev == 5


async def test_a_relationship_of_an_end_that_a_load_left_out_is_shown_when_postgres_takes_it(copy: Copy) -> None:
    """So it is where the end has expired: then it is no tombstone there."""
    relating = await copy.relate()
    await load(copy.file, 3, [copy.source])
    await copy.settle(relating, Verdict.APPLIED, 4)
    assert await copy.shown() == 1


async def test_an_end_revived_here_does_not_bring_back_what_its_deletion_has_beaten(copy: Copy) -> None:
    await copy.relate()
    await copy.file.replica.absorb(head(3), [copy.tomb(3)], [])
    await copy.file.outbox.accept_node("ada", keyed("rye"))
    assert await copy.shown() == 0
    await copy.file.outbox.accept_relationship("ada", copy.edge)
    assert await copy.shown() == 1
    assert [one.delta for one in copy.file.outbox.claim(after_seq=0, limit=9)] == [1, 1, 1]


async def live_relationships(admin: asyncpg.Connection) -> list[asyncpg.Record]:
    return await admin.fetch("select from memory.relationships where deleted_at is null")


@pytest.mark.usefixtures("one_place")
@pytest.mark.parametrize("revived", [False, True])
async def test_a_relationship_stored_apart_from_the_deletion_of_its_end_is_the_same_everywhere(
    postgres: Database, admin: asyncpg.Connection, tmp_path: Path, revived: bool
) -> None:
    async with opened(postgres, tmp_path / "one") as one:
        here = await one.ensure_user_memories("ada")
        ends = [await here.store({"n": n}, context_type=FACT, key=str(n), wait=SECONDS) for n in range(2)]
        async with opened(postgres, tmp_path / "two") as two:
            await two.ensure_user_memories("ada")
        async with opened(f"postgresql://nobody@/none?host={tmp_path}", tmp_path / "two") as two:
            receipt = await two.user("ada").relate(ends[0].node_id, ends[1].node_id, "led_to", wait=0)
        await here.delete(ends[1].node_id, wait=SECONDS)
        if revived:
            await here.store({"n": "anew"}, context_type=FACT, key="1", wait=SECONDS)
        async with opened(postgres, tmp_path / "two") as two:
            there = await two.ensure_user_memories("ada")
            await drained(two)
            assert len(await live_relationships(admin)) == int(revived)
            for manager, memory in ((one, here), (two, there)):
                await both_tiers_agree(manager, memory)
                assert len(await memory.neighbours(ends[0].node_id)) == int(revived)
            assert await contents(here) == await contents(there)
    assert receipt.verdict is None
