"""Bringing a database to this version's schema: run by an administrator, never by the application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, LiteralString

import asyncpg

from hybrid_memory.errors import Misconfigured, RoleRefused, SchemaMismatch
from hybrid_memory.migrations import Migration, Recorded, load, plan
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose, transaction

# Building an index on a large table takes its time; a wait for the lock ends when the other migration does.
_DEADLINE: Final = timedelta(hours=1)
_NO_LIMIT: Final = timedelta()

_LOCK: Final[LiteralString] = "select pg_advisory_lock(hashtextextended('hybrid_memory.migrate', 0))"
_UNLOCK: Final[LiteralString] = "select pg_advisory_unlock(hashtextextended('hybrid_memory.migrate', 0))"

_SITUATION: Final[LiteralString] = """
    select current_setting('server_version_num')::integer as server_version,
           pg_is_in_recovery() as in_recovery,
           to_regnamespace('memory') is not null as has_schema,
           exists (select from pg_class c
                   where c.relnamespace = to_regnamespace('memory') and c.relname = 'migrations') as has_migrations,
           to_regnamespace('memory_legacy') is not null as has_legacy,
           exists (select from pg_available_extensions where name = 'vector') as vector_available
"""

# The two roles belong to the whole cluster, so another database's migration may be making them at this moment.
_ROLES: Final[LiteralString] = """
    do $$
    declare
        v_role text;
    begin
        foreach v_role in array array['hybrid_memory_owner', 'hybrid_memory_app'] loop
            begin
                execute format('create role %I nologin nosuperuser nobypassrls nocreatedb nocreaterole', v_role);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end loop;
        -- A superuser may act as the owner anyway; a role with CREATEROLE has to be made a member.
        if not (select r.rolsuper from pg_roles r where r.rolname = current_user) then
            execute format('grant hybrid_memory_owner to %I', current_user);
        end if;
    end
    $$
"""

_SCHEMA: Final[LiteralString] = """
    create schema if not exists memory authorization hybrid_memory_owner;
    set local role hybrid_memory_owner;
    create table if not exists memory.migrations (
        version integer primary key,
        name text not null,
        checksum text not null,
        applied_at timestamptz not null default now()
    );
"""

_RECORDED: Final[LiteralString] = "select version, name, checksum from memory.migrations order by version"
_RECORD: Final[LiteralString] = "insert into memory.migrations (version, name, checksum) values ($1, $2, $3)"

_AS_OWNER: Final[LiteralString] = "set local role hybrid_memory_owner"

_EXTENSION: Final[LiteralString] = """
    do $$
    begin
        create extension if not exists vector;
    exception when insufficient_privilege then
        raise notice 'pgvector is available, but may not be created by this role';
    end
    $$
"""

_ADOPT: Final[LiteralString] = "alter schema memory rename to memory_legacy"

_GRANT_LOGIN: Final[LiteralString] = """
    do $$
    declare
        v_role text := current_setting('hybrid_memory.role');
        v_password text := nullif(current_setting('hybrid_memory.password'), '');
    begin
        if not exists (select from pg_roles r where r.rolname = v_role) then
            execute format('create role %I login nosuperuser nobypassrls nocreatedb nocreaterole', v_role);
        end if;
        if v_password is not null then
            execute format('alter role %I password %L', v_role, v_password);
        end if;
        execute format('alter role %I set search_path = pg_catalog, pg_temp', v_role);
        execute format('grant hybrid_memory_app to %I', v_role);
    end
    $$
"""

_POWERS: Final[LiteralString] = """
    select coalesce(bool_or(p.rolsuper or p.rolbypassrls or p.rolname = 'hybrid_memory_owner'), false)
    from pg_roles r
    join pg_roles p on pg_has_role(r.oid, p.oid, 'member')
    where r.rolname = $1
