"""How the server finds rows: the plan of every hot statement, under the application's role and its policies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import LiteralString

import asyncpg
import pytest

from hybrid_memory.postgres import standings
from hybrid_memory.postgres.snapshot import PostgresSnapshot
from tests.plugins.postgres import Database, connected

pytestmark = pytest.mark.direct("it asks for plans in a session of its own")

ROWS = 20_000


@pytest.fixture
async def planner(postgres: Database) -> AsyncIterator[asyncpg.Connection]:
    """The application's connection, before tables in which one user of a hundred is asked for."""
    async with connected(postgres.admin_dsn) as admin:
        await admin.execute(
            f"""
            insert into memory.heads (user_id, rev) select 'user' || i, 200 from generate_series(1, 5000) i;
            insert into memory.nodes
                (user_id, node_id, namespace, context_type, content, row_hash, text_content, tags, importance,
                 created_at, updated_at, stamp, rev, base, writer, writer_seq)
            select 'user' || i % 100, gen_random_uuid(), 'default', 'fact', '{{}}', 'hash', 'text', '{{}}', 0.5, now(),
                   now(), i, i / 100 + 1, 0, gen_random_uuid(), i
            from generate_series(1, {ROWS}) i;
            insert into memory.relationships
                (user_id, relationship_id, source_id, target_id, relationship_type, weight, properties, row_hash,
                 created_at, updated_at, stamp, rev, base, writer, writer_seq)
            select user_id, gen_random_uuid(), node_id, node_id, 'knows', 1, '{{}}', 'hash', now(), now(), stamp, rev,
                   0, writer, writer_seq
            from memory.nodes;
            analyze memory.heads; analyze memory.nodes; analyze memory.relationships
            """
        )
    async with connected(postgres.direct_dsn, plan_cache_mode="force_generic_plan") as connection:
        await connection.execute("select set_config('memory.user_id', 'user7', false)")
        yield connection


async def plan_of(connection: asyncpg.Connection, statement: LiteralString, *arguments: str) -> str:
    # By EXECUTE, so that the plan is the generic one, which prepared statements come to use.
    await connection.execute(f"prepare asked as {statement}")
    rows = await connection.fetch(f"explain (costs off) execute asked ({', '.join(arguments)})")
    return "\n".join(row[0] for row in rows)


@pytest.mark.parametrize(
    ("statement", "arguments", "index"),
    [
        (PostgresSnapshot.NEWER_NODES, ("'user7'", "190"), "nodes_by_rev"),
        (PostgresSnapshot.NEWER_RELATIONSHIPS, ("'user7'", "190"), "relationships_by_rev"),
        (PostgresSnapshot.LIVE_NODES, ("'user7'", "1"), "nodes_"),
        (PostgresSnapshot.LIVE_RELATIONSHIPS, ("'user7'",), "relationships_"),
        (standings.STANDING_NODES, ("'user7'", "array[gen_random_uuid()]"), "nodes_pkey"),
        (
            standings.STANDING_RELATIONSHIPS,
            ("'user7'", "array[gen_random_uuid()]"),
            "relationships_pkey",
        ),
        (standings.RELATED_NODES, ("'user7'", "array[gen_random_uuid()]"), "nodes_pkey"),
        # The statement inside memory.heads_of.
        (
            "select h.user_id, h.rev from memory.heads h where h.user_id = any ($1::text[])",
            ("array['user7', 'user8']",),
            "heads_pkey",
        ),
    ],
)
async def test_a_hot_statement_goes_by_its_index(
    planner: asyncpg.Connection, statement: LiteralString, arguments: tuple[str, ...], index: str
) -> None:
    plan = await plan_of(planner, statement, *arguments)
    assert "Seq Scan" not in plan, plan
    assert index in plan, plan
    assert "user_id" in plan.split("Index Cond", 1)[1], plan
