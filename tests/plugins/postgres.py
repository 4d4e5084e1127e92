"""A real Postgres for tests: one server a run, one migrated template, a database of its own for each test.

With `--pooler` the application reaches it through PgBouncer in transaction mode, and only tests run whose claims hold
there: `direct(reason)` marks the others.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from hybrid_memory.clock import SystemClock
from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.postgres.change_feed import PostgresChangeFeed
from hybrid_memory.postgres.database import PostgresSettings
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from hybrid_memory.postgres.migrator import Migrator
from tests.support.pooler import MISSING, PROGRAM, Pooler, pooler

APP_ROLE = "memory_app"
# Fewer than the connections of two managers, so that they have to share.
POOL_SIZE = 4
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pooler", action="store_true", help="reach Postgres through PgBouncer in transaction mode")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pooler") and PROGRAM is None:
        pytest.exit(MISSING, returncode=1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Behind a pooler, leave out what never meets Postgres as the application does, and what cannot work there."""
    if not config.getoption("--pooler"):
        return
    meeting = [item for item in items if "postgres" in getattr(item, "fixturenames", ())]
    direct = [item for item in meeting if item.get_closest_marker("direct") is not None]
    config.stash[_DIRECT] = direct
    config.hook.pytest_deselected(items=[item for item in items if item not in meeting or item in direct])
    items[:] = [item for item in meeting if item not in direct]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out, and why."""
    reasons = Counter[tuple[str, str]]()
    for item in config.stash.get(_DIRECT, list[pytest.Item]()):
        marker = item.get_closest_marker("direct")
        reasons[item.nodeid.partition("::")[0], marker.args[0] if marker else ""] += 1
    for (file, reason), count in reasons.items():
        terminalreporter.write_line(f"not through the pooler: {count} of {file}: {reason}")


_DIRECT = pytest.StashKey[list[pytest.Item]]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server, reached over its unix socket."""

    name: str
    dsn: Callable[[str, str], str]
    """The DSN of a (role, database)."""
    socket_dir: Path

    def admin_dsn(self, database: str = "postgres") -> str:
        return self.dsn("postgres", database)


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database of one test's own."""

    name: str
    server: Server
    pooler: Pooler | None = None
    """What stands between the application and the server, if anything does."""

    @property
    def admin_dsn(self) -> str:
        return self.server.admin_dsn(self.name)

    @property
    def app_dsn(self) -> str:
        return self.direct_dsn if self.pooler is None else self.pooler.dsn(APP_ROLE, self.name)

    @property
    def direct_dsn(self) -> str:
        """The application's, past the pooler: to look in with a session of one's own."""
        return self.dsn_of(APP_ROLE)

    @property
    def settings(self) -> PostgresSettings:
        if self.pooler is None:
            return PostgresSettings(dsn=self.app_dsn)
        return PostgresSettings(dsn=self.app_dsn, transaction_pooler=True, listen_dsn=self.direct_dsn)

    def dsn_of(self, role: str) -> str:
        return self.server.dsn(role, self.name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The embedded server."""
    with _folder() as folder, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        server = runner.run(EmbeddedPostgres.start(folder / "data", settings={"max_connections": "60"}))

        def dsn(role: str, database: str) -> str:
            return server.admin_dsn(database).replace("//postgres@", f"//{role}@")

        try:
            yield Server(name="embedded", dsn=dsn, socket_dir=server.socket_dir)
        finally:
            runner.run(server.stop())


@pytest.fixture(scope="session")
def session_pooler(postgres_server: Server, request: pytest.FixtureRequest) -> Iterator[Pooler | None]:
    """The pooler of a run with `--pooler`, which all managers learn of from the environment."""
    if not request.config.getoption("--pooler"):
        yield None
        return
    with _folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_MEMORY_POOLER", "transaction")
        with pooler(folder, server=postgres_server.socket_dir, roles=(APP_ROLE,), pool_size=POOL_SIZE) as made:
            yield made


@pytest.fixture(scope="session")
def debian_server() -> Iterator[Server]:
    """Debian's PostgreSQL 15, which has no pgvector."""
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip("PostgreSQL 15 of Debian is not installed")
    with _folder() as folder, _running(DEBIAN_15, folder):
        yield Server(
            name="debian15",
            dsn=lambda role, database: f"postgresql://{role}@/{database}?host={folder}",
            socket_dir=folder,
        )


@pytest.fixture(params=["embedded", "debian15"])
def any_server(request: pytest.FixtureRequest) -> Server:
    """Every server the suite knows."""
    name: str = {"embedded": "postgres_server", "debian15": "debian_server"}[request.param]
    server: Server = request.getfixturevalue(name)
    return server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Server) -> str:
    """The name of a database that is migrated and never connected to again."""

    async def make() -> str:
        await _execute(postgres_server, "create database migrated")
        await prepare(Database(name="migrated", server=postgres_server))
        return "migrated"

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(make())


