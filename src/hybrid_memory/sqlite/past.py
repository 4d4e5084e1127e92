"""What the file knows of a past that Postgres may have lost: a failover, a restore from a backup."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Final, cast

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.messages import REWOUND, Head
from hybrid_memory.payloads import carried_erasure
from hybrid_memory.sqlite.accepting import Acceptance
from hybrid_memory.sqlite.database import Database

# Nobody goes back to a backup older than this and wants what was erased since.
ERASURES_KEPT: Final = timedelta(days=30)


class SqlitePast:
    """`Past` in the hot-tier file."""

    def __init__(
        self,
        database: Database,
        acceptance: Acceptance,
        *,
        on_queued: Callable[[], None],
        on_changed: Callable[[str], None],
    ) -> None:
        self._database = database
        self._acceptance = acceptance
        self._on_queued = on_queued
        self._on_changed = on_changed

    def users_in_doubt(self) -> list[str]:
        """Users whose copy has not been compared since the server's past was rewritten."""
        rows = self._database.point.all("select user_id from users where timeline = ?", (REWOUND,))
        return [user_id for (user_id,) in rows]

    def erasures_in_doubt(self) -> Mapping[str, int]:
        """Erasures that the server may not know of any more, by user: the revision of each."""
        rows = self._database.point.all("select user_id, erased_rev from erasures where in_doubt = 1")
        return dict(rows)

    def queued(self) -> tuple[int, int] | None:
        """The first and the last number that is queued, None for nothing."""
        first, last = self._database.point.one("select min(seq), max(seq) from outbox") or (None, None)
        return None if first is None else (cast("int", first), cast("int", last))

    async def erase_again(self, user_id: str) -> None:
        """Queue the erasure of a user once more; what is here of the user was stored after it and stays."""
        await self._database.write(partial(self._erase_again, user_id), after=lambda _: self._on_queued())

    def _erase_again(self, user_id: str, connection: sqlite3.Connection) -> None:
        queued = connection.execute(
            "select 1 from outbox where user_id = ? and kind = ?", (user_id, Kind.ERASE.value)
        ).fetchone()
        if queued is None:
            self._acceptance.store_erasure(user_id, connection)

    async def erasure_stands(self, user_id: str) -> None:
        """The server knows of the erasure."""
        await self._database.write(partial(_trust_erasure, user_id))

    def has_dead_letters(self, user_id: str) -> bool:
        """Whether something of the user waits for a person: the copy shows it, and the durable tier never had it."""
        return self._database.point.one("select 1 from dead_letters where user_id = ?", (user_id,)) is not None

    async def doubt_copy(self, user_id: str) -> None:
        """The user's copy is not what the server holds: the next load compares them."""
        await self._database.write(partial(_doubt_copy, user_id), after=lambda _: self._on_changed(user_id))

    async def copy_stands(self, head: Head) -> None:
        """The user's copy, complete and at that head's revision, is what the server holds."""
        await self._database.write(partial(_trust_copy, head), after=lambda _: self._on_changed(head.user_id))


def doubt(connection: sqlite3.Connection, now_us: int, *, next_seq: int) -> None:
    """The server's past was rewritten: nothing it had confirmed is certain until it was compared.

    `next_seq` is the number that an operation would get now.
    """
    # Of what is in doubt since an earlier time, what was sent since that time says nothing either.
    connection.execute(
        "update users set timeline = ?1, first_unsent = coalesce("
        "case when timeline = ?1 then first_unsent end, (select min(seq) from outbox), ?2)",
        (REWOUND, next_seq),
    )
    kept_since = now_us - ERASURES_KEPT // timedelta(microseconds=1)
    connection.execute("delete from erasures where erased_at < ?", (kept_since,))
    connection.execute("update erasures set in_doubt = 1")


def kept_up_to(connection: sqlite3.Connection, user_id: str, done_seq: int) -> int:
    """The last number up to which the server has certainly kept what it had decided, by its mark for this file.

    0 where the mark says nothing: what was still queued goes to the new server before a copy is compared with it, and
    moves the mark past what was lost.
    """
    moved = connection.execute(
        "select 1 from users where user_id = ? and first_unsent <= ?", (user_id, done_seq)
    ).fetchone()
    return done_seq if moved is None else 0


def remember_erasures(connection: sqlite3.Connection, erasures: Mapping[str, int], now_us: int) -> None:
    """The server knows of these erasures, by user: the revision of each."""
    connection.executemany(
        "insert into erasures (user_id, erased_rev, erased_at) values (?1, ?2, ?3)"
        " on conflict (user_id) do update set erased_rev = ?2, erased_at = ?3, in_doubt = 0",
        [(user_id, erased_rev, now_us) for user_id, erased_rev in erasures.items()],
    )


def heard_of_erasure(connection: sqlite3.Connection, user_id: str, queued: Sequence[Operation]) -> int:
    """The last erasure of a user that was heard of here, before own ones that are still queued; -1: not known."""
    for operation in queued:
        if operation.kind is Kind.ERASE:
            return carried_erasure(operation.payload)
    row = connection.execute(
        "select erased_rev from users where user_id = ?1 and erased_rev >= 0"
        " union all select erased_rev from erasures where user_id = ?1 and in_doubt = 0",
        (user_id,),
    ).fetchone()
    return -1 if row is None else cast("int", row[0])


def has_undated(connection: sqlite3.Connection, user_id: str) -> bool:
    """Whether operations are queued that were accepted before anything was known of the user's erasures.

    They go to Postgres first, which holds them against the time; behind the load they would pass for later ones.
    """
    found = connection.execute(
        "select 1 from users where user_id = ?1 and erased_rev < 0 and exists"
        " (select 1 from outbox where user_id = ?1)",
        (user_id,),
    ).fetchone()
    return found is not None


def is_undated(connection: sqlite3.Connection, head: Head) -> bool:
    """Whether what is stored of a user may come before the erasure that the server tells of.

    Nothing is known of the user's erasures, or only of one that the server has lost: it may have been repeated since,
    and so may others which came behind it, under lower revisions.
    """
    found = connection.execute(
        "select 1 from users where user_id = ?1 and ?2 > 0 and (erased_rev < 0 or erased_rev > ?2)",
        (head.user_id, head.erased_rev),
    ).fetchone()
    return found is not None


def _trust_erasure(user_id: str, connection: sqlite3.Connection) -> None:
    connection.execute("update erasures set in_doubt = 0 where user_id = ?", (user_id,))


def _doubt_copy(user_id: str, connection: sqlite3.Connection) -> None:
    connection.execute("update users set timeline = ? where user_id = ?", (REWOUND, user_id))


def _trust_copy(head: Head, connection: sqlite3.Connection) -> None:
    connection.execute(
        "update users set timeline = ?, first_unsent = null"
        " where user_id = ? and timeline = ? and complete = 1 and rev = ?"
        " and erased_rev = ?",
        (head.timeline, head.user_id, REWOUND, head.rev, head.erased_rev),
    )
