"""No user's rows are seen, changed or guessed by another: found out from the catalogue, so that a new table counts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from hybrid_memory.ports import DurableTier
from hybrid_memory.postgres.database import Link
from hybrid_memory.postgres.durable_tier import PostgresDurableTier
from tests.plugins.author import Author
from tests.plugins.postgres import Database, connected

RELATIONS = """
    select c.relname, c.relkind::text as kind from pg_class c
    where c.relnamespace = 'memory'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
      and c.relname <> 'migrations'
    order by c.relname
"""
TABLES = {
    "heads",
    "nodes",
    "relationships",
    "vectors",
    "node_history",
    "relationship_history",
    "applied",
    "access_log",
    "access_log_rest",
}


@pytest.fixture
async def application(postgres: Database, durable_tier: PostgresDurableTier) -> AsyncIterator[asyncpg.Connection]:
    """The application's connection to a database in which alice has rows everywhere."""
    await fill(durable_tier, "alice")
    async with connected(postgres.direct_dsn) as connection:
        await be(connection, "alice")
        await connection.execute(
            """
            insert into memory.vectors (user_id, node_id, model, dimensions, embedding, text_hash, rev)
            select user_id, node_id, 'm', 1, decode('00000000', 'hex'), 'h', 1 from memory.nodes limit 1;
            insert into memory.access_log (user_id, operation, success) values ('alice', 'read', true)
            """
        )
        yield connection


async def fill(tier: DurableTier, user_id: str) -> None:
    author = Author()
    one, two = author.store(user_id), author.store(user_id)
    await tier.apply(author.opening, [one, two, author.relate(user_id, one.entity_id, two.entity_id)], {})
    await tier.apply(author.opening, [author.store(user_id, node_id=None, base=0)], {})
    third = author.store(user_id)
    await tier.apply(author.opening, [third], {})
    await tier.apply(author.opening, [author.bury(user_id, third)], {})
    other = Author()
    lost = other.store(user_id, node_id=author.node_id(one), text="x")
    await tier.decide(other.opening, [lost, other.relate(user_id, one.entity_id, third.entity_id)], 0)


async def be(connection: asyncpg.Connection, user_id: str) -> None:
    """For a whole session, as our code never does: here it makes every statement a statement of that user."""
    await connection.execute("select set_config('memory.user_id', $1, false)", user_id)


async def test_every_relation_shows_its_owner_rows_and_nobody_else_any(
    application: asyncpg.Connection, admin: asyncpg.Connection
) -> None:
    relations = [row["relname"] for row in await admin.fetch(RELATIONS)]
    assert set(relations) >= TABLES
    for relation in relations:
        count = f"select count(*) from memory.{relation}"
        if relation in {"access_log_rest", "openings"}:
            # A partition is read through its parent only, and what is nobody's through functions.
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await application.fetchval(count)
            continue
        await be(application, "alice")
        if relation != "entities":
            assert await application.fetchval(count) > 0, relation
        for stranger in ("bob", "", "alice,bob", "{alice}"):
            await be(application, stranger)
            assert await application.fetchval(count) == 0, (relation, stranger)


async def test_a_list_of_users_shows_those_users_and_no_other(
    application: asyncpg.Connection, durable_tier: PostgresDurableTier
) -> None:
    await fill(durable_tier, "bob")
    await fill(durable_tier, "carol")
    await be(application, "")
    await application.execute("select set_config('memory.user_ids', $1::text[]::text, false)", ["bob", 'al"ice,alice'])
    users = await application.fetch("select distinct user_id from memory.nodes")
    assert [row["user_id"] for row in users] == ["bob"]


async def test_a_stranger_can_change_and_delete_nothing(
    application: asyncpg.Connection, admin: asyncpg.Connection
) -> None:
    await be(application, "bob")
    for relation in sorted(TABLES - {"access_log", "access_log_rest"}):
        before = await admin.fetchval(f"select count(*) from memory.{relation}")
        assert await application.execute(f"update memory.{relation} set user_id = 'bob'") == "UPDATE 0"
        assert await application.execute(f"delete from memory.{relation}") == "DELETE 0"
        assert await admin.fetchval(f"select count(*) from memory.{relation}") == before
    assert await application.execute("delete from memory.access_log") == "DELETE 0"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await application.execute("update memory.access_log set success = false")


async def test_nobody_writes_for_another_user(application: asyncpg.Connection, admin: asyncpg.Connection) -> None:
    await be(application, "alice")
    # A row of one's own is copied under another name, in every table.
    for relation in sorted(TABLES - {"access_log_rest"}):
        columns = [
            row["attname"]
            for row in await admin.fetch(
                """
                select attname::text from pg_attribute
                where attrelid = $1::text::regclass and attnum > 0 and attgenerated = '' and not attisdropped
                """,
                f"memory.{relation}",
            )
        ]
        chosen = ", ".join("'bob'" if column == "user_id" else column for column in columns)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await application.execute(
                f"insert into memory.{relation} ({', '.join(columns)}) select {chosen} from memory.{relation} limit 1"
            )
        if relation != "access_log":
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await application.execute(f"update memory.{relation} set user_id = 'bob'")


