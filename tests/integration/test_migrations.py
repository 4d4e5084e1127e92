"""Bringing databases to this version's schema, and refusing those it does not understand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from hybrid_memory import migrations
from hybrid_memory.errors import DurableTierError, Misconfigured, RoleRefused, SchemaMismatch
from hybrid_memory.migrations import Migration, Recorded, plan
from hybrid_memory.postgres import migrator as migrator_module
from hybrid_memory.postgres.database import PostgresSettings
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from hybrid_memory.postgres.migrator import Migrator
from tests.plugins.author import Author
from tests.plugins.postgres import APP_ROLE, Database, Server, connected, prepare

pytestmark = pytest.mark.direct("migrations go directly")

OUR_ROLES = ("hybrid_memory_owner", "hybrid_memory_app")


def made(version: int, sql: str = "select 1", name: str = "what") -> Migration:
    return Migration(version=version, name=name, sql=sql, checksum=hashlib.sha256(sql.encode()).hexdigest())


def migrator(database: Database, role: str = "postgres") -> Migrator:
    return Migrator(PostgresSettings(dsn=database.dsn_of(role)))


def shipping(monkeypatch: pytest.MonkeyPatch, *shipped: Migration) -> None:
    def load(_folder: str) -> tuple[Migration, ...]:
        return shipped

    monkeypatch.setattr(migrator_module, "load", load)


@pytest.mark.parametrize("folder", ["postgres", "sqlite"])
def test_shipped_migrations_are_numbered_without_a_gap(folder: str) -> None:
    loaded = migrations.load("postgres" if folder == "postgres" else "sqlite")
    assert [one.version for one in loaded] == list(range(1, len(loaded) + 1))
    assert all(one.checksum == hashlib.sha256(one.sql.encode()).hexdigest() for one in loaded)


@pytest.mark.parametrize(("recorded", "needed"), [((), [1, 2, 3]), ((1,), [2, 3]), ((1, 2), [3]), ((2, 1, 3), [])])
def test_what_is_missing_is_planned_in_order(recorded: Sequence[int], needed: list[int]) -> None:
    available = [made(1), made(2), made(3)]
    assert [one.version for one in plan([made(version).recorded for version in recorded], available)] == needed


@pytest.mark.parametrize(
    "recorded",
    [
        pytest.param([made(1).recorded, made(2).recorded, made(3).recorded], id="newer than the code"),
        pytest.param([made(2).recorded], id="one is missing before it"),
        pytest.param([Recorded(version=1, name="what", checksum="other")], id="another text"),
    ],
)
def test_a_schema_that_is_not_understood_is_refused(recorded: Sequence[Recorded]) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        plan(recorded, [made(1), made(2)])
    assert refused.value.fix


async def test_a_new_database_is_migrated_once_and_then_left_alone(empty_postgres: Database) -> None:
    told: list[int] = []
    applied = await migrator(empty_postgres).migrate(progress=lambda one: told.append(one.version))
    assert told == [one.version for one in applied] == [one.version for one in migrations.load("postgres")]
    assert await migrator(empty_postgres).migrate() == ()
    assert await migrator(empty_postgres).pending() == ()


async def test_the_application_works_on_a_migrated_database(empty_postgres: Database) -> None:
    await prepare(empty_postgres)
    tier, author = PostgresDurableTier(empty_postgres.settings), Author()
    await tier.handshake(author.opening)
    one, two = author.store("u"), author.store("v")
    await tier.apply(author.opening, [one, two], {})
    await tier.decide(author.opening, [author.store("u"), author.bury("u", one)], 0)
    assert await tier.erase(author.opening, author.erase("v")) == 2
    has_pgvector = empty_postgres.server.name == "embedded"
    assert (tier.capabilities.pgvector is not None) == has_pgvector
    await tier.close()


@pytest.fixture
async def without_roles(any_server: Server) -> AsyncIterator[None]:
    """The roles belong to the cluster and other tests have made them; here they are out of the way for a while."""
    async with connected(any_server.admin_dsn()) as admin:
        there = [role for role in OUR_ROLES if await admin.fetchval("select to_regrole($1) is not null", role)]
        for role in there:
            await admin.execute(f"alter role {role} rename to parked_{role}")
        yield
        for role in OUR_ROLES:
            await admin.execute(f"drop role {role}")
        for role in there:
            await admin.execute(f"alter role parked_{role} rename to {role}")


async def test_an_administrator_without_superuser_can_make_all_and_let_the_application_in(
    without_roles: None, empty_postgres: Database
) -> None:
    del without_roles
    name = f"administrator_{empty_postgres.name}"
    async with connected(empty_postgres.admin_dsn) as superuser:
        await superuser.execute(f"create role {name} login createrole")
        await superuser.execute(f"alter database {empty_postgres.name} owner to {name}")
    await migrator(empty_postgres, name).migrate()
    await migrator(empty_postgres, name).grant_login(f"app_{empty_postgres.name}", "it's \\ a secret")
    tier = PostgresDurableTier(PostgresSettings(dsn=empty_postgres.dsn_of(f"app_{empty_postgres.name}")))
    await tier.handshake(Author().opening)
    await tier.close()


async def test_two_at_once_apply_each_migration_once(empty_postgres: Database) -> None:
    applied = await asyncio.gather(*(migrator(empty_postgres).migrate() for _ in range(3)))
    assert sorted(len(one) for one in applied) == [0, 0, len(migrations.load("postgres"))]


async def test_a_migration_that_fails_leaves_nothing_and_no_record(
    postgres: Database, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = migrations.load("postgres")
    last = len(shipped) + 1
    broken = made(last, "create table memory.half (user_id text); select 1 / 0;")
    shipping(monkeypatch, *shipped, broken)
    with pytest.raises(DurableTierError):
        await migrator(postgres).migrate()
    assert await admin.fetchval("select to_regclass('memory.half')") is None
    assert await admin.fetchval("select max(version) from memory.migrations") == last - 1
    shipping(monkeypatch, *shipped, made(last, "create table memory.half (user_id text);"))
    assert [one.version for one in await migrator(postgres).migrate()] == [last]
    assert await admin.fetchval("select max(version) from memory.migrations") == last


async def test_a_migrator_killed_half_way_leaves_whole_steps_and_lets_the_next_one_in(
    postgres: Database, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = migrations.load("postgres")
    last = len(shipped) + 1
    step = made(last, "create table memory.whole (user_id text);")
    slow = made(last + 1, "create table memory.half (user_id text); select pg_advisory_xact_lock(77);")
    shipping(monkeypatch, *shipped, step, slow)
    await admin.execute("select pg_advisory_lock(77)")
    migrating = asyncio.create_task(migrator(postgres).migrate())
    waiting = "select pid from pg_locks where locktype = 'advisory' and objid = 77 and not granted"
    async with asyncio.timeout(10):
        while (pid := await admin.fetchval(waiting)) is None:
            assert not migrating.done()
    await admin.execute("select pg_terminate_backend($1)", pid)
    with pytest.raises(DurableTierError):
        await migrating
    assert await admin.fetchval("select to_regclass('memory.whole')") is not None
    assert await admin.fetchval("select to_regclass('memory.half')") is None
    shipping(monkeypatch, *shipped, step)
    assert await migrator(postgres).migrate() == ()


async def test_a_database_newer_than_the_code_is_refused(postgres: Database, admin: asyncpg.Connection) -> None:
    await admin.execute("insert into memory.migrations (version, name, checksum) values (9999, 'later', 'x')")
    with pytest.raises(SchemaMismatch):
        await migrator(postgres).migrate()
    tier = PostgresDurableTier(postgres.settings)
    with pytest.raises(SchemaMismatch, match="9999"):
        await tier.handshake(Author().opening)
    await tier.close()


async def test_a_database_older_than_the_code_is_refused_with_the_way_out(
    postgres: Database, admin: asyncpg.Connection
) -> None:
    await admin.execute("delete from memory.migrations where version = (select max(version) from memory.migrations)")
    tier = PostgresDurableTier(postgres.settings)
    with pytest.raises(SchemaMismatch) as refused:
        await tier.handshake(Author().opening)
    assert refused.value.fix == "hybrid-memory migrate"
    await tier.close()


async def test_a_schema_of_another_system_is_refused_and_with_adopt_set_aside(empty_postgres: Database) -> None:
    async with connected(empty_postgres.admin_dsn) as admin:
        await admin.execute("create schema memory; create table memory.nodes (node_id uuid, user_id text)")
        await admin.execute("insert into memory.nodes values (gen_random_uuid(), 'u')")
        for attempt in (migrator(empty_postgres).migrate, migrator(empty_postgres).pending):
            with pytest.raises(SchemaMismatch) as refused:
                await attempt()
            assert "--adopt" in refused.value.fix
        assert await admin.fetchval("select count(*) from memory.nodes") == 1
        await migrator(empty_postgres).migrate(adopt=True)
        assert await admin.fetchval("select count(*) from memory_legacy.nodes") == 1
        assert await admin.fetchval("select count(*) from memory.nodes") == 0


async def test_the_way_in_is_not_opened_to_a_role_that_could_see_all(postgres: Database) -> None:
    for role in ("postgres", "hybrid_memory_owner"):
        with pytest.raises(RoleRefused):
            await migrator(postgres).grant_login(role)


async def test_a_password_set_for_the_application_is_taken_as_it_is(
    postgres: Database, admin: asyncpg.Connection
) -> None:
    await migrator(postgres).grant_login(APP_ROLE, "p'ass; drop role postgres; --")
    stored = await admin.fetchval("select rolpassword from pg_authid where rolname = $1", APP_ROLE)
    assert stored.startswith("SCRAM-SHA-256$")
    pinned = await admin.fetchval("select rolconfig from pg_roles where rolname = $1", APP_ROLE)
    assert pinned == ["search_path=pg_catalog, pg_temp"]


async def test_a_role_without_the_right_to_migrate_is_told_so(postgres: Database) -> None:
    with pytest.raises(Misconfigured):
        await migrator(postgres, APP_ROLE).migrate()


async def test_a_month_of_the_audit_log_is_made_on_demand_and_guarded_like_the_rest(
    postgres: Database, admin: asyncpg.Connection
) -> None:
    async with connected(postgres.direct_dsn) as application:
        month = "select memory.ensure_access_log_month((current_date + 40)::date)"
        name = await application.fetchval(month)
        assert await application.fetchval(month) == name
        with pytest.raises(asyncpg.PostgresError) as refused:
            await application.fetchval("select memory.ensure_access_log_month('1999-01-01')")
        assert refused.value.sqlstate == "HM010"
    guarded = "select relrowsecurity and relforcerowsecurity from pg_class where oid = $1::text::regclass"
    assert await admin.fetchval(guarded, f"memory.{name}")
