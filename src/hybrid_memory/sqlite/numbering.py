"""Which number the queue goes on from, whatever has become of the file since its last one was given out."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias, cast

import orjson

from hybrid_memory.messages import Start
from hybrid_memory.sqlite.rows import operation, queue_entry
from hybrid_memory.sqlite.side_record import Noted

Starts: TypeAlias = "tuple[Start, ...]"

# Openings that queued nothing leave no trace, so this many have queued something that still waits.
_MOST_STARTS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where an opening takes the file over. `missing` are the numbers, first and last, that it should have and has not.

    `starts` are openings, as far as some of their numbers are still queued, and one before them.
    """

    open_number: int
    starts: Starts
    missing: tuple[int, int] | None


def take_over(connection: sqlite3.Connection, meta: dict[str, str], noted: Noted | None, token: str) -> Standing:
    """Number a new opening of the file and its operations above all that was given out before, by file or side record.

    To be run in the transaction that writes the opening down.
    """
    here = _last_seq(connection, meta)
    number = int(meta.get("open_number", "0"))
    missing = None
    if noted is not None:
        number = max(number, noted.open_number)
        if noted.last_seq > here:
            missing = (here + 1, noted.last_seq)
            here = noted.last_seq
    number += 1
    starts = (*_still_needed(connection, _starts(meta), here), Start(number, here + 1, token))[-_MOST_STARTS:]
    connection.executemany(
        "insert into meta (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
        [("last_seq", str(here)), ("starts", orjson.dumps([tuple(start) for start in starts]).decode())],
    )
    return Standing(open_number=number, starts=starts, missing=missing)


def _last_seq(connection: sqlite3.Connection, meta: dict[str, str]) -> int:
    (queued,) = connection.execute("select coalesce(max(seq), 0) from outbox").fetchone()
    return max(int(meta.get("last_seq", "0")), cast("int", queued))


def _starts(meta: dict[str, str]) -> Starts:
    told = cast("list[tuple[int, int, str]]", orjson.loads(meta.get("starts", "[]")))
    return tuple(Start(*start) for start in told)


def _still_needed(connection: sqlite3.Connection, starts: Starts, here: int) -> Starts:
    """The openings that gave out what is still queued, and the one before them: it tells from where they came.

    Those that gave out nothing are left out. `here` is the last number given out.
    """
    (queued,) = connection.execute("select min(seq) from outbox").fetchone()
    oldest = here + 1 if queued is None else cast("int", queued)
    ends = [*(start.first for start in starts[1:]), here + 1]
    gave = [start for start, end in zip(starts, ends, strict=False) if start.first < end]
    begun = sum(start.first <= oldest for start in gave)
    return tuple(gave[max(0, begun - 2) :])


class Moved(NamedTuple):
    """What a user's operations from above `covered` to `last` are numbered now: `shift` more."""

    covered: int
    last: int
    shift: int

    def number(self, seq: int) -> int:
        """The number that an operation has now."""
        return seq + self.shift if self.covered < seq <= self.last else seq


def renumber(connection: sqlite3.Connection, user_id: str, *, covered: int, above: int) -> Moved:
    """Give a user's queued operations above `covered` numbers above `above`, and above all that there are.

    Their order stays, and what was made on one of them follows it. Of other users nothing is moved: what was sent of
    theirs may have been applied under the number that it has.
    """
    here = _last_seq(connection, dict(connection.execute("select key, value from meta").fetchall()))
    shift = max(above, here) - covered
    rows = connection.execute(
        "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at from outbox"
        " where user_id = ? and seq > ?",
        (user_id, covered),
    ).fetchall()
    for former in map(operation, rows):
        base = former.base - shift if former.base < -covered else former.base
        entry = queue_entry(former._replace(seq=former.seq + shift, base=base))
        # The new numbers lie above all that there are, so no two meet on the way.
        connection.execute(
            "update outbox set seq = ?, base = ?, checksum = ? where seq = ?",
            (former.seq + shift, base, entry[-1], former.seq),
        )
    connection.execute(
        "update meta set value = cast((select max(?, coalesce(max(seq), 0)) from outbox) as text)"
        " where key = 'last_seq'",
        (max(above, here),),
    )
    return Moved(covered, here, shift)
