"""The checker of histories: it finds nothing in a good one, and in each bad one the rule that was broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hybrid_memory.graph import Digest, Status, Verdict
from hybrid_memory.testing.checker import check
from hybrid_memory.testing.history import Act, Claim, Entry, Event, Handover, History, Moment, Phase, Standing

KEY = "k1"


def line(t: float, call: str, phase: Phase, *, act: Act = Act.PUT, process: str = "p0", user: str = "ada") -> Event:
    return Event(t=t, process=process, life=1, call=call, act=act, user_id=user, phase=phase, key=KEY)


def write(t: float, call: str, *, process: str = "p0", rev: int | None = None) -> list[Event]:
    """A put that was acknowledged at once, as durable where its revision is given."""
    begun = replace(line(t, call, Phase.INVOKE, process=process), value=f"v{call}")
    status, verdict = (Status.PENDING, None) if rev is None else (Status.DURABLE, Verdict.APPLIED)
    ended = line(t + 0.1, call, Phase.OK, process=process)
    return [begun, replace(ended, operation=f"op{call}", version=rev, receipt=status, verdict=verdict)]


def applied(call: str, rev: int, *, seq: int = 0, user: str = "ada") -> Entry:
    return Entry(user_id=user, key=KEY, rev=rev, operation=f"op{call}", client="c0", seq=seq or rev, value=f"v{call}")


def read(t: float, call: str, rev: int, *, of: str, owner: str = "ada") -> Event:
    seen = line(t, call, Phase.OK, act=Act.READ)
    return replace(seen, value=f"v{of}", owner=owner, version=rev)


def erasure(t: float, call: str) -> list[Event]:
    begun = line(t, call, Phase.INVOKE, act=Act.ERASE, process="p1")
    return [begun, replace(begun, t=t + 0.1, phase=Phase.OK, operation=f"op{call}")]


def good() -> History:
    """Two writes of one process, read back, and what both tiers hold then."""
    standing = {("ada", KEY): Standing(2, "vb", "h")}
    return History(
        events=[
            *write(1, "a", rev=1),
            read(1.5, "r1", 1, of="a"),
            *write(2, "b", rev=2),
            read(2.5, "r2", 2, of="b"),
        ],
        ledger=[applied("a", 1), applied("b", 2)],
        postgres=standing,
        replicas={"p0": dict(standing)},
    )


def applied_twice(history: History) -> None:
    history.ledger.append(replace(applied("b", 3), seq=3))


def acknowledged_and_lost(history: History) -> None:
    history.events += write(3, "c", rev=3)


def failed_and_applied(history: History) -> None:
    history.events += [replace(line(3, "c", Phase.INVOKE), value="vc"), line(3.1, "c", Phase.FAIL)]
    history.ledger.append(applied("c", 3))


def overtaken_in_its_queue(history: History) -> None:
    history.ledger[:] = [applied("a", 1, seq=2), applied("b", 2, seq=1)]


def applied_before_what_was_acknowledged_before(history: History) -> None:
    history.ledger[:] = [replace(applied("b", 1), client="c1"), replace(applied("a", 2), client="c2")]


def replica_apart(history: History) -> None:
    history.replicas["p1"] = {("ada", KEY): Standing(1, "va", "h")}


def row_not_of_the_ledger(history: History) -> None:
    history.postgres = {("ada", KEY): Standing(7, "vb", "h")}


def loser_not_kept(history: History) -> None:
    history.ledger.append(
        replace(applied("c", 3), rev=None, verdict=Verdict.SUPERSEDED, lost=True),
    )


def beaten_by_what_it_had_seen(history: History) -> None:
    begun, ended = write(3, "c", rev=None)
    told = replace(ended, receipt=Status.DURABLE, verdict=Verdict.SUPERSEDED)
    history.events += [replace(begun, version=2), told]
    history.ledger.append(replace(applied("c", 3), rev=None, verdict=Verdict.SUPERSEDED))


def read_older_than_written(history: History) -> None:
    history.events.append(replace(read(3, "r3", 2, of="a"), version=None))


def read_of_an_earlier_revision(history: History) -> None:
    history.events.append(read(3, "r3", 1, of="b"))


def barrier_passed_too_soon(history: History) -> None:
    history.handovers.append(Handover(3, "ada", KEY, told="vb", read="va"))


def row_of_somebody_else(history: History) -> None:
    history.events.append(read(3, "r3", 2, of="b", owner="bo"))


def neither_applied_nor_queued_nor_dead(history: History) -> None:
    nothing: frozenset[str] = frozenset()
    history.moments.append(
        Moment(t=3, acknowledged=frozenset({"opx"}), applied=nothing, queued=nothing, dead=nothing, cancelled=nothing)
    )


def erased_and_standing_again(history: History) -> None:
    history.ledger.append(Entry(user_id="ada", key="ada", rev=3, operation="ope", client="c1", seq=1, erases=True))
    history.events += erasure(3, "e")
    history.replicas = {}


def outlived_an_erasure(history: History) -> None:
    history.events += [*write(3, "c", rev=4), *erasure(4, "e")]
    history.ledger += [
        Entry(user_id="ada", key="ada", rev=3, operation="ope", client="c1", seq=1, erases=True),
        applied("c", 4),
    ]
    history.postgres = {("ada", KEY): Standing(4, "vc", "h")}
    history.replicas = {}


def revision_left_out(history: History) -> None:
    history.ledger[1] = replace(history.ledger[1], rev=3)
    history.postgres = {("ada", KEY): Standing(3, "vb", "h")}
    history.replicas = {}


def never_told(history: History) -> None:
    history.events += write(3, "c")
    history.ledger.append(applied("c", 3))
    history.postgres = {("ada", KEY): Standing(3, "vc", "h")}
    history.replicas = {}


def copy_that_is_not_what_it_says(history: History) -> None:
    here, there = Digest(value=1, nodes=1, relationships=0), Digest(value=2, nodes=1, relationships=0)
    history.claims.append(Claim(t=3, process="p0", user_id="ada", rev=2, here=here, there=there))


BAD: list[tuple[int, Callable[[History], None]]] = [
    (1, applied_twice),
    (1, acknowledged_and_lost),
    (1, failed_and_applied),
    (2, overtaken_in_its_queue),
    (2, applied_before_what_was_acknowledged_before),
    (3, replica_apart),
    (3, row_not_of_the_ledger),
    (3, loser_not_kept),
    (3, beaten_by_what_it_had_seen),
    (4, read_older_than_written),
    (4, read_of_an_earlier_revision),
    (4, barrier_passed_too_soon),
    (5, row_of_somebody_else),
    (6, neither_applied_nor_queued_nor_dead),
    (7, erased_and_standing_again),
    (7, outlived_an_erasure),
    (8, revision_left_out),
    (8, never_told),
    (9, copy_that_is_not_what_it_says),
]


def test_nothing_is_found_in_a_good_history() -> None:
    assert check(good()) == []


@pytest.mark.parametrize(("rule", "spoil"), BAD, ids=[spoil.__name__ for _, spoil in BAD])
def test_a_bad_history_breaks_the_rule_it_breaks(rule: int, spoil: Callable[[History], None]) -> None:
    history = good()
    spoil(history)
    assert rule in {finding.rule for finding in check(history)}


def test_every_rule_has_a_history_that_breaks_it() -> None:
    assert {rule for rule, _ in BAD} == set(range(1, 10))


def test_a_write_whose_end_nobody_knows_may_be_applied_or_not() -> None:
    history = good()
    history.events += [replace(line(3, "c", Phase.INVOKE), value="vc"), line(3.1, "c", Phase.INFO)]
    assert check(history) == []
    history.ledger.append(applied("c", 3))
    history.postgres = history.replicas["p0"] = {("ada", KEY): Standing(3, "vc", "h")}
    assert check(history) == []


def test_what_is_dead_is_not_lost() -> None:
    history = good()
    history.events += write(3, "c", rev=None)
    history.events.append(replace(history.events[-1], t=4, verdict=Verdict.DEAD))
    history.dead.add("opc")
    assert check(history) == []


def test_what_its_writer_alone_knows_of_a_row_that_has_gone_needs_no_revision() -> None:
    history = good()
    history.events += [read(3, "r3", 0, of="b"), read(4, "r4", 2, of="b")]
    assert check(history) == []
    theirs = replace(read(3, "r3", 0, of="b"), process="p1")
    history.events += [replace(theirs, version=2), theirs]
    assert [finding.rule for finding in check(history)] == [4]


def test_what_died_and_was_queued_again_comes_behind_what_was_stored_meanwhile() -> None:
    history = good()
    history.ledger[:] = [applied("b", 2, seq=2), applied("a", 3, seq=3)]
    history.postgres = {("ada", KEY): Standing(3, "va", "h")}
    history.replicas = {"p0": dict(history.postgres)}
    history.events[:] = [*write(1, "a"), *write(2, "b", rev=2)]
    assert 2 in {finding.rule for finding in check(history)}
    buried = replace(line(1.5, "a", Phase.OK), operation="opa", receipt=Status.PENDING, verdict=Verdict.DEAD)
    history.events.insert(2, buried)
    assert 2 not in {finding.rule for finding in check(history)}


def test_what_its_writer_was_told_is_rejected_need_not_be_read() -> None:
    history = good()
    begun, ended = write(3, "c")
    rejected = replace(ended, t=3.2, receipt=Status.DURABLE, verdict=Verdict.REJECTED)
    history.events += [begun, ended, rejected, read(4, "r4", 2, of="b")]
    assert 4 not in {finding.rule for finding in check(history)}
    history.events.remove(rejected)
    assert 4 in {finding.rule for finding in check(history)}
