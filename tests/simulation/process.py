"""A simulated process: a real manager on a real file, which can die between any two steps and be opened again."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from hybrid_memory import HybridMemoryManager, Settings
from hybrid_memory.changes import Kind, Operation
from hybrid_memory.clock import IdSource
from hybrid_memory.connect import Durable, PostgresMode, Tiers
from hybrid_memory.events import Buried, Event, EventLog, Rewritten, ServiceFailed
from hybrid_memory.messages import Identity
from hybrid_memory.payloads import carried_node
from hybrid_memory.sqlite.accepting import QueueBounds
from hybrid_memory.sqlite.binding import Binding
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.sqlite.orphans import SqliteOrphans
from hybrid_memory.sqlite.slots import Slot
from hybrid_memory.testing.history import Entry, Reload, Standing
from tests.simulation.disk import InlineWorker, copy_file, hire
from tests.simulation.loop import Life, SimulatedLoop, context_of
from tests.simulation.options import Options
from tests.simulation.server import Server
from tests.simulation.wire import Wire
from tests.support import beneath

NOON_US: Final = 1_779_000_000_000_000
BOUNDS: Final = QueueBounds(entries=10_000, payload_bytes=2**24)


class SkewedClock:
    """The loop's time, as a process with a clock of its own tells it."""

    def __init__(self, loop: SimulatedLoop, skew_seconds: float) -> None:
        self._loop = loop
        self._start_us = NOON_US + round(skew_seconds * 1e6)

    def now_us(self) -> int:
        return self._start_us + round(self._loop.time() * 1e6)

    def monotonic(self) -> float:
        return self._loop.time()