@pytest.fixture
async def postgres(
    postgres_server: Server, postgres_template: str, session_pooler: Pooler | None
) -> AsyncIterator[Database]:
    """A migrated database of this test's own."""
    async with _database(postgres_server, template=postgres_template, pooler=session_pooler) as database:
        yield database


@pytest.fixture
async def empty_postgres(any_server: Server) -> AsyncIterator[Database]:
    """A database with nothing in it, on every server the suite knows."""
    async with _database(any_server, template="template1") as database:
        yield database


@pytest.fixture
async def admin(postgres: Database) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to the test's database."""
    async with connected(postgres.admin_dsn) as connection:
        yield connection


@pytest.fixture
async def durable_tier(postgres: Database) -> AsyncIterator[PostgresDurableTier]:
    tier = PostgresDurableTier(postgres.settings)
    yield tier
    await tier.close()


@pytest.fixture
async def change_feed(postgres: Database) -> AsyncIterator[PostgresChangeFeed]:
    feed = PostgresChangeFeed(postgres.settings, SystemClock())
    yield feed
    await feed.close()


async def prepare(database: Database) -> None:
    """Migrate a database and let the application's role in."""
    migrator = Migrator(PostgresSettings(dsn=database.admin_dsn))
    await migrator.migrate()
    await migrator.grant_login(APP_ROLE)


class connected:  # noqa: N801 - used as a function, and a class keeps the connection's type
    """A plain connection for the length of a block."""

    def __init__(self, dsn: str, **settings: str) -> None:
        self._dsn = dsn
        self._settings = settings
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> asyncpg.Connection:
        self._connection = await asyncpg.connect(self._dsn, server_settings=self._settings)
        return self._connection

    async def __aexit__(self, *_error: object) -> None:
        if self._connection is not None:
            await self._connection.close()


class _database:  # noqa: N801 - as above
    def __init__(self, server: Server, *, template: str, pooler: Pooler | None = None) -> None:
        self._database = Database(name=f"test_{uuid.uuid4().hex}", server=server, pooler=pooler)
        self._template = template

    async def __aenter__(self) -> Database:
        await _execute(self._database.server, f"create database {self._database.name} template {self._template}")
        return self._database

    async def __aexit__(self, *_error: object) -> None:
        await _execute(self._database.server, f"drop database {self._database.name} with (force)")


async def _execute(server: Server, statement: str) -> None:
    async with connected(server.admin_dsn()) as connection:
        await connection.execute(statement)


@contextmanager
def _folder() -> Generator[Path, None, None]:
    """A folder with a short path (of a socket) that every account can pass through (`nobody`, if we are root)."""
    folder = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(programs: Path, folder: Path) -> Generator[None, None, None]:
    """A plain server on a new cluster, run by `nobody` when we are root."""
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
    user, group = ("nobody", "nogroup") if os.geteuid() == 0 else (None, None)
    groups: list[str] | None = [] if user else None
    data = folder / "data"
    subprocess.run(
        [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"],
        check=True,
        capture_output=True,
        cwd=folder,
        user=user,
        group=group,
        extra_groups=groups,
    )
    process = subprocess.Popen(
        [str(programs / "postgres"), "-D", str(data), "-c", "listen_addresses=", "-k", str(folder)],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        user=user,
        group=group,
        extra_groups=groups,
    )
    try:
        _wait_until_ready(process, data / "postmaster.pid")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def _wait_until_ready(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        if len(lines) >= 8 and lines[7].strip() == "ready":
            return
        time.sleep(0.005)
    raise RuntimeError("the server did not start")
