"""What an administrator asks of the durable tier: about all users at once, or about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString, cast

import asyncpg

from hybrid_memory.errors import RoleRefused
from hybrid_memory.graph import JsonValue, MemoryNode, NodeId, Relationship, RelationshipId
from hybrid_memory.jsontext import decode
from hybrid_memory.postgres.database import Connection, Link, PostgresSettings, Purpose, transaction

# A scan of all users' nodes takes its time; a person waits no longer.
_DEADLINE: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLine:
    """One user's head: live rows, the revision it stands at, and below which all was erased (0: never)."""

    user_id: str
    nodes: int
    relationships: int
    entities: int
    rev: int
    erased_rev: int
    created_at: datetime
    last_activity: datetime

    @property
    def erased(self) -> bool:
        """Nothing was stored since the user was erased."""
        return self.erased_rev > 0 and self.rev == self.erased_rev


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCount:
    """How many live nodes of one type a user has."""

    user_id: str
    context_type: str
    nodes: int
    latest: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How often a node's content was replaced, and how often content lost a conflict."""

    replaced: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which live nodes are looked for: those that meet all that is given, best match first, then newest first.

    `path` leads into the content; with `equals` (JSON text) the value there must be equal, else just be there.
    """

    limit: int
    user_id: str | None = None
    node_id: NodeId | None = None
    system: str | None = None
    text: str | None = None
    path: tuple[str, ...] | None = None
    equals: str | None = None


class Administration:
    """Reads across users, over an administrator's connection; one user's rows also over the application's.

    Nothing is ever written. Every method raises `RoleRefused` when the role cannot see what is asked for: all users,
    unless one is named, which only a superuser or a role with BYPASSRLS can.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._link = Link(settings, Purpose(name="admin", deadline=_DEADLINE, statement_timeout=_DEADLINE))

    _USERS: Final[LiteralString] = """
        select h.user_id, h.nodes, h.relationships, coalesce(e.entities, 0) as entities, h.rev, h.erased_rev,
               h.created_at, h.last_activity
        from memory.heads h
        left join (
            select n.user_id, count(*) as entities
            from memory.nodes n
            where n.entity_system is not null and n.deleted_at is null
            group by n.user_id
        ) e on e.user_id = h.user_id
        order by h.last_activity desc, h.user_id
    """

    async def users(self) -> list[UserLine]:
        """All users, the one active last first."""
        return [UserLine(**dict(record)) for record in await self._read(None, self._USERS)]

    _COUNTS: Final[LiteralString] = """
        select n.user_id, n.context_type, count(*) as nodes, max(n.created_at) as latest
        from memory.nodes n
        where n.deleted_at is null and (n.expires_at is null or n.expires_at > now())
          and ($1::text is null or n.user_id = $1)
        group by n.user_id, n.context_type
        order by n.user_id, nodes desc, n.context_type
    """

    async def counts(self, user_id: str | None) -> list[TypeCount]:
        """How many live nodes there are of each user and type."""
        return [TypeCount(**dict(record)) for record in await self._read(user_id, self._COUNTS, user_id)]

    # What is not asked for is null, which the planner sees: each question gets the plan it would have by itself. The
    # words are read from the text when they are asked for: kept ready, they would cost every write more than all the
    # rest of it (ARCHITECTURE.md). Only the head of a long text is read, as a tsvector may not pass 1 MB.
    _NODES: Final[LiteralString] = """
        select n.user_id, n.node_id::text, n.namespace, n.key, n.context_type, n.content::text,
               n.summary, n.tags, n.importance::text::float8 as importance, n.entity_system, n.entity_id,
               n.entity_type, n.session_id, n.source_agent, n.created_at, n.updated_at, n.expires_at, n.rev
        from memory.nodes n
        where n.deleted_at is null and (n.expires_at is null or n.expires_at > now())
          and ($1::text is null or n.user_id = $1)
          and ($2::uuid is null or n.node_id = $2)
          and ($3::text is null or n.entity_system = $3)
          and ($4::text is null
               or to_tsvector('english', left(n.text_content, 100000)) @@ websearch_to_tsquery('english', $4))
          and ($5::text[] is null or n.content #> $5 is not null)
          and ($6::jsonb is null or (n.content #> $5)::jsonb = $6)
        order by case when $4 is null then 0
                 else ts_rank(to_tsvector('english', left(n.text_content, 100000)),
                              websearch_to_tsquery('english', $4)) end desc,
                 n.created_at desc, n.user_id, n.node_id
        limit $7
    """

    async def nodes(self, wanted: Wanted) -> list[MemoryNode]:
        """The nodes wanted; text is read as a web search is, with "quoted phrases", or, and -without."""
        path = None if wanted.path is None else list(wanted.path)
        found = await self._read(
            wanted.user_id,
            self._NODES,
            wanted.user_id,
            wanted.node_id,
            wanted.system,
            wanted.text,
            path,
            wanted.equals,
            wanted.limit,
        )
        return [_node(record) for record in found]

    _RELATIONSHIPS: Final[LiteralString] = """
        select r.user_id, r.relationship_id::text, r.source_id::text, r.target_id::text, r.relationship_type,
               r.weight, r.properties::text, r.valid_from, r.valid_to, r.created_at, r.updated_at, r.rev
        from memory.relationships r
        where r.user_id = $1 and (r.source_id = $2::uuid or r.target_id = $2::uuid) and r.deleted_at is null
        order by r.created_at, r.relationship_id
    """

    async def relationships(self, user_id: str, node_id: NodeId) -> list[Relationship]:
        """The live relationships at a node, oldest first."""
        return [_relationship(one) for one in await self._read(user_id, self._RELATIONSHIPS, user_id, node_id)]

    _HISTORY: Final[LiteralString] = """
        select count(*) filter (where d.reason = 'replaced') as replaced,
               count(*) filter (where d.reason = 'lost') as lost
        from memory.node_history d
        where d.user_id = $1 and d.node_id = $2::uuid
    """

    async def history(self, user_id: str, node_id: NodeId) -> History:
        """What is kept of a node's past."""
        (record,) = await self._read(user_id, self._HISTORY, user_id, node_id)
        return History(replaced=record["replaced"], lost=record["lost"])

    async def role_exists(self, role: str) -> bool:
        """Whether the server has a role of that name."""

        async def work(connection: Connection) -> bool:
            return await connection.fetchval("select 1 from pg_roles r where r.rolname = $1", role) is not None

        return await self._link.run(work)

    _SEES_ALL: Final[LiteralString] = """
        select r.rolsuper or r.rolbypassrls from pg_roles r where r.rolname = current_user
    """

    async def sees_all(self) -> bool:
        """Whether the role is shown every user's rows."""

        async def work(connection: Connection) -> bool:
            return await connection.fetchval(self._SEES_ALL) is True

        return await self._link.run(work)

    async def close(self) -> None:
        """Let go of the server."""
        await self._link.close()

    async def _read(self, user_id: str | None, statement: LiteralString, *values: object) -> Sequence[asyncpg.Record]:
        """Run one statement, as that user if one is named, else as somebody who must be able to see them all."""

        async def work(connection: Connection) -> Sequence[asyncpg.Record]:
            async with transaction(connection, "begin read only"):
                if user_id is not None:
                    await connection.execute("select set_config('memory.user_id', $1, true)", user_id)
                elif await connection.fetchval(self._SEES_ALL) is not True:
                    # To such a role the tables would look empty, which is no answer.
                    raise RoleRefused(
                        "this role sees one user at a time",
                        fix="give an administrator's DSN (a superuser, or a role with BYPASSRLS), or name a user",
                    )
                return await connection.fetch(statement, *values)

        return await self._link.run(work)


def _node(record: asyncpg.Record) -> MemoryNode:
    values: dict[str, Any] = dict(record)
    return MemoryNode(
        node_id=NodeId(values.pop("node_id")),
        content=_object(values.pop("content")),
        tags=tuple(values.pop("tags")),
        **values,
    )


def _relationship(record: asyncpg.Record) -> Relationship:
    values: dict[str, Any] = dict(record)
    return Relationship(
        relationship_id=RelationshipId(values.pop("relationship_id")),
        source_id=NodeId(values.pop("source_id")),
        target_id=NodeId(values.pop("target_id")),
        properties=_object(values.pop("properties")),
        **values,
    )


def _object(text: str) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", decode(text))
