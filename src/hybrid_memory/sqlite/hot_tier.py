"""Reads of the local copy. Point reads run inline (7 µs; a thread hop costs 30 to 117), scans on the reader thread."""

from __future__ import annotations

import base64
import binascii
import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import orjson

from hybrid_memory.clock import Clock
from hybrid_memory.errors import InvalidInput
from hybrid_memory.filters import Predicate, to_sqlite
from hybrid_memory.graph import Digest, Direction, Hit, MemoryNode, Neighbour, NodeId, Page, Relationship
from hybrid_memory.messages import Cursor, Listing
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.rows import SqlRow, memory_node, relationship
from hybrid_memory.sqlite.search_index import SearchIndexes
from hybrid_memory.sqlite.search_text import match_expression
from hybrid_memory.sqlite.settling import Revs, Settling

# How many candidates of the text index are looked at first for each result wanted; filters may use up the rest.
CANDIDATES_PER_HIT = 8
MAX_CANDIDATES = 100_000
# bm25 sums are open-ended; s / (s + 5) maps them to 0..1 in order, with a middling match near one half.
HALF_SCORE = 5.0

_ORDERS = ("created_at", "updated_at", "importance")

_NODE = (
    "n.namespace, n.context_type, n.content, n.tags, n.importance, n.rev, n.created_at, n.updated_at, n.expires_at,"
    " n.labels"
)
_EXPIRES_AT = 8
_CURSORS = "select user_id, epoch, rev, erased_rev, timeline, complete, confirmed_at from users"
_NEWEST = (
    "select max(rev) from (select user_no, rev from nodes union all select user_no, rev from relationships)"
    " where user_no = ?"
)
_WIDTH = 10
# Only whole column lists of this module are put together below; every value is bound.
_GET = f"select {_NODE} from nodes n where n.user_no = ? and n.node_id = ? and n.deleted_at is null"  # noqa: S608 - constants only

_EDGE = (
    "r.relationship_id, r.source_id, r.target_id, r.relationship_type, r.weight, r.properties, r.row_hash,"
    " r.valid_from, r.valid_to, r.created_at, r.updated_at, r.deleted_at, r.stamp, r.rev"
)
# `cross join` keeps the order: left to itself the planner starts with all relationships of the user, whatever is asked.
_OUTWARD = (
    f"select {_NODE}, n.node_id, {_EDGE} from json_each(?1) f"  # noqa: S608 - constants only
    " cross join relationships r on r.user_no = ?2 and r.source_id = f.value and r.deleted_at is null"
    " cross join nodes n on n.user_no = ?2 and n.node_id = r.target_id and n.deleted_at is null"
    " and (n.expires_at is null or n.expires_at > ?3)"
)
_INWARD = (
    f"select {_NODE}, n.node_id, {_EDGE} from json_each(?1) f"  # noqa: S608 - constants only
    " cross join relationships r on r.user_no = ?2 and r.target_id = f.value and r.deleted_at is null"
    " cross join nodes n on n.user_no = ?2 and n.node_id = r.source_id and n.deleted_at is null"
    " and (n.expires_at is null or n.expires_at > ?3)"
)