"""


def _ignore(_migration: Migration) -> None:
    """Nobody wants to know."""


class Migrator:
    """Brings a database to this version's schema over an administrator's connection.

    The administrator is a superuser, or a role with CREATEROLE that may create schemas in the database.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings

    async def migrate(
        self, *, adopt: bool = False, progress: Callable[[Migration], None] = _ignore
    ) -> tuple[Migration, ...]:
        """Apply what is missing, in order, and return it; `progress` is told each one just committed.

        Each migration commits together with its record, so a process killed half-way leaves whole steps. Two at once
        are safe: the second waits and finds nothing to do. Raises `SchemaMismatch` when the schema is newer than
        this program, was altered, or is not ours; one that is not ours is with `adopt` renamed to `memory_legacy`,
        where its rows stay untouched and are not read by this version.
        """
        available = load("postgres")
        applied: list[Migration] = []
        async with self._administrator() as link:

            async def work(connection: Connection) -> None:
                await connection.execute(_LOCK)
                await self._prepare(connection, adopt=adopt)
                recorded = [Recorded(**dict(record)) for record in await connection.fetch(_RECORDED)]
                for migration in plan(recorded, available):
                    await _apply(connection, migration)
                    applied.append(migration)
                    progress(migration)
                await _complete_vectors(connection)
                await connection.execute(_UNLOCK)

            await link.run(work)
        return tuple(applied)

    async def grant_login(self, role: str, password: str | None = None) -> None:
        """Let a login role act as the application; made if missing, its search path pinned.

        Raises `RoleRefused` for a role that could see all tenants: it must be neither superuser nor owner.
        """

        async def work(connection: Connection) -> None:
            if await connection.fetchval(_POWERS, role):
                raise RoleRefused(
                    "this role is a superuser, bypasses row-level security or owns the schema",
                    fix="choose another role for the application",
                )
            async with transaction(connection):
                await connection.execute(
                    "select set_config('hybrid_memory.role', $1, true), set_config('hybrid_memory.password', $2, true)",
                    role,
                    password or "",
                )
                await connection.execute(_GRANT_LOGIN)

        async with self._administrator() as link:
            await link.run(work)

    async def pending(self) -> tuple[Migration, ...]:
        """What `migrate` would apply. Raises as it does."""
        available = load("postgres")

        async def work(connection: Connection) -> tuple[Migration, ...]:
            situation = await _situation(connection)
            if not situation["has_migrations"]:
                if situation["has_schema"]:
                    raise _foreign()
                return available
            recorded = [Recorded(**dict(record)) for record in await connection.fetch(_RECORDED)]
            return plan(recorded, available)

        async with self._administrator() as link:
            return await link.run(work)

    async def _prepare(self, connection: Connection, *, adopt: bool) -> None:
        """Roles, schema and the table of migrations."""
        situation = await _situation(connection)
        foreign = situation["has_schema"] and not situation["has_migrations"]
        if foreign and not adopt:
            raise _foreign()
        if foreign and situation["has_legacy"]:
            raise SchemaMismatch("schema memory_legacy is there already", fix="drop or rename it, then adopt again")
        await connection.execute(_ROLES)
        if situation["vector_available"]:
            await connection.execute(_EXTENSION)
        if not situation["has_migrations"]:
            async with transaction(connection):
                if foreign:
                    await connection.execute(_ADOPT)
                await connection.execute(_SCHEMA)

    @asynccontextmanager
    async def _administrator(self) -> AsyncGenerator[Link, None]:
        link = Link(
            self._settings,
            Purpose(
                name="migrate",
                deadline=_DEADLINE,
                statement_timeout=_NO_LIMIT,
                idle_in_transaction=_NO_LIMIT,
                lock_timeout=_NO_LIMIT,
            ),
        )
        try:
            yield link
        finally:
            await link.close()


async def _situation(connection: Connection) -> asyncpg.Record:
    (situation,) = await connection.fetch(_SITUATION)
    if situation["server_version"] < 150_000:  # noqa: PLR2004 - the form in which the server tells its version
        raise Misconfigured("the server is older than Postgres 15", fix="use Postgres 15 or newer")
    return situation


def _foreign() -> SchemaMismatch:
    return SchemaMismatch(
        "schema memory is there, but was not made by hybrid-memory",
        fix="hybrid-memory migrate --adopt renames it to memory_legacy",
    )


async def _apply(connection: Connection, migration: Migration) -> None:
    """One migration and its record, or nothing."""
    async with transaction(connection):
        await connection.execute(_AS_OWNER)
        await connection.execute(migration.sql)
        await connection.execute(_RECORD, migration.version, migration.name, migration.checksum)


async def _complete_vectors(connection: Connection) -> None:
    """Add the vector column if pgvector came after the migration that would have made it."""
    async with transaction(connection):
        await connection.execute(_AS_OWNER)
        await connection.execute("select memory.ensure_vector_column()")
