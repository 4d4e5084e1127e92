"""Who wins when two writers meet in the durable tier, and what becomes of the loser."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg
import orjson
import pytest

from hybrid_memory.changes import Operation, Rule
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.jsontext import encode
from hybrid_memory.messages import Applied, Disputed
from hybrid_memory.ports import DurableTier
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from tests.plugins.author import Author, new_id

EARLY, LATE = 1, (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Two clients that write the same node; `theirs` stands first."""

    tier: DurableTier
    admin: asyncpg.Connection
    theirs: Author
    ours: Author
    node_id: NodeId

    async def they_store(self, *, stamp: int | None = None) -> Operation:
        operation = self.theirs.store("u", node_id=self.node_id, text="theirs", stamp=stamp)
        await self.tier.apply(self.theirs.opening, [operation], {})
        return operation

    async def we_send(self, operation: Operation) -> Applied:
        batch = await self.tier.decide(self.ours.opening, [operation], 0)
        return batch.operations[0]

    async def content(self) -> object:
        found: str | None = await self.admin.fetchval(
            "select content from memory.nodes where node_id = $1 and deleted_at is null", self.node_id
        )
        return None if found is None else orjson.loads(found)

    async def lost(self) -> list[str]:
        rows = await self.admin.fetch(
            "select content->>'text' as text from memory.node_history where reason = 'lost' order by stamp"
        )
        return [row["text"] for row in rows]


@pytest.fixture
def meeting(durable_tier: PostgresDurableTier, admin: asyncpg.Connection) -> Meeting:
    return Meeting(tier=durable_tier, admin=admin, theirs=Author(), ours=Author(), node_id=new_id())


async def test_what_nobody_stored_is_applied(meeting: Meeting) -> None:
    outcome = await meeting.we_send(meeting.ours.store("u", node_id=meeting.node_id, text="ours"))
    assert (outcome.verdict, outcome.rev) == (Verdict.APPLIED, 1)


async def test_what_was_seen_is_overwritten_whatever_the_stamps_say(meeting: Meeting) -> None:
    await meeting.they_store(stamp=LATE)
    ours = meeting.ours.store("u", node_id=meeting.node_id, text="ours", base=1, stamp=EARLY)
    assert (await meeting.we_send(ours)).verdict is Verdict.APPLIED
    assert await meeting.content() == {"text": "ours"}


async def test_the_later_stamp_replaces_what_was_not_seen(meeting: Meeting) -> None:
    await meeting.they_store(stamp=EARLY)
    outcome = await meeting.we_send(meeting.ours.store("u", node_id=meeting.node_id, text="ours"))
    assert (outcome.verdict, outcome.rev) == (Verdict.APPLIED, 2)
    assert await meeting.content() == {"text": "ours"}


async def test_every_loser_goes_to_the_history_even_twice_against_the_same_row(meeting: Meeting) -> None:
    await meeting.they_store(stamp=LATE)
    for text in ("ours", "ours again"):
        operation = meeting.ours.store("u", node_id=meeting.node_id, text=text)
        outcome = await meeting.we_send(operation)
        assert (outcome.verdict, outcome.rev) == (Verdict.SUPERSEDED, None)
    assert await meeting.content() == {"text": "theirs"}
    assert await meeting.lost() == ["ours", "ours again"]


async def test_a_merge_keeps_both_sides_field_by_field(meeting: Meeting) -> None:
    await meeting.they_store()
    ours = meeting.ours.store("u", node_id=meeting.node_id, rule=Rule.MERGE, patch='{"more":{"deep":1}}', tags=["x"])
    batch = await meeting.tier.decide(meeting.ours.opening, [ours], 0)
    assert batch.operations[0].verdict is Verdict.MERGED
    assert not batch.users[0].as_sent
    assert await meeting.content() == {"text": "theirs", "more": {"deep": 1}}
    tags = await meeting.admin.fetchval("select tags from memory.nodes")
    assert tags == ["a", "ü", "x"]


async def test_a_merge_leaves_numbers_as_they_were_written(meeting: Meeting) -> None:
    await meeting.they_store()
    patch = '{"big":1e22,"small":-0.0,"long":9007199254740993}'
    await meeting.we_send(
        meeting.ours.store("u", node_id=meeting.node_id, rule=Rule.MERGE, patch=patch, importance=0.1)
    )
    content = await meeting.admin.fetchval("select content::text from memory.nodes")
    assert content == encode({"big": 1e22, "long": 9007199254740993, "small": -0.0, "text": "theirs"})
    assert await meeting.admin.fetchval("select importance::text from memory.nodes") == "0.1"


