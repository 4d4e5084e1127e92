"""Opening the hot-tier file of this process: slot, schema, identity, and everything that works on it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, cast

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.clock import Clock, IdSource
from hybrid_memory.errors import StorageCorrupt
from hybrid_memory.messages import BatchApplied, Opening
from hybrid_memory.migrations import Migration, Recorded, load, plan
from hybrid_memory.sqlite.accepting import Acceptance, QueueBounds, Stored
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.dead_letters import SqliteDeadLetters
from hybrid_memory.sqlite.driver import Driver, choose_driver, create_private
from hybrid_memory.sqlite.hot_tier import SqliteHotTier
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.outbox import SqliteOutbox
from hybrid_memory.sqlite.replica import Shown, SqliteReplica
from hybrid_memory.sqlite.scratch import SqliteScratch
from hybrid_memory.sqlite.search_index import SearchIndexes
from hybrid_memory.sqlite.slots import Slot
from hybrid_memory.sqlite.writer import Hire, Hooks, own_thread

# "HMem" in ASCII: a file that says otherwise is not ours.
APPLICATION_ID = 0x484D656D


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    opening: Opening
    was_clean: bool


class HotFile:
    """The open file. Its parts are the adapters behind the hot side's ports."""

    def __init__(
        self,
        slot: Slot,
        database: Database,
        ledger: Ledger,
        clock: Clock,
        identity: _Identity,
        bounds: QueueBounds,
        index_bytes: int,
    ) -> None:
        self.slot = slot
        # Called on the event loop after each commit that queued something.
        self.on_accepted: Callable[[], None] = _nobody_waits
        # Called with the operations that an erasure took out of the queue.
        self.on_rejected: Callable[[Sequence[Operation]], None] = _nobody_asks
        self._indexing: set[asyncio.Future[None]] = set()
        self.database = database
        self.opening = identity.opening
        self.was_clean = identity.was_clean
        self._indexes = SearchIndexes(database.driver, database.path, budget_bytes=index_bytes)
        acceptance = Acceptance(ledger, bounds)
        self.outbox = SqliteOutbox(
            database,
            ledger,
            acceptance,
            on_stored=self._stored,
            on_settled=self._settled,
        )
        self.hot = SqliteHotTier(database, self._indexes, clock, self.outbox.settling, self.outbox.queued_of)
        self.replica = SqliteReplica(database, ledger, acceptance, self._shown)
        self.scratch = SqliteScratch(database, acceptance, clock, self.outbox.accept)
        self.dead_letters = SqliteDeadLetters(database, ledger, acceptance, self._retried)

    @classmethod
    async def open(
        cls,
        slot: Slot,
        *,
        clock: Clock,
        ids: IdSource,
        bounds: QueueBounds,
        index_bytes: int,
        hire: Hire = own_thread,
    ) -> Self:
        """Open the slot's file, making it if needed. Raises `StorageCorrupt`, `StorageFailed`, `SchemaMismatch`."""
        driver = choose_driver()
        is_new = not slot.path.exists()
        if is_new:
            create_private(slot.path)
        ledger = Ledger(clock, ids)
        hooks = Hooks(
            before_work=ledger.staging.flush,
            before_commit=ledger.staging.flush,
            after_commit=ledger.publication,
            after_rollback=ledger.forget,
        )
        database = Database(slot.path, driver, hooks, hire)
        try:
            await database.open()
            identity = await database.prepare(lambda connection: _prepare(connection, driver, ids, is_new=is_new))
            database.open_readers()
            await database.write(ledger.read)
        except BaseException:
            await database.close()
            raise
        return cls(slot, database, ledger, clock, identity, bounds, index_bytes)

    def _stored(self, stored: Stored) -> None:
        self.on_accepted()
        self.hot.moved(stored.operations[-1].user_id, stored.user_no)
        if stored.row_id is not None:
            self._indexes.mark_changed(stored.user_no, [stored.row_id])

    def _settled(self, batch: BatchApplied) -> None:
        for user in batch.users:
            self.hot.cursor_changed(user.user_id)
        for applied in batch.operations:
            if applied.operation.kind is Kind.ERASE:
                self.hot.erasure_settled(applied.operation.user_id)

    def _retried(self) -> None:
        self.outbox.forget_newest()
        self.on_accepted()

    def _shown(self, shown: Shown) -> None:
        if shown.user_no is None:
            self.outbox.forget_newest()
        if shown.erasure_seq or shown.rejected:
            self.outbox.erased(shown.user_id, shown.erasure_seq)
        if shown.erasure_seq:
            self.on_accepted()
        if shown.rejected:
            self.on_rejected(shown.rejected)
        self.hot.moved(shown.user_id, shown.user_no)
        self.hot.erasure_settled(shown.user_id)
        if shown.loaded and shown.user_no is not None:
            # Nobody has to wait for it; a search that comes sooner builds it itself.
            indexing = self.database.read_soon(partial(self._indexes.prepare, shown.user_no))
            self._indexing.add(indexing)
            indexing.add_done_callback(self._indexed)
        if shown.user_no is not None and shown.row_ids:
            self._indexes.mark_changed(shown.user_no, shown.row_ids)

    def _indexed(self, indexing: asyncio.Future[None]) -> None:
        self._indexing.discard(indexing)
        if not indexing.cancelled():
            # What went wrong will go wrong again, and be told, at the first search.
            indexing.exception()

    @property
    def index_bytes(self) -> int:
        """Memory held by search indexes."""
        return self._indexes.size_bytes()

    @property
    def bytes_on_disk(self) -> int:
        """What the file and its log take; asked of the directory, for the file itself must not be opened."""
        path = self.database.path
        return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}-wal")) if part.exists())

    async def close(self) -> None:
        """Close the file and give up the slot, also when no room is left to write down that it was closed."""
        try:
            if self.database.failure is None:
                await self.database.write(_mark_clean)
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        try:
            await self.database.close()
        finally:
            self._indexes.close()
            self.slot.release()


