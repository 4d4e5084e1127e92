"""The local copy as Postgres fills it: loads out of sight, shown in one step; differences with their cursor."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Final

from hybrid_memory.changes import Kind, NodeRow, Operation, RelationshipRow
from hybrid_memory.messages import FlatRow, Head
from hybrid_memory.sqlite.accepting import Acceptance
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.overlay import lay_over, queued_operations, relate_again, show_node, show_relationship
from hybrid_memory.sqlite.past import has_undated, heard_of_erasure, is_undated, remember_erasures
from hybrid_memory.sqlite.quarantine import remove_finished
from hybrid_memory.sqlite.restoring import Restoration
from hybrid_memory.sqlite.rows import find_node, find_relationship, node_row, relationship_row
from hybrid_memory.sqlite.staging import insert_nodes, insert_relationships
from hybrid_memory.sqlite.verdicts import keep_rejections

# Rows removed in one transaction when a generation is swept: short enough that no write waits noticeably.
SWEEP_STEP = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What became visible: the user's generation (None: gone) and the node rows that changed in it.

    `loaded` says that all of it is new, `restored` how many operations were queued again for it; `rejected` are
    operations that an erasure took out of the queue, and `erasure_seq` is its own number where it was queued itself,
    else 0.
    """

    user_id: str
    user_no: int | None
    row_ids: tuple[int, ...]
    loaded: bool = False
    restored: int = 0
    rejected: tuple[Operation, ...] = ()
    erasure_seq: int = 0


# The last column but one, of nodes and of relationships.
_STAMP: Final[Callable[[FlatRow], int]] = itemgetter(-2)


