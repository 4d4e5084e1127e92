"""Rows of one transaction that nobody has to read yet, written together by few statements.

Each step of a statement lets go of the interpreter's lock and has to win it back from the event loop's thread. A
group of 64 writes in 128 statements waits for it 128 times; in eight statements it waits eight times.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

from hybrid_memory.changes import NodeRow, Operation
from hybrid_memory.sqlite.rows import queue_entry

Params: TypeAlias = "tuple[Any, ...]"

_NODE_COLUMNS: Final = (
    "row_id, user_no, node_id, namespace, key, context_type, content, row_hash, text_content, summary, tags,"
    " importance, entity_system, entity_id, entity_type, session_id, source_agent, created_at, updated_at,"
    " expires_at, deleted_at, stamp, rev"
)
_OPERATION_COLUMNS: Final = "seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at, checksum"

# How many rows a statement takes: few different statements, so that all stay prepared.
_SIZES: Final = (32, 8, 1)
# A load shares the interpreter's lock with the decoding of what comes next, which holds it for milliseconds: with a
# step as long as that, each works while the other does.
_LOAD_SIZES: Final = (500, *_SIZES)


def _sized(statement: str, width: int, sizes: Sequence[int] = _SIZES) -> dict[int, str]:
    # Put together from the constants of this module alone.
    row = f"({', '.join('?' * width)})"
    return {size: statement.replace("VALUES", f"values {', '.join([row] * size)}") for size in sizes}


def _inserts(table: str, columns: str, sizes: Sequence[int] = _SIZES) -> dict[int, str]:
    statement = "insert into TABLE (COLUMNS) VALUES".replace("TABLE", table).replace("COLUMNS", columns)
    return _sized(statement, columns.count(",") + 1, sizes)


_RELATIONSHIP_COLUMNS: Final = (
    "row_id, user_no, relationship_id, source_id, target_id, relationship_type, weight, properties, row_hash,"
    " valid_from, valid_to, created_at, updated_at, deleted_at, stamp, rev"
)
_NODES: Final = _inserts("nodes", _NODE_COLUMNS)
_LOADED_NODES: Final = _inserts("nodes", _NODE_COLUMNS, _LOAD_SIZES)
_LOADED_RELATIONSHIPS: Final = _inserts("relationships", _RELATIONSHIP_COLUMNS, _LOAD_SIZES)
_OPERATIONS: Final = _inserts("outbox", _OPERATION_COLUMNS)


class Staging:
    """New nodes and queue entries of the transaction under way, on the writer's thread."""

    def __init__(self) -> None:
        self._nodes: list[Params] = []
        self._operations: list[Params] = []

    def add_node(self, user_no: int, row_id: int, row: NodeRow) -> None:
        """A node whose id no row has."""
        self._nodes.append((row_id, user_no, *row))

    def add_operation(self, queued: Operation) -> None:
        """A queue entry."""
        self._operations.append(queue_entry(queued))

    def flush(self, connection: sqlite3.Connection) -> None:
        """Write what was added; to be done before anything is read, and before the commit."""
        if self._operations:
            nodes, self._nodes = self._nodes, []
            operations, self._operations = self._operations, []
            _execute(connection, _NODES, nodes)
            _execute(connection, _OPERATIONS, operations)

    def forget(self) -> None:
        """The transaction failed."""
        self._nodes.clear()
        self._operations.clear()


# A list of values and not a JSON array: taking that apart takes as long as the update.
_NUMBERINGS: Final = _sized(
    "update nodes set rev = j.column3 from (VALUES) as j"
    " where nodes.user_no = j.column1 and nodes.node_id = j.column2 and nodes.rev < j.column3"
    " and (nodes.stamp = j.column4 or nodes.rev = 0)",
    4,
)
_MOVES: Final = _sized(
    "update users set rev = j.column2, epoch = j.column4, confirmed_at = j.column5 from (VALUES) as j"
    " where users.user_id = j.column1 and users.complete = 1 and users.rev = j.column3"
    " and (users.epoch is null or users.epoch = j.column4)",
    5,
)


def number_nodes(connection: sqlite3.Connection, numbered: Sequence[Params]) -> int:
    """Give nodes the revisions that Postgres gave them: generation, node id, revision, and the operation's stamp.

    Only where a row is older, and the operation's or never was in Postgres. Returns how many rows that were.
    """
    return _execute(connection, _NUMBERINGS, numbered)


def move_cursors(connection: sqlite3.Connection, moves: Sequence[Params]) -> None:
    """Move the cursors of complete copies that stand at a revision: user, to, from, epoch, time."""
    _execute(connection, _MOVES, moves)


def insert_nodes(connection: sqlite3.Connection, rows: Sequence[Params]) -> None:
    """Insert new nodes: row id, generation, then the members of `NodeRow` in order."""
    _execute(connection, _LOADED_NODES, rows)


def insert_relationships(connection: sqlite3.Connection, rows: Sequence[Params]) -> None:
    """Insert new relationships: row id, generation, then the members of `RelationshipRow` in order."""
    _execute(connection, _LOADED_RELATIONSHIPS, rows)


def _execute(connection: sqlite3.Connection, statements: dict[int, str], rows: Sequence[Params]) -> int:
    start = changed = 0
    for size, statement in statements.items():
        while len(rows) - start >= size:
            changed += connection.execute(statement, list(chain.from_iterable(rows[start : start + size]))).rowcount
            start += size
    return changed
