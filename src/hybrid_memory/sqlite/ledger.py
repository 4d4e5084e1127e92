"""What the writer must know between transactions: numbers given out, users' places, the size of the queue."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

from hybrid_memory.changes import Operation
from hybrid_memory.clock import Clock, IdSource, StampClock
from hybrid_memory.sqlite.staging import Staging

# More wait only where nobody reads what they merge.
MERGES_REMEMBERED: Final = 4_096


@dataclass(slots=True)
class Queue:
    """Counts of the queue."""

    entries: int = 0
    payload_bytes: int = 0
    dead_letters: int = 0


@dataclass(slots=True)
class _Numbers:
    last_seq: int
    next_user_no: int
    next_row_id: int
    user_nos: dict[str, int] = field(default_factory=dict[str, int])


class Ledger:
    """In-memory state of the writer's thread. It is read from the file and forgotten whenever a transaction fails.

    Only transactions touch it, so it never holds a number that was not committed with its row.
    """

    def __init__(self, clock: Clock, ids: IdSource) -> None:
        self._clock = clock
        self._ids = ids
        self._numbers: _Numbers | None = None
        self._stamps = StampClock(clock)
        # As of the running transaction, for the writer's thread alone; and as of the last commit, for the event loop.
        self._queue = Queue()
        self.committed = Queue()
        # The last queue number whose writer has been answered, or is about to be.
        self.answered_seq = 0
        self.staging = Staging()
        # The revision at which an own operation was last merged, by generation and entity, until that row has come.
        self._merged: dict[tuple[int, str], int] = {}

    def merged(self, user_no: int, entity_id: str, rev: int) -> None:
        """Take note of an own operation that Postgres merged with what others had stored."""
        if len(self._merged) >= MERGES_REMEMBERED:
            del self._merged[next(iter(self._merged))]
        self._merged[user_no, entity_id] = rev

    def has_merged_behind(self, user_no: int, entity_id: str, rev: int) -> bool:
        """Whether a row at that revision lacks what was merged into a later one."""
        behind = self._merged.get((user_no, entity_id), 0) > rev
        if not behind:
            self._merged.pop((user_no, entity_id), None)
        return behind

    def take_merged(self, user_no: int) -> dict[str, int]:
        """What `has_merged_behind` goes by, for a generation that is replaced: forgotten here."""
        taken = {entity: rev for (of, entity), rev in self._merged.items() if of == user_no}
        for entity in taken:
            del self._merged[user_no, entity]
        return taken

    def now_us(self) -> int:
        """Wall-clock microseconds."""
        return self._clock.now_us()

    def new_id(self) -> str:
        """A fresh id."""
        return self._ids.new()

    def next_stamp(self) -> int:
        """A stamp later than all made or seen."""
        return self._stamps.next()

    def observe(self, stamp: int) -> None:
        """Take in a stamp of another writer."""
        self._stamps.observe(stamp)

    @property
    def last_seq(self) -> int:
        """The last number of the queue given out, as of the transaction under way."""
        return self._numbers.last_seq if self._numbers is not None else self.answered_seq

    def next_seq(self, connection: sqlite3.Connection) -> int:
        """The next number of the queue; gap-free, for a failed transaction gives its numbers back."""
        numbers = self._read(connection)
        numbers.last_seq += 1
        return numbers.last_seq

    def known_user_no(self, connection: sqlite3.Connection, user_id: str) -> int | None:
        """The visible generation of a user."""
        numbers = self._read(connection)
        user_no = numbers.user_nos.get(user_id)
        if user_no is None:
            row = connection.execute("select user_no from users where user_id = ?", (user_id,)).fetchone()
            if row is None:
                return None
            user_no = numbers.user_nos[user_id] = cast("int", row[0])
        return user_no

    def user_no(self, connection: sqlite3.Connection, user_id: str) -> int:
        """The visible generation of a user; an empty, incomplete one is begun where there is none."""
        known = self.known_user_no(connection, user_id)
        if known is not None:
            return known
        user_no = self.new_user_no(connection)
        connection.execute(
            "insert into users (user_id, user_no, last_used_at) values (?, ?, ?)", (user_id, user_no, self.now_us())
        )
        self._read(connection).user_nos[user_id] = user_no
        return user_no

    def new_user_no(self, connection: sqlite3.Connection) -> int:
        """A generation number never used in this file while rows of it may remain."""
        numbers = self._read(connection)
        numbers.next_user_no += 1
        return numbers.next_user_no - 1

    def show(self, connection: sqlite3.Connection, user_id: str, user_no: int | None) -> None:
        """Remember that a user's visible generation changed, or that the user is gone."""
        numbers = self._read(connection)
        numbers.user_nos.pop(user_id, None)
        if user_no is not None:
            numbers.user_nos[user_id] = user_no

    def next_row_id(self, connection: sqlite3.Connection, count: int = 1) -> int:
        """The first of `count` row ids above all there are, for nodes and relationships alike."""
        numbers = self._read(connection)
        first = numbers.next_row_id
        numbers.next_row_id += count
        return first

    def before_commit(self, connection: sqlite3.Connection) -> None:
        """Write what is staged, and know all again that was forgotten: the last work of a group may not have asked."""
        self.staging.flush(connection)
        self._read(connection)

    def publication(self) -> Callable[[], None]:
        """What shows the event loop how things stand after a commit, to be called there."""
        queue = Queue(self._queue.entries, self._queue.payload_bytes, self._queue.dead_letters)
        return partial(self._publish, queue, self.last_seq)

    def _publish(self, queue: Queue, last_seq: int) -> None:
        self.committed, self.answered_seq = queue, last_seq

    def read(self, connection: sqlite3.Connection) -> None:
        """Read the state from the file, so that counts are right before the first change."""
        self._read(connection)

    def queue(self, connection: sqlite3.Connection) -> Queue:
        """The counts, to be kept right by whoever changes the queue or the dead letters in this transaction.

        To be had before the change: after a failed transaction they are read from the file anew.
        """
        self._read(connection)
        return self._queue

    def count_in(self, queued: Operation) -> None:
        """Count an operation that was given its number in this transaction."""
        self._queue.entries += 1
        self._queue.payload_bytes += len(queued.payload)

    def count_bytes(self, connection: sqlite3.Connection) -> None:
        """Count the queue's bytes anew."""
        (self._queue.payload_bytes,) = connection.execute(
            "select coalesce(sum(length(payload)), 0) from outbox"
        ).fetchone()

    def forget(self) -> None:
        """Drop everything: the next transaction reads it from the file."""
        self._numbers = None
        self.staging.forget()

    def _read(self, connection: sqlite3.Connection) -> _Numbers:
        if self._numbers is None:
            self._numbers = self._load(connection)
        return self._numbers

    def _load(self, connection: sqlite3.Connection) -> _Numbers:
        meta = cast("dict[str, str]", dict(connection.execute("select key, value from meta").fetchall()))
        top_user_no, top_row_id = connection.execute(
            "select max((select coalesce(max(user_no), 0) from users), (select coalesce(max(user_no), 0) from"
            " generations), (select coalesce(max(user_no), 0) from nodes), (select coalesce(max(user_no), 0) from"
            " relationships)), max((select coalesce(max(row_id), 0) from nodes), (select coalesce(max(row_id), 0) from"
            " relationships))"
        ).fetchone()
        entries, payload_bytes, last_queued, stamp = connection.execute(
            "select count(*), coalesce(sum(length(payload)), 0), coalesce(max(seq), 0), coalesce(max(stamp), 0)"
            " from outbox"
        ).fetchone()
        (dead,) = connection.execute("select count(*) from dead_letters").fetchone()
        self._queue.entries, self._queue.payload_bytes, self._queue.dead_letters = entries, payload_bytes, dead
        self._stamps.observe(stamp)
        last_seq = max(int(meta.get("last_seq", "0")), last_queued)
        return _Numbers(last_seq=last_seq, next_user_no=top_user_no + 1, next_row_id=top_row_id + 1)