class SqliteReplica:
    """`Replica` in the hot-tier file."""

    def __init__(
        self, database: Database, ledger: Ledger, acceptance: Acceptance, on_shown: Callable[[Shown], None]
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._acceptance = acceptance
        self._on_shown = on_shown
        self._restoration = Restoration(ledger, acceptance.enqueue)
        # Generations that are being loaded, and from which snapshot; what nobody sees and is not here is swept.
        self._loading: dict[int, Head] = {}

    async def begin_load(self, head: Head) -> int | None:
        """Start an invisible generation for a snapshot of a user, in place of one begun before.

        None when the user was erased after the snapshot: the erasure is queued here, or has just been carried. None
        also while operations are queued of which Postgres alone can say whether they come before the last erasure.
        """
        return await self._database.write(partial(self._begin, head))

    def _begin(self, head: Head, connection: sqlite3.Connection) -> int | None:
        user_id = head.user_id
        later = "select 1 from erasures where user_id = ? and erased_rev > ?"
        if connection.execute(later, (user_id, head.erased_rev)).fetchone() is not None:
            return None
        if any(queued.kind is Kind.ERASE for queued in queued_operations(connection, user_id, user_id)):
            return None
        if head.erased_rev > 0 and has_undated(connection, user_id):
            return None
        self._stop_loading(user_id)
        generation = self._ledger.new_user_no(connection)
        connection.execute("insert into generations (user_no) values (?)", (generation,))
        self._loading[generation] = head
        return generation

    def _stop_loading(self, user_id: str) -> None:
        for generation, head in list(self._loading.items()):
            if head.user_id == user_id:
                del self._loading[generation]

    def add_nodes(self, generation: int, rows: Sequence[FlatRow]) -> asyncio.Future[None]:
        """Add nodes to an invisible generation."""
        return self._database.write(partial(self._add_nodes, generation, rows))

    def _add_nodes(self, generation: int, rows: Sequence[FlatRow], connection: sqlite3.Connection) -> None:
        first = self._ledger.next_row_id(connection, len(rows))
        insert_nodes(connection, [(row_id, generation, *row) for row_id, row in enumerate(rows, first)])
        self._take_in_stamps(rows)

    def add_relationships(self, generation: int, rows: Sequence[FlatRow]) -> asyncio.Future[None]:
        """Add relationships to an invisible generation."""
        return self._database.write(partial(self._add_relationships, generation, rows))

    def _add_relationships(self, generation: int, rows: Sequence[FlatRow], connection: sqlite3.Connection) -> None:
        first = self._ledger.next_row_id(connection, len(rows))
        insert_relationships(connection, [(row_id, generation, *row) for row_id, row in enumerate(rows, first)])
        self._take_in_stamps(rows)

    def _take_in_stamps(self, rows: Sequence[FlatRow]) -> None:
        # What is made after it was seen is later, whatever the clock says.
        if rows:
            self._ledger.observe(max(map(_STAMP, rows)))

    async def show_load(self, generation: int, *, complete: bool) -> int | None:
        """Make the generation visible with its cursor in one step, our queued changes laid over it.

        Where the copy it replaces was in doubt, what it held and the generation lacks is queued again; returns how many
        operations that took. None when it is not to be shown: the user was erased meanwhile, or a later load was begun,
        or what was queued again must first be held against an erasure.
        """
        shown = await self._database.write(partial(self._show, generation, complete=complete), after=self._tell)
        self._loading.pop(generation, None)
        return shown.restored if shown is not None and shown.loaded else None

    def _tell(self, shown: Shown | None) -> None:
        if shown is not None:
            self._on_shown(shown)

    def _show(self, generation: int, connection: sqlite3.Connection, *, complete: bool) -> Shown | None:
        head = self._loading.get(generation)
        if head is None:
            return None
        former = self._ledger.known_user_no(connection, head.user_id)
        restored = 0
        if former is not None:
            # Of a past that was rewritten no revision says anything.
            merged = self._ledger.take_merged(former)
            if self._is_in_doubt(connection, head):
                restored = self._restoration.restore(
                    connection, head.user_id, former=former, loaded=generation, done_seq=head.done_seq
                )
                if restored and is_undated(connection, head):
                    # Whether it comes before the erasure Postgres alone can say: it goes there first.
                    self._restoration.wait(connection, head.user_id, former)
                    return Shown(user_id=head.user_id, user_no=former, row_ids=(), restored=restored)
            else:
                self._carry_over(connection, former, generation, head, merged)
            connection.execute("insert into generations (user_no) values (?)", (former,))
        for queued in queued_operations(connection, head.user_id, after_seq=head.done_seq):
            lay_over(connection, self._ledger, generation, queued)
        now_us = self._ledger.now_us()
        connection.execute(
            "insert into users (user_id, user_no, epoch, rev, erased_rev, timeline, complete, loaded_at, confirmed_at,"
            " last_used_at) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?8)"
            " on conflict (user_id) do update set user_no = ?2, epoch = ?3, rev = ?4, erased_rev = ?5, timeline = ?6,"
            " complete = ?7, loaded_at = ?8, confirmed_at = ?8, first_unsent = null",
            (
                head.user_id,
                generation,
                head.epoch or None,
                head.rev,
                head.erased_rev,
                head.timeline,
                int(complete),
                now_us,
            ),
        )
        connection.execute("delete from generations where user_no = ?", (generation,))
        self._ledger.show(connection, head.user_id, generation)
        return Shown(user_id=head.user_id, user_no=generation, row_ids=(), loaded=True, restored=restored)

    @staticmethod
    def _is_in_doubt(connection: sqlite3.Connection, head: Head) -> bool:
        # Also what the heads alone tell, as behind a pooler that changed the server beneath us.
        found = connection.execute(
            "select 1 from users where user_id = ?1 and (timeline not in (0, ?2)"
            " or complete = 1 and epoch is not null and (epoch <> ?3 or rev > ?4))",
            (head.user_id, head.timeline, head.epoch, head.rev),
        ).fetchone()
        return found is not None

    def _carry_over(
        self, connection: sqlite3.Connection, former: int, generation: int, head: Head, merged: Mapping[str, int]
    ) -> None:
        # Our own writes that Postgres took after the snapshot: without them a caller's acknowledged write would be
        # gone until the feed brings it again. Nothing of another epoch is carried.
        same = connection.execute(
            "select erased_rev from users where user_id = ? and (epoch is null or epoch = ?) and erased_rev in (-1, ?)",
            (head.user_id, head.epoch, head.erased_rev),
        ).fetchone()
        if same is None:
            return
        # And tombstones that the snapshot left out: what was deleted is to be deleted again should it be lost. Not
        # where an erasure not heard of may have taken what they are of: another may bear its name by now.
        knows_erasures = max(0, same[0]) == head.erased_rev
        for (node_id,) in connection.execute(
            "select f.node_id from nodes f left join nodes n on n.user_no = ?3 and n.node_id = f.node_id"
            " where f.user_no = ?1"
            " and (f.rev > ?2 or ?4 and f.rev > 0 and f.deleted_at is not null and n.row_id is null)",
            (former, head.rev, generation, knows_erasures),
        ).fetchall():
            kept = find_node(connection, former, node_id)
            if kept is not None:
                show_node(connection, self._ledger, generation, kept[1])
        for node_id, rev in merged.items():
            kept = find_node(connection, former, node_id)
            if rev > head.rev and kept is not None:
                show_node(connection, self._ledger, generation, kept[1])
                self._ledger.merged(generation, node_id, rev)
        rows = connection.execute(
            "select relationship_id, source_id, target_id, relationship_type, weight, properties, row_hash,"
            " valid_from, valid_to, created_at, updated_at, deleted_at, stamp, rev from relationships f"
            " where user_no = ?1 and (rev > ?2 or ?4 and rev > 0 and deleted_at is not null and not exists (select 1"
            " from relationships n where n.user_no = ?3 and n.source_id = f.source_id"
            " and n.relationship_type = f.relationship_type and n.target_id = f.target_id))",
            (former, head.rev, generation, knows_erasures),
        ).fetchall()
        for row in rows:
            show_relationship(connection, self._ledger, generation, relationship_row(row))

    async def absorb(self, head: Head, nodes: Sequence[FlatRow], relationships: Sequence[FlatRow]) -> int:
        """Take in newer rows and move the cursor to the head, in one step. Returns how many rows changed."""
        shown = await self._database.write(partial(self._absorb, head, nodes, relationships), after=self._on_shown)
        return len(shown.row_ids)

    def _absorb(
        self, head: Head, nodes: Sequence[FlatRow], relationships: Sequence[FlatRow], connection: sqlite3.Connection
    ) -> Shown:
        user_no = self._ledger.known_user_no(connection, head.user_id)
        followed = connection.execute(
            "select 1 from users where user_id = ? and complete = 1 and erased_rev = ?"
            " and (epoch is null or epoch = ?) and timeline in (0, ?)",
            (head.user_id, head.erased_rev, head.epoch, head.timeline),
        ).fetchone()
        if user_no is None or followed is None:
            # Erased or rewritten since it was asked for: the next look at the heads sees that.
            return Shown(user_id=head.user_id, user_no=user_no, row_ids=())
        changed: list[int] = []
        came_back: set[str] = set()
        for flat in nodes:
            row_id = self._absorb_node(connection, head, user_no, node_row(tuple(flat)), came_back)
            if row_id is not None:
                changed.append(row_id)
        for flat in relationships:
            self._absorb_relationship(connection, head, user_no, relationship_row(tuple(flat)))
        if came_back:
            queued = queued_operations(connection, head.user_id, after_seq=head.done_seq)
            relate_again(connection, self._ledger, user_no, queued, came_back)
        connection.execute(
            "update users set epoch = ?, rev = max(rev, ?), erased_rev = ?, timeline = ?, confirmed_at = ?"
            " where user_id = ?",
            (head.epoch, head.rev, head.erased_rev, head.timeline, self._ledger.now_us(), head.user_id),
        )
        return Shown(user_id=head.user_id, user_no=user_no, row_ids=tuple(changed))

    def _absorb_node(
        self, connection: sqlite3.Connection, head: Head, user_no: int, row: NodeRow, came_back: set[str]
    ) -> int | None:
        found = find_node(connection, user_no, row.node_id)
        if found is not None and found[1].rev >= row.rev:
            return None
        if self._ledger.has_merged_behind(user_no, row.node_id, row.rev):
            return None  # a later one is to come, and until then what was merged into it is shown
        if row.deleted_at is None and (found is None or found[1].deleted_at is not None):
            came_back.add(row.node_id)
        row_id = show_node(connection, self._ledger, user_no, row)
        for queued in queued_operations(connection, head.user_id, row.node_id, after_seq=head.done_seq):
            lay_over(connection, self._ledger, user_no, queued)
        return row_id

    def _absorb_relationship(
        self, connection: sqlite3.Connection, head: Head, user_no: int, row: RelationshipRow
    ) -> None:
        found = find_relationship(connection, user_no, row.source_id, row.relationship_type, row.target_id)
        if found is not None and found[1].rev >= row.rev:
            return
        show_relationship(connection, self._ledger, user_no, row)
        for queued in queued_operations(connection, head.user_id, row.relationship_id, after_seq=head.done_seq):
            lay_over(connection, self._ledger, user_no, queued)

    async def evict(self, user_id: str) -> bool:
        """Drop a user's copy; False (and nothing done) while operations of it are queued."""
        shown = await self._database.write(partial(self._evict, user_id), after=self._tell)
        return shown is not None

    def _evict(self, user_id: str, connection: sqlite3.Connection) -> Shown | None:
        user_no = self._ledger.known_user_no(connection, user_id)
        if user_no is None or queued_operations(connection, user_id):
            return None
        # What is on its way may be older than what is dropped here.
        self._stop_loading(user_id)
        connection.execute("insert into generations (user_no) values (?)", (user_no,))
        connection.execute("delete from users where user_id = ?", (user_id,))
        self._ledger.show(connection, user_id, None)
        return Shown(user_id=user_id, user_no=None, row_ids=())

    async def erase(self, user_id: str, *, erased_rev: int | None) -> Mapping[str, int]:
        """Remove every row of the user, and the bytes of them from the file and its log.

        Damaged files that were set aside go as a whole.
        """
        removed, _ = await self._database.write(
            partial(self._erase, user_id, erased_rev), after=lambda outcome: self._on_shown(outcome[1])
        )
        # Until the log is cut, what was deleted can still be read in it. A reader in the way is gone in a moment.
        await self._database.cut_log()
        # He may be anywhere in a damaged file that was set aside.
        folders = await asyncio.to_thread(remove_finished, self._database.path.parent)
        return {**removed, "quarantine": folders} if folders else removed

    def _erase(
        self, user_id: str, erased_rev: int | None, connection: sqlite3.Connection
    ) -> tuple[Mapping[str, int], Shown]:
        ledger, queue = self._ledger, self._ledger.queue(connection)
        user_no = ledger.known_user_no(connection, user_id)
        removed: dict[str, int] = {}
        queued = queued_operations(connection, user_id)
        heard_of = heard_of_erasure(connection, user_id, queued)
        keep_rejections(connection, queued, ledger.now_us())
        queue.entries -= len(queued)
        queue.payload_bytes -= sum(len(entry.payload) for entry in queued)
        for table, statement in (
            ("outbox", "delete from outbox where user_id = ?"),
            ("dead_letters", "delete from dead_letters where user_id = ?"),
            ("users", "delete from users where user_id = ?"),
        ):
            removed[table] = connection.execute(statement, (user_id,)).rowcount
        queue.dead_letters -= removed["dead_letters"]
        if user_no is not None:
            removed |= _remove_rows(connection, user_no)
        self._stop_loading(user_id)
        # Among what nobody sees may be former copies of this user: they go at once, not at the next sweep.
        for (hidden,) in connection.execute("select user_no from generations").fetchall():
            if hidden not in self._loading:
                _remove_rows(connection, hidden)
                connection.execute("delete from generations where user_no = ?", (hidden,))
        ledger.show(connection, user_id, None)
        if erased_rev is not None:
            remember_erasures(connection, {user_id: erased_rev}, ledger.now_us())
            seq = 0
        else:
            seq = self._acceptance.store_erasure(user_id, connection, heard_of=heard_of).seq
        return removed, Shown(user_id=user_id, user_no=None, row_ids=(), rejected=tuple(queued), erasure_seq=seq)

    async def sweep_generations(self) -> int:
        """Remove some rows of generations that nobody sees; 0 when none are left."""
        return await self._database.write(self._sweep)

    def _sweep(self, connection: sqlite3.Connection) -> int:
        hidden = [row[0] for row in connection.execute("select user_no from generations").fetchall()]
        for user_no in hidden:
            if user_no in self._loading:
                continue
            removed = connection.execute(
                "delete from nodes where row_id in (select row_id from nodes where user_no = ? limit ?)",
                (user_no, SWEEP_STEP),
            ).rowcount
            removed += connection.execute(
                "delete from relationships where row_id in"
                " (select row_id from relationships where user_no = ? limit ?)",
                (user_no, SWEEP_STEP),
            ).rowcount
            removed += connection.execute("delete from vectors where user_no = ?", (user_no,)).rowcount
            if removed:
                return removed
            connection.execute("delete from generations where user_no = ?", (user_no,))
        return 0


def _remove_rows(connection: sqlite3.Connection, user_no: int) -> dict[str, int]:
    return {
        "nodes": connection.execute("delete from nodes where user_no = ?", (user_no,)).rowcount,
        "relationships": connection.execute("delete from relationships where user_no = ?", (user_no,)).rowcount,
        "vectors": connection.execute("delete from vectors where user_no = ?", (user_no,)).rowcount,
    }
