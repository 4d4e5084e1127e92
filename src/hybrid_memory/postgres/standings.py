"""What one user's operations meet in the tables: the rows that they are about, and the nodes that they relate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString, cast

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.payloads import related_nodes
from hybrid_memory.postgres.database import Connection
from hybrid_memory.postgres.deciding import Met, Standing
from hybrid_memory.postgres.rows import node_row, relationship_row

# A search of its own for each id: with `= any` the planner may read all of the user's rows instead. The rows need
# no lock, as every writer of the user waits for the head.
STANDING_NODES: Final[LiteralString] = """
    select n.*
    from unnest($2::uuid[]) as asked (id)
    cross join lateral (
        select node_id::text, namespace, key, context_type, content::text, row_hash, text_content, summary,
               array_to_json(tags)::text, importance, entity_system, entity_id, entity_type,
               session_id, source_agent, (date_part('epoch', created_at) * 1000000)::bigint,
               (date_part('epoch', updated_at) * 1000000)::bigint,
               (extract(epoch from expires_at) * 1000000)::bigint,
               (extract(epoch from deleted_at) * 1000000)::bigint, stamp, rev, writer::text as writer, writer_seq
        from memory.nodes
        where user_id = $1 and node_id = asked.id
        limit 1
    ) as n
"""

STANDING_RELATIONSHIPS: Final[LiteralString] = """
    select r.*
    from unnest($2::uuid[]) as asked (id)
    cross join lateral (
        select relationship_id::text, source_id::text, target_id::text, relationship_type, weight,
               properties::text, row_hash, (extract(epoch from valid_from) * 1000000)::bigint,
               (extract(epoch from valid_to) * 1000000)::bigint,
               (date_part('epoch', created_at) * 1000000)::bigint,
               (date_part('epoch', updated_at) * 1000000)::bigint,
               (extract(epoch from deleted_at) * 1000000)::bigint, stamp, rev, writer::text as writer, writer_seq
        from memory.relationships
        where user_id = $1 and relationship_id = asked.id
        limit 1
    ) as r
"""

RELATED_NODES: Final[LiteralString] = """
    select n.*
    from unnest($2::uuid[]) as asked (id)
    cross join lateral (
        select node_id::text, deleted_at is not null
        from memory.nodes
        where user_id = $1 and node_id = asked.id
        limit 1
    ) as n
"""


async def meet(connection: Connection, user_id: str, operations: Sequence[Operation]) -> Met:
    """What operations of a user whose head is locked meet."""
    ends: dict[str, bool] = {}
    asked = sorted({end for one in operations if one.kind is Kind.RELATIONSHIP for end in related_nodes(one.payload)})
    if asked:
        ends = {record[0]: record[1] for record in await connection.fetch(RELATED_NODES, user_id, asked)}
    return Met(
        standings=await _standings(connection, user_id, operations),
        present_nodes=frozenset(ends),
        deleted_nodes=frozenset(node_id for node_id, deleted in ends.items() if deleted),
    )


async def _standings(
    connection: Connection, user_id: str, operations: Sequence[Operation]
) -> dict[tuple[Kind, str], Standing]:
    found: dict[tuple[Kind, str], Standing] = {}
    for kind, statement, read in (
        (Kind.NODE, STANDING_NODES, node_row),
        (Kind.RELATIONSHIP, STANDING_RELATIONSHIPS, relationship_row),
    ):
        ids = [operation.entity_id for operation in operations if operation.kind is kind]
        if not ids:
            continue
        for record in await connection.fetch(statement, user_id, ids):
            standing = Standing(row=read(record), writer=record["writer"], writer_seq=record["writer_seq"])
            found[kind, cast("str", record[0])] = standing
    return found
