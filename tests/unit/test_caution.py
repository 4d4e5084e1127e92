"""Whose failure it was: a batch is halved to one operation, which is to blame only where others get through."""

from __future__ import annotations

from hybrid_memory.caution import STRIKES, Blame, Caution
from hybrid_memory.changes import Kind, Operation


def queued(seq: int, user_id: str) -> Operation:
    return Operation(
        seq=seq,
        op_id=f"op-{seq}",
        user_id=user_id,
        kind=Kind.NODE,
        entity_id=f"node-{seq}",
        base=0,
        delta=1,
        stamp=seq,
        payload="{}",
        accepted_at=0,
    )


def longest_pauses() -> Caution:
    return Caution(64, lambda: 1.0)


def test_what_failed_together_goes_in_halves_until_one_is_left_and_grows_again_after() -> None:
    caution, waiting = longest_pauses(), [queued(n, f"user-{n}") for n in range(64)]
    limits: list[int] = []
    while caution.limit > 1:
        assert caution.failed(waiting[: caution.limit], "overloaded", 0.0).blame is Blame.OPEN
        limits.append(caution.limit)
    assert limits == [32, 16, 8, 4, 2, 1]
    assert caution.next_due() is None
    for _ in range(7):
        caution.got_through(waiting[:1])
        limits.append(caution.limit)
    assert limits[6:] == [2, 4, 8, 16, 32, 64, 64]


def test_one_that_fails_alone_is_to_blame_only_once_others_got_through() -> None:
    caution, bad = longest_pauses(), queued(1, "ada")
    alone = [caution.failed([bad], "unforeseen", 0.0).blame for _ in range(2 * STRIKES)]
    assert set(alone) == {Blame.OPEN}
    caution.got_through([queued(2, "bo")])
    assert caution.failed([bad], "unforeseen", 0.0).blame is Blame.PROVED


def test_it_takes_so_many_failures_alone_to_be_proved() -> None:
    caution, bad = longest_pauses(), queued(1, "ada")
    first = caution.failed([bad], "contended", 0.0)
    caution.got_through([queued(2, "bo")])
    blames = [caution.failed([bad], "contended", 0.0).blame for _ in range(STRIKES - 1)]
    assert [first.blame, *blames] == [Blame.OPEN, *[Blame.ITS_OWN] * (STRIKES - 2), Blame.PROVED]


def test_others_that_got_through_since_the_trouble_began_tell_of_one_found_later_too() -> None:
    caution, waiting = longest_pauses(), [queued(n, f"user-{n}") for n in range(64)]
    caution.failed(waiting, "unforeseen", 0.0)
    caution.failed(waiting[:32], "unforeseen", 0.0)
    caution.got_through(waiting[:8])
    blames = [caution.failed([waiting[9]], "unforeseen", 0.0).blame for _ in range(STRIKES)]
    assert blames[-1] is Blame.PROVED
    caution.free("user-9")
    # But not of the next one: the server may have failed since.
    blames = [caution.failed([waiting[10]], "unforeseen", 0.0).blame for _ in range(2 * STRIKES)]
    assert set(blames) == {Blame.OPEN}


def test_what_got_through_before_the_trouble_began_tells_nothing() -> None:
    caution = longest_pauses()
    caution.got_through([queued(2, "bo")])
    blames = [caution.failed([queued(1, "ada")], "unforeseen", 0.0).blame for _ in range(2 * STRIKES)]
    assert set(blames) == {Blame.OPEN}


def test_a_user_is_set_aside_with_the_first_operation_and_let_go_with_it() -> None:
    caution, bad = longest_pauses(), queued(1, "ada")
    caution.failed([bad], "contended", 0.0)
    assert (caution.is_aside("ada"), caution.is_aside("bo"), caution.codes) == (True, False, {"ada": "contended"})
    assert not caution.got_through([queued(2, "bo")])
    assert caution.got_through([bad])
    assert not caution.is_aside("ada")


def test_while_nobody_got_through_others_go_first_and_then_the_suspect_is_tried_when_its_pause_is_over() -> None:
    caution, bad = longest_pauses(), queued(1, "ada")
    pause = caution.failed([bad], "overloaded", 100.0).pause_seconds
    assert pause > 0
    assert caution.next_due() == 100.0 + pause
    assert caution.due(100.0, others_wait=False) is None
    assert caution.due(100.0 + pause, others_wait=False) == "ada"
    assert caution.due(100.0 + pause, others_wait=True) is None
    caution.got_through([queued(2, "bo")])
    assert caution.due(100.0 + pause, others_wait=True) == "ada"


def test_the_pauses_between_tries_alone_grow_and_are_bounded() -> None:
    caution, bad = longest_pauses(), queued(1, "ada")
    pauses = [caution.failed([bad], "contended", 0.0).pause_seconds for _ in range(9)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2] == 15.0


def test_an_operation_that_took_the_place_of_the_suspect_is_no_suspect_for_it() -> None:
    caution = longest_pauses()
    for _ in range(STRIKES):
        caution.failed([queued(1, "ada")], "unforeseen", 0.0)
    caution.got_through([queued(2, "bo")])
    assert caution.failed([queued(3, "ada")], "unforeseen", 0.0).strikes == 1
