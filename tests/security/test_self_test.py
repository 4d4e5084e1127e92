"""Nothing is sent through a role, or to a server, on which tenants or commits would not be safe."""

from __future__ import annotations

import asyncpg
import pytest

from hybrid_memory.errors import Misconfigured, RoleRefused, SchemaMismatch
from hybrid_memory.postgres.database import PostgresSettings
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from tests.plugins.author import Author
from tests.plugins.postgres import APP_ROLE, Database


async def handshake(settings: PostgresSettings) -> PostgresDurableTier:
    tier = PostgresDurableTier(settings)
    try:
        await tier.handshake(Author().opening)
    finally:
        await tier.close()
    return tier


async def test_the_role_made_for_it_is_accepted_and_the_probe_leaves_no_trace(
    postgres: Database, admin: asyncpg.Connection
) -> None:
    tier = await handshake(postgres.settings)
    assert tier.capabilities.server_version >= 150_000
    assert await admin.fetchval("select count(*) from memory.heads") == 0
    assert await admin.fetchval("select count(*) from memory.nodes") == 0


@pytest.fixture
async def role(postgres: Database, admin: asyncpg.Connection) -> str:
    """A role of this test's own, good so far; it goes away with the server."""
    name = f"role_{postgres.name}"
    await admin.execute(f"create role {name} login in role hybrid_memory_app")
    return name


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("alter role {role} superuser", "superuser"),
        ("grant postgres to {role}", "superuser"),
        ("alter role {role} bypassrls", "bypasses"),
        ("grant hybrid_memory_owner to {role}", "hybrid_memory_owner"),
        ("alter table memory.vectors owner to {role}", "owns"),
        ("grant create on schema memory to {role}", "create"),
        ("grant truncate on memory.applied to {role}", "truncate"),
    ],
)
async def test_a_role_that_could_reach_beyond_one_tenant_is_refused(
    postgres: Database, admin: asyncpg.Connection, role: str, spoil: str, reason: str
) -> None:
    await handshake(PostgresSettings(dsn=postgres.dsn_of(role)))
    await admin.execute(spoil.format(role=role))
    with pytest.raises(RoleRefused, match=reason) as refused:
        await handshake(PostgresSettings(dsn=postgres.dsn_of(role)))
    assert refused.value.fix
    if "owner to" in spoil:
        await admin.execute("alter table memory.vectors owner to hybrid_memory_owner")


async def test_the_administrator_itself_is_refused(postgres: Database) -> None:
    with pytest.raises(RoleRefused, match="superuser"):
        await handshake(PostgresSettings(dsn=postgres.admin_dsn))


@pytest.mark.parametrize(
    "spoil",
    [
        "alter table memory.node_history no force row level security",
        "alter table memory.vectors disable row level security",
        "create table memory.added (user_id text)",
    ],
)
async def test_a_table_without_a_forced_policy_is_refused(
    postgres: Database, admin: asyncpg.Connection, spoil: str
) -> None:
    await admin.execute(spoil)
    with pytest.raises(RoleRefused, match="row-level security"):
        await handshake(postgres.settings)


@pytest.mark.parametrize(
    "policy",
    [
        "using (true)",
        "using (user_id is not null) with check (true)",
        "using (user_id = current_setting('memory.user_id', true)) with check (true)",
        "using (coalesce(current_setting('memory.user_id', true), '') in (user_id, ''))",
    ],
)
async def test_a_policy_that_lets_too_much_through_is_found_by_trying(
    postgres: Database, admin: asyncpg.Connection, policy: str
) -> None:
    for table in ("heads", "nodes"):
        await admin.execute(f"drop policy tenant on memory.{table}; create policy tenant on memory.{table} {policy}")
    with pytest.raises(RoleRefused, match="another"):
        await handshake(postgres.settings)


async def test_a_policy_that_lets_nothing_through_is_found_by_trying(
    postgres: Database, admin: asyncpg.Connection
) -> None:
    await admin.execute(
        "drop policy tenant on memory.nodes; create policy tenant on memory.nodes using (false) with check (true)"
    )
    with pytest.raises(RoleRefused, match="own row"):
        await handshake(postgres.settings)


async def test_a_right_that_was_taken_away_is_a_matter_of_setup(postgres: Database, admin: asyncpg.Connection) -> None:
    await admin.execute("revoke insert on memory.nodes from hybrid_memory_app")
    with pytest.raises(Misconfigured):
        await handshake(postgres.settings)


async def test_commits_that_do_not_wait_for_the_disk_are_refused(postgres: Database, admin: asyncpg.Connection) -> None:
    await admin.execute(f"alter role {APP_ROLE} in database {postgres.name} set synchronous_commit = off")
    with pytest.raises(Misconfigured, match="synchronous_commit"):
        await handshake(postgres.settings)


async def test_a_database_without_the_schema_names_the_command_to_run(
    postgres: Database, admin: asyncpg.Connection
) -> None:
    await admin.execute("drop schema memory cascade")
    with pytest.raises(SchemaMismatch) as refused:
        await handshake(postgres.settings)
    assert refused.value.fix == "hybrid-memory migrate"
    await admin.execute("create schema memory")
    with pytest.raises(SchemaMismatch) as refused:
        await handshake(postgres.settings)
    assert refused.value.fix == "hybrid-memory migrate --adopt"
