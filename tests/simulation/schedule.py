"""One schedule: a phase with faults, then everything heals and must come to rest; then the history is checked."""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hybrid_memory.changes import NodeRow
from hybrid_memory.graph import Digest
from hybrid_memory.preload import is_current
from hybrid_memory.sqlite.hot_file import HotFile
from hybrid_memory.testing.checker import check
from hybrid_memory.testing.history import Claim, History, Moment, Standing
from tests.simulation.disk import make_place
from tests.simulation.loop import SimulatedLoop, Stuck
from tests.simulation.lost_tail import erased_and_back, still_lost
from tests.simulation.options import Options
from tests.simulation.postgres import Postgres
from tests.simulation.process import NOON_US, Process
from tests.simulation.server import Server
from tests.simulation.template import make_template
from tests.simulation.workload import Workload

# Five tries of a refused operation alone, each up to 15 s after the last, and some for those behind it.
REST_WITHIN: Final = 400.0
LONGEST_STORM: Final = 6.0


@dataclass(slots=True)
class Outcome:
    """What became of a schedule."""

    options: Options
    findings: list[str]
    digest: str
    lines: list[str]
    acknowledged: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])
    recovery_seconds: float = 0.0


class Ground:
    """A place in memory with a migrated file to begin from, for many schedules one after the other."""

    def __init__(self) -> None:
        self._place = make_place()
        self.path = Path(self._place.name)
        self.template = make_template(self.path / "template")

    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for one schedule."""
        return tempfile.TemporaryDirectory(dir=self.path)

    def close(self) -> None:
        """Remove all of it."""
        self._place.cleanup()


def run(options: Options, ground: Ground) -> Outcome:
    """Run one schedule to its end. What is left of it is garbage in circles: collect it after some of them."""
    with ground.folder() as folder, _uncollected():
        schedule = Schedule(options, Path(folder), ground.template)
        try:
            return schedule.run()
        finally:
            schedule.end()


@contextmanager
def _uncollected() -> Generator[None]:
    """Without the garbage collector: nothing is finalized in the middle of a schedule."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Schedule:
    """The world of one seed."""

    def __init__(self, options: Options, folder: Path, template: Path) -> None:
        self.options = options
        self.loop = SimulatedLoop(random.Random(f"loop {options.seed}"), shuffles=options.shuffles)
        self._chance = random.Random(f"weather {options.seed}")
        chance = random.Random(f"server {options.seed}")
        self.postgres = Postgres(chance, lambda: NOON_US + round(self.loop.time() * 1e6))
        self.server = Server(self.loop, chance, self.postgres)
        self.history = History(ledger=self.postgres.ledger)
        self.workload = Workload(options, self.server.weather, self.history)
        self.findings: list[str] = []
        self.counts: dict[str, int] = {}
        self._standby = self.postgres.saved()
        self._recovery = 0.0
        self.processes = [
            Process(f"p{number}", folder, template, self.loop, self.server, options, skew, self.workload.callers)
            for number, skew in enumerate(options.skews_seconds)
        ]
        self.workload.processes = self.processes

    def run(self) -> Outcome:
        try:
            self.loop.play(self._play())
        except Stuck as stuck:
            self.findings.append(f"liveness: {stuck}")
        else:
            self._compare()
            self.findings += [f"rule {rule}: {what}" for rule, what in check(self.history)]
        self.findings += self._unforeseen()
        return Outcome(
            options=self.options,
            findings=self.findings,
            digest=self.loop.trace.digest(),
            lines=list(self.loop.trace.lines),
            acknowledged=sum(len(process.acknowledged) for process in self.processes),
            counts=self.counts,
            recovery_seconds=self._recovery,
        )

    def end(self) -> None:
        for process in self.processes:
            process.abandon()
        self.loop.end()

    async def _play(self) -> None:
        for process in self.processes:
            process.start()
        nemesis = [
            self.loop.create_task(self._crashes()),
            self.loop.create_task(self._storms()),
            self.loop.create_task(self._watch()),
        ]
        await asyncio.gather(*nemesis)
        await self._calls_end()
        self._heal()
        healed_at = self.loop.time()
        await self._rest()
        self._recovery = self.loop.time() - healed_at

    def _count(self, fault: str) -> None:
        self.counts[fault] = self.counts.get(fault, 0) + 1

    async def _crashes(self) -> None:
        deaths = ["crash"] * self.options.crashes + ["stop"] * self.options.stops
        self._chance.shuffle(deaths)
        for death in deaths:
            await asyncio.sleep(0.8 * self._chance.random())
            process = self._chance.choice(self.processes)
            if not process.life.alive:
                process.start()
            elif death == "crash":
                self._count("crash")
                self._over(process)
                process.crash()
            else:
                self._count("stop")
                self._over(process)
                await process.stop()
            await asyncio.sleep(self._chance.choice((0.0, 0.05, 2.0)))
            if not process.life.alive:
                process.start()

    def _over(self, process: Process) -> None:
        self.history.over.add((process.name, process.lives))

    async def _storms(self) -> None:
        storms: tuple[tuple[str, Callable[[], None]], ...] = (
            ("server down", self._go_down),
            ("partition", lambda: self.server.weather.cut_off.add(self._chance.choice(self.processes).name)),
            ("messages lost", lambda: setattr(self.server.weather, "lossy", self.options.lossy)),
            ("messages lost", lambda: setattr(self.server.weather, "lossy", self.options.lossy)),
            ("read-only", lambda: setattr(self.server.weather, "read_only", True)),
            ("misconfigured", lambda: setattr(self.server.weather, "misconfigured", True)),
            ("disk full", lambda: setattr(self.server.weather, "full", True)),
            ("row locked", lambda: self.server.weather.locked.add(self._chance.choice(self.options.users))),
            ("slow statements", lambda: setattr(self.server.weather, "most_at_once", self._chance.randint(1, 4))),
            ("deadlocks", lambda: setattr(self.server.weather, "deadlocks", 0.4)),
            ("slow network", lambda: setattr(self.server.weather, "slow", 20.0)),
        )
        for number in range(self.options.storms):
            await asyncio.sleep(0.6 * self._chance.random())
            name, begin = self._chance.choice(storms)
            self._count(name)
            self.loop.trace("world", name)
            begin()
            await asyncio.sleep(LONGEST_STORM * self._chance.random() ** 3)
            if number < self.options.rewinds:
                self._fail_over()
            if self._chance.random() < 0.7:
                self.server.weather.heal()
                self.loop.trace("world", "heals")
            self._standby = self.postgres.saved()

    def _go_down(self) -> None:
        self.server.weather.down = True
        self.server.restart()

    def _fail_over(self) -> None:
        self._count("failover")
        self.loop.trace("world", "fails over")
        self.server.restart()
        self.postgres.rewind(self._standby)

    async def _watch(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0.3 * self._chance.random())
            self._look()

    def _look(self) -> None:
        """Where every acknowledged operation is, and whether copies and Postgres are what they are to be."""
        self.findings += [f"{one} stands in Postgres without an end" for one in self.postgres.without_end()]
        queued: set[str] = set()
        dead: set[str] = set()
        for process in self.processes:
            here, buried = process.whereabouts()
            queued |= here
            dead |= buried
        acknowledged = frozenset(one for process in self.processes for one in process.acknowledged)
        of_erased = {
            event.operation
            for event in self.history.events
            if event.operation is not None and event.user_id in self.workload.erased
        }
        self.history.moments.append(
            Moment(
                t=self.loop.time(),
                acknowledged=acknowledged,
                applied=frozenset(entry.operation for entry in self.postgres.ledger),
                queued=frozenset(queued),
                dead=frozenset(dead),
                cancelled=frozenset(of_erased & acknowledged),
            )
        )
        for process in self.processes:
            self._claims(process)

    def _claims(self, process: Process) -> None:
        file = process.file
        if process.manager is None or file is None or len(file.outbox.settling) or process.dead_ever:
            return
        for cursor in file.hot.cursors():
            head = self.postgres.head(cursor.user_id)
            current = head is not None and is_current(cursor, head) and self._knows_the_server(file)
            if cursor.complete and current and not file.outbox.queued_of(cursor.user_id):
                here = [one for (user_id, _), one in process.rows().items() if user_id == cursor.user_id]
                there = [one for (user_id, _), one in self._rows().items() if user_id == cursor.user_id]
                self.history.claims.append(
                    Claim(
                        t=self.loop.time(),
                        process=process.name,
                        user_id=cursor.user_id,
                        rev=cursor.rev,
                        here=_digest(here),
                        there=_digest(there),
                    )
                )

    async def _calls_end(self) -> None:
        deadline = self.loop.time() + 60
        while self.workload.pending():
            await asyncio.sleep(0.2)
            for process in self.processes:
                if not process.life.alive:
                    process.start()
            if self.loop.time() > deadline:
                raise Stuck("a call did not return")

    def _heal(self) -> None:
        self.loop.trace("world", "heals for good")
        self.server.weather.heal()
        for process in self.processes:
            if not process.life.alive:
                process.start()
        # Others must get through for an operation to be held to be the cause of its failures.
        self.workload.goes_on = bool(self.server.weather.failing)

    async def _rest(self) -> None:
        deadline = self.loop.time() + REST_WITHIN
        ensuring: set[tuple[str, int]] = set()
        while True:
            for process in self.processes:
                if process.manager is not None and (process.name, process.lives) not in ensuring:
                    ensuring.add((process.name, process.lives))
                    process.in_life(self._ensure(process))
                    if self.workload.goes_on:
                        process.in_life(self.workload.eve(process))
            if all(map(self._is_settled, self.processes)):
                if not self.workload.goes_on:
                    break
                self.workload.goes_on = False
                await asyncio.sleep(2.0)
            await asyncio.sleep(0.1)
            if self.loop.time() > deadline:
                raise Stuck(f"no rest within {REST_WITHIN} s: {[self._state(one) for one in self.processes]}")
        await asyncio.sleep(1.0)
        self._look()

    async def _ensure(self, process: Process) -> None:
        for user_id in self.options.users:
            manager = process.manager
            if manager is not None:
                await manager.ensure_user_memories(user_id)

    def _is_settled(self, process: Process) -> bool:
        manager, file = process.manager, process.file
        if manager is None or file is None or len(file.outbox.settling):
            return False
        queued, _ = process.whereabouts()
        if any(queued) and self.workload.goes_on:
            # Of the one who goes on writing there is always something.
            left = {row[0] for row in file.database.point.all("select user_id from outbox")}
            if left != {"eve"}:
                return False
        elif queued:
            return False
        cursors = {cursor.user_id: cursor for cursor in file.hot.cursors()}
        for user_id in self.options.users:
            head, cursor = self.postgres.head(user_id), cursors.get(user_id)
            if cursor is None or head is None or not cursor.complete:
                return False
            if not is_current(cursor, head):
                return False
        return not self.options.rewinds or (self._knows_the_server(file) and not file.past.erasures_in_doubt())

    def _knows_the_server(self, file: HotFile) -> bool:
        """Whether nothing in the file is of a server that was there before, and taken to be of this one."""
        return file.binding.lineage in {None, self.server.identity().lineage}

    @staticmethod
    def _state(process: Process) -> str:
        file = process.file
        return f"{process.name} {process.whereabouts()} {file and file.hot.cursors()}"

    def _rows(self) -> dict[tuple[str, str], Standing]:
        found: dict[tuple[str, str], Standing] = {}
        for user_id, account in self.postgres.accounts.items():
            for key, one in account.rows.items():
                row = one.row
                if row.deleted_at is None and not (isinstance(row, NodeRow) and row.expires_at is not None):
                    value = row.summary if isinstance(row, NodeRow) else None
                    found[user_id, key] = Standing(row.rev, value, row.row_hash)
        return found

    def _compare(self) -> None:
        history = self.history
        history.postgres = {place: row for place, row in self._rows().items() if place[0] in self.options.users}
        history.clocks_agree = not any(self.options.skews_seconds)
        history.rewound = {entry.operation for entry in self.postgres.rewound}
        self.findings += still_lost(self.postgres, history, self.processes) + erased_and_back(self.postgres, history)
        history.losers = sum(len(account.history) for account in self.postgres.accounts.values())
        for process in self.processes:
            self.findings += [f"{one} is shown by {process.name} without an end" for one in process.without_end()]
            history.reloads += process.reloads
            history.replicas[process.name] = {
                place: row for place, row in process.rows().items() if place[0] in self.options.users
            }
            refused = self.server.weather.poisonous | self.server.weather.failing
            self.findings += [f"{one} is dead, and nobody refused it" for one in process.wrongly_dead(refused)]
            self.findings += process.overtaken(self.postgres.ledger, self.postgres.operations)
            _, dead = process.whereabouts()
            history.dead |= dead | process.dead_ever
            unsettled = process.buried_keys() | process.hidden_keys()
            history.unsettled |= {(process.name, user_id, key) for user_id, key in unsettled}

    def _unforeseen(self) -> list[str]:
        found = [f"unforeseen: {error}" for error in self.loop.errors]
        found += [f"unforeseen in {process.name}: {what}" for process in self.processes for what in process.failures]
        for task in self.loop.tasks:
            error = task.exception() if task.done() and not task.cancelled() else None
            if error is not None and not isinstance(error, Stuck):
                found.append(f"unforeseen: a task raised {error!r}")
        return found


def _digest(rows: list[Standing]) -> Digest:
    return Digest(value=hash(frozenset((row.rev, row.row_hash) for row in rows)), nodes=len(rows), relationships=0)
