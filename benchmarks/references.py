"""What ours is compared with: bare statements on bare connections, on tables of the same shape."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg

from benchmarks.memories import FlatRow, Memories, moment
from hybrid_memory.migrations import load
from hybrid_memory.sqlite.driver import Driver, configure_writer

CLIENT_ID: Final = "00000000-0000-4000-8000-000000000002"

NODE_COLUMNS: Final = (
    "user_id", "node_id", "namespace", "key", "context_type", "content", "row_hash", "text_content", "summary",
    "tags", "importance", "entity_system", "entity_id", "entity_type", "session_id", "source_agent", "created_at",
    "updated_at", "expires_at", "deleted_at", "stamp", "rev", "base", "writer", "writer_seq",
)  # fmt: skip
RELATIONSHIP_COLUMNS: Final = (
    "user_id", "relationship_id", "source_id", "target_id", "relationship_type", "weight", "properties", "row_hash",
    "valid_from", "valid_to", "created_at", "updated_at", "deleted_at", "stamp", "rev", "base", "writer",
    "writer_seq",
)  # fmt: skip


def _upsert(table: str) -> str:
    return (
        f"insert into {table} ({', '.join(NODE_COLUMNS)})"
        f" values ({', '.join(f'${place}' for place in range(1, len(NODE_COLUMNS) + 1))})"
        " on conflict (user_id, node_id) do update set "
        + ", ".join(f"{column} = excluded.{column}" for column in NODE_COLUMNS[2:])
    )


SEARCHABLE_UPSERT: Final = _upsert("bench.nodes")
"""What an application without us would send for each memory."""
PLAIN_UPSERT: Final = _upsert("bench.plain")
"""The same for one that never searches its memories by words."""

Record = tuple[str | int | float | list[str] | datetime | None, ...]


def node_record(user_id: str, row: FlatRow, seq: int) -> Record:
    """A node as asyncpg takes it, for `memory.nodes` or its twin."""
    return (
        user_id, *row[:8], ["benchmark"], *row[9:15], *map(moment, row[15:19]), row[19], row[20], 0, CLIENT_ID, seq,
    )  # fmt: skip


def relationship_record(user_id: str, row: FlatRow, seq: int) -> Record:
    """A relationship as asyncpg takes it."""
    return (user_id, *row[:7], *map(moment, row[7:12]), row[12], row[13], 0, CLIENT_ID, seq)


def records(memories: Memories, users: Sequence[str], count: int) -> list[Record]:
    """Nodes of these users in turn."""
    rows = memories.nodes(count)
    return [node_record(users[seq % len(users)], row, seq) for seq, row in enumerate(rows)]


async def make_twin(admin: asyncpg.Connection, role: str) -> None:
    """Two tables with the columns and indexes of `memory.nodes`, without its security, triggers and heads.

    `bench.nodes` has a text index besides: who keeps memories in Postgres alone has nothing else to search them by.
    """
    await admin.execute(f"""
        create schema bench;
        create table bench.plain (like memory.nodes including all);
        create table bench.nodes (like memory.nodes including all);
        alter table bench.nodes add column search tsvector
            generated always as (to_tsvector('english', left(text_content, 100000))) stored;
        create index on bench.nodes using gin (search);
        create table bench.heads (like memory.heads including all);
        grant usage on schema bench to {role};
        grant all on all tables in schema bench to {role};
    """)


async def upsert_one_by_one(
    connection: asyncpg.Connection, rows: Sequence[Record], upsert: str = SEARCHABLE_UPSERT
) -> list[float]:
    """Milliseconds of each upsert, one after the other."""
    calls: list[float] = []
    for row in rows:
        started = time.perf_counter_ns()
        await connection.execute(upsert, *row)
        calls.append((time.perf_counter_ns() - started) / 1e6)
    return calls


async def upsert_together(
    pool: asyncpg.Pool, rows: Sequence[Record], callers: int, upsert: str = SEARCHABLE_UPSERT
) -> float:
    """Rows a second of so many callers on a pool, each upserting one row at a time."""

    async def call(part: Sequence[Record]) -> None:
        for row in part:
            await pool.execute(upsert, *row)

    started = time.perf_counter()
    await asyncio.gather(*(call(rows[place::callers]) for place in range(callers)))
    return len(rows) / (time.perf_counter() - started)


async def fill(admin: asyncpg.Connection, user_id: str, nodes: list[FlatRow], edges: list[FlatRow]) -> None:
    """Give a user this graph in Postgres."""
    count = len(nodes)
    await admin.execute(
        "insert into memory.heads (user_id, rev, nodes, relationships) values ($1, $2, $3, $4)",
        user_id, count + len(edges), count, len(edges),
    )  # fmt: skip
    await admin.copy_records_to_table(
        "nodes",
        schema_name="memory",
        columns=NODE_COLUMNS,
        records=[node_record(user_id, row, seq) for seq, row in enumerate(nodes, 1)],
    )
    await admin.copy_records_to_table(
        "relationships",
        schema_name="memory",
        columns=RELATIONSHIP_COLUMNS,
        records=[relationship_record(user_id, row, seq) for seq, row in enumerate(edges, count + 1)],
    )


_COPY_NODES: Final = """
    select node_id::text, namespace, key, context_type, content::text, row_hash, text_content, summary,
           array_to_json(tags)::text, importance::text::float8, entity_system, entity_id, entity_type, session_id,
           source_agent, (date_part('epoch', created_at) * 1000000)::bigint,
           (date_part('epoch', updated_at) * 1000000)::bigint, (extract(epoch from expires_at) * 1000000)::bigint,
           null::bigint, stamp, rev
    from memory.nodes
    where user_id = $1 and deleted_at is null