async def test_a_comparison_that_fails_is_rejected_and_kept(meeting: Meeting) -> None:
    await meeting.they_store(stamp=EARLY)
    outcome = await meeting.we_send(meeting.ours.store("u", node_id=meeting.node_id, text="ours", rule=Rule.COMPARE))
    assert (outcome.verdict, outcome.rev) == (Verdict.REJECTED, None)
    assert await meeting.content() == {"text": "theirs"}
    assert await meeting.lost() == ["ours"]


async def test_a_deletion_wins_over_an_update_that_did_not_see_it(meeting: Meeting) -> None:
    stored = await meeting.they_store()
    await meeting.tier.apply(meeting.theirs.opening, [meeting.theirs.bury("u", stored)], {})
    outcome = await meeting.we_send(meeting.ours.store("u", node_id=meeting.node_id, text="ours", base=1, stamp=LATE))
    assert outcome.verdict is Verdict.SUPERSEDED
    assert await meeting.content() is None
    assert await meeting.lost() == ["ours"]


async def test_a_deletion_wins_over_an_update_it_did_not_see(meeting: Meeting) -> None:
    await meeting.they_store(stamp=LATE)
    seen = meeting.ours.store("u", node_id=meeting.node_id, text="ours", base=1)
    outcome = await meeting.we_send(meeting.ours.bury("u", seen, base=77))
    assert (outcome.verdict, outcome.rev) == (Verdict.APPLIED, 2)
    assert await meeting.content() is None
    # What was deleted unseen can be found again.
    assert await meeting.admin.fetchval("select content->>'text' from memory.nodes") == "theirs"


async def test_a_revival_brings_back_what_another_deleted(meeting: Meeting) -> None:
    stored = await meeting.they_store()
    await meeting.tier.apply(meeting.theirs.opening, [meeting.theirs.bury("u", stored)], {})
    ours = meeting.ours.store("u", node_id=meeting.node_id, text="ours", revive=True)
    assert (await meeting.we_send(ours)).verdict is Verdict.APPLIED
    assert await meeting.content() == {"text": "ours"}
    assert await meeting.admin.fetchval("select nodes from memory.heads") == 1


async def test_what_was_queued_upon_a_superseded_operation_is_decided_too(meeting: Meeting) -> None:
    await meeting.they_store(stamp=LATE)
    first = meeting.ours.store("u", node_id=meeting.node_id, text="ours")
    second = meeting.ours.store("u", node_id=meeting.node_id, text="ours again", base=-first.seq)
    assert (await meeting.we_send(first)).verdict is Verdict.SUPERSEDED
    assert (await meeting.we_send(second)).verdict is Verdict.SUPERSEDED


async def test_what_was_queued_upon_a_merged_operation_keeps_what_it_never_saw(meeting: Meeting) -> None:
    await meeting.they_store()
    first = meeting.ours.store("u", node_id=meeting.node_id, rule=Rule.MERGE, patch='{"more":1}')
    assert (await meeting.we_send(first)).verdict is Verdict.MERGED
    second = meeting.ours.store("u", node_id=meeting.node_id, rule=Rule.MERGE, patch='{"most":2}', base=-first.seq)
    assert (await meeting.we_send(second)).verdict is Verdict.MERGED
    assert await meeting.content() == {"text": "theirs", "more": 1, "most": 2}


async def test_the_later_weight_of_a_relationship_stands(meeting: Meeting) -> None:
    one, two = meeting.theirs.store("u"), meeting.theirs.store("u")
    knows = meeting.theirs.relate("u", one.entity_id, two.entity_id, weight=0.5, stamp=EARLY)
    await meeting.tier.apply(meeting.theirs.opening, [one, two, knows], {})
    later = meeting.ours.relate("u", one.entity_id, two.entity_id, weight=0.7)
    earlier = meeting.ours.relate("u", one.entity_id, two.entity_id, weight=0.9, stamp=EARLY)
    assert (await meeting.we_send(later)).verdict is Verdict.APPLIED
    assert (await meeting.we_send(earlier)).verdict is Verdict.SUPERSEDED
    assert await meeting.admin.fetchval("select weight from memory.relationships") == 0.7


