"""Transient memory and checkpoints: in the hot-tier file only, gone when they expire or their thread is stale."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import TypeAlias

from hybrid_memory.changes import NodeChange
from hybrid_memory.clock import MICROSECOND, Clock
from hybrid_memory.errors import NotFound
from hybrid_memory.graph import Checkpoint, NodeId, TransientNode
from hybrid_memory.messages import Accepted, Hold
from hybrid_memory.sqlite.accepting import Acceptance, Stored
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.rows import SqlRow

Accept: TypeAlias = "Callable[[Callable[[sqlite3.Connection], Stored], Hold | None], asyncio.Future[Accepted]]"


class SqliteScratch:
    """`Scratch` in the hot-tier file."""

    def __init__(self, database: Database, acceptance: Acceptance, clock: Clock, accept: Accept) -> None:
        self._database = database
        self._acceptance = acceptance
        self._clock = clock
        self._accept = accept

    def put(self, node: TransientNode) -> asyncio.Future[None]:
        """Store a transient memory; enqueued at once."""
        return self._database.write(partial(self._put, node))

    def _put(self, node: TransientNode, connection: sqlite3.Connection) -> None:
        connection.execute(
            "insert into transient (thread_id, node_id, context_type, content, created_at, expires_at)"
            " values (?, ?, ?, ?, ?, ?)",
            (node.thread_id, node.node_id, node.context_type, node.content, node.created_at, node.expires_at),
        )
        self._touch(connection, node.thread_id)

    def _touch(self, connection: sqlite3.Connection, thread_id: str) -> None:
        connection.execute(
            "insert into threads (thread_id, last_used_at) values (?1, ?2)"
            " on conflict (thread_id) do update set last_used_at = ?2",
            (thread_id, self._clock.now_us()),
        )

    def of_thread(self, thread_id: str) -> list[TransientNode]:
        """A thread's live transient memories, oldest first."""
        rows = self._database.point.all(
            "select thread_id, node_id, context_type, content, created_at, expires_at from transient"
            " where thread_id = ? and (expires_at is null or expires_at > ?) order by created_at, node_id",
            (thread_id, self._clock.now_us()),
        )
        return [_transient(row) for row in rows]

    def promote(
        self, thread_id: str, node_id: NodeId, user_id: str, change: NodeChange, hold: Hold | None = None
    ) -> asyncio.Future[Accepted]:
        """Turn a transient memory into a persistent one in one transaction: it is never both, never neither."""
        return self._accept(partial(self._promote, thread_id, node_id, user_id, change), hold)

    def _promote(
        self, thread_id: str, node_id: NodeId, user_id: str, change: NodeChange, connection: sqlite3.Connection
    ) -> Stored:
        present = connection.execute(
            "select 1 from transient where thread_id = ? and node_id = ? and (expires_at is null or expires_at > ?)",
            (thread_id, node_id, self._clock.now_us()),
        ).fetchone()
        if present is None:
            raise NotFound("node_id names no transient memory of this thread")
        stored = self._acceptance.store_node(user_id, change, connection)
        connection.execute("delete from transient where thread_id = ? and node_id = ?", (thread_id, node_id))
        self._touch(connection, thread_id)
        return stored

    async def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint, replacing one of the same id."""
        await self._database.write(partial(self._save, checkpoint))

    def _save(self, checkpoint: Checkpoint, connection: sqlite3.Connection) -> None:
        connection.execute(
            "insert into checkpoints (thread_id, checkpoint_id, parent_id, state, created_at) values (?, ?, ?, ?, ?)"
            " on conflict (thread_id, checkpoint_id) do update set parent_id = excluded.parent_id,"
            " state = excluded.state, created_at = excluded.created_at",
            (
                checkpoint.thread_id,
                checkpoint.checkpoint_id,
                checkpoint.parent_id,
                checkpoint.state,
                checkpoint.created_at,
            ),
        )
        self._touch(connection, checkpoint.thread_id)

    def load(self, thread_id: str, checkpoint_id: str | None) -> Checkpoint | None:
        """A checkpoint of the thread, the newest without an id."""
        row = self._database.point.one(
            "select thread_id, checkpoint_id, parent_id, state, created_at from checkpoints"
            " where thread_id = ?1 and (?2 is null or checkpoint_id = ?2)"
            " order by created_at desc, rowid desc limit 1",
            (thread_id, checkpoint_id),
        )
        return None if row is None else _checkpoint(row)

    def history(self, thread_id: str, limit: int) -> list[Checkpoint]:
        """A thread's checkpoints, newest first."""
        rows = self._database.point.all(
            "select thread_id, checkpoint_id, parent_id, state, created_at from checkpoints where thread_id = ?"
            " order by created_at desc, rowid desc limit ?",
            (thread_id, limit),
        )
        return [_checkpoint(row) for row in rows]

    async def delete(self, thread_id: str, checkpoint_id: str | None) -> int:
        """Delete one checkpoint, or all of the thread. Returns how many."""
        return await self._database.write(partial(_delete, thread_id, checkpoint_id))

    async def sweep(self, *, now_us: int, idle: timedelta, receipts_kept: timedelta) -> Mapping[str, int]:
        """Remove what has expired and threads idle for longer; how many rows from which table."""
        stale_us, old_us = now_us - idle // MICROSECOND, now_us - receipts_kept // MICROSECOND
        return await self._database.write(partial(_sweep, now_us, stale_us, old_us), ride=True)


def _delete(thread_id: str, checkpoint_id: str | None, connection: sqlite3.Connection) -> int:
    return connection.execute(
        "delete from checkpoints where thread_id = ?1 and (?2 is null or checkpoint_id = ?2)",
        (thread_id, checkpoint_id),
    ).rowcount


def _sweep(now_us: int, stale_us: int, old_us: int, connection: sqlite3.Connection) -> dict[str, int]:
    expired = connection.execute("delete from transient where expires_at <= ?", (now_us,)).rowcount
    for statement in (
        "delete from transient where thread_id in (select thread_id from threads where last_used_at < ?)",
        "delete from checkpoints where thread_id in (select thread_id from threads where last_used_at < ?)",
    ):
        expired += connection.execute(statement, (stale_us,)).rowcount
    threads = connection.execute("delete from threads where last_used_at < ?", (stale_us,)).rowcount
    nodes = connection.execute("delete from nodes where expires_at <= ?", (now_us,)).rowcount
    receipts = connection.execute("delete from receipts where decided_at < ?", (old_us,)).rowcount
    return {"transient": expired, "threads": threads, "nodes": nodes, "receipts": receipts}


def _transient(row: SqlRow) -> TransientNode:
    thread_id, node_id, context_type, content, created_at, expires_at = row
    return TransientNode(
        thread_id=thread_id,
        node_id=node_id,
        context_type=context_type,
        content=content,
        created_at=created_at,
        expires_at=expires_at,
    )


def _checkpoint(row: SqlRow) -> Checkpoint:
    thread_id, checkpoint_id, parent_id, state, created_at = row
    return Checkpoint(
        thread_id=thread_id, checkpoint_id=checkpoint_id, parent_id=parent_id, state=state, created_at=created_at
    )
