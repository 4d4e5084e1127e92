"""`migrate`: bring Postgres to this version's schema and let the application in."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hybrid_memory.cli.outcome import Column, Line, Outcome, Refused, Section, Table
from hybrid_memory.cli.places import ADMIN_FIX, Place, login_of, no_postgres, own_server
from hybrid_memory.cli.wording import printable
from hybrid_memory.connect import EMBEDDED_DATABASE, EMBEDDED_LOGIN
from hybrid_memory.migrations import Migration, load
from hybrid_memory.postgres.administration import Administration
from hybrid_memory.postgres.migrator import Migrator
from hybrid_memory.postgres.provision import create_database


async def migrate(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Apply what is missing, then grant the application's login role."""
    async with _administrator(place) as dsn:
        migrator = Migrator(place.postgres(dsn))
        applied = await _migrated(migrator, place, adopt=arguments.adopt)
        role = await _grant(migrator, place, dsn, arguments.app_role)
    version = load("postgres")[-1].version
    return Outcome(
        data={
            "applied": [{"version": one.version, "name": one.name} for one in applied],
            "version": version,
            "role": role,
            "embedded": place.is_embedded,
        },
        sections=_sections(applied, version, role),
    )


@asynccontextmanager
async def _administrator(place: Place) -> AsyncGenerator[str]:
    """The DSN of somebody who may make schemas and roles."""
    if place.is_embedded:
        async with own_server(place) as server:
            await create_database(place.postgres(server.admin_dsn()))
            yield server.admin_dsn(EMBEDDED_DATABASE)
        return
    if place.admin_dsn is not None:
        yield place.admin_dsn
        return
    if place.dsn is None:
        raise no_postgres()
    raise Refused("an application's DSN may not change the schema", fix=ADMIN_FIX)


async def _migrated(migrator: Migrator, place: Place, *, adopt: bool) -> tuple[Migration, ...]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=place.talk,
        transient=True,
        disable=not place.talk.is_terminal,
    )
    with bar:
        # A schema that is not ours can only be adopted, and then everything is to be done.
        task = bar.add_task("migrating", total=len(load("postgres") if adopt else await migrator.pending()))
        return await migrator.migrate(
            adopt=adopt, progress=lambda one: bar.update(task, advance=1, description=one.name)
        )


async def _grant(migrator: Migrator, place: Place, dsn: str, named: str | None) -> str | None:
    """Let the application's role in: the one named, else the one its DSN names. Returns it, None if there is none."""
    if place.is_embedded:
        # The role that managers log in as, whoever else is let in.
        await migrator.grant_login(EMBEDDED_LOGIN)
        if named is not None:
            await migrator.grant_login(named)
        return named or EMBEDDED_LOGIN
    user, password = login_of(place.dsn) if place.dsn is not None else (None, None)
    role = named or user
    if role is None:
        return None
    asked = Administration(place.postgres(dsn))
    try:
        exists = await asked.role_exists(role)
    finally:
        await asked.close()
    # The password of a role that exists is not ours to change.
    await migrator.grant_login(role, password if role == user and not exists else None)
    return role


def _sections(applied: tuple[Migration, ...], version: int, role: str | None) -> tuple[Section, ...]:
    sections: list[Section] = []
    if applied:
        rows = tuple((one.version, one.name.replace("_", " ")) for one in applied)
        sections.append(
            Table(title="Applied", columns=(Column(name="version"), Column(name="what", folds=True)), rows=rows)
        )
    done = f"The schema is at version {version}." if applied else f"Nothing to do: the schema is at version {version}."
    sections.append(Line(text=done, tone="good"))
    if role is None:
        sections.append(
            Line(text="No role of the application was granted: name it with --app-role, or give --dsn.", tone="warn")
        )
    else:
        sections.append(Line(text=f"The application may log in as {printable(role)}."))
    return tuple(sections)
