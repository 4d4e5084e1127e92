"""Which queued operations may travel together: the order of each user is kept, and nothing is left out unmarked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory.batching import cut, halves
from hybrid_memory.changes import Kind, Operation, RelationshipRow
from hybrid_memory.payloads import relationship_payload


@dataclass(frozen=True, slots=True)
class Deed:
    """An operation in short: n1 stores node 1, v1 revives it, d1 deletes it, r12 relates 1 to 2, x erases the user."""

    user: str
    what: str


def _operation(seq: int, deed: Deed) -> Operation:
    kind = {"n": Kind.NODE, "v": Kind.NODE, "d": Kind.NODE, "r": Kind.RELATIONSHIP, "x": Kind.ERASE}[deed.what[0]]
    payload = '{"revive":true}' if deed.what[0] == "v" else "{}"
    if kind is Kind.RELATIONSHIP:
        payload = _relation(deed.what[1], deed.what[2])
    node = f"node {deed.what[1:]}"
    entity = {"n": node, "v": node, "d": node, "r": deed.what, "x": deed.user}[deed.what[0]]
    return Operation(
        seq=seq,
        op_id=f"op-{seq}",
        user_id=deed.user,
        kind=kind,
        entity_id=entity,
        base=0,
        delta=-1 if deed.what[0] == "d" else 1,
        stamp=seq,
        payload=payload,
        accepted_at=0,
    )


def _relation(source: str, target: str) -> str:
    row = RelationshipRow(
        relationship_id="r",
        source_id=f"node {source}",
        target_id=f"node {target}",
        relationship_type="led_to",
        weight=1.0,
        properties="{}",
        row_hash="",
        valid_from=None,
        valid_to=None,
        created_at=0,
        updated_at=0,
        deleted_at=None,
        stamp=0,
        rev=0,
    )
    return relationship_payload("ann", row)


def _queue(*deeds: Deed) -> list[Operation]:
    return [_operation(seq, deed) for seq, deed in enumerate(deeds, start=1)]


def _anns(*whats: str) -> list[Operation]:
    return _queue(*(Deed("ann", what) for what in whats))


@pytest.mark.parametrize(
    ("whats", "together"),
    [
        ([], 0),
        (["n1"], 1),
        (["n1", "n2", "r12"], 3),
        (["n1", "n1"], 1),
        (["n1", "d1"], 1),
        (["n1", "n2", "n1", "n3"], 2),
        (["r12", "n1"], 2),
        (["d1", "r12"], 1),
        (["d1", "r21"], 1),
        (["d1", "r23"], 2),
        (["r12", "d1"], 2),
        (["r12", "v1"], 1),
        (["r12", "v2"], 1),
        (["r12", "v3"], 2),
        (["v1", "r12"], 2),
        (["x"], 1),
        (["x", "n1"], 1),
        (["n1", "x"], 1),
        (["x", "x"], 1),
    ],
)
def test_a_users_operations_end_where_one_would_step_on_another(whats: list[str], together: int) -> None:
    queue = _anns(*whats)
    taken, waiting = cut(queue)
    assert taken == queue[:together]
    assert waiting == ({"ann"} if together < len(queue) else set())


def test_one_users_stop_does_not_stop_another() -> None:
    queue = _queue(Deed("ann", "n1"), Deed("ann", "n1"), Deed("bea", "n1"), Deed("ann", "n2"), Deed("bea", "x"))
    taken, waiting = cut(queue)
    assert [operation.seq for operation in taken] == [1, 3]
    assert waiting == {"ann", "bea"}


def test_a_user_named_like_another_ones_node_is_no_obstacle() -> None:
    taken, waiting = cut(_queue(Deed("node 1", "n1"), Deed("node 1", "x"), Deed("ann", "n1")))
    assert [operation.seq for operation in taken] == [1, 3]
    assert waiting == {"node 1"}


_DEEDS = st.builds(
    Deed,
    st.sampled_from(["ann", "bea", "cas"]),
    st.sampled_from(["n1", "n2", "n3", "v1", "d1", "d2", "r12", "r23", "r31", "x"]),
)


@given(st.lists(_DEEDS, max_size=20))
def test_a_cut_keeps_every_promise(deeds: list[Deed]) -> None:
    queue = _queue(*deeds)
    taken, waiting = cut(queue)
    assert [operation.seq for operation in taken] == sorted(operation.seq for operation in taken)
    for user in {operation.user_id for operation in queue}:
        theirs = [operation for operation in queue if operation.user_id == user]
        mine = [operation for operation in taken if operation.user_id == user]
        assert mine == theirs[: len(mine)], "the order of a user is kept, without a gap"
        assert mine, "every user gets on"
        assert (user in waiting) == (len(mine) < len(theirs)), "what is left is marked"
        assert max(Counter(operation.entity_id for operation in mine).values()) == 1, "no entity comes twice"
        if any(operation.kind is Kind.ERASE for operation in mine):
            assert len(mine) == 1, "an erasure travels alone"


@given(st.lists(_DEEDS, max_size=20))
def test_cutting_again_and_again_carries_everything_once_and_in_each_users_order(deeds: list[Deed]) -> None:
    left = _queue(*deeds)
    carried: list[Operation] = []
    while left:
        taken, _ = cut(left)
        carried += taken
        left = [operation for operation in left if operation not in taken]
    for user in ("ann", "bea", "cas"):
        seqs = [operation.seq for operation in carried if operation.user_id == user]
        assert seqs == [seq for seq, deed in enumerate(deeds, start=1) if deed.user == user]


@given(st.lists(_DEEDS, min_size=2, max_size=12))
def test_what_failed_as_a_whole_falls_into_smaller_parts_that_keep_the_order(deeds: list[Deed]) -> None:
    queue = _queue(*deeds)
    parts = halves(queue)
    assert len(parts) > 1
    assert all(0 < len(part) < len(queue) for part in parts)
    for user in ("ann", "bea", "cas"):
        seqs = [operation.seq for part in parts for operation in part if operation.user_id == user]
        assert seqs == [operation.seq for operation in queue if operation.user_id == user]