"""
_COPY_RELATIONSHIPS: Final = """
    select relationship_id::text, source_id::text, target_id::text, relationship_type, weight, properties::text,
           row_hash, (extract(epoch from valid_from) * 1000000)::bigint,
           (extract(epoch from valid_to) * 1000000)::bigint, (date_part('epoch', created_at) * 1000000)::bigint,
           (date_part('epoch', updated_at) * 1000000)::bigint, null::bigint, stamp, rev
    from memory.relationships
    where user_id = $1 and deleted_at is null
"""


async def copy_to_nowhere(connection: asyncpg.Connection, user_id: str) -> float:
    """Seconds in which Postgres gives out a user's graph with the casts that a load makes, the bytes thrown away."""
    await connection.execute("select set_config('memory.user_id', $1, false)", user_id)
    started = time.perf_counter()
    for query in (_COPY_NODES, _COPY_RELATIONSHIPS):
        await connection.copy_from_query(query, user_id, output=_nowhere, format="binary")
    return time.perf_counter() - started


async def _nowhere(_data: bytes) -> None:
    """Where the bytes go."""


def bulk_insert(driver: Driver, path: Path, nodes: Sequence[FlatRow], edges: Sequence[FlatRow], step: int) -> float:
    """Seconds of a raw bulk insert into a new file of our schema and settings, `step` rows a transaction."""
    connection = driver.connect(path, create=True)
    try:
        configure_writer(connection)
        for migration in load("sqlite"):
            connection.executescript(migration.sql)
        node_rows = [(place, 1, *row) for place, row in enumerate(nodes, 1)]
        edge_rows = [(place, 1, *row) for place, row in enumerate(edges, len(nodes) + 1)]
        started = time.perf_counter()
        _insert(connection, _INSERT_NODES, node_rows, step)
        _insert(connection, _INSERT_RELATIONSHIPS, edge_rows, step)
        return time.perf_counter() - started
    finally:
        connection.close()


_INSERT_NODES: Final = (
    "insert into nodes (row_id, user_no, node_id, namespace, key, context_type, content, row_hash,"
    " text_content, summary, tags, importance, entity_system, entity_id, entity_type, session_id,"
    " source_agent, created_at, updated_at, expires_at, deleted_at, stamp, rev)"
    " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_RELATIONSHIPS: Final = (
    "insert into relationships (row_id, user_no, relationship_id, source_id, target_id, relationship_type,"
    " weight, properties, row_hash, valid_from, valid_to, created_at, updated_at, deleted_at, stamp, rev)"
    " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[FlatRow], step: int) -> None:
    for part in _parts(rows, step):
        connection.execute("begin immediate")
        connection.executemany(statement, part)
        connection.execute("commit")


def _parts(rows: Sequence[FlatRow], step: int) -> Iterator[Sequence[FlatRow]]:
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
