"""Opening the hot-tier file of this process: slot, schema, identity, and everything that works on it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, cast

from hybrid_memory.changes import Kind, Operation
from hybrid_memory.clock import Clock, IdSource
from hybrid_memory.errors import HybridMemoryError, NumbersReused, OtherDatabase, StorageCorrupt
from hybrid_memory.events import FileFinding, NumbersMissing, QueueRenumbered
from hybrid_memory.forking import forsake_in_child
from hybrid_memory.messages import BatchApplied, Opening
from hybrid_memory.migrations import Migration, Recorded, load, plan
from hybrid_memory.sqlite.accepting import Acceptance, QueueBounds, Stored
from hybrid_memory.sqlite.binding import Binding, read_binding, write_binding
from hybrid_memory.sqlite.database import Database
from hybrid_memory.sqlite.dead_letters import SqliteDeadLetters
from hybrid_memory.sqlite.driver import Driver, choose_driver, create_private
from hybrid_memory.sqlite.hot_tier import SqliteHotTier
from hybrid_memory.sqlite.inspection import APPLICATION_ID, inspect_file
from hybrid_memory.sqlite.ledger import Ledger
from hybrid_memory.sqlite.numbering import take_over
from hybrid_memory.sqlite.outbox import SqliteOutbox
from hybrid_memory.sqlite.past import SqlitePast, doubt
from hybrid_memory.sqlite.replica import Shown, SqliteReplica
from hybrid_memory.sqlite.scratch import SqliteScratch
from hybrid_memory.sqlite.search_index import SearchIndexes
from hybrid_memory.sqlite.side_record import Noted, SideRecord, read_side_record
from hybrid_memory.sqlite.slots import Slot
from hybrid_memory.sqlite.syncing import log_path
from hybrid_memory.sqlite.whereabouts import Whereabouts
from hybrid_memory.sqlite.writer import Hire, Hooks, own_thread


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    opening: Opening
    was_clean: bool
    binding: Binding
    missing: tuple[tuple[int, int], ...]
    """The first and last of the queue numbers that the file should know and does not; at most one run of them."""


class HotFile:
    """The open file. Its parts are the adapters behind the hot side's ports."""

    def __init__(
        self,
        slot: Slot,
        database: Database,
        ledger: Ledger,
        clock: Clock,
        identity: _Identity,
        side_record: SideRecord,
        bounds: QueueBounds,
        index_bytes: int,
    ) -> None:
        self.slot = slot
        self._open = True
        forsake_in_child(self, HotFile._forked)
        # Called on the event loop after each commit that queued something.
        self.on_accepted: Callable[[], None] = _nobody_waits
        # Called with the operations that an erasure took out of the queue.
        self.on_rejected: Callable[[Sequence[Operation]], None] = _nobody_asks
        # Called when something that Postgres had confirmed has come into doubt.
        self.on_rewound: Callable[[], None] = _nobody_waits
        self._indexing: set[asyncio.Future[None]] = set()
        self.database = database
        self.opening = identity.opening
        self.was_clean = identity.was_clean
        self.binding = identity.binding
        self._meeting = asyncio.Lock()
        # What was wrong with the file and could be lived with: told by health as long as this opening lasts.
        self.findings: list[FileFinding] = [NumbersMissing(first_seq=a, last_seq=b) for a, b in identity.missing]
        self._side_record = side_record
        self._whereabouts = Whereabouts(slot.path, slot.lock_path, slot.lock_fd)
        self._indexes = SearchIndexes(database.driver, database.path, budget_bytes=index_bytes)
        self._ledger = ledger
        acceptance = Acceptance(ledger, bounds)
        self.outbox = SqliteOutbox(
            database,
            ledger,
            acceptance,
            on_stored=self._stored,
            on_settled=self._settled,
            on_shown=self._indexes.mark_changed,
        )
        self.hot = SqliteHotTier(database, self._indexes, clock, self.outbox.settling, self.outbox.queued_of)
        self.replica = SqliteReplica(database, ledger, acceptance, self._shown)
        self.past = SqlitePast(database, acceptance, on_queued=self._retried, on_changed=self.hot.cursor_changed)
        self.scratch = SqliteScratch(database, acceptance, clock, self.outbox.accept)
        self.dead_letters = SqliteDeadLetters(
            database, ledger, acceptance, self._retried, on_changed=self.hot.cursor_changed
        )

    @classmethod
    async def open(
        cls,
        slot: Slot,
        *,
        clock: Clock,
        ids: IdSource,
        bounds: QueueBounds,
        index_bytes: int,
        place: str | None = None,
        hire: Hire = own_thread,
    ) -> Self:
        """Open the slot's file, making it if needed; `place` is where its database is, if it has one.

        `hire` says who works on the writing connection. A file that is found damaged is left as it was. Raises
        `StorageCorrupt`, `StorageFailed`, `SchemaMismatch`.
        """
        driver = choose_driver()
        noted = read_side_record(slot.path)
        is_new = not slot.path.exists() and noted is None
        if is_new:
            create_private(slot.path)
        else:
            inspect_file(slot.path, driver, noted)
        ledger = Ledger(clock, ids)
        records: list[SideRecord] = []

        def after_commit() -> Callable[[], None]:
            publish = ledger.publication()
            for record in records:
                record.note(ledger.last_seq)
            return publish

        hooks = Hooks(
            before_work=ledger.staging.flush,
            before_commit=ledger.before_commit,
            after_commit=after_commit,
            after_rollback=ledger.forget,
        )
        database = Database(slot.path, driver, hooks, hire)
        try:
            await database.open()
            identity = await database.prepare(lambda connection: _prepare(connection, driver, ids, noted, place))
            database.open_readers()
            await database.write(ledger.read)
            records.append(SideRecord(slot.path, _noted(identity.opening, ledger.last_seq)))
        except BaseException:
            await database.close()
            raise
        return cls(slot, database, ledger, clock, identity, records[0], bounds, index_bytes)

    def displaced(self) -> str | None:
        """The name of a part on the disk that is no longer the one that is open, None while all are."""
        return self._whereabouts.displaced()

    def check_thread(self) -> None:
        """Refuse what waits to be written, if the thread that should do it has died."""
        self.database.check_thread()

    def give_up(self, failure: HybridMemoryError) -> None:
        """Write nothing more, for this reason. What waits to be written is refused with it; reads go on."""
        self.database.give_up(failure)

    async def renumber(self, reused: NumbersReused) -> QueueRenumbered:
        """Number a user's queue anew, above a mark that was set for operations which the file has lost."""
        await self.outbox.renumber(reused.user_id, covered=reused.covered, above=reused.last_seq)
        finding = QueueRenumbered(user_id=reused.user_id, first_seq=reused.covered + 1, last_seq=reused.last_seq)
        self.findings.append(finding)
        return finding

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
                self.outbox.last.erasure_settled(applied.operation.user_id, applied.operation.seq)

    def _retried(self) -> None:
        self.outbox.forget_newest()
        self.on_accepted()

    def _shown(self, shown: Shown) -> None:
        if shown.user_no is None:
            self.outbox.forget_newest()
            self.outbox.last.let_go(shown.user_id)
        if shown.erasure_seq or shown.rejected:
            self.outbox.last.note(shown.user_id, shown.erasure_seq)
        if shown.erasure_seq:
            self.on_accepted()
        if shown.rejected:
            self.on_rejected(shown.rejected)
        if shown.restored:
            self._retried()
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

    async def meet(self, met: Binding) -> None:
        """A connection has reached that database: from now on the file belongs to it.

        If the file belongs to another installation it is given over when nothing in it is unsent, with the copies it
        holds dropped. Else it raises `OtherDatabase`, and nothing may be sent or loaded. If the server's past was
        rewritten, all that it had confirmed is in doubt from now on (`past`).
        """
        if met.lineage is None:
            met = replace(met, lineage=self.binding.lineage)
        if met == self.binding:
            return
        async with self._meeting:
            if self.binding.installation not in {None, met.installation}:
                await self._give_over()
            rewound = await self.database.write(partial(self._note, met))
            self.binding = met
        if rewound:
            self.hot.cursors_changed()
            self.on_rewound()

    def _note(self, met: Binding, connection: sqlite3.Connection) -> bool:
        # Held against the file and not against memory: a former opening may not have compared everything either.
        rewound = read_binding(connection).lineage not in {None, met.lineage}
        if rewound:
            self._ledger.read(connection)
            doubt(connection, self._ledger.now_us(), next_seq=self._ledger.last_seq + 1)
        write_binding(met, connection)
        return rewound

    async def _give_over(self) -> None:
        users = [cursor.user_id for cursor in self.hot.cursors()]
        queue = self.outbox.state()
        dropped = not queue.entries and not queue.dead_letters
        for user_id in users if dropped else ():
            # Something may have been stored since.
            dropped = dropped and await self.replica.evict(user_id)
        if not dropped:
            raise OtherDatabase(
                "what is queued in the local file is meant for another database than the one that answers",
                fix="name that database, or open another data directory; `hybrid-memory outbox list` shows what waits",
            )

    @property
    def index_bytes(self) -> int:
        """Memory held by search indexes."""
        return self._indexes.size_bytes()

    @property
    def bytes_on_disk(self) -> int:
        """What the file and its log take; asked of the directory, for the file itself must not be opened."""
        size = 0
        for part in (self.database.path, log_path(self.database.path)):
            # Gone, or the directory cannot be read: others tell of that.
            with suppress(OSError):
                size += part.stat().st_size
        return size

    def erased_rev(self, user_id: str) -> int:
        """The last erasure of a user that this file knows of; see `SqliteHotTier.erased_rev`."""
        return self.hot.erased_rev(user_id)

    async def close(self) -> None:
        """Close the file and give up the slot, also when no room is left to write down that it was closed."""
        try:
            if self.database.failure is None:
                await self.database.write(_mark_clean)
        finally:
            await self._let_go()

    def _forked(self) -> None:
        if self._open:
            # A lock is free only when all who inherited it have let go, and must be when its owner dies.
            self.slot.abandon()

    async def _let_go(self) -> None:
        try:
            await self.database.close()
        finally:
            self._indexes.close()
            self._side_record.close()
            self._open = False
            self.slot.release()


