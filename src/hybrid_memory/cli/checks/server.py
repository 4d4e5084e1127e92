"""Postgres: can it be reached, is its schema ours, and does the application's role keep tenants apart."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from hybrid_memory.cli.checks.finding import Finding, failed, ok, warn
from hybrid_memory.cli.places import ADMIN_FIX, Place, administration, embedded_login, own_server
from hybrid_memory.errors import HybridMemoryError, RoleRefused, SchemaMismatch
from hybrid_memory.migrations import load
from hybrid_memory.postgres.database import Connection, Link, Purpose
from hybrid_memory.postgres.roles import check_server

_DEADLINE: Final = timedelta(seconds=10)


async def check_postgres(place: Place) -> list[Finding]:
    """Look at the Postgres that a manager would use."""
    if place.is_embedded:
        return await _own(place)
    findings: list[Finding] = []
    if place.dsn is not None:
        findings += await _application(place, place.dsn)
    elif place.admin_dsn is not None:
        findings.append(warn("postgres", "only an administrator's DSN is given", "set HYBRID_MEMORY_DSN"))
    if place.admin_dsn is not None:
        findings.append(await _administrator(place))
    return findings


async def _own(place: Place) -> list[Finding]:
    if not place.has_cluster:
        return [ok("postgres", "the embedded one is made by the first manager, or by `hybrid-memory migrate`")]
    try:
        async with own_server(place) as server:
            return await _application(place, embedded_login(server))
    except HybridMemoryError as error:
        return [failed("postgres", error)]


async def _application(place: Place, dsn: str) -> list[Finding]:
    """The manager's own self-test, one finding for each thing it vouches for."""
    link = Link(place.postgres(dsn), Purpose(name="doctor", deadline=_DEADLINE, statement_timeout=_DEADLINE))
    try:
        version = await link.run(_version)
    except HybridMemoryError as error:
        await link.close()
        return [failed("postgres", error)]
    reached = ok("postgres", f"reached, version {version}")
    try:
        capabilities = await link.run(check_server)
    except SchemaMismatch as error:
        return [reached, failed("schema", error)]
    except RoleRefused as error:
        return [reached, failed("role", error)]
    except HybridMemoryError as error:
        return [failed("postgres", error)]
    finally:
        await link.close()
    return [
        reached,
        ok("schema", f"version {load('postgres')[-1].version}, which is this program's"),
        ok("role", "sees one user at a time: the self-test wrote as one and read as another"),
        _pgvector(capabilities.pgvector),
    ]


async def _version(connection: Connection) -> str:
    return str(await connection.fetchval("select current_setting('server_version')"))


def _pgvector(version: str | None) -> Finding:
    if version is None:
        return warn(
            "pgvector",
            "not there, or older than 0.8.4: Postgres does not search vectors; all else works",
            "install pgvector on the server, then hybrid-memory migrate",
        )
    return ok("pgvector", version)


async def _administrator(place: Place) -> Finding:
    try:
        async with administration(place) as asked:
            if await asked.sees_all():
                return ok("admin", "the administrator's DSN sees all users")
    except HybridMemoryError as error:
        return failed("admin", error)
    return warn("admin", "the administrator's DSN sees one user at a time", ADMIN_FIX)
