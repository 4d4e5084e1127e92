"""Rows as they come out of Postgres: already cast there to what both tiers store, so that nothing is converted here.

Every statement that reads rows selects the members of `NodeRow` or `RelationshipRow` in their declared order: ids and
JSON as text, tags as JSON text, times as microseconds (exact for the years 1698 to 2242 where `date_part` is used).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import asyncpg

from hybrid_memory.changes import NodeRow, RelationshipRow
from hybrid_memory.graph import NodeId
from hybrid_memory.messages import FlatRow


def flat_rows(records: Sequence[asyncpg.Record]) -> Sequence[FlatRow]:
    """The records as they are: a record is a sequence of its values."""
    return cast("Sequence[FlatRow]", records)


def node_row(record: asyncpg.Record) -> NodeRow:
    """The node in the first columns of a record."""
    values: tuple[Any, ...] = tuple(record)
    return NodeRow(
        node_id=NodeId(values[0]),
        namespace=values[1],
        key=values[2],
        context_type=values[3],
        content=values[4],
        row_hash=values[5],
        text_content=values[6],
        summary=values[7],
        tags=values[8],
        importance=values[9],
        entity_system=values[10],
        entity_id=values[11],
        entity_type=values[12],
        session_id=values[13],
        source_agent=values[14],
        created_at=values[15],
        updated_at=values[16],
        expires_at=values[17],
        deleted_at=values[18],
        stamp=values[19],
        rev=values[20],
    )


def relationship_row(record: asyncpg.Record) -> RelationshipRow:
    """The relationship in the first columns of a record."""
    values: tuple[Any, ...] = tuple(record)
    return RelationshipRow(
        relationship_id=values[0],
        source_id=values[1],
        target_id=values[2],
        relationship_type=values[3],
        weight=values[4],
        properties=values[5],
        row_hash=values[6],
        valid_from=values[7],
        valid_to=values[8],
        created_at=values[9],
        updated_at=values[10],
        deleted_at=values[11],
        stamp=values[12],
        rev=values[13],
    )