class Held(Slot):
    """A slot that nobody else could take: every life has a folder of its own, so there is no lock to give up."""

    @classmethod
    def of(cls, path: Path) -> Held:
        """A slot with a lock file of its own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(number=0, path=path, lock_fd=os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600))


class Ear(EventLog):
    """Notes events in the trace instead of logging them."""

    def __init__(self, process: Process) -> None:
        super().__init__(None)
        self._process = process

    @property
    def attentive(self) -> bool:
        return False

    def emit(self, event: Event) -> None:
        self._process.note(
            f"{type(event).__name__} {' '.join([str(getattr(event, one.name)) for one in fields(event)])}"
        )
        if isinstance(event, ServiceFailed):
            self._process.failures.append(f"{event.service}: {event.error}")
        if isinstance(event, Rewritten):
            self._process.reloads.append(Reload(self._process.loop.time(), self._process.name, event.user_id))
        if isinstance(event, Buried):
            self._process.dead_ever.add(event.op_id)


class Process:
    """One data directory and the lives it sees. Its callers are begun anew in each life."""

    def __init__(
        self,
        name: str,
        folder: Path,
        template: Path,
        loop: SimulatedLoop,
        server: Server,
        options: Options,
        skew_seconds: float,
        work: Callable[[Process], Coroutine[Any, Any, None]],
    ) -> None:
        self.name = name
        self.loop = loop
        self.clock = SkewedClock(loop, skew_seconds)
        self.life = Life(name)
        self.life.alive = False
        self.lives = 0
        self.failures: list[str] = []
        self.acknowledged: set[str] = set()
        self.dead_ever: set[str] = set()
        self.reloads: list[Reload] = []
        self._chance = random.Random(f"{name} {options.seed}")
        self._folder = folder
        self._server = server
        self._options = options
        self._work = work
        self._ids = IdSource(self.clock, self._chance.getrandbits)
        self._hired: list[InlineWorker] = []
        self._manager: HybridMemoryManager | None = None
        self.file: HotFile | None = None
        self._slot: Held | None = None
        self.queued: frozenset[str] = frozenset()
        self.dead: frozenset[str] = frozenset()
        self._deaths = 0
        # Whose connection was looked at last, and how much it had changed by then.
        self._seen: tuple[InlineWorker, int] | None = None
        copy_file(template, self._place)

    def note(self, what: str) -> None:
        self.loop.trace(f"{self.name}/{self.lives}", what)

    @property
    def manager(self) -> HybridMemoryManager | None:
        """The manager while it is open."""
        return self._manager if self.life.alive else None

    @property
    def _place(self) -> Path:
        return self._folder / f"{self.name}-{self._deaths}" / "slot-00.db"

    def start(self) -> None:
        """Begin a life, on what the last one left."""
        self.lives += 1
        self.life = Life(self.name)
        self._hired = []
        self.note("starts")
        self.in_life(self._live())

    async def _live(self) -> None:
        slot = self._slot = Held.of(self._place)
        file = await HotFile.open(
            slot,
            clock=self.clock,
            ids=self._ids,
            bounds=BOUNDS,
            # A user's text index is made when it is searched, and not ahead: a tenth of all work would go into that.
            index_bytes=0,
            hire=partial(hire, self.loop, self._hired),
        )
        self.file = file

        async def meet(met: Identity) -> None:
            await file.meet(Binding(installation=met.installation, lineage=met.lineage))

        wire = Wire(
            self._server,
            self.name,
            file.opening.client_id,
            self.clock,
            hints_lost=self._options.hints_lost,
            meet=meet if self._options.rewinds else None,
        )
        durable = Durable(
            mode=PostgresMode.EXTERNAL, reason="a model", tier=wire, feed=wire, keep_up=_nothing, close=_nothing
        )
        orphans = SqliteOrphans(slot.path.parent, own=file, open_file=_never)
        manager = HybridMemoryManager(
            Tiers(data_dir=slot.path.parent, file=file, durable=durable, orphans=orphans, insists=True, temporary=None),
            settings_for(self._options),
            self.clock,
            self._ids,
            self._chance.random,
            _everybody,
            Ear(self),
        )
        beneath.staff(manager).start()
        self._manager = manager
        await self._work(self)

    def crash(self) -> None:
        """Die: what runs never goes on; the file and its log stay as of the last commit."""
        self.note("dies")
        self._look()
        left = self._place
        self._deaths += 1
        copy_file(left, self._place)
        self.abandon()

    def _close_readers(self) -> None:
        if self.file is not None:
            beneath.let_readers_go(self.file)
        self.file = None

    async def stop(self) -> None:
        """Close the manager as a caller of it would."""
        manager, life = self.manager, self.life
        if manager is None:
            return
        self.note("stops")
        self._manager = None
        closing = self.loop.create_task(manager.close(), context=context_of(life))
        while life.alive and not closing.done():  # noqa: ASYNC110 - a task of a life that ends is never done
            await asyncio.sleep(0.01)
        if life.alive:
            closing.result()
            self._look_into_file()
            self.file = self._slot = None
            self._end()

    def _end(self) -> None:
        self.life.alive = False
        self._manager = None
        self._server.listeners = {key: one for key, one in self._server.listeners.items() if one[0] != self.name}

    def _look(self) -> None:
        """Where operations are that are not in Postgres, as of the file's last commit."""
        for worker in self._hired:
            connection = worker.connection
            # Nothing was written since it was last looked at: then it stands as it stood.
            if connection is None or connection.in_transaction or self._seen == (worker, connection.total_changes):
                continue
            self._seen = worker, connection.total_changes
            self._take(connection)

    def _look_into_file(self) -> None:
        connection = sqlite3.connect(f"file:{self._place}?mode=ro", uri=True)
        self._take(connection)
        connection.close()

    def _take(self, connection: sqlite3.Connection) -> None:
        try:
            self.queued = frozenset(row[0] for row in connection.execute("select op_id from outbox"))
            self.dead = frozenset(row[0] for row in connection.execute("select op_id from dead_letters"))
        except Exception:  # noqa: BLE001 - it died before its file had tables
            self.queued = self.dead = frozenset()

    def whereabouts(self) -> tuple[frozenset[str], frozenset[str]]:
        """The operations queued and dead here, by what is committed."""
        if self.life.alive:
            self._look()
            if self.file is not None and all(worker.connection is None for worker in self._hired):
                # On its way out: the file is closed, and whoever closed it has not heard of that yet.
                self._look_into_file()
        return self.queued, self.dead

    def rows(self) -> dict[tuple[str, str], Standing]:
        """The live rows of all users; what will expire is left out, for it does so at another time elsewhere."""
        assert self.file is not None
        found: dict[tuple[str, str], Standing] = {}
        point = self.file.database.point
        for user_id, key, rev, value, row_hash in point.all(
            "select u.user_id, n.node_id, n.rev, n.summary, n.row_hash from users u join nodes n using (user_no)"
            " where n.deleted_at is null and n.expires_at is null"
        ):
            found[user_id, key] = Standing(rev, value, row_hash)
        for user_id, key, rev, row_hash in point.all(
            "select u.user_id, r.relationship_id, r.rev, r.row_hash from users u join relationships r using (user_no)"
            " where r.deleted_at is null"
        ):
            found[user_id, key] = Standing(rev, None, row_hash)
        return found

    def without_end(self) -> list[str]:
        """The live relationships whose source or target is known to be deleted.

        A write that was decided against leaves a tombstone without a revision: what stands there may have expired.
        """
        assert self.file is not None
        return [
            key
            for (key,) in self.file.database.point.all(
                "select distinct r.relationship_id from users u join relationships r using (user_no)"
                " join nodes n on n.user_no = u.user_no and n.node_id in (r.source_id, r.target_id)"
                " where r.deleted_at is null and n.deleted_at is not null and n.rev > 0"
            )
        ]

    def buried_keys(self) -> set[tuple[str, str]]:
        """The rows that operations in the dead letters were to change."""
        assert self.file is not None
        return set(self.file.database.point.all("select user_id, entity_id from dead_letters"))

    def hidden_keys(self) -> set[tuple[str, str]]:
        """The relationships at nodes whose deletion is in the dead letters: until a person decides, it is shown."""
        assert self.file is not None
        point = self.file.database.point
        letters = point.all("select user_id, entity_id, payload from dead_letters where kind = ?", (Kind.NODE.value,))
        return {
            (user_id, key)
            for user_id, node_id, payload in letters
            if carried_node(payload).row.deleted_at is not None
            for (key,) in point.all(
                "select r.relationship_id from users u join relationships r using (user_no)"
                " where u.user_id = ?1 and ?2 in (r.source_id, r.target_id)",
                (user_id, node_id),
            )
        }

    def wrongly_dead(self, refused: set[str]) -> list[str]:
        """The operations in the dead letters that neither are among those refused nor depend on one that is dead."""
        assert self.file is not None
        letters = self.file.database.point.all(
            "select op_id, payload from dead_letters where not reason like 'it depends on %'"
        )
        return [op_id for op_id, payload in letters if not any(f'"{value}"' in payload for value in refused)]

    def overtaken(self, ledger: Sequence[Entry], operations: Mapping[str, Operation]) -> list[str]:
        """Operations that were queued behind one on the same entity when that died, and were applied all the same."""
        assert self.file is not None
        point = self.file.database.point
        letters = point.all("select seq, user_id, entity_id, died_at from dead_letters")
        client = self.file.opening.client_id
        return [
            f"{entry.operation} was queued behind {seq}, which is dead, and was applied"
            for seq, *place, died_at in letters
            for entry in ledger
            if entry.client == client
            and [entry.user_id, entry.key] == place
            and entry.seq > seq
            and operations[entry.operation].accepted_at < died_at
        ]

    def abandon(self) -> None:
        """Let go of the file, whatever state it is in."""
        self._end()
        for worker in self._hired:
            worker.kill()
        self._close_readers()
        if self._slot is not None:
            self._slot.release()
            self._slot = None

    def in_life(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something that dies with this life."""
        return self.loop.create_task(work, context=context_of(self.life))


def settings_for(options: Options) -> Settings:
    return Settings(
        batch_size=options.batch_size,
        poll_interval=timedelta(seconds=options.poll_seconds),
        drain_on_close=timedelta(seconds=1),
        sweep_interval=timedelta(seconds=5),
        refresh_limit=timedelta(seconds=2),
    )


def _everybody(_user_id: str) -> bool:
    return True


async def _nothing() -> None:
    """Nothing to keep up or to close."""


async def _never(_slot: Slot) -> HotFile:
    raise AssertionError("a process without an adopter takes nobody's file")
