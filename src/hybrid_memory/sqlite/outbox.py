"""The durable queue: a change and its entry are one transaction; nothing leaves before its verdict is known."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Final, cast

from hybrid_memory.changes import Kind, NodeChange, Operation, RelationshipChange
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.messages import (
    Accepted,
    Applied,
    AppliedUser,
    BatchApplied,
    Hold,
    QueueState,
)
from hybrid_memory.payloads import carried_relationship, may_merge
from hybrid_memory.sqlite.accepting import Acceptance, Stored
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.last_operations import LastOperations
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.numbering import Moved, renumber
from hybrid_memory.sqlite.overlay import Touched, show_applied
from hybrid_memory.sqlite.past import remember_erasures
from hybrid_memory.sqlite.rows import SqlRow, operation
from hybrid_memory.sqlite.settling import Settling
from hybrid_memory.sqlite.staging import move_cursors, number_nodes
from hybrid_memory.sqlite.verdicts import keep_verdicts, kept_verdict, newest_number
from hybrid_memory.sqlite.withdrawing import withdraw_beaten

# Some batches' worth: the relay is seldom further behind, and then reads the file.
NEWEST_KEPT: Final = 1_024
# Seldom enough to cost nothing while a disk is full, soon enough that the queue does not look stuck after it.
SETTLE_AGAIN_SECONDS: Final = 1.0


class SqliteOutbox:
    """`Outbox` in the hot-tier file."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        acceptance: Acceptance,
        *,
        on_stored: Callable[[Stored], None],
        on_settled: Callable[[BatchApplied], None],
        on_shown: Callable[[int, Sequence[int]], None],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._acceptance = acceptance
        self._on_stored = on_stored
        self._on_settled = on_settled
        self._on_shown = on_shown
        self.settling = Settling()
        # The batches of the settlement that waits to be taken along, if one does.
        self._batches: list[BatchApplied] = []
        self._settlement: asyncio.Future[None] | None = None
        # The newest queue entries without a gap, so that the relay need not read back what was just written.
        self._newest: deque[Operation] = deque(maxlen=NEWEST_KEPT)
        self.last = LastOperations(database.point)
        # Users whose operations got other numbers since somebody was told them.
        self._moved: dict[str, list[Moved]] = {}

    def accept_node(self, user_id: str, change: NodeChange, hold: Hold | None = None) -> asyncio.Future[Accepted]:
        """Store a node locally and queue it, in one transaction."""
        if change.fresh:
            return self.accept(partial(self._acceptance.store_fresh, user_id, change), hold, stages=True)
        return self.accept(partial(self._acceptance.store_node, user_id, change), hold)

    def accept_relationship(
        self, user_id: str, change: RelationshipChange, hold: Hold | None = None
    ) -> asyncio.Future[Accepted]:
        """Store a relationship locally and queue it, in one transaction."""
        return self.accept(partial(self._acceptance.store_relationship, user_id, change), hold)

    def accept_deletion(self, user_id: str, node_id: NodeId, hold: Hold | None = None) -> asyncio.Future[Accepted]:
        """Bury a node and its relationships locally and queue that, in one transaction."""
        return self.accept(partial(self._acceptance.store_deletion, user_id, node_id), hold)

    def accept(
        self, work: Callable[[sqlite3.Connection], Stored], hold: Hold | None, *, stages: bool = False
    ) -> asyncio.Future[Accepted]:
        """Have the writer do work that accepts an operation."""
        return self._database.submit(work, partial(self._stored, hold), stages=stages)

    def _stored(self, hold: Hold | None, stored: Stored, future: asyncio.Future[Accepted]) -> None:
        for queued in stored.operations:
            if self._newest and self._newest[-1].seq != queued.seq - 1:
                self._newest.clear()
            self._newest.append(queued)
        last = stored.operations[-1]
        self.last.note(last.user_id, last.seq)
        self._on_stored(stored)
        if future.done():
            return  # whoever asked has gone
        if hold is None:
            future.set_result(Accepted.of(stored.told))
        else:
            hold(stored.told, future)

    def forget_newest(self) -> None:
        """Queue entries were removed unsent, or added by others."""
        self._newest.clear()

    async def renumber(self, user_id: str, *, covered: int, above: int) -> None:
        """Number a user's queued operations above `covered` anew, above `above`: Postgres has marked that far.

        Receipts given out for them stay good.
        """
        work = partial(self._renumber, user_id, covered, above)
        await self._database.write(work, after=partial(self._renumbered, user_id))

    def _renumber(self, user_id: str, covered: int, above: int, connection: sqlite3.Connection) -> Moved:
        moved = renumber(connection, user_id, covered=covered, above=above)
        self._ledger.forget()
        self._ledger.read(connection)
        return moved

    def _renumbered(self, user_id: str, moved: Moved) -> None:
        self.forget_newest()
        self._moved.setdefault(user_id, []).append(moved)
        self.last.renumbered(user_id, moved)

    def _number_of(self, accepted: Accepted) -> int:
        seq = accepted.seq
        for moved in self._moved.get(accepted.user_id, ()):
            seq = moved.number(seq)
        return seq

    def claim(self, *, after_seq: int, limit: int, user_id: str | None = None) -> list[Operation]:
        """The next operations in order of acceptance; those already decided are passed over."""
        if user_id is None and after_seq == 0:
            # From the start again: among the newest may be some that were decided since.
            self._newest.clear()
        if user_id is None and self._newest and self._newest[0].seq <= after_seq + 1:
            while self._newest and self._newest[0].seq <= after_seq:
                self._newest.popleft()
            return list(islice(self._newest, limit))
        found: list[Operation] = []
        while True:
            rows = self._claim(after_seq, limit, user_id)
            found += [operation(row) for row in rows if row[0] not in self.settling]
            # A short answer says that there is no more, so what was passed over is made up for.
            if len(rows) < limit or len(found) >= limit:
                return found[:limit]
            after_seq = rows[-1][0]

    def _claim(self, after_seq: int, limit: int, user_id: str | None) -> list[SqlRow]:
        # The writer's thread may have committed more than the event loop knows of. What is decided before its caller
        # is there to hear it would be waited for in vain.
        answered_seq = self._ledger.answered_seq
        if after_seq >= answered_seq:
            return []
        if user_id is None:
            rows = self._database.point.all(
                "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at"
                " from outbox where seq > ? and seq <= ? order by seq limit ?",
                (after_seq, answered_seq, limit),
            )
        else:
            rows = self._database.point.all(
                "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at"
                " from outbox indexed by outbox_by_entity where user_id = ? and seq > ? and seq <= ?"
                " order by seq limit ?",
                (user_id, after_seq, answered_seq, limit),
            )
        return rows

    def settle(self, batch: BatchApplied) -> asyncio.Future[None]:
        """Take decided operations out of the queue; rides on another change's commit if one comes soon.

        A crash before that commit costs nothing: the operations are sent again and meet their mark.
        """
        self.settling.begin(batch)
        if self._database.failure is not None:
            # The file takes nothing any more, so the rest of the queue shall all the sooner be where it is safe.
            return _done()
        if self._settlement is None or not self._database.rides(self._settlement):
            # Settled with one, in one go, is whatever is decided until a commit takes it along.
            self._batches = [batch]
            self._settlement = self._write_down(self._batches)
        else:
            self._batches.append(batch)
        return self._settlement

    def _write_down(self, batches: list[BatchApplied]) -> asyncio.Future[None]:
        touched: list[Touched] = []
        settlement = self._database.write(
            partial(self._settle, batches, touched), after=partial(self._settled, batches, touched), ride=True
        )
        settlement.add_done_callback(partial(self._look_after, batches))
        return settlement

    def _look_after(self, batches: list[BatchApplied], settlement: asyncio.Future[None]) -> None:
        # A full disk, most likely. What is decided stays decided: it is written down when there is room again, and
        # until then told from memory.
        if not settlement.cancelled() and settlement.exception() is not None and self._database.takes_work:
            settlement.get_loop().call_later(SETTLE_AGAIN_SECONDS, self._try_again, batches)

    def _try_again(self, batches: list[BatchApplied]) -> None:
        if self._database.takes_work:
            self._write_down(batches)

    def _settled(self, batches: list[BatchApplied], touched: list[Touched], _: None) -> None:
        for user_no, row_id in touched:
            self._on_shown(user_no, [row_id])
        for batch in batches:
            self.settling.end(batch)
            self._on_settled(batch)

    def _settle(self, batches: list[BatchApplied], touched: list[Touched], connection: sqlite3.Connection) -> None:
        now_us, queue = self._ledger.now_us(), self._ledger.queue(connection)
        told: list[tuple[int, int | None, Verdict]] = []
        payload_bytes = 0
        nodes: list[tuple[int, str, int, int]] = []
        stood: list[Applied] = []
        alone: list[Applied] = []
        otherwise: list[Applied] = []
        erasures: dict[str, int] = {}
        # One pass: it is half of what settling takes.
        for applied in sorted(chain.from_iterable(batch.operations for batch in batches), key=_seq):
            operation, verdict, rev = applied
            told.append((operation.seq, rev, verdict))
            payload_bytes += len(operation.payload)
            if operation.kind is Kind.ERASE:
                erasures[operation.user_id] = rev or 0
            # A row decided otherwise than its writer wished comes by the feed, with the revision that stands.
            elif rev is not None and verdict is Verdict.APPLIED:
                user_no = self._ledger.known_user_no(connection, operation.user_id)
                if user_no is not None:
                    stood.append(applied)
                    # What was merged here with a row that its writer had not seen is no longer what was sent.
                    if operation.kind is Kind.NODE and not may_merge(operation.payload):
                        nodes.append((user_no, operation.entity_id, rev, operation.stamp))
                    else:
                        alone.append(applied)
            elif verdict is not Verdict.APPLIED:
                otherwise.append(applied)
        seqs = [seq for seq, _, _ in told]
        keep_verdicts(connection, seqs, told, now_us)
        removed = connection.executemany("delete from outbox where seq between ? and ?", _runs(seqs)).rowcount
        queue.entries -= removed
        queue.payload_bytes -= payload_bytes
        whole = removed == len(seqs)
        if not whole:
            # An erasure took some of them away meanwhile, and their bytes off the count.
            self._ledger.count_bytes(connection)
        # Tried again, it finds the file as it was.
        touched.clear()
        all_numbered = number_nodes(connection, nodes) == len(nodes)
        touched += show_applied(connection, self._ledger, alone if all_numbered else stood)
        withdraw_beaten(connection, self._ledger, otherwise)
        remember_erasures(connection, erasures, now_us)
        connection.executemany(
            "update users set erased_rev = ? where user_id = ?", [(rev, user) for user, rev in erasures.items()]
        )
        if whole:
            # Else the feed has to bring what was applied there, and is not here any more.
            _move_cursors(connection, [user for batch in batches for user in batch.users if user.as_sent], now_us)

    async def bury(self, operation: Operation, *, sqlstate: str, reason: str) -> list[Operation]:
        """Move an operation to the dead letters, and with it what is queued behind it and depends on it.

        Returns what was moved, the operation itself first.
        """
        return await self._database.write(
            partial(self._bury, operation, sqlstate, reason), after=lambda _: self.forget_newest()
        )

    def _bury(self, dead: Operation, sqlstate: str, reason: str, connection: sqlite3.Connection) -> list[Operation]:
        now_us, queue = self._ledger.now_us(), self._ledger.queue(connection)
        buried = [dead, *_dependents(connection, dead)]
        for one in buried:
            why = reason if one is dead else f"it depends on {dead.op_id}: {reason}"
            connection.execute(
                "insert or replace into dead_letters (op_id, seq, user_id, kind, entity_id, base, delta, stamp,"
                " payload, accepted_at, checksum, died_at, sqlstate, reason) select op_id, seq, user_id, kind,"
                " entity_id, base, delta, stamp, payload, accepted_at, checksum, ?, ?, ? from outbox where seq = ?",
                (now_us, sqlstate, why, one.seq),
            )
            keep_verdicts(connection, [one.seq], [(one.seq, None, Verdict.DEAD)], now_us)
            if connection.execute("delete from outbox where seq = ?", (one.seq,)).rowcount > 0:  # 0: erased meanwhile
                queue.entries -= 1
                queue.payload_bytes -= len(one.payload)
                queue.dead_letters += 1
        return buried

    def verdict(self, accepted: Accepted) -> tuple[Verdict, int | None] | None:
        """What became of an operation, or None while it is queued.

        A receipt past its retention reads as applied: whatever else would still be in the dead letters.
        """
        seq = newest_number(self._database.point, self._number_of(accepted))
        applied = self.settling.decision(seq)
        if applied is not None:
            return applied.verdict, applied.rev
        row = self._database.point.one("select 1 from outbox where seq = ? and op_id = ?", (seq, accepted.op_id))
        if row is not None:
            return None
        kept = kept_verdict(self._database.point, seq)
        if kept is not None:
            return kept
        buried = self._database.point.one("select 1 from dead_letters where op_id = ?", (accepted.op_id,))
        return (Verdict.APPLIED if buried is None else Verdict.DEAD), None

    def state(self) -> QueueState:
        """Counts, at once."""
        counts = self.counts()
        row = self._database.point.one("select accepted_at from outbox order by seq limit 1")
        return counts if row is None or not counts.entries else replace(counts, oldest_at=row[0])

    def counts(self) -> QueueState:
        """The same without reading the file: not how old the queue is."""
        queue = self._ledger.committed
        # An erasure may have taken away what was on its way and is decided now.
        entries = max(0, queue.entries - len(self.settling))
        return QueueState(
            entries=entries, payload_bytes=queue.payload_bytes, oldest_at=None, dead_letters=queue.dead_letters
        )

    def last_accepted_of(self, user_id: str) -> int:
        """The number of the user's last operation; see `LastOperations.of`."""
        return self.last.of(user_id)

    def queued_of(self, user_id: str) -> int:
        """How many of a user's operations are queued."""
        row = self._database.point.one("select count(*) from outbox where user_id = ?", (user_id,))
        queued = 0 if row is None else cast("int", row[0])
        return max(0, queued - self.settling.of_user(user_id))


