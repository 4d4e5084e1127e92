"""A Postgres of a test's own, to be killed, frozen, restarted, starved and put back to an older state."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.embedded.binaries import usable_programs
from hybrid_memory.embedded.place import Account, server_account
from hybrid_memory.errors import Misconfigured, Unreachable
from hybrid_memory.postgres.database import Connection, PostgresSettings, Purpose, connect

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_connections": "60",
        "max_prepared_transactions": "4",
        "recovery_init_sync_method": "syncfs",
        "wal_keep_size": "256MB",
        "wal_retrieve_retry_interval": "50ms",
    }
)
"""What a cluster runs with unless told otherwise.

Room for a few managers, transactions that can be prepared, logs kept for a standby that lags, a standby that streams
again as soon as it may, and after a crash one sync for all files.
"""

_DEADLINE: Final = timedelta(seconds=30)
_STEP_SECONDS: Final = 0.005
_PURPOSE: Final = Purpose(name="testing", deadline=_DEADLINE, statement_timeout=_DEADLINE)


class Cluster:
    """A Postgres and what can be done to it; make it with `Cluster.running`.

    Whatever was done, `heal` brings it back. Its superuser is trusted on the unix socket; there is no TCP. Processes
    are stopped and killed by their pids, and only its own. Not for several event loops at once.
    """

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        self._frozen: list[int] = []
        self._altered = False
        self._backups = count(1)

    @classmethod
    async def start(cls, folder: Path, *, settings: Mapping[str, str] = SETTINGS) -> Self:
        """Start the cluster in `folder`, which every account must be able to pass through; made if it is not there."""
        return cls(await EmbeddedPostgres.start(folder / "postgres", settings=settings))

    @classmethod
    @asynccontextmanager
    async def running(cls, *, settings: Mapping[str, str] = SETTINGS) -> AsyncGenerator[Self]:
        """A new cluster for the length of the block; nothing is left of it."""
        with short_folder() as folder:
            cluster = await cls.start(folder, settings=settings)
            try:
                yield cluster
            finally:
                await cluster.stop()

    def dsn(self, role: str = "postgres", database: str = "postgres") -> str:
        """The DSN of a role and a database."""
        return self.postgres.admin_dsn(database).replace("//postgres@", f"//{role}@")

    async def stop(self) -> None:
        """End it for good."""
        self.thaw()
        await self.postgres.stop()

    async def heal(self) -> None:
        """Let it run with the settings it had at first, whatever was done to it."""
        self.thaw()
        await self.postgres.ensure_running()
        if self._altered:
            await self.execute("alter system reset all")
            await self.execute("select pg_reload_conf()")
            self._altered = False

    # Ended and brought back

    async def kill(self) -> None:
        """Kill the postmaster with -9; its backends follow."""
        await self.postgres.kill()

    async def shut_down(self, *, immediate: bool = False) -> None:
        """End the server: sessions are cut off and all is written (fast), or nothing is (immediate)."""
        self._signal(signal.SIGQUIT if immediate else signal.SIGINT)
        await _until(lambda: not self.postgres.owner)

    async def restart(self, *, immediate: bool = False) -> None:
        """Shut it down and start it again."""
        await self.shut_down(immediate=immediate)
        await self.postgres.ensure_running()

    async def kill_backend(self, purpose: str) -> int:
        """Kill with -9 the backends whose application name ends so; the server then drops all the others. How many."""
        pids = await self.backends(purpose)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    async def terminate(self, purpose: str) -> int:
        """Have the server end the sessions whose application name ends so; says how many."""
        pids = await self.backends(purpose)
        for pid in pids:
            await self.execute("select pg_terminate_backend($1)", pid)
        return len(pids)

    # Frozen

    def freeze(self) -> None:
        """Stop the postmaster and all its processes where they stand, until `thaw`."""
        postmaster = self._signal(signal.SIGSTOP)  # first, so that it makes no more of them
        self._frozen.append(postmaster)
        for pid in _children(postmaster):
            self._freeze(pid)

    async def freeze_backend(self, purpose: str) -> int:
        """Stop only the backends whose application name ends so; says how many."""
        pids = await self.backends(purpose)
        for pid in pids:
            self._freeze(pid)
        return len(pids)

    def thaw(self) -> None:
        """Let what was frozen go on."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen.clear()

    # Starved

    async def set(self, name: str, value: str) -> None:
        """Change a setting that needs no restart, for sessions that are there too; `heal` takes it back."""
        self._altered = True
        if not name.replace("_", "").isalnum():
            raise Misconfigured(f"{name!r} is no name of a setting", fix="name one of Postgres's settings")
        await self.execute(f"alter system set {name} = {_quoted(value)}")
        await self.execute("select pg_reload_conf()")

    async def limit_connections(self, database: str, most: int) -> None:
        """Let ordinary roles have so many connections to a database (-1: as many as there are); the rest get 53300."""
        await self.execute(f'alter database "{database}" connection limit {most:d}')

    # Put back

    async def backup(self) -> Path:
        """Copy the cluster as it is now, beside it; for one `restore`."""
        copy = self.postgres.cluster_dir.with_name(f"backup-{next(self._backups)}")
        await base_backup(self, copy, "--wal-method=fetch")
        return copy

    async def restore(self, backup: Path) -> None:
        """Become what the backup was taken of: all that was done since never happened. Uses the backup up."""
        await self.shut_down(immediate=True)
        await asyncio.to_thread(_replace, self.postgres.cluster_dir, backup)
        await self.postgres.ensure_running()

    # Asked

    async def execute(self, statement: str, *values: object) -> object:
        """Carry one statement out as the superuser and give the first value of its answer, None if there is none."""
        async with self._session() as connection:
            if values or statement.startswith("select"):
                return await connection.fetchval(statement, *values)
            return await connection.execute(statement)

    async def backends(self, purpose: str) -> list[int]:
        """The pids of the sessions whose application name ends so."""
        async with self._session() as connection:
            rows = await connection.fetch(
                "select pid from pg_stat_activity where backend_type = 'client backend'"
                " and application_name like '%' || $1 and pid <> pg_backend_pid()",
                purpose,
            )
        return [row["pid"] for row in rows]

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Connection]:
        connection = await connect(PostgresSettings(dsn=self.dsn()), _PURPOSE)
        try:
            yield connection
        finally:
            await connection.close()

    def _signal(self, number: signal.Signals) -> int:
        postmaster = self.postgres.pid
        if postmaster is None:
            raise Unreachable("the server does not run", fix="heal it first")
        os.kill(postmaster, number)
        return postmaster

    def _freeze(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._frozen.append(pid)


@contextmanager
def short_folder() -> Generator[Path]:
    """A new folder whose path is short enough for a socket in it, and that every account can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def base_backup(cluster: Cluster, into: Path, *options: str) -> None:
    """Copy a running cluster into a new directory of the server's account. Raises `Misconfigured` if it fails."""
    account = server_account()
    _make_directory(into, account)
    where = f"host={cluster.postgres.socket_dir} user=postgres application_name=standby"
    program = usable_programs(account) / "pg_basebackup"
    copying = await asyncio.create_subprocess_exec(
        program,
        f"--pgdata={into}",
        f"--dbname={where}",
        "--checkpoint=fast",
        *options,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        user=account.uid if account.switched else None,
        group=account.gid if account.switched else None,
        extra_groups=[] if account.switched else None,
    )
    _, said = await copying.communicate()
    if copying.returncode:
        raise Misconfigured(f"the cluster could not be copied: {said.decode().strip()}", fix="see the server's log")


def _make_directory(path: Path, account: Account) -> None:
    path.mkdir(mode=0o700)
    if account.switched:
        os.chown(path, account.uid, account.gid)


def _replace(directory: Path, other: Path) -> None:
    shutil.rmtree(directory)
    other.rename(directory)


def _children(postmaster: int) -> list[int]:
    asked = subprocess.run(
        ["/bin/ps", "-o", "pid=", "--ppid", str(postmaster)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in asked.stdout.split()]


async def _until(check: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _DEADLINE.total_seconds()
    while not check():
        if time.monotonic() > give_up:
            raise Unreachable("the server has not done what it was told in time", fix="see its log")
        await asyncio.sleep(_STEP_SECONDS)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
