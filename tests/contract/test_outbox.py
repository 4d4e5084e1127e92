"""What the durable queue of the hot tier promises to the relay and to those who write."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hybrid_memory.errors import Backpressure, Closed, Conflict, NotFound, StorageFailed
from hybrid_memory.filters import parse
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.messages import Applied, BatchApplied, Listing
from hybrid_memory.sqlite.accepting import QueueBounds
from hybrid_memory.sqlite.hot_file import HotFile
from tests.support.hot_files import (
    CLOCK,
    carried,
    count,
    fresh,
    head,
    hot_file,
    keyed,
    load,
    node_from_postgres,
    related,
)
from tests.support.waiting import until


class Broken(ValueError):
    """What a failing work raises in these tests."""


def seqs(file: HotFile, *, after_seq: int = 0, limit: int = 100_000, user_id: str | None = None) -> list[int]:
    return [one.seq for one in file.outbox.claim(after_seq=after_seq, limit=limit, user_id=user_id)]


async def test_of_a_forgotten_user_no_more_is_remembered_than_of_one_let_go(file: HotFile) -> None:
    await file.outbox.accept_node("ada", fresh("1"))
    await file.replica.erase("ada", erased_rev=None)
    (erasure,) = file.outbox.claim(after_seq=0, limit=10)
    settling = file.outbox.settle(carried([erasure]))
    await file.database.write(lambda _: None)
    await settling
    remembered = vars(file.outbox.last)
    assert (remembered["_last"], remembered["_let_go"]) == ({}, {"ada": erasure.seq})
    assert file.outbox.last_accepted_of("ada") == erasure.seq


@dataclass(frozen=True, slots=True)
class Note:
    """A work that writes a transient row, to see which works of a group were kept."""

    text: str
    error: Exception | None = None

    def __call__(self, connection: sqlite3.Connection) -> str:
        connection.execute(
            "insert into transient (thread_id, node_id, context_type, content, created_at)"
            " values ('t', ?, 'f', '{}', 0)",
            (self.text,),
        )
        if self.error is not None:
            raise self.error
        return self.text


async def broken(file: HotFile) -> None:
    """A work that fails, as a coroutine: it takes its place among others when it is first run."""
    await file.database.write(Note("broken", Broken()))


async def notes(file: HotFile) -> set[str]:
    return {str(node.node_id) for node in file.scratch.of_thread("t")}


@pytest.mark.parametrize("error", [Broken(), NotFound("a refusal that comes too late")], ids=["broken", "refused"])
async def test_a_work_that_fails_after_it_wrote_undoes_itself_alone(file: HotFile, error: Exception) -> None:
    works = [file.database.write(Note(str(n), error if n == 3 else None)) for n in range(6)]
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert outcomes == ["0", "1", "2", error, "4", "5"]
    assert await notes(file) == {"0", "1", "2", "4", "5"}


async def test_a_statement_that_sqlite_refuses_fails_its_own_work_alone(file: HotFile) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("insert into transient (thread_id) values ('t')")

    good, bad, also_good = (
        file.database.write(Note("a")),
        file.database.write(half),
        file.database.write(Note("b")),
    )
    with pytest.raises(StorageFailed):
        await bad
    assert (await good, await also_good) == ("a", "b")
    assert await notes(file) == {"a", "b"}


async def test_refused_and_failing_writes_in_a_group_leave_the_others_and_no_gap(file: HotFile) -> None:
    await file.outbox.accept_node("ada", keyed("k"))
    group: list[asyncio.Future[Any]] = [
        file.outbox.accept_node("ada", fresh("1")),
        file.outbox.accept_node("ada", keyed("k", expected_rev=7)),
        file.outbox.accept_node("ada", fresh("2")),
        asyncio.ensure_future(broken(file)),
        file.outbox.accept_deletion("ada", NodeId("00000000-0000-0000-0000-000000000000")),
        file.outbox.accept_node("bo", fresh("3")),
    ]
    outcomes = await asyncio.gather(*group, return_exceptions=True)
    assert [type(outcomes[n]) for n in (1, 3, 4)] == [Conflict, Broken, NotFound]
    assert seqs(file) == [1, 2, 3, 4]
    assert await count(file, "nodes") == 4
    assert file.outbox.state().entries == 4


async def test_what_was_committed_is_seen_though_the_last_of_its_group_failed(file: HotFile) -> None:
    stored = file.outbox.accept_node("ada", fresh("1"))
    failing = file.database.write(Note("broken", Broken()))
    await stored
    with pytest.raises(Broken):
        await failing
    assert seqs(file) == [1]
    assert file.outbox.state().entries == 1


async def test_what_was_committed_is_seen_though_one_failed_and_the_last_of_its_group_queued_nothing(
    file: HotFile,
) -> None:
    stored = file.outbox.accept_node("ada", fresh("1"))
    failing = file.database.write(Note("broken", Broken()))
    noted = file.database.write(Note("a"))
    assert [type(one) for one in await asyncio.gather(failing, return_exceptions=True)] == [Broken]
    await asyncio.gather(stored, noted)
    assert seqs(file) == [1]


async def test_what_is_submitted_while_a_group_is_answered_is_committed_too(file: HotFile) -> None:
    # The thread has ended its work by then, and only the event loop can have it begin again.
    later: list[asyncio.Future[str]] = []

    def submits(outcome: str, future: asyncio.Future[str]) -> None:
        later.append(file.database.write(Note("b")))
        future.set_result(outcome)

    async with asyncio.timeout(5):
        assert await file.database.submit(Note("a"), submits) == "a"
        assert await later[0] == "b"


async def test_who_cannot_take_an_answer_stops_the_writer_and_leaves_nobody_waiting(file: HotFile) -> None:
    told: list[str] = []

    def deaf(_outcome: str, _future: asyncio.Future[str]) -> None:
        raise Broken

    def hears(outcome: str, future: asyncio.Future[str]) -> None:
        told.append(outcome)
        future.set_result(outcome)

    works: list[asyncio.Future[str]] = [
        file.database.submit(Note("a"), hears),
        file.database.submit(Note("b"), deaf),
        file.database.submit(Note("c"), hears),
    ]
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert outcomes[0] == "a"
    assert [type(outcome) for outcome in outcomes[1:]] == [StorageFailed, StorageFailed]
    assert (told, isinstance(file.database.failure, Broken)) == (["a"], True)


async def test_a_writer_that_died_leaves_nobody_waiting(file: HotFile) -> None:
    class Unplaceable(BaseException):
        pass

    def fatal(_connection: sqlite3.Connection) -> None:
        raise Unplaceable

    works: list[asyncio.Future[Any]] = [file.database.write(work) for work in (Note("a"), fatal, Note("b"))]
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert all(isinstance(outcome, StorageFailed) for outcome in outcomes), "somebody would have waited for ever"
    assert file.database.failure is not None
    with pytest.raises(StorageFailed):
        await file.database.write(Note("c"))


async def test_queue_numbers_have_no_gap_after_failures_and_restarts(tmp_path: Path) -> None:
    for generation in range(3):
        async with hot_file(tmp_path) as file:
            await asyncio.gather(*(file.outbox.accept_node("ada", fresh(str(n))) for n in range(5)))
            with pytest.raises(Broken):
                await broken(file)
            await file.outbox.accept_node("ada", fresh("last"))
            assert seqs(file) == list(range(1, (generation + 1) * 6 + 1))


@pytest.mark.parametrize("way", ["settled", "buried", "erased"])
async def test_numbers_are_not_given_out_twice_when_the_queue_was_empty_at_the_end(tmp_path: Path, way: str) -> None:
    async with hot_file(tmp_path) as file:
        for _ in range(3):
            await file.outbox.accept_node("ada", fresh())
        queued = file.outbox.claim(after_seq=0, limit=10)
        if way == "settled":
            await file.outbox.settle(carried(queued))
        elif way == "buried":
            for one in reversed(queued):
                await file.outbox.bury(one, sqlstate="22P05", reason="nothing takes it")
        else:
            await file.replica.erase("ada", erased_rev=1)
        assert seqs(file) == []
    async with hot_file(tmp_path) as file:
        assert (await file.outbox.accept_node("ada", fresh())).seq == 4


async def test_an_entry_and_its_row_are_there_together_as_soon_as_it_is_accepted(file: HotFile) -> None:
    change = fresh()
    accepted = await file.outbox.accept_node("ada", change)
    (queued,) = file.outbox.claim(after_seq=0, limit=10)
    assert (queued.seq, queued.op_id, queued.entity_id) == (accepted.seq, accepted.op_id, change.node_id)
    assert file.hot.get("ada", change.node_id) is not None


async def test_a_deletion_queues_the_relationships_before_the_node(file: HotFile) -> None:
    nodes = [fresh(str(n)) for n in range(3)]
    for node in nodes:
        await file.outbox.accept_node("ada", node)
    await file.outbox.accept_relationship("ada", related(nodes[0].node_id, nodes[1].node_id))
    await file.outbox.accept_relationship("ada", related(nodes[2].node_id, nodes[0].node_id))
    accepted = await file.outbox.accept_deletion("ada", nodes[0].node_id)
    tail = file.outbox.claim(after_seq=5, limit=10)
    assert [(one.kind.value, one.delta) for one in tail] == [("relationship", -1), ("relationship", -1), ("node", -1)]
    assert accepted.seq == tail[-1].seq


async def test_at_its_bound_the_queue_refuses_and_drops_nothing(tmp_path: Path) -> None:
    async with hot_file(tmp_path, bounds=QueueBounds(entries=10, payload_bytes=2**20)) as file:
        writes = [file.outbox.accept_node("ada", fresh(str(n))) for n in range(30)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert sum(isinstance(outcome, Backpressure) for outcome in outcomes) == 20
        assert seqs(file) == list(range(1, 11))
        assert await count(file, "nodes") == 10
        await file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=4)))
        assert (await file.outbox.accept_node("ada", fresh())).seq == 11


async def test_the_bound_on_bytes_holds_as_well(tmp_path: Path) -> None:
    async with hot_file(tmp_path, bounds=QueueBounds(entries=1000, payload_bytes=5_000)) as file:
        writes = [file.outbox.accept_node("ada", fresh("x" * 1_000)) for _ in range(20)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        refused = sum(isinstance(outcome, Backpressure) for outcome in outcomes)
        assert 0 < file.outbox.state().entries == 20 - refused < 10


async def test_a_group_that_failed_does_not_count_against_the_bound(tmp_path: Path) -> None:
    async with hot_file(tmp_path, bounds=QueueBounds(entries=10, payload_bytes=2**20)) as file:
        writes: list[asyncio.Future[Any]] = [file.outbox.accept_node("ada", fresh(str(n))) for n in range(8)]
        writes.append(asyncio.ensure_future(broken(file)))
        await asyncio.gather(*writes, return_exceptions=True)
        again = [file.outbox.accept_node("ada", keyed("k")) for _ in range(2)]
        assert [accepted.seq for accepted in await asyncio.gather(*again)] == [9, 10]


async def test_settling_again_changes_nothing(file: HotFile) -> None:
    accepted = await file.outbox.accept_node("ada", keyed("k"))
    batch = carried(file.outbox.claim(after_seq=0, limit=10))
    for _ in range(3):
        await file.outbox.settle(batch)
        assert file.outbox.state().entries == 0
        assert file.outbox.verdict(accepted) == (Verdict.APPLIED, 1)
    node = file.hot.get("ada", NodeId(accepted.entity_id))
    assert node is not None
    assert node.rev == 1


async def test_what_is_being_settled_is_not_claimed_again_and_does_not_hide_what_follows(file: HotFile) -> None:
    for number in range(300):
        await file.outbox.accept_node("ada", fresh(str(number)))
    settling = file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=50)))
    assert seqs(file, limit=100, user_id="ada") == list(range(51, 151))
    assert seqs(file, limit=100) == list(range(51, 151))
    assert seqs(file, limit=1000, user_id="ada") == list(range(51, 301))
    assert file.outbox.state().entries == 250
    await settling
    assert seqs(file) == list(range(51, 301))
    assert file.outbox.state().entries == 250


async def test_what_is_settled_while_it_is_read_is_told_with_its_revision(
    file: HotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    await file.outbox.accept_node("ada", fresh())
    settling = file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=1), before_rev=6))
    read = file.database.read

    async def read_slowly(work: Callable[[sqlite3.Connection], object]) -> object:
        found = await read(work)
        await settling
        return found

    monkeypatch.setattr(file.database, "read", read_slowly)
    listing = Listing(predicate=parse(None), order="created_at", limit=5, cursor=None)
    page = await file.hot.page("ada", listing)
    assert [node.rev for node in page.items] == [7]


async def test_batches_decided_in_close_order_are_settled_in_one_step(file: HotFile) -> None:
    await load(file, 0, [])
    accepted = [await file.outbox.accept_node("ada", fresh(str(number))) for number in range(6)]
    operations = file.outbox.claim(after_seq=0, limit=6)
    # Somebody else took revisions 5 to 7 in between, so from there on the copy is not what stands in Postgres.
    batches = [carried(operations[:2]), carried(operations[2:4], before_rev=2), carried(operations[4:], before_rev=7)]
    waiting = [file.outbox.settle(batch) for batch in batches]
    cursor = file.hot.cursor("ada")
    assert cursor is not None
    assert cursor.rev == 4
    assert [file.outbox.verdict(one) for one in accepted] == [(Verdict.APPLIED, rev) for rev in (1, 2, 3, 4, 8, 9)]
    await asyncio.gather(*waiting)
    assert await count(file, "receipts") == 1
    assert await count(file, "outbox") == 0
    assert [file.outbox.verdict(one) for one in accepted] == [(Verdict.APPLIED, rev) for rev in (1, 2, 3, 4, 8, 9)]
    cursor = file.hot.cursor("ada")
    assert cursor is not None
    assert cursor.rev == 4


async def test_a_decision_that_could_not_be_written_down_is_when_it_can(file: HotFile) -> None:
    accepted = await file.outbox.accept_node("ada", fresh("1"))
    batch = carried(file.outbox.claim(after_seq=0, limit=1))

    def fill_up(connection: sqlite3.Connection) -> None:
        connection.execute(
            "create temp trigger full before delete on main.outbox begin select raise(abort, 'no room'); end"
        )

    def make_room(connection: sqlite3.Connection) -> None:
        connection.execute("drop trigger temp.full")

    await file.database.write(fill_up)
    with pytest.raises(StorageFailed):
        await file.outbox.settle(batch)
    assert file.outbox.verdict(accepted) == (Verdict.APPLIED, 1)
    assert file.outbox.state().entries == 0
    assert seqs(file) == []
    await file.database.write(make_room)
    await until(lambda: not file.outbox.settling)
    assert await count(file, "outbox") == 0
    assert await count(file, "receipts") == 1


async def test_a_claim_gives_one_users_operations_or_everybodys_in_order(file: HotFile) -> None:
    for number in range(6):
        await file.outbox.accept_node(("ada", "bo")[number % 2], fresh(str(number)))
    assert seqs(file, user_id="bo") == [2, 4, 6]
    assert seqs(file, after_seq=3) == [4, 5, 6]
    assert seqs(file, after_seq=1, limit=2) == [2, 3]
    assert seqs(file) == [1, 2, 3, 4, 5, 6]


async def test_a_claim_from_the_start_gives_nothing_that_was_settled_or_buried(file: HotFile) -> None:
    for number in range(5):
        await file.outbox.accept_node("ada", fresh(str(number)))
    operations = file.outbox.claim(after_seq=0, limit=10)
    await file.outbox.settle(carried(operations[:1]))
    await file.outbox.bury(operations[1], sqlstate="22P05", reason="poison")
    assert seqs(file) == [3, 4, 5]
    assert seqs(file, after_seq=2) == [3, 4, 5]


async def test_a_buried_operation_is_told_as_dead_and_counted(file: HotFile) -> None:
    accepted = await file.outbox.accept_node("ada", fresh())
    (queued,) = file.outbox.claim(after_seq=0, limit=1)
    await file.outbox.bury(queued, sqlstate="22P05", reason="poison")
    assert file.outbox.verdict(accepted) == (Verdict.DEAD, None)
    assert (file.outbox.state().entries, file.outbox.state().dead_letters) == (0, 1)
    # After its retention the receipt is gone, the dead letter is not.
    await file.database.write(lambda connection: connection.execute("delete from receipts").rowcount)
    assert file.outbox.verdict(accepted) == (Verdict.DEAD, None)


async def test_a_retried_dead_letter_gets_the_next_number_and_keeps_its_id(file: HotFile) -> None:
    await file.outbox.accept_node("ada", fresh("1"))
    first = file.outbox.claim(after_seq=0, limit=1)[0]
    await file.outbox.accept_node("ada", fresh("2"))
    woken = 0

    def wake() -> None:
        nonlocal woken
        woken += 1

    file.on_accepted = wake
    await file.outbox.bury(first, sqlstate="22P05", reason="poison")
    assert seqs(file, after_seq=1) == [2]
    assert await file.dead_letters.retry([first.op_id]) == 1
    assert woken == 1
    assert [(one.seq, one.op_id) for one in file.outbox.claim(after_seq=2, limit=5)] == [(3, first.op_id)]
    assert file.outbox.state().dead_letters == 0


async def test_every_entry_is_queued_settled_or_dead_whatever_happened(tmp_path: Path) -> None:
    async with hot_file(tmp_path) as file:
        accepted = [await file.outbox.accept_node("ada", fresh(str(n))) for n in range(9)]
        operations = file.outbox.claim(after_seq=0, limit=9)
        await file.outbox.settle(carried(operations[:3]))
        await file.outbox.bury(operations[3], sqlstate="22P05", reason="poison")
        rejected = BatchApplied(
            operations=(Applied(operation=operations[4], verdict=Verdict.REJECTED, rev=None),), users=()
        )
        await file.outbox.settle(rejected)
        state = file.outbox.state()
        assert (state.entries, state.dead_letters) == (4, 1)
    async with hot_file(tmp_path) as file:
        told = [file.outbox.verdict(one) for one in accepted]
        assert told == [
            *((Verdict.APPLIED, rev) for rev in (1, 2, 3)),
            (Verdict.DEAD, None),
            (Verdict.REJECTED, None),
            *[None] * 4,
        ]
        assert (file.outbox.state().entries, file.outbox.state().dead_letters) == (4, 1)


async def test_an_erasure_takes_the_queue_with_it_and_counts_stay_right_for_what_was_on_its_way(file: HotFile) -> None:
    accepted = [await file.outbox.accept_node("ada", fresh(str(n))) for n in range(4)]
    other = await file.outbox.accept_node("bo", fresh())
    on_its_way = file.outbox.claim(after_seq=0, limit=2)
    await file.replica.erase("ada", erased_rev=None)
    assert [one.kind.value for one in file.outbox.claim(after_seq=0, limit=10)] == ["node", "erase"]
    assert file.outbox.verdict(accepted[3]) == (Verdict.REJECTED, None)
    await file.outbox.settle(carried(on_its_way))
    state = file.outbox.state()
    assert state.entries == 2
    assert state.payload_bytes == sum(len(one.payload) for one in file.outbox.claim(after_seq=0, limit=10))
    assert file.outbox.verdict(other) is None
    await file.outbox.bury(on_its_way[1], sqlstate="22P05", reason="it was erased meanwhile")
    assert (file.outbox.state().entries, file.outbox.state().dead_letters) == (2, 0)


async def test_what_is_stored_over_anothers_row_that_has_beaten_ours_is_made_on_that_row(file: HotFile) -> None:
    await load(file, 2, [])
    ours = await file.outbox.accept_node("ada", keyed("k", "ours"))
    theirs = node_from_postgres(keyed("k", "theirs"), 3)
    await file.replica.absorb(
        head(3), [theirs._replace(stamp=file.outbox.claim(after_seq=0, limit=1)[0].stamp + 1)], []
    )
    again = await file.outbox.accept_node("ada", keyed("k", "ours again"))
    once_more = await file.outbox.accept_node("ada", keyed("k", "ours once more"))
    queued = {one.seq: one for one in file.outbox.claim(after_seq=0, limit=10)}
    assert [queued[one.seq].base for one in (ours, again, once_more)] == [0, 3, -again.seq]


async def test_what_was_loaded_is_changed_by_what_is_later_whatever_the_clock_says(file: HotFile) -> None:
    ahead = (CLOCK.now_us() + 60_000_000) << 8
    await load(file, 2, [node_from_postgres(keyed("k", "theirs"), 2, stamp=ahead)])
    await file.outbox.accept_node("ada", keyed("k", "ours"))
    assert file.outbox.claim(after_seq=0, limit=1)[0].stamp > ahead


async def test_what_died_and_was_queued_again_is_told_as_it_was_decided_then(file: HotFile) -> None:
    accepted = await file.outbox.accept_node("ada", fresh())
    for _ in range(2):
        (queued,) = file.outbox.claim(after_seq=0, limit=10)
        await file.outbox.bury(queued, sqlstate="22P05", reason="nothing takes it")
        assert file.outbox.verdict(accepted) == (Verdict.DEAD, None)
        await file.dead_letters.retry(None)
        assert file.outbox.verdict(accepted) is None
    await file.outbox.settle(carried(file.outbox.claim(after_seq=0, limit=10), before_rev=6))
    assert file.outbox.verdict(accepted) == (Verdict.APPLIED, 7)


@pytest.mark.parametrize("way", ["settled", "buried", "erased"])
async def test_counts_stay_right_for_what_leaves_the_queue_first_after_a_failed_transaction(
    file: HotFile, way: str
) -> None:
    await file.replica.erase("ada", erased_rev=None)
    await file.outbox.accept_node("bo", fresh())
    erasure, _ = file.outbox.claim(after_seq=0, limit=10)
    with pytest.raises(Broken):
        await broken(file)
    if way == "settled":
        applied = Applied(operation=erasure, verdict=Verdict.APPLIED, rev=1)
        await file.outbox.settle(BatchApplied(operations=(applied,), users=()))
    elif way == "buried":
        await file.outbox.bury(erasure, sqlstate="22P05", reason="nothing takes it")
    else:
        await file.replica.erase("ada", erased_rev=1)
    assert file.outbox.state().entries == len(seqs(file)) == 1
    (left,) = file.outbox.claim(after_seq=0, limit=10)
    assert file.outbox.state().payload_bytes == len(left.payload)


async def test_the_count_of_dead_letters_stays_right_when_they_are_dropped_after_a_failed_transaction(
    file: HotFile,
) -> None:
    for _ in range(2):
        await file.outbox.accept_node("ada", fresh())
    for one in file.outbox.claim(after_seq=0, limit=10):
        await file.outbox.bury(one, sqlstate="22P05", reason="nothing takes it")
    first, _ = await file.dead_letters.list()
    with pytest.raises(Broken):
        await broken(file)
    await file.dead_letters.discard([first.operation.op_id])
    assert file.outbox.state().dead_letters == len(await file.dead_letters.list()) == 1


async def test_the_age_of_the_queue_is_that_of_its_oldest_entry(file: HotFile) -> None:
    assert file.outbox.state().oldest_at is None
    began = CLOCK.now_us()
    await file.outbox.accept_node("ada", fresh())
    oldest = file.outbox.state().oldest_at
    assert oldest is not None
    assert began <= oldest <= CLOCK.now_us()


async def test_closed_the_queue_takes_nothing(tmp_path: Path) -> None:
    async with hot_file(tmp_path) as file:
        await file.outbox.accept_node("ada", fresh())
    with pytest.raises(Closed):
        await file.outbox.accept_node("ada", fresh())