def _noted(opening: Opening, last_seq: int) -> Noted:
    return Noted(client_id=opening.client_id, open_number=opening.number, last_seq=last_seq)


def _prepare(
    connection: sqlite3.Connection, driver: Driver, ids: IdSource, noted: Noted | None, place: str | None
) -> _Identity:
    try:
        make_ours(connection)
        return _identify(connection, ids, noted, place)
    except driver.errors as error:
        raise driver.translate(error) from None


def make_ours(connection: sqlite3.Connection) -> None:
    """Make an empty file ours, and bring its schema up to date. Raises `StorageCorrupt`, `SchemaMismatch`."""
    (application_id,) = connection.execute("pragma application_id").fetchone()
    (tables,) = connection.execute("select count(*) from sqlite_master").fetchone()
    if tables == 0 and application_id in {0, APPLICATION_ID}:
        # New, or its maker died before the first table: nothing was ever in it.
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
    elif application_id != APPLICATION_ID:
        raise StorageCorrupt("the file is not a hot tier of hybrid_memory", fix="use another data directory")
    _migrate(connection)


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


def _identify(connection: sqlite3.Connection, ids: IdSource, noted: Noted | None, place: str | None) -> _Identity:
    meta = _meta(connection)
    # The side record knows it also of a file that has lost everything, its name included.
    client_id = meta.get("client_id") or (ids.new() if noted is None else noted.client_id)
    if noted is not None and noted.client_id != client_id:
        noted = None  # of a file that lay here before
    token = ids.new()
    connection.execute("begin immediate")
    standing = take_over(connection, meta, noted, token)
    connection.executemany(
        "insert into meta (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
        [
            ("client_id", client_id),
            ("open_number", str(standing.open_number)),
            ("open_token", token),
            ("clean", "0"),
        ],
    )
    binding = read_binding(connection)
    if binding.place is None:
        # Before its database was ever reached: what is queued meanwhile is meant for that one.
        binding = replace(binding, place=place)
        write_binding(binding, connection)
    connection.execute("commit")
    opening = Opening(client_id=client_id, number=standing.open_number, token=token, starts=standing.starts)
    was_clean = meta.get("clean", "1") == "1"
    missing = () if standing.missing is None else (standing.missing,)
    return _Identity(opening=opening, was_clean=was_clean, binding=binding, missing=missing)


def _nobody_waits() -> None:
    """Before a relay is there to be woken."""


def _nobody_asks(_rejected: Sequence[Operation]) -> None:
    """Before anybody could wait for an operation."""


def _mark_clean(connection: sqlite3.Connection) -> None:
    connection.execute("update meta set value = '1' where key = 'clean'")
