"""What conflicts were decided against: kept with its writer and stamp, so that its verdict can be told again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString, cast

import orjson

from hybrid_memory.changes import Kind, NodeRow, Operation
from hybrid_memory.graph import Verdict
from hybrid_memory.messages import Applied
from hybrid_memory.postgres.database import Connection
from hybrid_memory.postgres.deciding import Decided, Lost, verdict_of_loser

_REMEMBER_NODES: Final[LiteralString] = """
    insert into memory.node_history
        (user_id, node_id, rev, reason, context_type, content, summary, tags, stamp, writer, replaced_by)
    select $1, l.node_id, l.rev, 'lost', l.context_type, l.content, l.summary, l.tags, l.stamp, $2, l.beaten_by
    from json_to_recordset($3) as l (
        node_id uuid, rev bigint, context_type text, content json, summary text, tags text[], stamp bigint,
        beaten_by uuid)
    on conflict do nothing
"""
# Given as their operations carry them.
_REMEMBER_RELATIONSHIPS: Final[LiteralString] = """
    insert into memory.relationship_history
        (user_id, relationship_id, source_id, target_id, relationship_type, weight, properties, deleted_at, stamp,
         writer)
    select $1, l.relationship_id, l.source_id, l.target_id, l.relationship_type, l.weight, l.properties,
           memory.moment(l.deleted_at), l.stamp, $2
    from json_to_recordset($3) as l (
        relationship_id uuid, source_id uuid, target_id uuid, relationship_type text, weight double precision,
        properties json, deleted_at bigint, stamp bigint)
    on conflict do nothing
"""


async def remember(connection: Connection, client_id: str, user_id: str, decided: Sequence[Decided]) -> None:
    """Keep what lost among the operations of a client on one user."""
    nodes = [_node_members(one.lost) for one in decided if one.lost is not None]
    if nodes:
        await connection.execute(_REMEMBER_NODES, user_id, client_id, orjson.dumps(nodes).decode())
    relationships = [one.operation.payload for one in decided if _is_beaten_relationship(one)]
    if relationships:
        rows = f"[{','.join(relationships)}]"
        await connection.execute(_REMEMBER_RELATIONSHIPS, user_id, client_id, rows)


def _is_beaten_relationship(decided: Decided) -> bool:
    return decided.operation.kind is Kind.RELATIONSHIP and decided.verdict is Verdict.SUPERSEDED


def _node_members(lost: Lost) -> dict[str, object]:
    row: NodeRow = lost.row
    return {
        "node_id": row.node_id,
        "rev": lost.rev,
        "context_type": row.context_type,
        "content": orjson.Fragment(row.content),
        "summary": row.summary,
        "tags": orjson.Fragment(row.tags),
        "stamp": row.stamp,
        "beaten_by": lost.beaten_by,
    }


_BEATEN_NODES: Final[LiteralString] = """
    select a.seq
    from unnest($3::bigint[], $4::uuid[], $5::bigint[]) as a (seq, node_id, stamp)
    where exists (select 1 from memory.node_history h where h.user_id = $1 and h.node_id = a.node_id
        and h.reason = 'lost' and h.writer = $2 and h.stamp = a.stamp)
"""
_BEATEN_RELATIONSHIPS: Final[LiteralString] = """
    select a.seq
    from unnest($3::bigint[], $4::uuid[], $5::bigint[]) as a (seq, relationship_id, stamp)
    where exists (select 1 from memory.relationship_history h
        where h.user_id = $1 and h.relationship_id = a.relationship_id and h.writer = $2 and h.stamp = a.stamp)
"""


async def unless_beaten(connection: Connection, client_id: str, user_id: str, told: Sequence[Applied]) -> list[Applied]:
    """What is told of operations whose first answer was lost, where it is not remembered that they lost."""
    lost: set[int] = set()
    for kind, statement in ((Kind.NODE, _BEATEN_NODES), (Kind.RELATIONSHIP, _BEATEN_RELATIONSHIPS)):
        asked = [one.operation for one in told if one.operation.kind is kind and one.rev is None]
        if asked:
            records = await connection.fetch(statement, user_id, client_id, *_columns(asked))
            lost |= {cast("int", record["seq"]) for record in records}
    return [one._replace(verdict=verdict_of_loser(one.operation)) if one.operation.seq in lost else one for one in told]


def _columns(operations: Sequence[Operation]) -> tuple[list[object], ...]:
    columns = zip(*((one.seq, one.entity_id, one.stamp) for one in operations), strict=True)
    return tuple(map(list, columns))
