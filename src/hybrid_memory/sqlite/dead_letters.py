"""What Postgres would never take, kept in the hot-tier file until a person decides."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import orjson

from hybrid_memory.messages import DeadLetter
from hybrid_memory.sqlite.accepting import Acceptance
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.rows import SqlRow, operation
from hybrid_memory.sqlite.verdicts import keep_renewal


class SqliteDeadLetters:
    """`DeadLetters` in the hot-tier file."""

    def __init__(
        self, database: Database, ledger: Ledger, acceptance: Acceptance, on_retried: Callable[[], None]
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._acceptance = acceptance
        self._on_retried = on_retried

    async def list(self) -> list[DeadLetter]:
        """All of them, oldest first."""
        return await self._database.read(partial(_chosen, None))

    async def retry(self, op_ids: Sequence[str] | None) -> int:
        """Queue them again under new numbers (None: all). Returns how many."""
        return await self._database.write(partial(self._retry, op_ids), after=lambda _: self._on_retried())

    def _retry(self, op_ids: Sequence[str] | None, connection: sqlite3.Connection) -> int:
        chosen, queue = _chosen(op_ids, connection), self._ledger.queue(connection)
        for letter in chosen:
            # The mark in Postgres has passed the old number, so the operation gets a new one and keeps its id.
            again = letter.operation._replace(seq=self._ledger.next_seq(connection))
            self._acceptance.enqueue(again)
            keep_renewal(connection, letter.operation.seq, again.seq, self._ledger.now_us())
        _remove(connection, chosen)
        queue.dead_letters -= len(chosen)
        return len(chosen)

    async def discard(self, op_ids: Sequence[str] | None) -> int:
        """Drop them for good (None: all). Returns how many."""
        return await self._database.write(partial(self._discard, op_ids))

    def _discard(self, op_ids: Sequence[str] | None, connection: sqlite3.Connection) -> int:
        chosen, queue = _chosen(op_ids, connection), self._ledger.queue(connection)
        _remove(connection, chosen)
        queue.dead_letters -= len(chosen)
        return len(chosen)


def _chosen(op_ids: Sequence[str] | None, connection: sqlite3.Connection) -> list[DeadLetter]:
    chosen = None if op_ids is None else orjson.dumps(list(op_ids)).decode()
    rows = connection.execute(
        "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at, died_at, sqlstate,"
        " reason from dead_letters where ?1 is null or op_id in (select value from json_each(?1)) order by seq",
        (chosen,),
    ).fetchall()
    return [_dead_letter(row) for row in rows]


def _dead_letter(row: SqlRow) -> DeadLetter:
    return DeadLetter(
        operation=operation(row[:10]), died_at=cast("int", row[10]), sqlstate=cast("str", row[11]), reason=row[12]
    )


def _remove(connection: sqlite3.Connection, letters: list[DeadLetter]) -> None:
    connection.executemany(
        "delete from dead_letters where op_id = ?", [(letter.operation.op_id,) for letter in letters]
    )