class SqliteHotTier:
    """`HotTier` over the hot-tier file."""

    def __init__(
        self,
        database: Database,
        indexes: SearchIndexes,
        clock: Clock,
        settling: Settling,
        queued_of: Callable[[str], int],
    ) -> None:
        self._database = database
        self._point = database.point
        self._indexes = indexes
        self._clock = clock
        self._settling = settling
        self._queued_of = queued_of
        self._user_nos: dict[str, int] = {}
        self._erased_revs: dict[str, int] = {}
        # The newest revision among a user's rows when that was first asked of the generation that is visible.
        self._newest_found: dict[str, int] = {}
        # The cursors in the file, read together at the first question; a change takes its user's away.
        self._cursors: dict[str, Cursor | None] | None = None

    def moved(self, user_id: str, user_no: int | None) -> None:
        """Note that another generation of a user is visible now; None: the user is gone."""
        former = self._user_nos.get(user_id)
        if former == user_no:
            return
        self._user_nos.pop(user_id, None)
        self.erasure_settled(user_id)
        self._newest_found.pop(user_id, None)
        if user_no is not None:
            self._user_nos[user_id] = user_no
        if former is not None:
            self._indexes.drop(former)

    def erasure_settled(self, user_id: str) -> None:
        """Note that the last erasure known of a user is another now."""
        self._erased_revs.pop(user_id, None)
        self.cursor_changed(user_id)

    def get(self, user_id: str, node_id: NodeId) -> MemoryNode | None:
        """The node, at once."""
        user_no = self._user_nos.get(user_id)
        if user_no is None and (user_no := self._place_of(user_id)) is None:
            return None
        row = self._point.one(_GET, (user_no, node_id))
        if row is None:
            return None
        expires_at = row[_EXPIRES_AT]
        if expires_at is not None and expires_at <= self._clock.now_us():
            return None
        node = memory_node(user_id, node_id, row)
        if not self._settling:
            return node
        rev = self._settling.rev(user_id, node_id, node.rev)
        return node if rev == node.rev else replace(node, rev=rev)

    def _place_of(self, user_id: str) -> int | None:
        user_no = self._user_nos.get(user_id)
        if user_no is not None:
            return user_no
        row = self._point.one("select user_no from users where user_id = ?", (user_id,))
        if row is None:
            return None
        user_no = self._user_nos[user_id] = cast("int", row[0])
        return user_no

    def queued_of(self, user_id: str) -> int:
        """How many of the user's operations wait for Postgres."""
        return self._queued_of(user_id)

    def cursor(self, user_id: str) -> Cursor | None:
        """How far the user's copy has come, or None if nothing of the user is held."""
        if self._cursors is None:
            self._cursors = {cursor.user_id: cursor for cursor in self._stored_cursors()}
        try:
            cursor = self._cursors[user_id]
        except KeyError:
            row = self._point.one(_CURSORS + " where user_id = ?", (user_id,))
            cursor = self._cursors[user_id] = None if row is None else _cursor(row)
        return None if cursor is None else self._settling.cursor(cursor)

    def cursor_seen(self, user_id: str) -> Cursor | None:
        """As `cursor`, but of all that reads see: also commits unheard of, and own rows of earlier openings."""
        row = self._point.one(_CURSORS + " where user_id = ?", (user_id,))
        if row is None:
            return None
        if user_id not in self._newest_found:
            # Once: what comes later comes with the cursor, or is known to be our own.
            (newest,) = self._point.one(_NEWEST, (self._place_of(user_id),)) or (None,)
            self._newest_found[user_id] = newest or 0
        cursor = self._settling.cursor(_cursor(row))
        return replace(cursor, rev=max(cursor.rev, self._newest_found[user_id]))

    def cursor_changed(self, user_id: str) -> None:
        """Note that a commit changed the user's cursor in the file."""
        if self._cursors is not None:
            self._cursors.pop(user_id, None)

    def cursors_changed(self) -> None:
        """Note that a commit may have changed any user's cursor in the file."""
        self._cursors = None

    def cursors(self) -> list[Cursor]:
        """The cursors of all users held."""
        return [self._settling.cursor(cursor) for cursor in self._stored_cursors()]

    def _stored_cursors(self) -> list[Cursor]:
        return [_cursor(row) for row in self._point.all(_CURSORS)]

    def erased_rev(self, user_id: str) -> int:
        """The last erasure known of a user, 0 for none, -1 while Postgres has not been asked.

        Kept in memory, for each operation that is sent says it.
        """
        known = self._erased_revs.get(user_id)
        if known is None:
            row = self._point.one("select erased_rev from users where user_id = ?", (user_id,))
            if row is None:
                return -1
            known = self._erased_revs[user_id] = cast("int", row[0])
        return known

    async def page(self, user_id: str, listing: Listing) -> Page[MemoryNode]:
        """One page of the user's nodes, from where the cursor left off."""
        user_no = self._place_of(user_id)
        if user_no is None:
            return Page(items=(), next_cursor=None)
        descending = listing.order.startswith("-")
        column = listing.order.removeprefix("-")
        if column not in _ORDERS:
            raise InvalidInput("order", f"must be one of {', '.join(_ORDERS)}, with - in front for descending")
        after = _read_cursor(listing.cursor, listing.order)
        where, binds = to_sqlite(listing.predicate)
        direction, beyond = ("desc", "<") if descending else ("asc", ">")
        # The column comes from the closed list above, the condition from the filter language: all input is bound.
        page_condition = f"and (n.{column}, n.row_id) {beyond} (?, ?)" if after else ""
        statement = (
            f"select {_NODE}, n.node_id, n.{column}, n.row_id from nodes n where n.user_no = ? and n.deleted_at is null"  # noqa: S608 - constants only
            f" and (n.expires_at is null or n.expires_at > ?) and ({where}) {page_condition}"
            f" order by n.{column} {direction}, n.row_id {direction} limit ?"
        )
        parameters = [user_no, self._clock.now_us(), *binds, *(after or ()), listing.limit + 1]
        revs = self._settling.revs()
        rows = await self._database.read(lambda connection: connection.execute(statement, parameters).fetchall())
        more = len(rows) > listing.limit
        rows = rows[: listing.limit]
        items = tuple(_node(user_id, row, revs) for row in rows)
        next_cursor = _write_cursor(listing.order, rows[-1][-2], rows[-1][-1]) if more else None
        return Page(items=items, next_cursor=next_cursor)

    async def search(self, user_id: str, text: str, predicate: Predicate, limit: int) -> list[Hit]:
        """The nodes whose words fit `text` best, best first; no words, no hits."""
        match = match_expression(text)
        user_no = self._place_of(user_id)
        if match is None or user_no is None:
            return []
        revs = self._settling.revs()
        return await self._database.read(partial(self._search, user_id, user_no, match, predicate, limit, revs))

    def _search(
        self,
        user_id: str,
        user_no: int,
        match: str,
        predicate: Predicate,
        limit: int,
        revs: Revs,
        connection: sqlite3.Connection,
    ) -> list[Hit]:
        wanted = limit * CANDIDATES_PER_HIT
        where, binds = to_sqlite(predicate)
        statement = (
            f"select {_NODE}, n.node_id, n.row_id from json_each(?) c join nodes n on n.row_id = c.value"  # noqa: S608 - constants only
            f" where n.deleted_at is null and (n.expires_at is null or n.expires_at > ?) and ({where})"
        )
        while True:
            candidates = self._indexes.search(user_no, connection, match, wanted)
            ids = orjson.dumps([row_id for row_id, _ in candidates]).decode()
            rows = connection.execute(statement, [ids, self._clock.now_us(), *binds]).fetchall()
            if len(rows) >= limit or len(candidates) < wanted or wanted >= MAX_CANDIDATES:
                break
            wanted *= CANDIDATES_PER_HIT
        found = {cast("int", row[-1]): row for row in rows}
        best = [(found[row_id], score) for row_id, score in candidates if row_id in found][:limit]
        return [Hit(node=_node(user_id, row, revs), score=score / (score + HALF_SCORE)) for row, score in best]

    async def neighbours(
        self,
        user_id: str,
        node_id: NodeId,
        *,
        depth: int,
        types: frozenset[str] | None,
        direction: Direction,
        limit: int,
    ) -> list[Neighbour]:
        """The nodes within `depth` relationships, nearest first, then heaviest."""
        user_no = self._place_of(user_id)
        if user_no is None:
            return []
        statements = {"out": [_OUTWARD], "in": [_INWARD], "both": [_OUTWARD, _INWARD]}[direction]
        revs = self._settling.revs()
        walk = partial(self._walk, user_id, user_no, node_id, depth, types, statements, limit, revs)
        return await self._database.read(walk)

    def _walk(
        self,
        user_id: str,
        user_no: int,
        node_id: NodeId,
        depth: int,
        types: frozenset[str] | None,
        statements: list[str],
        limit: int,
        revs: Revs,
        connection: sqlite3.Connection,
    ) -> list[Neighbour]:
        reached: set[str] = {node_id}
        found: list[Neighbour] = []
        frontier: list[str] = [node_id]
        for step in range(1, depth + 1):
            rows = self._step(connection, statements, user_no, frontier)
            ring: dict[str, Neighbour] = {}
            for row in rows:
                node_at, edge = row[_WIDTH], _edge(user_id, row[_WIDTH + 1 :], revs)
                if node_at in reached or (types is not None and edge.relationship_type not in types):
                    continue
                heavier = node_at not in ring or ring[node_at].relationship.weight < edge.weight
                if heavier:
                    node = _node(user_id, row, revs)
                    ring[node_at] = Neighbour(node=node, relationship=edge, depth=step)
            found += sorted(ring.values(), key=lambda n: (-n.relationship.weight, n.node.node_id))
            reached |= ring.keys()
            frontier = list(ring)
            if not frontier or len(found) >= limit:
                break
        return found[:limit]

    def _step(
        self, connection: sqlite3.Connection, statements: list[str], user_no: int, frontier: list[str]
    ) -> list[SqlRow]:
        ids, now_us = orjson.dumps(frontier).decode(), self._clock.now_us()
        rows: list[SqlRow] = []
        for statement in statements:
            rows += connection.execute(statement, (ids, user_no, now_us)).fetchall()
        return rows

    async def digest(self, user_id: str) -> Digest:
        """XOR over live rows of the first 8 bytes (big-endian, signed) of sha256(id || rev || row_hash) of text."""
        user_no = self._place_of(user_id)
        if user_no is None:
            return Digest(value=0, nodes=0, relationships=0)
        # What Postgres has decided must be written down here first; it may still be waiting to ride on a commit.
        await self._database.write(_nothing)
        return await self._database.read(partial(self._digest, user_no))

    def _digest(self, user_no: int, connection: sqlite3.Connection) -> Digest:
        nodes, node_count = _fingerprint(
            connection.execute(
                "select node_id || rev || row_hash from nodes where user_no = ? and deleted_at is null"
                " and (expires_at is null or expires_at > ?)",
                (user_no, self._clock.now_us()),
            )
        )
        edges, edge_count = _fingerprint(
            connection.execute(
                "select relationship_id || rev || row_hash from relationships where user_no = ? and deleted_at is null",
                (user_no,),
            )
        )
        return Digest(value=nodes ^ edges, nodes=node_count, relationships=edge_count)


