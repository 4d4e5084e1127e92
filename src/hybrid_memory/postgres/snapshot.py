"""One user's graph as of one head, streamed: the next chunk is on its way while the last one is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Final, LiteralString, TypeVar

import asyncpg
from asyncpg.cursor import Cursor

from hybrid_memory.messages import FlatRow, Head
from hybrid_memory.postgres.database import Connection, PostgresSettings
from hybrid_memory.postgres.failures import explained
from hybrid_memory.postgres.rows import flat_rows

T = TypeVar("T")


class PostgresSnapshot:
    """`Snapshot` within an open REPEATABLE READ transaction that has the tenant set; its maker ends the transaction.

    `after_rev` None reads the live graph as of `now_us`, else all rows newer than that, tombstones included.
    """

    def __init__(
        self,
        connection: Connection,
        settings: PostgresSettings,
        head: Head,
        *,
        expected: int,
        after_rev: int | None,
        now_us: int,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._head = head
        self._expected = expected
        self._after_rev = after_rev
        self._now_us = now_us
        self._ahead: asyncio.Task[list[asyncpg.Record]] | None = None

    @property
    def head(self) -> Head:
        """The head all rows belong to."""
        return self._head

    @property
    def expected(self) -> int:
        """About how many rows will come."""
        return self._expected

    LIVE_NODES: Final[LiteralString] = """
        select node_id::text, namespace, key, context_type, content::text, row_hash, text_content, summary,
               array_to_json(tags)::text, importance, entity_system, entity_id, entity_type, session_id,
               source_agent, (date_part('epoch', created_at) * 1000000)::bigint,
               (date_part('epoch', updated_at) * 1000000)::bigint, (extract(epoch from expires_at) * 1000000)::bigint,
               null::bigint, stamp, rev
        from memory.nodes
        where user_id = $1 and deleted_at is null and (expires_at is null or expires_at > memory.moment($2))
    """

    NEWER_NODES: Final[LiteralString] = """
        select node_id::text, namespace, key, context_type, content::text, row_hash, text_content, summary,
               array_to_json(tags)::text, importance, entity_system, entity_id, entity_type, session_id,
               source_agent, (date_part('epoch', created_at) * 1000000)::bigint,
               (date_part('epoch', updated_at) * 1000000)::bigint, (extract(epoch from expires_at) * 1000000)::bigint,
               (extract(epoch from deleted_at) * 1000000)::bigint, stamp, rev
        from memory.nodes
        where user_id = $1 and rev > $2
    """

    def nodes(self) -> AsyncIterator[Sequence[FlatRow]]:
        """Nodes in chunks."""
        if self._after_rev is None:
            return self._chunks(self.LIVE_NODES, self._now_us)
        return self._chunks(self.NEWER_NODES, self._after_rev)

    LIVE_RELATIONSHIPS: Final[LiteralString] = """
        select relationship_id::text, source_id::text, target_id::text, relationship_type, weight, properties::text,
               row_hash, (extract(epoch from valid_from) * 1000000)::bigint,
               (extract(epoch from valid_to) * 1000000)::bigint, (date_part('epoch', created_at) * 1000000)::bigint,
               (date_part('epoch', updated_at) * 1000000)::bigint, null::bigint, stamp, rev
        from memory.relationships
        where user_id = $1 and deleted_at is null
    """

    NEWER_RELATIONSHIPS: Final[LiteralString] = """
        select relationship_id::text, source_id::text, target_id::text, relationship_type, weight, properties::text,
               row_hash, (extract(epoch from valid_from) * 1000000)::bigint,
               (extract(epoch from valid_to) * 1000000)::bigint, (date_part('epoch', created_at) * 1000000)::bigint,
               (date_part('epoch', updated_at) * 1000000)::bigint, (extract(epoch from deleted_at) * 1000000)::bigint,
               stamp, rev
        from memory.relationships
        where user_id = $1 and rev > $2
    """

    def relationships(self) -> AsyncIterator[Sequence[FlatRow]]:
        """Relationships in chunks."""
        if self._after_rev is None:
            return self._chunks(self.LIVE_RELATIONSHIPS)
        return self._chunks(self.NEWER_RELATIONSHIPS, self._after_rev)

    async def commit(self) -> None:
        """End the transaction, unless the connection was cut off by `abandon`."""
        if not self._connection.is_closed():
            await self._step(self._connection.execute("commit"))

    async def abandon(self) -> None:
        """Stop a fetch that is still under way, and cut the connection off for it."""
        ahead = self._ahead
        if ahead is None:
            return
        ahead.cancel()
        self._connection.terminate()
        await asyncio.wait([ahead])
        if not ahead.cancelled():
            ahead.exception()  # Looked at, so that nobody calls it forgotten.

    async def _chunks(self, statement: LiteralString, *more: object) -> AsyncIterator[Sequence[FlatRow]]:
        size = self._settings.chunk_rows
        if self._after_rev is not None and self._expected <= size:
            # No row has two revisions, so one chunk holds them all, and one round trip brings it.
            rows = await self._step(self._connection.fetch(statement, self._head.user_id, *more))
            if rows:
                yield flat_rows(rows)
            return
        cursor, chunk = await self._step(self._open(statement, *more))
        while len(chunk) == size:
            # Held by the snapshot, which ends it if the consumer goes away between two chunks.
            self._ahead = asyncio.create_task(_fetch(cursor, size))
            yield flat_rows(chunk)
            chunk = await self._step(self._ahead)
            self._ahead = None
        if chunk:
            yield flat_rows(chunk)

    async def _open(
        self, statement: LiteralString, *more: object
    ) -> tuple[Cursor[asyncpg.Record], list[asyncpg.Record]]:
        if self._settings.transaction_pooler:
            # An unnamed statement: a named one would stay behind on the server, where another client's has that name.
            prepared = await self._connection.prepare(statement)
            cursor = await prepared.cursor(self._head.user_id, *more)
        else:
            cursor = await self._connection.cursor(statement, self._head.user_id, *more)
        return cursor, await cursor.fetch(self._settings.chunk_rows)

    async def _step(self, awaitable: Awaitable[T]) -> T:
        with explained():
            async with asyncio.timeout(self._settings.chunk_deadline.total_seconds()):
                return await awaitable


async def _fetch(cursor: Cursor[asyncpg.Record], size: int) -> list[asyncpg.Record]:
    # In a coroutine, because a cursor of a lost connection raises before there is anything to await.
    return await cursor.fetch(size)
