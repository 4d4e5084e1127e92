"""Where benchmarks run: a Postgres of their own, folders that vanish, managers on them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from benchmarks.plan import Plan
from hybrid_memory import HybridMemoryManager, Settings
from hybrid_memory.connect import EMBEDDED_DATABASE, prepare_embedded
from hybrid_memory.embedded import EmbeddedPostgres
from hybrid_memory.events import Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """A running server with our schema in it, and a folder for files."""

    folder: Path
    postgres: EmbeddedPostgres
    app_dsn: str
    """The role the application works under: row-level security counts for it."""

    @property
    def admin_dsn(self) -> str:
        """The owner of everything."""
        return self.postgres.admin_dsn(EMBEDDED_DATABASE)

    def manager(
        self, name: str, observer: Observer | None = None, settings: Settings | None = None
    ) -> AbstractAsyncContextManager[HybridMemoryManager]:
        """Open a manager on a data directory of this name."""
        return HybridMemoryManager.open(
            dsn=self.app_dsn, data_dir=self.folder / name, observer=observer, settings=settings
        )


@contextmanager
def folder() -> Generator[Path]:
    """A folder with a short path (sockets need it) that every account can pass through, gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="hm-bench-"))
    if os.geteuid() == 0:
        # Root's Postgres runs under another account, which has to get to its files.
        made.chmod(0o711)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@asynccontextmanager
async def stand(plan: Plan) -> AsyncGenerator[Stand, None]:
    """Start a server with our schema in it; it and all files are gone afterwards."""
    with folder() as place:
        postgres = await EmbeddedPostgres.start(place / "postgres")
        try:
            app_dsn = await prepare_embedded(postgres)
            made = Stand(folder=place, postgres=postgres, app_dsn=app_dsn)
            async with connection(made.admin_dsn) as admin:
                plan.postgres_version = await admin.fetchval("show server_version")
            yield made
        finally:
            await postgres.stop()
            await EmbeddedPostgres.erase(place / "postgres")


@asynccontextmanager
async def connection(dsn: str) -> AsyncGenerator[asyncpg.Connection, None]:
    """A bare connection."""
    opened = await asyncpg.connect(dsn)
    try:
        yield opened
    finally:
        await opened.close()
