"""Who wins when an operation meets a row its writer had not seen."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory.changes import (
    NodeChange,
    NodeRow,
    RelationshipChange,
    RelationshipRow,
    Rule,
    merge_text,
    node_hash,
    node_row,
    patched_members,
    relationship_row,
)
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.jsontext import decode, encode
from hybrid_memory.merging import decide_node, decide_relationship
from hybrid_memory.payloads import CarriedNode

ID = NodeId("01900000-0000-7000-8000-000000000001")


def _node(content: str = '{"a":1}', *, stamp: int = 10, deleted: bool = False, **fields: Any) -> NodeRow:
    change = NodeChange(
        node_id=ID,
        namespace="default",
        key=None,
        context_type="fact",
        content=content,
        text_content="",
        rule=Rule.REPLACE,
        summary=None,
        tags=None,
        importance=None,
    )
    row = node_row(change, None, now_us=stamp, stamp=stamp)._replace(**fields)
    row = row._replace(row_hash=node_hash(row))
    return row._replace(deleted_at=stamp) if deleted else row


def _carried(
    row: NodeRow,
    rule: Rule = Rule.REPLACE,
    *,
    revive: bool = False,
    patch: str | None = None,
    patched: str | None = None,
) -> CarriedNode:
    return CarriedNode(row=row, rule=rule, patch=patch, revive=revive, patched=patched)


_LIVE = _node('{"stands":1}', stamp=10)
_TOMB = _node('{"stands":1}', stamp=10, deleted=True)
_NEWER = _node('{"mine":1}', stamp=20)
_OLDER = _node('{"mine":1}', stamp=5)
_BURIAL = _node('{"stands":1}', stamp=5, deleted=True)


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("row", [_NEWER, _OLDER, _BURIAL])
@pytest.mark.parametrize(("current", "seen"), [(None, False), (_LIVE, True), (_TOMB, True)])
def test_what_its_writer_had_seen_is_changed_as_wished(
    rule: Rule, row: NodeRow, current: NodeRow | None, seen: bool
) -> None:
    decision = decide_node(_carried(row, rule, patch="{}"), current, seen=seen)
    assert (decision.verdict, decision.row, decision.lost) == (Verdict.APPLIED, row, False)


@pytest.mark.parametrize("current", [_LIVE, _TOMB])
@pytest.mark.parametrize("row", [_NEWER, _OLDER, _BURIAL])
def test_a_comparison_that_saw_something_else_is_rejected(current: NodeRow, row: NodeRow) -> None:
    decision = decide_node(_carried(row, Rule.COMPARE, revive=True), current, seen=False)
    assert (decision.verdict, decision.row, decision.lost) == (Verdict.REJECTED, None, True)


@pytest.mark.parametrize("rule", [Rule.APPEND, Rule.MERGE, Rule.REPLACE])
def test_an_unseen_deletion_wins_over_a_change_however_late(rule: Rule) -> None:
    decision = decide_node(_carried(_NEWER, rule, patch="{}"), _TOMB, seen=False)
    assert (decision.verdict, decision.row, decision.lost) == (Verdict.SUPERSEDED, None, True)


def test_two_deletions_are_one_and_nothing_is_lost() -> None:
    decision = decide_node(_carried(_BURIAL), _TOMB, seen=False)
    assert (decision.verdict, decision.row, decision.lost) == (Verdict.SUPERSEDED, None, False)


def test_a_change_that_knowingly_revives_beats_a_deletion() -> None:
    decision = decide_node(_carried(_OLDER, revive=True), _TOMB, seen=False)
    assert (decision.verdict, decision.row) == (Verdict.APPLIED, _OLDER)


def test_a_deletion_wins_over_a_change_it_had_not_seen_and_keeps_the_content_that_stood() -> None:
    decision = decide_node(_carried(_BURIAL), _LIVE, seen=False)
    assert decision.verdict is Verdict.APPLIED
    assert decision.row == _LIVE._replace(deleted_at=5, updated_at=5, stamp=5)


@pytest.mark.parametrize("rule", [Rule.APPEND, Rule.REPLACE])
def test_the_later_stamp_replaces_and_the_earlier_one_is_kept_as_lost(rule: Rule) -> None:
    later = decide_node(_carried(_NEWER, rule), _LIVE, seen=False)
    assert (later.verdict, later.row, later.lost) == (Verdict.APPLIED, _NEWER, False)
    earlier = decide_node(_carried(_OLDER, rule), _LIVE, seen=False)
    assert (earlier.verdict, earlier.row, earlier.lost) == (Verdict.SUPERSEDED, None, True)


def test_of_equal_stamps_the_one_that_stands_stays() -> None:
    decision = decide_node(_carried(_node('{"mine":1}', stamp=10)), _LIVE, seen=False)
    assert (decision.verdict, decision.lost) == (Verdict.SUPERSEDED, True)


def test_two_writers_of_the_same_words_lose_nothing() -> None:
    twin = _LIVE._replace(stamp=99, updated_at=99)
    decision = decide_node(_carried(twin), _LIVE, seen=False)
    assert (decision.verdict, decision.row, decision.lost) == (Verdict.SUPERSEDED, None, False)


@pytest.mark.parametrize(("stamp", "kept"), [(20, "mine"), (5, "theirs")])
def test_a_merge_joins_field_by_field_and_the_later_stamp_has_the_last_word(stamp: int, kept: str) -> None:
    current = _node(
        '{"both":"theirs","theirs":1}',
        stamp=10,
        summary="theirs",
        tags='["t"]',
        importance=0.9,
        created_at=7,
    )
    row = _node('{"both":"mine","mine":2}', stamp=stamp, summary="mine", tags='["m","t"]', importance=0.1)
    decision = decide_node(_carried(row, Rule.MERGE, patch=row.content), current, seen=False)
    merged = decision.row
    assert decision.verdict is Verdict.MERGED
    assert merged is not None
    assert decode(merged.content) == {"both": kept, "theirs": 1, "mine": 2}
    assert (merged.summary, merged.tags, merged.importance) == (kept, '["t","m"]', 0.9)
    assert (merged.created_at, merged.updated_at, merged.stamp) == (min(7, stamp), max(10, stamp), max(10, stamp))
    assert set(merged.text_content.split("\n")) == {kept}
    assert merged.row_hash == node_hash(merged)


def test_a_field_that_stands_as_its_writer_saw_it_is_changed_whatever_the_stamp_of_another_field() -> None:
    current = _node('{"a":1,"b":"theirs","in":{"x":1,"y":"theirs"},"n":0}', stamp=10)
    row = _node(stamp=5)
    patch = '{"a":2,"b":"mine","in":{"x":null,"y":"mine"},"n":1}'
    seen = patched_members('{"a":1,"b":"before","c":3,"in":{"x":1,"y":"before","z":1},"n":0.0}', patch)
    assert decode(seen) == {"a": 1, "b": "before", "in": {"x": 1, "y": "before"}, "n": 0.0}
    decision = decide_node(_carried(row, Rule.MERGE, patch=patch, patched=seen), current, seen=False)
    assert decision.row is not None
    assert decode(decision.row.content) == {"a": 2, "b": "theirs", "in": {"y": "theirs"}, "n": 0}


def test_a_merge_keeps_the_summary_of_either_side() -> None:
    current = _node(stamp=10, summary="theirs")
    decision = decide_node(_carried(_node(stamp=20), Rule.MERGE, patch="{}"), current, seen=False)
    assert decision.row is not None
    assert decision.row.summary == "theirs"


_FIELDS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), max_size=3)


@given(st.lists(_FIELDS, min_size=2, max_size=2))
def test_two_merges_give_the_same_content_in_whichever_order_they_arrive(patches: list[dict[str, int]]) -> None:
    changes = [_node(encode(patch), stamp=10 * (number + 1)) for number, patch in enumerate(patches)]
    results: set[str] = set()
    for order in permutations(changes):
        standing: NodeRow | None = None
        for row in order:
            decision = decide_node(_carried(row, Rule.MERGE, patch=row.content), standing, seen=False)
            standing = decision.row
            assert standing is not None
        results.add(standing.content if standing else "")
    expected: dict[str, int] = {}
    for patch in patches:
        expected |= patch
    assert results == {encode(expected)}


_STOOD = encode({"a": 0, "b": 0, "in": {"x": 0, "y": 0}})
_PATCHES: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "a": st.none() | st.integers(1, 3),
        "b": st.none() | st.integers(1, 3),
        "new": st.integers(1, 3),
        "in": st.fixed_dictionaries({}, optional={"x": st.none() | st.integers(1, 3), "y": st.none()}),
    },
)


@given(st.lists(_PATCHES, min_size=2, max_size=2))
def test_a_field_removed_by_one_of_two_merges_is_the_same_in_whichever_order_they_arrive(drawn: list[Any]) -> None:
    base, patches = _node(_STOOD, stamp=1), [orjson.dumps(patch).decode() for patch in drawn]
    expected = merge_text(merge_text(_STOOD, patches[0]), patches[1])
    for order in permutations(range(2)):
        standing = base
        for number in order:
            patch = patches[number]
            row = _node(merge_text(_STOOD, patch), stamp=10 * (number + 1))
            carried = _carried(row, Rule.MERGE, patch=patch, patched=patched_members(_STOOD, patch))
            decision = decide_node(carried, standing, seen=standing is base)
            assert decision.row is not None
            standing = decision.row
        assert decode(standing.content) == decode(expected)


@given(st.permutations(range(4)))
def test_of_several_replacements_the_latest_stands_in_whatever_order_they_arrive(order: list[int]) -> None:
    standing: NodeRow | None = None
    for number in order:
        decision = decide_node(_carried(_node(f'{{"n":{number}}}', stamp=number)), standing, seen=False)
        standing = decision.row or standing
    assert standing is not None
    assert standing.stamp == 3


def _edge(stamp: int, *, deleted: bool = False) -> RelationshipRow:
    change = RelationshipChange(
        relationship_id="r", source_id=ID, target_id=ID, relationship_type="led_to", weight=stamp, properties="{}"
    )
    row = relationship_row(change, None, now_us=stamp, stamp=stamp)
    return row._replace(deleted_at=stamp) if deleted else row


@pytest.mark.parametrize(
    ("row", "current", "seen", "revive", "wins"),
    [
        (_edge(5), None, False, False, True),
        (_edge(5), _edge(10), True, False, True),
        (_edge(5), _edge(10), False, False, False),
        (_edge(10), _edge(10)._replace(row_hash="another"), False, False, False),
        (_edge(20), _edge(10), False, False, True),
        (_edge(20), _edge(10, deleted=True), False, False, False),
        (_edge(20), _edge(10, deleted=True), False, True, True),
        (_edge(5, deleted=True), _edge(10), False, False, True),
        (_edge(20, deleted=True), _edge(10, deleted=True), False, True, False),
    ],
)
def test_a_relationship_is_decided_by_deletion_revival_and_stamp(
    row: RelationshipRow, current: RelationshipRow | None, seen: bool, revive: bool, wins: bool
) -> None:
    decision = decide_relationship(row, current, seen=seen, revive=revive)
    expected = (Verdict.APPLIED, row) if wins else (Verdict.SUPERSEDED, None)
    assert (decision.verdict, decision.row) == expected