async def test_one_batch_may_meet_every_fate(meeting: Meeting) -> None:
    await meeting.they_store(stamp=LATE)
    plain = meeting.ours.store("u")
    loser = meeting.ours.store("u", node_id=meeting.node_id, text="ours")
    last = meeting.ours.store("u")
    batch = await meeting.tier.decide(meeting.ours.opening, [plain, loser, last], 0)
    assert [(one.verdict, one.rev) for one in batch.operations] == [
        (Verdict.APPLIED, 2),
        (Verdict.SUPERSEDED, None),
        (Verdict.APPLIED, 3),
    ]
    assert (batch.users[0].before_rev, batch.users[0].head_rev, batch.users[0].as_sent) == (1, 3, False)
    rows = await meeting.admin.fetch("select rev from memory.nodes order by rev")
    assert [row["rev"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(("rule", "verdict"), [(Rule.REPLACE, Verdict.SUPERSEDED), (Rule.COMPARE, Verdict.REJECTED)])
async def test_a_loser_that_is_sent_again_hears_again_that_it_lost(
    meeting: Meeting, rule: Rule, verdict: Verdict
) -> None:
    await meeting.they_store(stamp=LATE)
    ours = meeting.ours.store("u", node_id=meeting.node_id, text="ours", rule=rule)
    assert [(await meeting.we_send(ours)).verdict for _ in range(2)] == [verdict, verdict]
    assert await meeting.lost() == ["ours"]


async def test_what_an_erasure_beat_hears_so_again_when_it_is_sent_again(meeting: Meeting) -> None:
    await meeting.they_store()
    ours = meeting.ours.store("u", text="ours")
    await meeting.tier.erase(meeting.theirs.opening, meeting.theirs.erase("u"))
    assert [(await meeting.we_send(ours)).verdict for _ in range(2)] == [Verdict.REJECTED, Verdict.REJECTED]


async def test_a_relationship_that_a_deletion_beat_hears_so_again_when_it_is_sent_again(meeting: Meeting) -> None:
    one, two = meeting.theirs.store("u"), meeting.theirs.store("u")
    knows = meeting.theirs.relate("u", one.entity_id, two.entity_id)
    await meeting.tier.apply(meeting.theirs.opening, [one, two, knows], {})
    await meeting.tier.apply(meeting.theirs.opening, [meeting.theirs.bury("u", two)], {})
    ours = meeting.ours.relate("u", one.entity_id, two.entity_id, stamp=LATE)
    assert [(await meeting.we_send(ours)).verdict for _ in range(2)] == [Verdict.SUPERSEDED, Verdict.SUPERSEDED]


async def test_a_relationship_that_was_applied_hears_so_again_though_it_was_deleted_since(meeting: Meeting) -> None:
    one, two = meeting.theirs.store("u"), meeting.theirs.store("u")
    await meeting.tier.apply(meeting.theirs.opening, [one, two], {})
    ours = meeting.ours.relate("u", one.entity_id, two.entity_id)
    assert (await meeting.we_send(ours)).verdict is Verdict.APPLIED
    await meeting.tier.apply(meeting.theirs.opening, [meeting.theirs.bury("u", two)], {})
    assert (await meeting.we_send(ours)).verdict is Verdict.APPLIED
    assert await meeting.admin.fetchval("select count(*) from memory.relationship_history") == 0


async def test_a_relationship_that_lost_to_a_later_one_hears_so_again_and_is_kept(meeting: Meeting) -> None:
    one, two = meeting.theirs.store("u"), meeting.theirs.store("u")
    knows = meeting.theirs.relate("u", one.entity_id, two.entity_id, weight=0.5, stamp=LATE)
    await meeting.tier.apply(meeting.theirs.opening, [one, two, knows], {})
    ours = meeting.ours.relate("u", one.entity_id, two.entity_id, weight=0.9, stamp=EARLY)
    assert [(await meeting.we_send(ours)).verdict for _ in range(2)] == [Verdict.SUPERSEDED, Verdict.SUPERSEDED]
    kept = await meeting.admin.fetch("select source_id::text, weight, stamp from memory.relationship_history")
    assert [tuple(row) for row in kept] == [(one.entity_id, 0.9, EARLY)]


@pytest.mark.parametrize("theirs_is", ["before", "between", "both"])
async def test_an_erasure_whose_answer_was_lost_is_told_as_at_first_whoever_erased_besides(
    meeting: Meeting, theirs_is: str
) -> None:
    """What is told is the last erasure its writer knows of: one of another's stays unheard of."""
    await meeting.they_store()
    await meeting.tier.erase(meeting.theirs.opening, meeting.theirs.erase("u"))
    first = await meeting.admin.fetchval("select erased_rev from memory.heads")
    if theirs_is != "between":
        await meeting.tier.erase(meeting.theirs.opening, meeting.theirs.erase("u"))
    ours = meeting.ours.erase("u", heard_of=first)
    told = await meeting.tier.erase(meeting.ours.opening, ours)
    assert told == (first + 1 if theirs_is == "between" else first)
    if theirs_is != "before":
        await meeting.tier.erase(meeting.theirs.opening, meeting.theirs.erase("u"))
    assert await meeting.tier.erase(meeting.ours.opening, ours) == told


async def test_a_relationship_of_what_an_unheard_erasure_has_taken_is_rejected_and_not_dead(meeting: Meeting) -> None:
    """Its writer never heard of an erasure, so time decides: its nodes come before it, the relationship after."""
    one, two = meeting.ours.store("u"), meeting.ours.store("u")
    await meeting.tier.erase(meeting.theirs.opening, meeting.theirs.erase("u"))
    three = meeting.ours.store("u")
    knows = [meeting.ours.relate("u", *ends) for ends in ((one.entity_id, two.entity_id), (three.entity_id,) * 2)]
    batch = await meeting.tier.decide(meeting.ours.opening, [one, two, three, *knows], -1)
    assert [applied.verdict for applied in batch.operations] == [
        Verdict.REJECTED,
        Verdict.REJECTED,
        Verdict.APPLIED,
        Verdict.REJECTED,
        Verdict.APPLIED,
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Two nodes that stand, of which one is about to be deleted by those who stored them."""

    source: Operation
    target: Operation


async def they_delete_an_end(meeting: Meeting) -> Ends:
    """They store two nodes and delete the second; we had seen both."""
    ends = Ends(source=meeting.theirs.store("u"), target=meeting.theirs.store("u"))
    await meeting.tier.apply(meeting.theirs.opening, [ends.source, ends.target], {})
    await meeting.tier.apply(meeting.theirs.opening, [meeting.theirs.bury("u", ends.target)], {})
    return ends


async def live_relationships(meeting: Meeting) -> tuple[int, int]:
    """How many stand, and how many the head counts."""
    standing = await meeting.admin.fetchval("select count(*) from memory.relationships where deleted_at is null")
    return standing, await meeting.admin.fetchval("select relationships from memory.heads")


@pytest.mark.parametrize("outward", [True, False])
async def test_a_relationship_of_an_end_that_was_deleted_unseen_is_superseded(meeting: Meeting, outward: bool) -> None:
    ends = await they_delete_an_end(meeting)
    pair = (ends.source.entity_id, ends.target.entity_id)
    ours = meeting.ours.relate("u", *(pair if outward else pair[::-1]), stamp=LATE)
    with pytest.raises(Disputed):
        await meeting.tier.apply(meeting.ours.opening, [ours], {})
    assert [(await meeting.we_send(ours)).verdict for _ in range(2)] == [Verdict.SUPERSEDED, Verdict.SUPERSEDED]
    assert await live_relationships(meeting) == (0, 0)


async def test_a_relationship_goes_with_an_end_whose_update_a_deletion_has_beaten(meeting: Meeting) -> None:
    ends = await they_delete_an_end(meeting)
    update = meeting.ours.store("u", node_id=Author.node_id(ends.target), base=2, stamp=LATE)
    knows = meeting.ours.relate("u", ends.source.entity_id, ends.target.entity_id)
    batch = await meeting.tier.decide(meeting.ours.opening, [update, knows], 0)
    assert [one.verdict for one in batch.operations] == [Verdict.SUPERSEDED, Verdict.SUPERSEDED]
    assert await live_relationships(meeting) == (0, 0)


async def test_a_relationship_of_an_end_that_was_deleted_and_revived_is_applied(meeting: Meeting) -> None:
    ends = await they_delete_an_end(meeting)
    revival = meeting.theirs.store("u", node_id=Author.node_id(ends.target), base=3, revive=True, delta=1)
    await meeting.tier.apply(meeting.theirs.opening, [revival], {})
    ours = meeting.ours.relate("u", ends.source.entity_id, ends.target.entity_id)
    await meeting.tier.apply(meeting.ours.opening, [ours], {})
    assert await live_relationships(meeting) == (1, 1)


@pytest.mark.parametrize("seen", [True, False])
async def test_a_relationship_goes_with_the_revival_of_its_end(meeting: Meeting, seen: bool) -> None:
    ends = await they_delete_an_end(meeting)
    target = Author.node_id(ends.target)
    revival = meeting.ours.store("u", node_id=target, base=3 if seen else 2, revive=True, delta=1)
    knows = meeting.ours.relate("u", ends.source.entity_id, target)
    if seen:
        await meeting.tier.apply(meeting.ours.opening, [revival, knows], {})
    else:
        batch = await meeting.tier.decide(meeting.ours.opening, [revival, knows], 0)
        assert [one.verdict for one in batch.operations] == [Verdict.APPLIED, Verdict.APPLIED]
    assert await live_relationships(meeting) == (1, 1)


async def test_a_deletion_takes_a_relationship_along_that_it_never_saw(meeting: Meeting) -> None:
    one, two = meeting.theirs.store("u"), meeting.theirs.store("u")
    await meeting.tier.apply(meeting.theirs.opening, [one, two], {})
    knows = meeting.ours.relate("u", one.entity_id, two.entity_id)
    await meeting.tier.apply(meeting.ours.opening, [knows], {})
    await meeting.tier.apply(meeting.theirs.opening, [meeting.theirs.bury("u", two)], {})
    assert await live_relationships(meeting) == (0, 0)
