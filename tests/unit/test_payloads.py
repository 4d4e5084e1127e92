"""What is frozen in the queue is read back to the letter."""

from __future__ import annotations

from typing import cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_memory.changes import NodeRow, RelationshipRow, Rule
from hybrid_memory.graph import JsonValue, NodeId
from hybrid_memory.jsontext import encode
from hybrid_memory.payloads import carried_node, carried_relationship, node_payload, relationship_payload

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_MAYBE_TEXT = st.none() | _TEXT
_MOMENT = st.integers(0, 2**62)
_MAYBE_MOMENT = st.none() | _MOMENT
_SCALARS: st.SearchStrategy[JsonValue] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e22, -0.0, 1e300, 5e-324, 1.0])
    | _TEXT
)
_CONTENT = st.dictionaries(
    _TEXT, st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3))
).map(encode)
_TAGS = st.lists(_TEXT, max_size=3).map(encode)
_FLOAT = st.floats(allow_nan=False, allow_infinity=False)

_ENTITIES = st.tuples(st.none(), st.none(), st.none()) | st.tuples(_TEXT, _TEXT, _TEXT)


@st.composite
def _nodes(draw: st.DrawFn) -> NodeRow:
    system, entity_id, entity_type = draw(_ENTITIES)
    return NodeRow(
        node_id=NodeId("01900000-0000-7000-8000-000000000001"),
        namespace=draw(_TEXT),
        key=draw(_MAYBE_TEXT),
        context_type=draw(_TEXT),
        content=draw(_CONTENT),
        row_hash=draw(_TEXT),
        text_content=draw(_TEXT),
        summary=draw(_MAYBE_TEXT),
        tags=draw(_TAGS),
        importance=draw(_FLOAT),
        entity_system=system,
        entity_id=entity_id,
        entity_type=entity_type,
        session_id=draw(_MAYBE_TEXT),
        source_agent=draw(_MAYBE_TEXT),
        created_at=draw(_MOMENT),
        updated_at=draw(_MOMENT),
        expires_at=draw(_MAYBE_MOMENT),
        deleted_at=draw(_MAYBE_MOMENT),
        stamp=draw(_MOMENT),
        rev=0,
    )


@st.composite
def _relationships(draw: st.DrawFn) -> RelationshipRow:
    return RelationshipRow(
        relationship_id="r",
        source_id="s",
        target_id="t",
        relationship_type=draw(_TEXT),
        weight=draw(_FLOAT),
        properties=draw(_CONTENT),
        row_hash=draw(_TEXT),
        valid_from=draw(_MAYBE_MOMENT),
        valid_to=draw(_MAYBE_MOMENT),
        created_at=draw(_MOMENT),
        updated_at=draw(_MOMENT),
        deleted_at=draw(_MAYBE_MOMENT),
        stamp=draw(_MOMENT),
        rev=0,
    )


@given(_nodes(), st.sampled_from(Rule), st.none() | _CONTENT, st.none() | _CONTENT, st.booleans())
def test_a_node_comes_back_from_its_payload_as_it_went_in(
    row: NodeRow, rule: Rule, patch: str | None, patched: str | None, revive: bool
) -> None:
    carried = carried_node(node_payload("ann", row, rule=rule, patch=patch, patched=patched, revive=revive))
    assert carried.row == row
    assert (carried.rule, carried.patch, carried.patched, carried.revive) == (rule, patch, patched, revive)


@given(_relationships(), st.booleans())
def test_a_relationship_comes_back_from_its_payload_as_it_went_in(row: RelationshipRow, revive: bool) -> None:
    assert carried_relationship(relationship_payload("ann", row, revive=revive)) == (row, revive, 0)


@given(_nodes())
def test_a_payload_names_its_user_and_holds_the_content_as_json(row: NodeRow) -> None:
    payload = node_payload("ann", row, rule=Rule.REPLACE)
    members = cast("dict[str, JsonValue]", orjson.loads(payload))
    assert members["user_id"] == "ann"
    assert encode(members["content"]) == row.content


@pytest.mark.parametrize("number", [1e22, -0.0, 1.0, 1e300, 2**63 - 1, 5e-324])
def test_a_number_keeps_its_spelling_on_the_way(number: float) -> None:
    properties = encode({"n": number})
    payload = relationship_payload(
        "ann",
        RelationshipRow(
            relationship_id="r",
            source_id="s",
            target_id="t",
            relationship_type="led_to",
            weight=1.0,
            properties=properties,
            row_hash="",
            valid_from=None,
            valid_to=None,
            created_at=0,
            updated_at=0,
            deleted_at=None,
            stamp=0,
            rev=0,
        ),
    )
    assert carried_relationship(payload)[0].properties == properties