async def test_a_payload_naming_another_user_is_refused(
    application: asyncpg.Connection, durable_tier: PostgresDurableTier, admin: asyncpg.Connection
) -> None:
    del application
    author = Author()
    forged = author.store("alice", text="forged")
    with pytest.raises(Exception, match="42501"):
        await durable_tier.apply(author.opening, [author.renamed(forged, "mallory")], {})
    assert await admin.fetchval("select count(*) from memory.nodes where content->>'text' = 'forged'") == 0


async def test_the_tenant_is_forgotten_when_a_call_has_ended(
    postgres: Database, durable_tier: PostgresDurableTier
) -> None:
    async with connected(postgres.direct_dsn) as connection:
        await fill(durable_tier, "alice")
        for call in (
            "memory.heads_of('{alice}')",
            "memory.head_of('alice')",
            "memory.ensure_head('alice')",
            "memory.open_user(gen_random_uuid(), 'alice')",
            "memory.digest('alice', now())",
        ):
            assert await connection.fetch(f"select * from {call}")
            assert await connection.fetchval("select count(*) from memory.heads") == 0
    # As little on the connection by which it was written.
    link: Link = vars(durable_tier)["_link"]
    seen = await link.run(lambda connection: connection.fetchval("select count(*) from memory.heads"))
    assert seen == 0


async def test_user_id_comes_first_in_every_key_and_ordered_index(admin: asyncpg.Connection) -> None:
    # Of the openings of files nothing is a user's.
    offending = await admin.fetch(
        """
        select c.relname, i.indexrelid::regclass::text as found
        from pg_index i
        join pg_class c on c.oid = i.indrelid
        join pg_class x on x.oid = i.indexrelid
        join pg_am m on m.oid = x.relam
        join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
        where c.relnamespace = 'memory'::regnamespace and c.relname not in ('migrations', 'openings')
          and m.amname = 'btree' and a.attname <> 'user_id'
        union all
        select c.relname, k.conname
        from pg_constraint k
        join pg_class c on c.oid = k.conrelid
        join pg_attribute a on a.attrelid = c.oid and a.attnum = k.conkey[1]
        where c.relnamespace = 'memory'::regnamespace and c.relname not in ('migrations', 'openings')
          and k.contype in ('p', 'u', 'f', 'x') and a.attname <> 'user_id'
        """
    )
    assert offending == []


async def test_every_table_forces_its_policy_and_every_view_asks_as_its_reader(admin: asyncpg.Connection) -> None:
    offending = await admin.fetch(
        """
        select c.relname from pg_class c
        where c.relnamespace = 'memory'::regnamespace and c.relname <> 'migrations'
          and case c.relkind
              when 'v' then not coalesce('security_invoker=true' = any (c.reloptions), false)
              when 'm' then true
              else c.relkind in ('r', 'p') and (
                  not (c.relrowsecurity and c.relforcerowsecurity)
                  or (select count(*) from pg_policy p where p.polrelid = c.oid) <> 1)
              end
        """
    )
    assert offending == []


async def test_the_application_may_do_no_more_than_it_needs(admin: asyncpg.Connection) -> None:
    offending = await admin.fetch(
        """
        select c.relname, p.name
        from pg_class c
        cross join (values ('truncate'), ('references'), ('trigger')) as p (name)
        where c.relnamespace = 'memory'::regnamespace and c.relkind in ('r', 'p', 'v')
          and has_table_privilege('memory_app', c.oid, p.name)
        union all
        select c.relname, p.name
        from pg_class c
        cross join (values ('insert'), ('update'), ('delete')) as p (name)
        where c.relnamespace = 'memory'::regnamespace and (c.relkind = 'v' or c.relname = 'migrations')
          and has_table_privilege('memory_app', c.oid, p.name)
        """
    )
    assert offending == []


async def test_functions_are_the_owners_and_pinned_and_not_for_everyone(admin: asyncpg.Connection) -> None:
    offending = await admin.fetch(
        """
        select p.proname from pg_proc p
        where p.pronamespace = 'memory'::regnamespace
          and (pg_get_userbyid(p.proowner) <> 'hybrid_memory_owner'
               or has_function_privilege('public', p.oid, 'execute')
               -- A body written as one RETURN is bound when it is made and needs no path; `head_of`, which has no
               -- more rights than its caller, writes every name in full.
               or (p.prosqlbody is null and (p.prosecdef or p.proname <> 'head_of')
                   and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)))
        """
    )
    assert offending == []
