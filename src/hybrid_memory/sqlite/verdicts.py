"""What became of recent operations, kept for a while for whoever holds their receipts."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, cast

import orjson

from hybrid_memory.changes import Operation
from hybrid_memory.graph import Verdict
from hybrid_memory.sqlite.point_reader import PointReader

# In a verdict's place, with another number in the revision's: it was queued again under that.
_AGAIN: Final = "again"


def keep_verdicts(
    connection: sqlite3.Connection, seqs: list[int], decided: Sequence[tuple[int, int | None, str]], now_us: int
) -> None:
    """Write down what was decided on a batch, in one row; `seqs` are its numbers in order."""
    connection.execute(
        "insert or replace into receipts (first_seq, last_seq, decided_at, decided) values (?, ?, ?, ?)",
        (seqs[0], seqs[-1], now_us, orjson.dumps(decided).decode()),
    )


def keep_rejections(connection: sqlite3.Connection, rejected: Sequence[Operation], now_us: int) -> None:
    """Write down that an erasure took operations out of the queue.

    Each has a row of its own, so that one which was on its way after all can be told otherwise.
    """
    for one in rejected:
        keep_verdicts(connection, [one.seq], [(one.seq, None, Verdict.REJECTED)], now_us)


def keep_renewal(connection: sqlite3.Connection, buried: int, renewed: int, now_us: int) -> None:
    """Write down that a dead operation was queued again, in the place of its verdict."""
    keep_verdicts(connection, [buried], [(buried, renewed, _AGAIN)], now_us)


def newest_number(reader: PointReader, seq: int) -> int:
    """The number under which an operation was last queued, if it was ever queued again."""
    while True:
        rows = reader.all("select decided from receipts where first_seq = ?1 and last_seq = ?1", (seq,))
        told = [orjson.loads(decided) for (decided,) in cast("list[tuple[str]]", rows)]
        (following,) = [number for ((_, number, verdict),) in told if verdict == _AGAIN] or [seq]
        if following == seq:
            return seq
        seq = following


def kept_verdict(reader: PointReader, seq: int) -> tuple[Verdict, int | None] | None:
    """What became of an operation, None where nothing is written down (any more)."""
    rows = reader.all("select decided from receipts where first_seq <= ?1 and last_seq >= ?1", (seq,))
    for (decided,) in cast("list[tuple[str]]", rows):
        for number, rev, verdict in cast("list[tuple[int, int | None, str]]", orjson.loads(decided)):
            if number == seq:
                return Verdict(verdict), rev
    return None


def revisions_behind(connection: sqlite3.Connection, seq: int) -> tuple[frozenset[int], bool]:
    """The revisions, of whichever user, that operations behind a number were given, as far as it is written down.

    And whether one of them was merged with what others had stored: its revision is not that of any row here.
    """
    rows = connection.execute("select decided from receipts where last_seq > ?", (seq,)).fetchall()
    told = [
        (rev, verdict)
        for (decided,) in cast("list[tuple[str]]", rows)
        for number, rev, verdict in cast("list[tuple[int, int | None, str]]", orjson.loads(decided))
        if number > seq and rev is not None and verdict != _AGAIN
    ]
    return frozenset(rev for rev, _ in told), any(verdict == Verdict.MERGED for _, verdict in told)
