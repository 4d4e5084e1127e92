"""Wherever the power goes: everything acknowledged is in the file that is left, whole and once, and goes to Postgres.

What a process tells its disk is recorded beneath it; images of what a cut may leave of that are made and opened
(see `hybrid_memory.testing.power`).
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hybrid_memory.testing.disk import Call, FaultDisk
from hybrid_memory.testing.power import Cut, Survival, power_cut_images, random_cuts, read_log
from tests.plugins.postgres import Database
from tests.support.managers import FACT, opened
from tests.support.power_campaign import Recording, carried, fsync_fails, recording
from tests.support.power_judge import complaints

IMAGES = 80
# Says of each row that it is committed; a checkpoint now and then, so that log and file are both written.
PLAIN_WRITER = """
import importlib, os, sys
module, synchronous, path = sys.argv[1:]
connection = importlib.import_module(module).connect(path, isolation_level=None)
connection.execute("pragma journal_mode = wal")
connection.execute(f"pragma synchronous = {synchronous}")
connection.execute("create table rows (n integer primary key, filling text)")
for n in range(60):
    connection.execute("insert into rows values (?, ?)", (n, "x" * 900))
    os.write(1, b"%d\\n" % n)
    if n % 25 == 24:
        connection.execute("pragma wal_checkpoint(truncate)")
"""


def moves_into_the_file(made: Recording) -> int:
    """How often SQLite moved its log into the file and synced it."""
    files = {line.handle for line in made.lines if line.call is Call.OPEN and line.path.endswith(".db")}
    return sum(line.call is Call.SYNC and line.handle in files for line in made.lines)


async def test_no_cut_loses_tears_or_brings_back_what_the_file_alone_has_acknowledged(tmp_path: Path) -> None:
    async with recording(tmp_path, erasures=4, writes=12) as made:
        await made.take()
        await made.take(kill_after=90)
        await made.take()
        judgement = made.judged(made.random_cuts(IMAGES, seed=1) + made.last_cuts(), seed=1)
        assert judgement.wrong == []
        assert judgement.images.total() == IMAGES + len(Survival)
        assert judgement.acked > 150
        assert moves_into_the_file(made) > 10


async def test_what_a_cut_leaves_is_carried_to_postgres_once_and_in_order(tmp_path: Path, postgres: Database) -> None:
    async with recording(tmp_path, writes=8) as made:
        await made.take()
        verdict = await carried(made, Cut(len(made.lines) * 2 // 3, Survival.TORN), postgres, seed=2)
        assert complaints(verdict) == []


async def test_no_cut_beneath_a_process_that_settles_loads_and_follows_loses_anything(
    tmp_path: Path, postgres: Database
) -> None:
    async with opened(postgres, tmp_path / "other") as other:
        for number in range(20):
            await other.user("dee").store({"n": number}, context_type=FACT, wait=5 * (number == 19))
        async with recording(tmp_path, dsn=postgres.app_dsn, watched=("dee",), erasures=3, writes=10) as made:
            await made.take(kill_after=60)
            await other.user("dee").store({"n": 20}, context_type=FACT, wait=5)
            await made.take()
            judgement = made.judged(made.random_cuts(IMAGES, seed=3) + made.last_cuts(), seed=3)
            assert judgement.wrong == []
            # Only the last state of the disk fits the state of that Postgres.
            last = Cut(len(made.lines), Survival.NONE)
            assert complaints(await carried(made, last, postgres, seed=3, exact=False)) == []


async def test_of_what_was_erased_no_byte_is_in_any_image_from_the_acknowledgement_on(tmp_path: Path) -> None:
    # Nobody else writes: no fsync of theirs comes to help.
    async with recording(tmp_path, users=(), erasures=4) as made:
        await made.take()
        erased = [at for at, line in enumerate(made.lines, 1) if line.is_mark and line.data.count(b'"ok"')]
        assert len(erased) == 4
        judgement = made.judged([Cut(at, survival) for at in erased for survival in Survival], seed=5)
        assert judgement.wrong == []


async def test_what_an_fsync_did_not_write_is_never_relied_on_not_even_by_the_next_process(tmp_path: Path) -> None:
    # So large that the log is not moved into the file, whereby all would be written once more.
    async with recording(tmp_path, writes=10, log_bytes=2**24) as made:
        await made.take(fault=fsync_fails(9))
        failed = [at for at, line in enumerate(made.lines) if line.error]
        assert len(failed) == 1
        handle = made.lines[failed[0]].handle
        assert not any(line.handle == handle for line in made.lines[failed[0] + 1 :]), "the log was touched again"
        await made.take()
        cuts = random_cuts(made.lines, IMAGES, seed=4, after=failed[0])
        judgement = made.judged(cuts + made.last_cuts(), seed=4)
        assert judgement.wrong == []
        assert judgement.acked > 60


async def test_that_the_directory_was_not_synced_when_sqlite_tried_to_costs_nothing(tmp_path: Path) -> None:
    async with recording(tmp_path, writes=5) as made:
        # SQLite does so for its journal and for its log, and goes on when it fails.
        await made.take(fault=fsync_fails(1, of="/data", times=2))
        assert sum(bool(line.error) for line in made.lines) == 2
        assert made.judged([*made.random_cuts(40, seed=6), *made.last_cuts()], seed=6).wrong == []


@pytest.mark.parametrize("module", ["sqlite3", "pysqlite3"])
@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_the_images_tell_a_database_that_syncs_from_one_that_does_not(
    tmp_path: Path, module: str, synchronous: str
) -> None:
    pytest.importorskip(module)
    with FaultDisk(tmp_path / "disk", folder=tmp_path) as disk:
        path = disk.root / "plain.db"
        subprocess.run(
            [sys.executable, "-c", PLAIN_WRITER, module, synchronous, path],
            env={**os.environ, **disk.environment(records=True, marks_fd=1)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        lines = read_log(disk.log)
        lost = 0
        for image in power_cut_images(lines, random_cuts(lines, 32, seed=5), seed=5):
            left = tmp_path / f"image-{image.cut.at}-{image.cut.survival}"
            image.write_to(left, root=disk.root)
            rows = rows_in(left / path.name)
            lost += rows < len(image.marks)
    assert (lost > 0) == (synchronous == "normal")


def rows_in(path: Path) -> int:
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        if connection.execute("select count(*) from sqlite_master").fetchone() == (0,):
            return 0
        (rows,) = connection.execute("select count(*) from rows").fetchone()
    return int(rows)