def _prepare(connection: sqlite3.Connection, driver: Driver, ids: IdSource, *, is_new: bool) -> _Identity:
    try:
        _check_ours(connection)
        _migrate(connection)
        clean = is_new or _meta(connection).get("clean") == "1"
        if not clean:
            _check_whole(connection)
        return _identify(connection, ids, was_clean=clean)
    except driver.errors as error:
        raise driver.translate(error) from None


def _check_ours(connection: sqlite3.Connection) -> None:
    (application_id,) = connection.execute("pragma application_id").fetchone()
    (tables,) = connection.execute("select count(*) from sqlite_master").fetchone()
    if application_id == APPLICATION_ID and tables > 0:
        return
    if application_id in {0, APPLICATION_ID} and tables == 0:
        # Its maker died before the first table: nothing was ever in it.
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        return
    raise StorageCorrupt("the file is not a hot tier of hybrid_memory", fix="use another data directory")


def _check_whole(connection: sqlite3.Connection) -> None:
    # Costs 1 ms per MB, so only after an unclean stop.
    (verdict,) = connection.execute("pragma quick_check(1)").fetchone()
    if verdict != "ok":
        raise StorageCorrupt("the hot-tier file is damaged", fix="`hybrid-memory doctor` says what can be saved")


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute(
        "create table if not exists migrations (version integer primary key not null, name text not null,"
        " checksum text not null, applied_at integer not null) strict"
    )
    recorded = [
        Recorded(version=version, name=name, checksum=checksum)
        for version, name, checksum in connection.execute("select version, name, checksum from migrations").fetchall()
    ]
    for migration in plan(recorded, load("sqlite")):
        _apply(connection, migration)


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    # executescript runs the transaction it is given, so the tables and their record come together or not at all.
    record = (
        "insert into migrations (version, name, checksum, applied_at) values"  # noqa: S608 - constants only
        f" ({migration.version}, '{migration.name}', '{migration.checksum}', {time.time_ns() // 1000});"
    )
    connection.executescript(
        f"begin immediate;\n{migration.sql}\n{record}\npragma user_version = {migration.version};\ncommit;"
    )


def _meta(connection: sqlite3.Connection) -> dict[str, str]:
    return cast("dict[str, str]", dict(connection.execute("select key, value from meta").fetchall()))


def _identify(connection: sqlite3.Connection, ids: IdSource, *, was_clean: bool) -> _Identity:
    meta = _meta(connection)
    client_id = meta.get("client_id") or ids.new()
    number = int(meta.get("open_number", "0")) + 1
    token = ids.new()
    connection.execute("begin immediate")
    connection.executemany(
        "insert into meta (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
        [("client_id", client_id), ("open_number", str(number)), ("open_token", token), ("clean", "0")],
    )
    connection.execute("insert into meta (key, value) values ('last_seq', '0') on conflict do nothing")
    connection.execute("commit")
    return _Identity(opening=Opening(client_id=client_id, number=number, token=token), was_clean=was_clean)


def _nobody_waits() -> None:
    """Before a relay is there to be woken."""


def _nobody_asks(_rejected: Sequence[Operation]) -> None:
    """Before anybody could wait for an operation."""


def _mark_clean(connection: sqlite3.Connection) -> None:
    connection.execute("update meta set value = '1' where key = 'clean'")
