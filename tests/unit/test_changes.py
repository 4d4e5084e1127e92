"""What a change makes of what is there: merge patches, tags, searchable words, rows and their hashes."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory.changes import (
    DEFAULT_IMPORTANCE,
    NodeChange,
    NodeRow,
    RelationshipChange,
    Rule,
    merge_patch,
    merge_tags,
    merge_text,
    node_hash,
    node_row,
    relationship_hash,
    relationship_row,
    searchable_text,
)
from hybrid_memory.graph import JsonValue, NodeId
from hybrid_memory.jsontext import decode, encode

ID = NodeId("01900000-0000-7000-8000-000000000001")

# RFC 7396, appendix A: original, patch, result.
_RFC_EXAMPLES: list[tuple[JsonValue, JsonValue, JsonValue]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("original", "patch", "result"), _RFC_EXAMPLES)
def test_a_patch_is_laid_over_as_the_rfc_says(original: JsonValue, patch: JsonValue, result: JsonValue) -> None:
    before = encode(original)
    assert merge_patch(original, patch) == result
    assert encode(original) == before
    assert merge_text(before, encode(patch)) == encode(result)


def _json(scalars: st.SearchStrategy[JsonValue]) -> st.SearchStrategy[JsonValue]:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=8,
    )


_SCALARS: st.SearchStrategy[JsonValue] = st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", 0.5])
_WITHOUT_NULLS = _json(_SCALARS)
_WITH_NULLS = _json(_SCALARS | st.none())


@given(_WITH_NULLS, _WITH_NULLS)
def test_laying_a_patch_over_twice_changes_nothing_more(target: JsonValue, patch: JsonValue) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


@given(_WITHOUT_NULLS)
def test_a_patch_without_nulls_over_nothing_is_itself(patch: JsonValue) -> None:
    assert merge_patch({}, patch) == merge_patch(None, patch) == patch


@given(_WITH_NULLS)
def test_an_empty_patch_changes_no_object(target: JsonValue) -> None:
    assert merge_patch(target, {}) == (target if isinstance(target, dict) else {})


@given(_WITH_NULLS, _WITHOUT_NULLS, _WITHOUT_NULLS)
def test_patches_without_nulls_may_be_joined_before_they_are_laid_over(
    target: JsonValue, first: JsonValue, second: JsonValue
) -> None:
    # With lists and scalars on the way an object of the first patch may hide the target; so may the joined one.
    joined = merge_patch(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        assert merge_patch(merge_patch(target, first), second) == merge_patch(target, joined) or _hides(first, second)


def _hides(first: JsonValue, second: JsonValue) -> bool:
    """An object laid over what is no object begins anew: joined, it would merge into the target's object instead."""
    if not isinstance(second, dict):
        return False
    if not isinstance(first, dict):
        return True
    return any(name in first and _hides(first[name], value) for name, value in second.items())


@given(_WITH_NULLS, _WITHOUT_NULLS, _WITHOUT_NULLS)
def test_patches_of_different_members_may_come_in_any_order(
    target: JsonValue, one: JsonValue, other: JsonValue
) -> None:
    first: JsonValue = {"one": one}
    second: JsonValue = {"other": other}
    assert merge_patch(merge_patch(target, first), second) == merge_patch(merge_patch(target, second), first)


@pytest.mark.parametrize(
    ("first", "second", "union"),
    [
        ("[]", "[]", "[]"),
        ('["a"]', "[]", '["a"]'),
        ("[]", '["a"]', '["a"]'),
        ('["b","a"]', '["c","a"]', '["b","a","c"]'),
        ('["é"]', '["é","ü"]', '["é","ü"]'),
    ],
)
def test_tags_are_joined_in_order_of_first_appearance(first: str, second: str, union: str) -> None:
    assert merge_tags(first, second) == union


def test_search_sees_every_string_of_a_content_and_nothing_else() -> None:
    content: JsonValue = {"key": "one", "n": 5, "deep": [{"x": "two"}, None, True, ["three"]], "empty": ""}
    assert searchable_text(content) == "one\ntwo\nthree\n"
    assert not searchable_text({})


def _change(**fields: Any) -> NodeChange:
    change = NodeChange(
        node_id=ID,
        namespace="default",
        key=None,
        context_type="fact",
        content='{"a":1}',
        text_content="",
        rule=Rule.REPLACE,
        summary=None,
        tags=None,
        importance=None,
    )
    return change._replace(**fields)


def _row(existing: NodeRow | None = None, *, now_us: int = 10, stamp: int = 1, **fields: Any) -> NodeRow:
    return node_row(_change(**fields), existing, now_us=now_us, stamp=stamp)


def test_a_first_change_makes_a_row_with_defaults() -> None:
    row = _row()
    assert (row.created_at, row.updated_at, row.rev, row.stamp, row.deleted_at) == (10, 10, 0, 1, None)
    assert (row.tags, row.importance, row.summary) == ("[]", DEFAULT_IMPORTANCE, None)
    assert row.row_hash == node_hash(row)


def test_what_a_change_leaves_out_stays_as_it_was() -> None:
    first = _row(key="home", summary="s", tags='["a"]', importance=0.9, session_id="t", source_agent="bot")
    second = _row(first._replace(rev=7), now_us=20, stamp=2, content='{"b":2}')
    assert (second.key, second.summary, second.tags, second.importance) == ("home", "s", '["a"]', 0.9)
    assert (second.session_id, second.source_agent) == ("t", "bot")
    assert (second.created_at, second.updated_at, second.rev, second.content) == (10, 20, 7, '{"b":2}')


