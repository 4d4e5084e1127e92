"""The handle bound to one user: what an agent reads and writes all day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import islice
from typing import TypeAlias, cast

from hybrid_memory import filters, validation
from hybrid_memory.access import Access
from hybrid_memory.changes import NodeChange, RelationshipChange, Rule, searchable_text
from hybrid_memory.clock import entity_node_id, keyed_node_id, relationship_id
from hybrid_memory.errors import InvalidInput
from hybrid_memory.graph import (
    Digest,
    Direction,
    Freshness,
    Hit,
    JsonInput,
    MemoryNode,
    Neighbour,
    NodeId,
    Page,
    Receipt,
)
from hybrid_memory.jsontext import decode
from hybrid_memory.messages import Listing

Staleness: TypeAlias = "float | timedelta | None"

DEFAULT_WAIT_SECONDS = 0.25
DEFAULT_BARRIER_SECONDS = 5.0
ENTITY_CONTEXT = "domain_entity"
MAX_DEPTH = 8
# A query this long is a pasted document; only its first words count anyway.
MAX_QUERY_BYTES = 2**20
# A relationship's or a memory's type is one of a few; so many names at once are a mistake.
MAX_NAMES = 1000
DIRECTIONS = ("out", "in", "both")
ORDERS = ("created_at", "-created_at", "updated_at", "-updated_at", "importance", "-importance")


class UserMemory:
    """One user's memory. Reads are local and see this process's own writes at once; writes are queued durably.

    Every method raises `InvalidInput` naming the field before anything is stored, and `Closed` once the manager is
    closed. A write that raises stored nothing, unless it raised `StorageFailed` or was cancelled: then it is either
    completely there or not at all.
    """

    def __init__(self, user_id: str, access: Access) -> None:
        self.user_id = user_id
        self._access = access
        self._hot = access.hot
        self._check_open = access.liveness.check

    async def store(
        self,
        content: Mapping[str, JsonInput],
        *,
        context_type: str,
        node_id: str | None = None,
        namespace: str = "default",
        key: str | None = None,
        tags: Iterable[str] = (),
        summary: str | None = None,
        importance: float | None = None,
        ttl: timedelta | None = None,
        expected_rev: int | None = None,
        wait: float = DEFAULT_WAIT_SECONDS,
    ) -> Receipt:
        """Store a memory in both tiers and say where it is safe.

        Without `node_id` or `key` it is a new node; with `key` it is the one node of (namespace, key); with `node_id`
        that node is overwritten (or made). `expected_rev` demands that the node stands at that revision, 0 that it
        does not exist. `wait` is how many seconds to wait for Postgres, 0 for not at all. `importance` is 0..1.

        Raises `Conflict`, `Backpressure`, `StorageFull`; then nothing was stored.
        """
        change = self._node_change(
            content, context_type, node_id, namespace, key, tags, summary, importance, ttl, expected_rev
        )
        seconds = validation.wait(wait)
        self._check_open()
        receipts = self._access.receipts
        accepted = await self._access.outbox.accept_node(self.user_id, change, receipts.hold(seconds))
        return receipts.issue(accepted, change.node_id)

    def _node_change(
        self,
        content: Mapping[str, JsonInput],
        context_type: str,
        node_id: str | None,
        namespace: str,
        key: str | None,
        tags: Iterable[str],
        summary: str | None,
        importance: float | None,
        ttl: timedelta | None,
        expected_rev: int | None,
    ) -> NodeChange:
        text, words = validation.searchable_content(content, max_bytes=self._access.settings.content_bytes)
        place = validation.namespace(namespace)
        name = None if key is None else validation.identifier("key", key)
        identity, fresh = self._identity(node_id, place, name)
        rule = Rule.APPEND if fresh else Rule.REPLACE
        # By position, at half the cost: every write makes one.
        return NodeChange(
            identity,
            place,
            name,
            validation.context_type(context_type),
            text,
            words,
            rule if expected_rev is None else Rule.COMPARE,
            None if summary is None else validation.summary(summary),
            self._access.tags.text(tags),
            None if importance is None else validation.importance(importance),
            expires_at=None if ttl is None else self._access.clock.now_us() + validation.ttl(ttl),
            expected_rev=None if expected_rev is None else validation.expected_rev(expected_rev),
            fresh=fresh and expected_rev is None,
        )

    def _identity(self, node_id: str | None, namespace: str, key: str | None) -> tuple[NodeId, bool]:
        if key is not None:
            if node_id is not None:
                raise InvalidInput("node_id", "must not be given together with key, from which it is derived")
            return NodeId(keyed_node_id(self.user_id, namespace, key)), False
        if node_id is not None:
            return validation.node_id("node_id", node_id), False
        return NodeId(self._access.ids.new()), True

    async def store_entity(
        self,
        system: str,
        entity_id: str,
        entity_type: str,
        data: Mapping[str, JsonInput],
        *,
        name: str | None = None,
        wait: float = DEFAULT_WAIT_SECONDS,
    ) -> Receipt:
        """Store an entity: one node for each (user, system, entity_id). Storing it again merges `data` field by field.

        Merging follows RFC 7396: a null member removes, objects merge, all else replaces. Two processes that store
        the same entity while apart end with one node that has the fields of both.
        """
        system = validation.entity_system(system)
        identity = validation.identifier("entity_id", entity_id)
        kind = validation.identifier("entity_type", entity_type)
        text = self._entity_content(system, identity, kind, data, name)
        change = NodeChange(
            node_id=NodeId(entity_node_id(self.user_id, system, identity)),
            namespace="default",
            key=None,
            context_type=ENTITY_CONTEXT,
            content=text,
            text_content=searchable_text(decode(text)),
            summary=None,
            tags=None,
            importance=None,
            entity_system=system,
            entity_id=identity,
            entity_type=kind,
            rule=Rule.MERGE,
        )
        seconds = validation.wait(wait)
        self._check_open()
        receipts = self._access.receipts
        accepted = await self._access.outbox.accept_node(self.user_id, change, receipts.hold(seconds))
        return receipts.issue(accepted, change.node_id)

    def _entity_content(
        self, system: str, entity_id: str, entity_type: str, data: Mapping[str, JsonInput], name: str | None
    ) -> str:
        if type(data) is not dict:
            raise InvalidInput("data", "must be a dict")
        content: dict[str, JsonInput] = {
            "entity_system": system,
            "entity_id": entity_id,
            "entity_type": entity_type,
            "entity_data": data,
        }
        if name is not None:
            content["entity_name"] = validation.text("name", name, max_bytes=1024)
        try:
            return validation.content(content, max_bytes=self._access.settings.content_bytes)
        except InvalidInput as error:
            # The caller knows it as `data`; all the rest of the content was checked before.
            place = "data" + error.field.removeprefix("content").removeprefix(".entity_data")
            raise InvalidInput(place, error.reason) from None

    async def relate(
        self,
        source_id: str,
        target_id: str,
        relationship_type: str,
        *,
        weight: float = 1.0,
        properties: Mapping[str, JsonInput] | None = None,
        wait: float = DEFAULT_WAIT_SECONDS,
    ) -> Receipt:
        """Relate two nodes; the same (source, type, target) again updates weight and properties.

        Raises `NotFound` when an end is not there. The receipt's `node_id` is the source.
        """
        source, target = validation.node_id("source_id", source_id), validation.node_id("target_id", target_id)
        kind = validation.relationship_type(relationship_type)
        change = RelationshipChange(
            relationship_id=relationship_id(self.user_id, source, kind, target),
            source_id=source,
            target_id=target,
            relationship_type=kind,
            weight=validation.weight(weight),
            properties=validation.properties({} if properties is None else properties),
        )
        seconds = validation.wait(wait)
        self._check_open()
        receipts = self._access.receipts
        accepted = await self._access.outbox.accept_relationship(self.user_id, change, receipts.hold(seconds))
        return receipts.issue(accepted, source)

    async def get(self, node_id: str, *, max_staleness: Staleness = None) -> MemoryNode | None:
        """The node, or None if there is none (deleted and expired ones included).

        No read touches the network, unless it is asked for `max_staleness` (seconds, or a timedelta): where Postgres
        did not confirm this copy so lately, the copy is brought up to date first, or `TooStale` raised.
        """
        self._check_open()
        wanted = validation.node_id("node_id", node_id)
        if max_staleness is not None:
            await self._renew(max_staleness)
        return self._hot.get(self.user_id, wanted)

    async def get_many(self, node_ids: Iterable[str], *, max_staleness: Staleness = None) -> list[MemoryNode | None]:
        """Like `get` for many, in the order asked."""
        self._check_open()
        given = _each("node_ids", node_ids)
        checked = [validation.node_id(f"node_ids[{place}]", node_id) for place, node_id in enumerate(given)]
        if max_staleness is not None:
            await self._renew(max_staleness)
        return [self._hot.get(self.user_id, node_id) for node_id in checked]

    async def search(
        self, text: str, *, where: filters.Filter | None = None, limit: int = 10, max_staleness: Staleness = None
    ) -> list[Hit]:
        """The nodes whose words fit `text` best (BM25 over stemmed words), best first, scores in 0..1.

        Text is taken literally: no character of it is an operator. Without a word in it nothing is found.
        """
        predicate = filters.parse(where)
        wanted = validation.limit(limit)
        asked = validation.text("text", text, max_bytes=MAX_QUERY_BYTES)
        self._check_open()
        if max_staleness is not None:
            await self._renew(max_staleness)
        return await self._hot.search(self.user_id, asked, predicate, wanted)

    async def neighbours(
        self,
        node_id: str,
        *,
        depth: int = 1,
        types: Iterable[str] | None = None,
        direction: Direction = "both",
        limit: int = 100,
        max_staleness: Staleness = None,
    ) -> list[Neighbour]:
        """The nodes within `depth` relationships (1 to 8), nearest first, then by weight."""
        wanted = validation.limit(limit)
        start = validation.node_id("node_id", node_id)
        if type(depth) is not int or not 1 <= depth <= MAX_DEPTH:
            raise InvalidInput("depth", f"must be a whole number from 1 to {MAX_DEPTH}")
        _check_choice("direction", direction, DIRECTIONS)
        kinds = None if types is None else frozenset(names("types", types))
        self._check_open()
        if max_staleness is not None:
            await self._renew(max_staleness)
        if self._hot.get(self.user_id, start) is None:
            # No way leads out of what is deleted or has expired, as none leads to it.
            return []
        return await self._hot.neighbours(
            self.user_id, start, depth=depth, types=kinds, direction=direction, limit=wanted
        )

    async def delete(self, node_id: str, *, wait: float = DEFAULT_WAIT_SECONDS) -> Receipt:
        """Delete a node and the relationships at it. Raises `NotFound` if there is none."""
        target = validation.node_id("node_id", node_id)
        seconds = validation.wait(wait)
        self._check_open()
        receipts = self._access.receipts
        accepted = await self._access.outbox.accept_deletion(self.user_id, target, receipts.hold(seconds))
        return receipts.issue(accepted, target)

    def freshness(self) -> Freshness:
        """How far this copy may be behind Postgres."""
        self._check_open()
        cursor = self._hot.cursor(self.user_id)
        confirmed = self._access.preload.confirmed_at(self.user_id)
        age = None if confirmed is None else timedelta(seconds=max(0.0, self._access.clock.monotonic() - confirmed))
        return Freshness(
            complete=cursor is not None and cursor.complete,
            rev=cursor.rev if cursor else 0,
            age=age,
            queued=self._hot.queued_of(self.user_id),
            degraded=self._access.is_away(),
        )

    def token(self) -> str:
        """What this process has seen and stored of the user by now, for another process's `barrier`.

        At most 120 characters, safe in a URL. It names no user and holds nothing that was stored.
        """
        self._check_open()
        return self._access.barrier.token(self.user_id)

    async def barrier(self, token: str, *, wait: float = DEFAULT_BARRIER_SECONDS) -> bool:
        """Wait until all that another process's `token` speaks of is in this copy; True when it is.

        False when `wait` seconds were over first: the other process has not carried its writes to Postgres yet (or
        they are in its dead letters), or Postgres cannot be reached. Afterwards reads here see what was seen and
        stored there. Raises `InvalidInput` for another user's token, and for one from before the history was rewritten.
        """
        seconds = validation.wait(wait)
        self._check_open()
        return await self._access.barrier.wait(self.user_id, token, seconds)

    async def digest(self) -> Digest:
        """The fingerprint of the user on this tier, to compare with the durable tier's."""
        self._check_open()
        return await self._hot.digest(self.user_id)

    async def list(
        self,
        *,
        where: filters.Filter | None = None,
        order: str = "-created_at",
        limit: int = 100,
        cursor: str | None = None,
        max_staleness: Staleness = None,
    ) -> Page[MemoryNode]:
        """One page of nodes. `order` is created_at, updated_at or importance, with `-` in front for descending.

        A page's `next_cursor` continues behind its last row, whatever was stored or deleted since.
        """
        predicate = filters.parse(where)
        _check_choice("order", order, ORDERS)
        if cursor is not None and type(cursor) is not str:
            raise InvalidInput("cursor", "must be a str")
        listing = Listing(predicate=predicate, order=order, limit=validation.limit(limit), cursor=cursor)
        self._check_open()
        if max_staleness is not None:
            await self._renew(max_staleness)
        return await self._hot.page(self.user_id, listing)

    async def _renew(self, max_staleness: float | timedelta) -> None:
        await self._access.recency.ensure(self.user_id, validation.staleness(max_staleness))
        # The manager may have been closed meanwhile.
        self._check_open()


def names(field: str, values: object) -> list[str]:
    """One name or more of types, checked by form. None of them never stands for all: that is what None says."""
    given = list(islice(_each(field, values), MAX_NAMES + 1))
    if not 0 < len(given) <= MAX_NAMES:
        raise InvalidInput(field, f"must have 1 to {MAX_NAMES} elements")
    return [validation.identifier(f"{field}[{place}]", name) for place, name in enumerate(given)]


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if type(value) is not str or value not in choices:
        raise InvalidInput(field, f"must be one of {', '.join(choices)}")


def _each(field: str, values: object) -> Iterable[object]:
    # A str is a list of its characters to Python, which nobody means.
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidInput(field, "must be a list of str")
    return cast("Iterable[object]", values)