def _node(user_id: str, row: SqlRow, revs: Revs) -> MemoryNode:
    node = memory_node(user_id, row[_WIDTH], row[:_WIDTH])
    rev = revs.get((user_id, node.node_id), 0)
    return replace(node, rev=rev) if rev > node.rev else node


def _edge(user_id: str, row: SqlRow, revs: Revs) -> Relationship:
    edge = relationship(user_id, row)
    rev = revs.get((user_id, edge.relationship_id), 0)
    return replace(edge, rev=rev) if rev > edge.rev else edge


def _nothing(_connection: sqlite3.Connection) -> None:
    """A commit to ride on."""


def _fingerprint(rows: sqlite3.Cursor) -> tuple[int, int]:
    value = count = 0
    for (text,) in cast("list[tuple[str]]", rows.fetchall()):
        value ^= int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
        count += 1
    return value, count


def _cursor(row: SqlRow) -> Cursor:
    user_id, epoch, rev, erased_rev, timeline, complete, confirmed_at = row
    return Cursor(
        user_id=user_id,
        epoch=epoch,
        rev=rev,
        erased_rev=erased_rev,
        timeline=timeline,
        complete=bool(complete),
        confirmed_at=confirmed_at,
    )


def _write_cursor(order: str, value: object, row_id: int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([order, value, row_id])).decode().rstrip("=")


def _fits(*numbers: float) -> bool:
    return all(type(number) is not bool and abs(number) < 2**63 for number in numbers)


def _read_cursor(cursor: str | None, order: str) -> tuple[float, int] | None:
    if cursor is None:
        return None
    try:
        parts: object = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        raise InvalidInput("cursor", "is not a cursor of this listing") from None
    match parts:
        case [str(of_order), int(value) | float(value), int(row_id)] if of_order == order and _fits(value, row_id):
            return value, row_id
        case _:
            raise InvalidInput("cursor", "is not a cursor of this listing")
