"""What can still be read of a damaged hot-tier file: row by row, each held against what it says of itself."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, cast

import orjson

from hybrid_memory.changes import Operation
from hybrid_memory.messages import Start
from hybrid_memory.sqlite.driver import Driver, configure_reader
from hybrid_memory.sqlite.readable import check_open
from hybrid_memory.sqlite.rows import SqlRow, is_sound, operation
from hybrid_memory.sqlite.side_record import Noted

Runs: TypeAlias = "list[tuple[int, int]]"
"""Queue numbers, as first and last of runs without a gap."""

OPERATION: Final = "seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at"
SCRATCH: Final = {
    "threads": ("thread_id, last_used_at", "thread_id"),
    "transient": ("thread_id, node_id, context_type, content, created_at, expires_at", "thread_id, node_id"),
    "checkpoints": ("thread_id, checkpoint_id, parent_id, state, created_at", "rowid"),
    "erasures": ("user_id, erased_rev, erased_at, in_doubt", "user_id"),
}
"""The tables that exist nowhere else besides the queue: their columns, and the order in which their rows lie."""

_TABLES: Final = ("meta", "outbox", "dead_letters", "receipts", *SCRATCH)
QUEUED: Final = (
    "select seq, op_id, user_id, kind, entity_id, base, delta, stamp, payload, accepted_at, checksum from outbox"
)
# Numbers whose rows cannot be read are looked for between those that can; so many questions take about a second.
_MOST_PROBES: Final = 50_000
# A page that cannot be read so often in a row is damaged, or the disk fails for longer.
_TRIES: Final = 3
# A page holds no more entries of the queue than this.
_SAME_PAGE: Final = 16
PAGE_BYTES: Final = 4096
# Where the first page says how many pages there are; 0: as many as the file has.
_PAGE_COUNT_AT: Final = 28


@dataclass(slots=True)
class Salvaged:
    """What was read. `unaccounted` are the numbers of which nothing says that they were decided."""

    meta: dict[str, str] = field(default_factory=dict[str, str])
    operations: list[Operation] = field(default_factory=list[Operation])
    dead_letters: list[SqlRow] = field(default_factory=list[SqlRow])
    scratch: dict[str, list[SqlRow]] = field(default_factory=dict[str, "list[SqlRow]"])
    last_seq: int = 0
    unaccounted: Runs = field(default_factory=list["tuple[int, int]"])


def read_damaged(damaged: Path, driver: Driver, noted: Noted | None, *, first_page: bytes) -> Salvaged:
    """Read what can be read of a file that nobody has open. It stays as it is.

    `first_page` is that of a new file: where the tables begin is the same in all. A file whose own says nothing any
    more is read in a copy that begins with it.
    """
    found = Salvaged(meta={"open_number": "0"})
    lost: Runs = []
    if damaged.exists():
        with _readable(damaged, driver, first_page) as (connection, path):
            lost = _Reader(connection, driver, found, noted).read()
            # It may have failed since it was read in one go, and what was not read is not lost.
            check_open(path)
    if noted is not None and found.meta.setdefault("client_id", noted.client_id) == noted.client_id:
        found.meta["open_number"] = str(max(noted.open_number, int(found.meta["open_number"])))
        if noted.last_seq > found.last_seq:
            lost.append((found.last_seq + 1, noted.last_seq))
            found.last_seq = noted.last_seq
    found.unaccounted = merged(lost)
    return found


@contextmanager
def _readable(damaged: Path, driver: Driver, first_page: bytes) -> Generator[tuple[sqlite3.Connection, Path]]:
    connection = _connect(damaged, driver)
    copy = damaged.with_name("copy.db")
    try:
        if not _knows(connection, driver, "outbox"):
            connection.close()
            _copy(damaged, copy, first_page)
            connection = _connect(copy, driver)
            yield connection, copy
        else:
            yield connection, damaged
    finally:
        connection.close()
        for part in ("-shm", "-wal", ""):
            copy.with_name(copy.name + part).unlink(missing_ok=True)


def _connect(path: Path, driver: Driver) -> sqlite3.Connection:
    """A connection that knows all tables; if none does, of several, the last: that is what the file says."""
    for _ in range(1, _TRIES):
        connection = _connect_once(path, driver)
        if all(_knows(connection, driver, table) for table in _TABLES):
            return connection
        # Told to read whatever there is, it would go on with the tables that it found before the disk failed.
        connection.close()
    return _connect_once(path, driver)


def _connect_once(path: Path, driver: Driver) -> sqlite3.Connection:
    connection = driver.connect(path, read_only=True)
    with suppress(*driver.errors):
        # Has SQLite read a file that is shorter than its header says.
        connection.execute("pragma writable_schema = on")
        configure_reader(connection)
    return connection


def _knows(connection: sqlite3.Connection, driver: Driver, table: str) -> bool:
    try:
        return connection.execute("select 1 from pragma_table_info(?)", (table,)).fetchone() is not None
    except driver.errors:
        return False


def _copy(damaged: Path, copy: Path, first_page: bytes) -> None:
    shutil.copyfile(damaged, copy)
    log = damaged.with_name(f"{damaged.name}-wal")
    if log.exists():
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
    with copy.open("r+b") as file:
        file.write(first_page)
        file.seek(_PAGE_COUNT_AT)
        file.write(bytes(4))


class _Reader:
    """Reads the tables of one file into `found`."""

    def __init__(self, connection: sqlite3.Connection, driver: Driver, found: Salvaged, noted: Noted | None) -> None:
        self._connection = connection
        self._driver = driver
        self._found = found
        self._noted_seq = 0 if noted is None else noted.last_seq
        self._probes = 0

    def read(self) -> Runs:
        """Read everything; returns the numbers whose entries cannot be read, and that nothing says were decided."""
        found = self._found
        found.meta |= {
            key: value for key, value in self._from_both_ends("key, value", "meta", "key") if _means(key, value)
        }
        letters = self._from_both_ends(f"{OPERATION}, checksum, died_at, sqlstate, reason", "dead_letters", "op_id")
        found.dead_letters = [row for row in letters if is_sound(row[:11])]
        for table, (columns, order) in SCRATCH.items():
            found.scratch[table] = self._from_both_ends(columns, table, order)
        rows, holes = self._queue()
        found.operations = [operation(row[:10]) for row in rows if is_sound(row)]
        sound = [one.seq for one in found.operations]
        known = [(row[0], row[0]) for row in found.dead_letters] + self._decided()
        spoilt = [(row[0], row[0]) for row in letters if isinstance(row[0], int) and not is_sound(row[:11])]
        found.last_seq = max([int(found.meta.get("last_seq", "0")), *sound, *(last for _, last in known)])
        gaps = self._gaps(sound, [cast("int", row[0]) for row in rows if not is_sound(row)])
        # Of a dead letter it may be said that it was decided, but what it held is lost.
        return [*without([*holes, *gaps], known), *spoilt]

    def _gaps(self, sound: list[int], unsound: list[int]) -> Runs:
        """The numbers in the queue's range that no sound entry has: what a page has lost reads as absent.

        Where the range ends is told by the entries, by what was ever removed (all above that was still queued), and by
        those that are damaged, whose own number may be as wrong as the rest of them.
        """
        last = max(self._found.last_seq, self._noted_seq)
        told = [min(seq, last + _SAME_PAGE) for seq in unsound]
        ends = [*sound, *told, *(max(1, seq - _SAME_PAGE) for seq in told)]
        removed = int(self._found.meta.get("last_seq", last))
        if removed < last:
            ends += [removed + 1, last]
        return without([(min(ends), max(ends))], [(seq, seq) for seq in sound]) if ends else []

    def _queue(self) -> tuple[list[SqlRow], Runs]:
        """The rows of the queue in order, and the numbers where none could be read."""
        top, _ = self._ask(f"{QUEUED} order by seq desc limit 1")
        last = max([int(self._found.meta.get("last_seq", "0")), self._noted_seq, *(row[0] for row in top)])
        rows: list[SqlRow] = []
        holes: Runs = []
        waiting = [(1, last)]
        while waiting:
            low, high = waiting.pop()
            below, failed = self._ask(f"{QUEUED} where seq between ? and ? order by seq", low, high)
            straight = _straight(below, low, high, 1)
            rows += straight
            if not failed and len(straight) == len(below):
                continue
            low = straight[-1][0] + 1 if straight else low
            above, _ = self._ask(f"{QUEUED} where seq between ? and ? order by seq desc", low, high)
            straight = _straight(above, high, low, -1)
            rows += straight
            high = straight[-1][0] - 1 if straight else high
            self._probes += 1
            if low == high or self._probes > _MOST_PROBES:
                holes.append((low, high))
            elif low < high:
                middle = (low + high) // 2
                waiting += [(low, middle), (middle + 1, high)]
        return sorted(rows, key=lambda row: cast("int", row[0])), merged(holes)

    def _decided(self) -> Runs:
        runs: Runs = []
        for row in self._from_both_ends("first_seq, decided", "receipts", "first_seq"):
            with suppress(orjson.JSONDecodeError, TypeError, ValueError):
                runs += [(seq, seq) for seq, _, _ in cast("list[tuple[int, object, object]]", orjson.loads(row[1]))]
        return merged(runs)

    def _from_both_ends(self, columns: str, table: str, order: str) -> list[SqlRow]:
        """The rows of a table as far as they can be reached from its first and its last."""
        statement = f"select {columns} from {table} order by {order}"  # noqa: S608 - constants only
        rows, failed = self._ask(statement)
        if failed:
            seen = set(rows)
            backwards = ", ".join(f"{column} desc" for column in order.split(", "))
            others, _ = self._ask(f"select {columns} from {table} order by {backwards}")  # noqa: S608 - constants only
            rows += [row for row in reversed(others) if row not in seen]
        return rows

    def _ask(self, statement: str, *values: int) -> tuple[list[SqlRow], bool]:
        """The rows up to the first that cannot be read, and whether there was one.

        A disk that fails for a moment gives at the next try what it did not give before.
        """
        rows, failed = self._ask_once(statement, *values)
        for _ in range(1, _TRIES):
            if not failed:
                break
            others, failed = self._ask_once(statement, *values)
            rows = max(rows, others, key=len)
        return rows, failed

    def _ask_once(self, statement: str, *values: int) -> tuple[list[SqlRow], bool]:
        rows: list[SqlRow] = []
        try:
            for row in self._connection.execute(statement, values):
                rows.append(row)  # noqa: PERF402 - what came before an error is kept
        except self._driver.errors:
            return rows, True
        return rows, False


def _straight(rows: list[SqlRow], first: int, last: int, step: int) -> list[SqlRow]:
    """The rows from the first on whose numbers go one way within bounds: in a damaged tree some come anywhere."""
    straight: list[SqlRow] = []
    for row in rows:
        if not isinstance(row[0], int) or (row[0] - first) * step < 0 or (last - row[0]) * step < 0:
            break
        straight.append(row)
        first = row[0] + step
    return straight


def _means(key: object, value: object) -> bool:
    """Whether a value of `meta` can be what was written under its key."""
    try:
        match key:
            case "client_id":
                uuid.UUID(cast("str", value))
            case "open_number" | "last_seq":
                return int(cast("str", value)) >= 0
            case "starts":
                told = cast("list[list[object]]", orjson.loads(cast("str", value)))
                return all(len(start) == len(Start._fields) for start in told)
            case _:
                pass
    except (ValueError, TypeError, AttributeError):
        return False
    return isinstance(key, str) and isinstance(value, str)


def merged(runs: Runs) -> Runs:
    """Runs in order, those that touch made one."""
    joined: Runs = []
    for first, last in sorted(runs):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def without(runs: Runs, known: Runs) -> Runs:
    """What is left of runs when known numbers are taken out of them."""
    left: Runs = []
    for first, last in merged(runs):
        start = first
        for known_first, known_last in merged(known):
            if known_last < start or known_first > last:
                continue
            if known_first > start:
                left.append((start, known_first - 1))
            start = known_last + 1
        if start <= last:
            left.append((start, last))
    return left
