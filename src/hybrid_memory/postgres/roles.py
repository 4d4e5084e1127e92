"""The start-up self-test: whether this server, schema and role may be trusted with tenants' data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

import asyncpg

from hybrid_memory.errors import Misconfigured, ReadOnly, RoleRefused, SchemaMismatch
from hybrid_memory.migrations import Recorded, load, plan
from hybrid_memory.postgres.database import Connection

_MIGRATE: Final = "hybrid-memory migrate"
_OLDEST_SERVER: Final = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a server offers: its version as a number (180004 is 18.4), and the pgvector our schema can use."""

    server_version: int
    pgvector: str | None


_FACTS: Final[LiteralString] = """
    select pg_is_in_recovery() as in_recovery,
           current_setting('server_version_num')::integer as server_version,
           current_setting('fsync') = 'on' as fsync,
           current_setting('synchronous_commit') <> 'off' as synchronous_commit,
           to_regnamespace('memory') is not null as has_schema,
           -- Looked up in the catalogue, because to_regclass fails where the schema is closed to us.
           exists (select from pg_class c
                   where c.relnamespace = to_regnamespace('memory') and c.relname = 'migrations') as has_migrations,
           exists (select from pg_roles r where r.rolsuper and pg_has_role(session_user, r.oid, 'member'))
               as superuser,
           exists (select from pg_roles r where r.rolbypassrls and pg_has_role(session_user, r.oid, 'member'))
               as bypasses,
           exists (select from pg_roles r
                   where r.rolname = 'hybrid_memory_owner' and pg_has_role(session_user, r.oid, 'member'))
               as owner,
           (select count(*) from pg_class c
            where c.relnamespace = to_regnamespace('memory') and c.relkind in ('r', 'p', 'v', 'm')
              and pg_has_role(session_user, c.relowner, 'member')) as owned,
           exists (select from pg_namespace n
                   where n.nspname = 'memory' and has_schema_privilege(n.oid, 'create')) as creates,
           (select count(*) from pg_class c
            where c.relnamespace = to_regnamespace('memory') and c.relkind in ('r', 'p')
              and c.relname <> 'migrations' and not (c.relrowsecurity and c.relforcerowsecurity)) as unguarded,
           (select count(*) from pg_class c
            where c.relnamespace = to_regnamespace('memory') and c.relkind in ('r', 'p')
              and has_table_privilege(c.oid, 'truncate')) as truncates,
           (select e.extversion from pg_extension e
            join pg_class c on c.relnamespace = to_regnamespace('memory') and c.relname = 'vectors'
            join pg_attribute a on a.attrelid = c.oid and a.attname = 'vector'
            where e.extname = 'vector') as pgvector
"""

_RECORDED: Final[LiteralString] = "select version, name, checksum from memory.migrations order by version"

# As tenant A: write, read back, and fail to write for B. As B and as nobody: see nothing. Then nothing of it stays.
_PROBE: Final[LiteralString] = """
    begin;
    do $$
    declare
        v_one text := 'canary-' || gen_random_uuid();
        v_other text := 'canary-' || gen_random_uuid();
        v_id uuid := gen_random_uuid();
        v_seen bigint;
    begin
        perform set_config('memory.user_ids', '', true), set_config('memory.user_id', v_one, true);
        insert into memory.heads (user_id) values (v_one);
        insert into memory.nodes
            (user_id, node_id, namespace, context_type, content, row_hash, text_content, tags, importance, created_at,
             updated_at, stamp, rev, base, writer, writer_seq)
        values (v_one, v_id, 'canary', 'canary', '{}', '', '', '{}', 0, now(), now(), 0, 0, 0, v_id, 0);
        select count(*) into v_seen from memory.nodes n where n.user_id = v_one;
        if v_seen <> 1 then
            raise exception 'own row not seen' using errcode = 'HM021';
        end if;
        begin
            insert into memory.heads (user_id) values (v_other);
            raise exception 'wrote for another' using errcode = 'HM020';
        exception when insufficient_privilege then
            null;
        end;
        perform set_config('memory.user_id', v_other, true);
        select count(*) into v_seen
        from (select n.user_id from memory.nodes n union all select h.user_id from memory.heads h) as rows;
        if v_seen <> 0 then
            raise exception 'saw another' using errcode = 'HM020';
        end if;
        perform set_config('memory.user_id', '', true);
        select count(*) into v_seen
        from (select n.user_id from memory.nodes n union all select h.user_id from memory.heads h) as rows;
        if v_seen <> 0 then
            raise exception 'saw another' using errcode = 'HM020';
        end if;
    end
    $$;
    rollback
"""


async def check_server(connection: Connection) -> Capabilities:
    """Check everything that tenants' isolation and durability rest upon; three round trips.

    Raises `ReadOnly` on a standby, `RoleRefused`, `SchemaMismatch` or `Misconfigured`: then nothing may be sent.
    """
    (facts,) = await connection.fetch(_FACTS)
    _check_durability(facts)
    _check_role(facts)
    if not facts["has_migrations"]:
        there = facts["has_schema"]
        raise SchemaMismatch(
            "schema memory is not ours" if there else "schema memory is missing",
            fix=f"{_MIGRATE} --adopt" if there else _MIGRATE,
        )
    recorded = [Recorded(**dict(record)) for record in await connection.fetch(_RECORDED)]
    if pending := plan(recorded, load("postgres")):
        raise SchemaMismatch(
            f"the database lacks schema version {pending[0].version} ({pending[0].name})", fix=_MIGRATE
        )
    if facts["unguarded"]:
        raise RoleRefused(f"{facts['unguarded']} tables lack forced row-level security", fix=_MIGRATE)
    await _probe(connection)
    return Capabilities(server_version=facts["server_version"], pgvector=facts["pgvector"])


def _check_durability(facts: asyncpg.Record) -> None:
    if facts["in_recovery"]:
        raise ReadOnly("the server is a standby", fix="name the primary, or wait until it is promoted")
    if facts["server_version"] < _OLDEST_SERVER:
        raise Misconfigured("the server is older than Postgres 15", fix="use Postgres 15 or newer")
    for setting in ("fsync", "synchronous_commit"):
        if not facts[setting]:
            raise Misconfigured(f"the server runs with {setting} off: a commit could be lost", fix=f"{setting} = on")


def _check_role(facts: asyncpg.Record) -> None:
    for fact, what in (
        ("superuser", "is a superuser (or can become one)"),
        ("bypasses", "bypasses row-level security (or can become a role that does)"),
        ("owner", "is a member of hybrid_memory_owner"),
        ("owned", "owns tables in schema memory"),
        ("creates", "may create objects in schema memory"),
        ("truncates", "may truncate tables in schema memory"),
    ):
        if facts[fact]:
            raise RoleRefused(
                f"the application's role {what}: tenants would not be kept apart",
                fix="hybrid-memory migrate --app-role ROLE, and connect as that role",
            )


async def _probe(connection: Connection) -> None:
    try:
        await connection.execute(_PROBE)
    except asyncpg.PostgresError as failed:
        if failed.sqlstate == "HM020":
            raise RoleRefused("one tenant could see or write another's rows", fix=_MIGRATE) from None
        if failed.sqlstate == "HM021":
            raise RoleRefused("a tenant could not see its own row", fix=_MIGRATE) from None
        raise