def _done() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


def _seq(applied: Applied) -> int:
    return applied.operation.seq


def _move_cursors(connection: sqlite3.Connection, users: list[AppliedUser], now_us: int) -> None:
    """Move the cursors of copies that already are what stands in Postgres, where nobody else wrote in between.

    Then no echo need be fetched. What follows without a gap counts as one step.
    """
    moves: list[tuple[str, int, int, str]] = []
    last: dict[str, int] = {}
    for user_id, epoch, before_rev, head_rev, _ in users:
        place = last.get(user_id)
        if place is not None and moves[place][1] == before_rev and moves[place][3] == epoch:
            moves[place] = (user_id, head_rev, moves[place][2], epoch)
        else:
            last[user_id] = len(moves)
            moves.append((user_id, head_rev, before_rev, epoch))
    move_cursors(connection, [(*move, now_us) for move in moves])


def _dependents(connection: sqlite3.Connection, dead: Operation) -> list[Operation]:
    """What is queued behind an operation and makes no sense without it: on the same entity, edges of a new node."""
    makes_node = dead.kind is Kind.NODE and dead.base == 0
    rows = connection.execute(
        "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at from outbox"
        " where user_id = ?1 and seq > ?2 and (entity_id = ?3 or (?4 and kind = ?5 and instr(payload, ?3)))"
        " order by seq",
        (dead.user_id, dead.seq, dead.entity_id, makes_node, Kind.RELATIONSHIP),
    ).fetchall()
    return [
        one
        for one in map(operation, cast("list[SqlRow]", rows))
        if one.entity_id == dead.entity_id or _relates(one, dead.entity_id)
    ]


def _relates(relationship: Operation, node_id: str) -> bool:
    row = carried_relationship(relationship.payload).row
    return node_id in (row.source_id, row.target_id)


def _runs(seqs: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as runs without a gap: a run is deleted by one statement."""
    runs: list[tuple[int, int]] = []
    for seq in seqs:
        if runs and runs[-1][1] == seq - 1:
            runs[-1] = (runs[-1][0], seq)
        else:
            runs.append((seq, seq))
    return runs
