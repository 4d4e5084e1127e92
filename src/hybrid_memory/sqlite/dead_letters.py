"""What Postgres would never take, kept in the hot-tier file until a person decides.

Until then the copy goes on showing it, as it shows whatever is queued. What is discarded is taken back there, and the
copy loaded anew: Postgres alone knows what stood there before. What is retried is shown again.
"""

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
from hybrid_memory.sqlite.withdrawing import shows, withdraw


class SqliteDeadLetters:
    """`DeadLetters` in the hot-tier file."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        acceptance: Acceptance,
        on_retried: Callable[[], None],
        on_changed: Callable[[str], None],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._acceptance = acceptance
        self._on_retried = on_retried
        self._on_changed = on_changed

    async def list(self) -> list[DeadLetter]:
        """All of them, oldest first."""
        return await self._database.read(partial(_chosen, None))

    async def retry(self, op_ids: Sequence[str] | None) -> int:
        """Queue them again under new numbers (None: all). Returns how many."""
        letters = await self._database.write(partial(self._retry, op_ids), after=self._retried)
        return len(letters)

    def _retried(self, letters: Sequence[DeadLetter]) -> None:
        self._changed(letters)
        self._on_retried()

    def _changed(self, letters: Sequence[DeadLetter]) -> None:
        for user_id in {letter.operation.user_id for letter in letters}:
            self._on_changed(user_id)

    def _retry(self, op_ids: Sequence[str] | None, connection: sqlite3.Connection) -> Sequence[DeadLetter]:
        chosen = _chosen(op_ids, connection)
        for letter in chosen:
            # The mark in Postgres has passed the old number, so the operation gets a new one and keeps its id.
            again = letter.operation._replace(seq=self._ledger.next_seq(connection))
            self._acceptance.enqueue(again)
            keep_renewal(connection, letter.operation.seq, again.seq, self._ledger.now_us())
            if not shows(connection, self._ledger.known_user_no(connection, again.user_id), again):
                # A load since then has brought what stands in Postgres; the next one lays over it what is queued.
                _load_anew(connection, again.user_id)
        self._remove(connection, chosen)
        return chosen

    async def discard(self, op_ids: Sequence[str] | None) -> int:
        """Drop them for good (None: all). Returns how many."""
        letters = await self._database.write(partial(self._discard, op_ids), after=self._changed)
        return len(letters)

    def _discard(self, op_ids: Sequence[str] | None, connection: sqlite3.Connection) -> Sequence[DeadLetter]:
        chosen = _chosen(op_ids, connection)
        for letter in chosen:
            dead = letter.operation
            user_no = self._ledger.known_user_no(connection, dead.user_id)
            if shows(connection, user_no, dead):
                withdraw(connection, user_no, dead, self._ledger.now_us())
                _load_anew(connection, dead.user_id)
        self._remove(connection, chosen)
        return chosen

    def _remove(self, connection: sqlite3.Connection, letters: Sequence[DeadLetter]) -> None:
        queue = self._ledger.queue(connection)
        connection.executemany(
            "delete from dead_letters where op_id = ?", [(letter.operation.op_id,) for letter in letters]
        )
        queue.dead_letters -= len(letters)


def _load_anew(connection: sqlite3.Connection, user_id: str) -> None:
    connection.execute("update users set complete = 0 where user_id = ?", (user_id,))


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
