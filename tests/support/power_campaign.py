"""Recordings of processes that write, are killed and start again, and images of power cuts judged against them."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from hybrid_memory import HybridMemoryManager
from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.testing.disk import Call, DiskFault, FaultDisk
from hybrid_memory.testing.power import Cut, Image, Line, Survival, power_cut_images, random_cuts, read_log
from tests.plugins.postgres import Database, connected
from tests.support.disk_worker import FORGOTTEN, SMALL_LOG_BYTES, Work
from tests.support.power_judge import FILE, Judge, complaints
from tests.support.sick_disk import record
from tests.support.witness import Verdict

USERS = ("ada", "bo")
DRAIN = timedelta(seconds=60)


def fsync_fails(nth: int, *, of: str = "-wal", times: int = 1) -> DiskFault:
    """The so-manieth fsync of the log fails, or of what else the name ends with."""
    return DiskFault(calls=frozenset({Call.SYNC}), suffix=of, nth=nth, times=times)


@dataclass(slots=True, kw_only=True)
class Recording:
    """What several processes, one after the other, told one disk, and said meanwhile."""

    disk: FaultDisk
    images_folder: Path
    work: Work
    lines: list[Line] = field(default_factory=list[Line])

    async def take(self, *, kill_after: int | None = None, fault: DiskFault | None = None) -> None:
        """One process more; killed after it said so much, or on a disk that fails."""
        if fault is not None:
            self.disk.arm(fault)
        try:
            await record(self.disk, self.work, kill_after=kill_after, may_fail=fault is not None)
        finally:
            self.disk.disarm()
        self.work.generation += 1
        self.lines = read_log(self.disk.log)

    def judged(self, cuts: Sequence[Cut], *, seed: int, until: float = math.inf) -> Judgement:
        """Make the image of each cut and judge it by itself; no more of them when the time is over."""
        judge, judgement = Judge(), Judgement()
        for image in power_cut_images(self.lines, cuts, seed=seed):
            if time.monotonic() > until:
                break
            judge.hear(image)
            verdict = judge.judge(image, self.laid_out(image))
            judgement.take(image, verdict)
        judgement.acked = judge.witness.acks
        return judgement

    def laid_out(self, image: Image) -> Path:
        """The data directory, as the cut left it."""
        shutil.rmtree(self.images_folder, ignore_errors=True)
        image.write_to(self.images_folder, root=self.disk.root)
        return self.images_folder / Path(self.work.data_dir).relative_to(self.disk.root)

    def random_cuts(self, count: int, *, seed: int) -> list[Cut]:
        return random_cuts(self.lines, count, seed=seed)

    def last_cuts(self) -> list[Cut]:
        """The power goes when all is said."""
        return [Cut(len(self.lines), survival) for survival in Survival]


@dataclass(slots=True)
class Judgement:
    """What images came to."""

    images: Counter[Survival] = field(default_factory=Counter[Survival])
    wrong: list[tuple[Cut, str]] = field(default_factory=list[tuple[Cut, str]])
    verdict: Verdict = field(default_factory=Verdict)
    acked: int = 0

    def take(self, image: Image, verdict: Verdict) -> None:
        self.images[image.cut.survival] += 1
        self.wrong += [(image.cut, one) for one in complaints(verdict)]
        for name in ("lost", "doubled", "reordered", "diverged"):
            getattr(self.verdict, name).extend(getattr(verdict, name))


@asynccontextmanager
async def recording(
    folder: Path,
    *,
    dsn: str | None = None,
    watched: tuple[str, ...] = (),
    users: tuple[str, ...] = USERS,
    writes: int = 20,
    erasures: int = 0,
    log_bytes: int = SMALL_LOG_BYTES,
) -> AsyncGenerator[Recording]:
    """A disk of its own, and what a worker is to do on it; nothing is recorded yet."""
    with FaultDisk(folder / "disk", folder=folder) as disk:
        work = Work(
            # Below a directory that is made too: its name must outlast the cut as well.
            data_dir=str(disk.root / "made" / "data"),
            dsn=dsn,
            users=users,
            watched=watched,
            writes=writes,
            erasures=erasures,
            log_bytes=log_bytes,
        )
        yield Recording(disk=disk, images_folder=folder / "image", work=work)


async def carried(recording: Recording, cut: Cut, database: Database, *, seed: int, exact: bool = True) -> Verdict:
    """Open what a cut left, let it be carried to Postgres, and judge what stands there.

    `exact` says that everything in the database came from there: as many revisions as operations.
    """
    judge = Judge()
    (image,) = power_cut_images(recording.lines, [cut], seed=seed)
    judge.hear(image)
    data_dir = recording.laid_out(image)
    diverged: list[str] = []
    async with HybridMemoryManager.open(dsn=database.app_dsn, data_dir=data_dir) as manager:
        left = await manager.drain(DRAIN)
        for user_id in recording.work.users:
            memory = await manager.ensure_user_memories(user_id)
            if await memory.digest() != await manager.durable_digest(user_id):
                diverged.append(f"{user_id} differs between the tiers")
        dead = len(await manager.dead_letters.list())
    async with connected(database.admin_dsn) as admin:
        revs: int = await admin.fetchval("select coalesce(sum(rev), 0)::bigint from memory.heads")
        verdict = await judge.witness.judge(admin, operations=numbers_given_out(data_dir) if exact else revs)
    # The witness knows nothing of users who were to be forgotten.
    verdict.doubled = [one for one in verdict.doubled if f"('{FORGOTTEN}" not in one]
    verdict.diverged += diverged
    verdict.lost += [f"{left} operations are still queued"] if left else []
    verdict.lost += [f"{dead} dead letters"] if dead else []
    return verdict


def numbers_given_out(data_dir: Path) -> int:
    """How many operations the file has had; nobody may have it open."""
    connection = choose_driver().connect(data_dir / FILE, read_only=True)
    try:
        (last,) = connection.execute("select value from meta where key = 'last_seq'").fetchone()
    finally:
        connection.close()
    return int(last)


def spread(total: int, chance: random.Random) -> int:
    """A place in the middle of so much that is said."""
    return chance.randint(total // 4, total * 3 // 4)
