"""What is never to be found in Postgres: a relationship that outlived its source or its target."""

from __future__ import annotations

import asyncpg


async def without_end(admin: asyncpg.Connection) -> list[str]:
    """The live relationships of a node that is a tombstone."""
    rows = await admin.fetch(
        """
        select distinct r.user_id || ': ' || r.relationship_id from memory.relationships r
        join memory.nodes n on n.user_id = r.user_id and n.node_id in (r.source_id, r.target_id)
        where r.deleted_at is null and n.deleted_at is not null
        """
    )
    return [row[0] for row in rows]