def test_what_a_change_names_replaces_what_was() -> None:
    first = _row(summary="s", tags='["a"]', importance=0.9, expires_at=99)
    second = _row(first, summary="", tags='["b"]', importance=0.0)
    assert (second.summary, second.tags, second.importance, second.expires_at) == ("", '["b"]', 0.0, None)


def test_a_merge_is_laid_over_the_row_and_its_words_are_gathered_anew() -> None:
    first = _row(rule=Rule.MERGE, content='{"a":"one","b":"two"}', tags='["x"]')
    second = _row(first, rule=Rule.MERGE, content='{"b":null,"c":"three"}', tags='["y","x"]')
    assert second.content == '{"a":"one","c":"three"}'
    assert second.text_content == "one\nthree"
    assert second.tags == '["x","y"]'


@pytest.mark.parametrize("buried", [False, True])
def test_a_null_that_is_merged_into_nothing_is_not_stored(buried: bool) -> None:
    existing = _row()._replace(deleted_at=5) if buried else None
    row = _row(existing, rule=Rule.MERGE, content='{"a":1,"b":{"c":null},"d":null}')
    assert row.content == '{"a":1,"b":{}}'


@given(_WITH_NULLS, _WITH_NULLS)
def test_merging_row_by_row_gives_what_merging_values_gives(one: JsonValue, other: JsonValue) -> None:
    first: JsonValue = {"v": one}
    second: JsonValue = {"v": other}
    row = _row(rule=Rule.MERGE, content=encode(first))
    row = _row(row, rule=Rule.MERGE, content=encode(second))
    assert decode(row.content) == merge_patch(merge_patch({}, first), second)


def test_a_tombstone_counts_as_absent_but_keeps_its_revision() -> None:
    buried = _row(summary="s", tags='["a"]', importance=0.9)._replace(deleted_at=5, rev=7)
    row = _row(buried, now_us=30)
    assert (row.summary, row.tags, row.importance, row.deleted_at) == (None, "[]", DEFAULT_IMPORTANCE, None)
    assert (row.rev, row.created_at) == (7, 30)


@pytest.mark.parametrize(("now_us", "summary"), [(98, "s"), (99, None), (100, None)])
def test_what_has_expired_counts_as_absent_too(now_us: int, summary: str | None) -> None:
    first = _row(summary="s", expires_at=99)._replace(rev=7)
    second = _row(first, now_us=now_us)
    assert (second.summary, second.rev) == (summary, 7)


def test_a_time_of_creation_is_taken_for_a_new_row_only() -> None:
    first = _row(created_at=3)
    assert first.created_at == 3
    assert _row(first, created_at=8).created_at == 3


_SEEN: dict[str, Any] = {
    "namespace": "other",
    "key": "k",
    "context_type": "other",
    "content": '{"a":2}',
    "text_content": "other",
    "summary": "other",
    "tags": '["x"]',
    "importance": 0.25,
    "entity_system": "crm",
    "entity_id": "7",
    "entity_type": "person",
    "session_id": "t",
    "source_agent": "bot",
    "created_at": 9,
    "expires_at": 9,
}
_UNSEEN: dict[str, Any] = {"updated_at": 9, "deleted_at": 9, "stamp": 9, "rev": 9, "row_hash": "x"}


@pytest.mark.parametrize("name", _SEEN)
def test_the_hash_of_a_node_tells_what_a_reader_sees(name: str) -> None:
    row = _row()
    assert node_hash(row._replace(**{name: _SEEN[name]})) != node_hash(row)


@pytest.mark.parametrize("name", _UNSEEN)
def test_the_hash_of_a_node_leaves_out_what_a_reader_does_not_see(name: str) -> None:
    row = _row()
    assert node_hash(row._replace(**{name: _UNSEEN[name]})) == node_hash(row)


def test_every_field_of_a_node_is_either_seen_or_not() -> None:
    assert {*_SEEN, *_UNSEEN, "node_id"} == set(NodeRow._fields)


def test_the_hash_is_blake2b_over_a_list_of_fields() -> None:
    row = _row(tags='["a"]')
    fields = [row.namespace, None, "fact", '{"a":1}', "", None, '["a"]', 0.5, *[None] * 5, 10, None]
    assert row.row_hash == blake2b(orjson.dumps(fields), digest_size=16).hexdigest()


def _relation(**fields: Any) -> RelationshipChange:
    change = RelationshipChange(
        relationship_id="r", source_id=ID, target_id=ID, relationship_type="led_to", weight=1.0, properties="{}"
    )
    return change._replace(**fields)


def test_a_relationship_again_keeps_its_beginning_and_takes_the_new_weight() -> None:
    first = relationship_row(_relation(), None, now_us=10, stamp=1)._replace(rev=4, valid_from=3)
    second = relationship_row(_relation(weight=2.5, properties='{"a":1}'), first, now_us=20, stamp=2)
    assert (second.created_at, second.updated_at, second.valid_from, second.rev) == (10, 20, 3, 4)
    assert (second.weight, second.properties) == (2.5, '{"a":1}')
    assert second.row_hash == relationship_hash(second) != first.row_hash


def test_a_buried_relationship_begins_anew() -> None:
    buried = relationship_row(_relation(), None, now_us=10, stamp=1)._replace(deleted_at=15, rev=4, valid_from=3)
    again = relationship_row(_relation(), buried, now_us=20, stamp=2)
    assert (again.created_at, again.valid_from, again.deleted_at, again.rev) == (20, None, None, 4)
