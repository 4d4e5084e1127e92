"""The first session: it stores what is learned, many writes at a time, and keeps account of what was acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

from hybrid_memory.cli.demo.errand import Search, Walk, WrittenLink, WrittenMemory
from hybrid_memory.cli.demo.memories import Entity, Episode, Fact, Link, Question, Ref, SearchQuestion, fingerprint
from hybrid_memory.graph import NodeId, Receipt, Status
from hybrid_memory.user_memory import UserMemory

IN_FLIGHT: Final = 64
_READS_AT_ONCE: Final = 25
# Any step that shares no factor with the number of nodes visits all of them.
_STRIDE: Final = 7_919


class FirstSession:
    """Stores episodes for a user. Every receipt given while `in_outage` is set is kept."""

    def __init__(self, user: UserMemory, *, counts_entities: bool) -> None:
        self._user = user
        self._counts_entities = counts_entities
        self._ids: dict[Ref, NodeId] = {}
        self._read_next = 0
        self.in_outage = False
        self.memories: list[WrittenMemory] = []
        self.links: list[WrittenLink] = []
        self.pending: list[Receipt] = []
        """All receipts that did not say DURABLE."""
        self.receipts_in_outage: list[Receipt] = []
        self.acknowledged = 0
        self.unreadable = 0

    @property
    def stored(self) -> int:
        """How many of the memories that count were acknowledged."""
        return sum(memory.counted for memory in self.memories)

    @property
    def pending_in_outage(self) -> int:
        """How many receipts of the outage said PENDING, as all of them must."""
        return sum(receipt.status is Status.PENDING for receipt in self.receipts_in_outage)

    async def learn(self, episodes: Sequence[Episode]) -> None:
        """Store episodes: first their memories, then what links them. All is acknowledged when this returns."""
        memories = [memory for episode in episodes for memory in episode.memories]
        await self._many(partial(self._remember, memory) for memory in memories)
        await self._many(partial(self._relate, episode.main, link) for episode in episodes for link in episode.links)

    async def drained(self) -> int:
        """Wait until Postgres has decided all that is pending; returns how much of the outage's it has now."""
        durable: set[str] = set()
        for receipt in self.pending:
            decided = await receipt.durable()
            if decided.status is Status.DURABLE:
                durable.add(decided.op_id)
        return sum(receipt.op_id in durable for receipt in self.receipts_in_outage)

    async def read(self) -> list[float]:
        """Read some of what was stored, here and there; returns how long each read took, in microseconds."""
        ids = list(self._ids.values())
        taken: list[float] = []
        for _ in range(_READS_AT_ONCE if ids else 0):
            self._read_next += _STRIDE
            began = time.perf_counter_ns()
            node = await self._user.get(ids[self._read_next % len(ids)])
            taken.append((time.perf_counter_ns() - began) / 1000)
            self.unreadable += node is None
        return taken

    def asked(self, questions: Sequence[Question]) -> list[Search | Walk]:
        """The questions, in ids instead of the names of this run."""
        return [self._asked(question) for question in questions]

    def _asked(self, question: Question) -> Search | Walk:
        expected = [self._ids[ref] for ref in question.expected if ref in self._ids]
        if isinstance(question, SearchQuestion):
            where = dict(question.where)
            scored = question.scored and bool(expected)
            return Search(text=question.text, where=where, expected=list(expected), scored=scored)
        return Walk(
            text=question.text,
            start_id=self._ids[question.start],
            kinds=list(question.kinds),
            direction=question.direction,
            depth=question.depth,
            answers=question.answers,
            expected=list(expected),
        )

    async def _many(self, writes: Iterable[Callable[[], Awaitable[None]]]) -> None:
        pending = iter(writes)

        async def work() -> None:
            for write in pending:
                await write()

        tasks = [asyncio.create_task(work()) for _ in range(IN_FLIGHT)]
        try:
            await asyncio.gather(*tasks)
        finally:
            # Only after a failure or a cancellation is any of them left.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _remember(self, memory: Fact | Entity) -> None:
        in_outage = self.in_outage
        if isinstance(memory, Fact):
            receipt = await self._store(memory)
            content = memory.content
        else:
            receipt = await self._user.store_entity(
                memory.system, memory.entity_id, memory.entity_type, memory.data, name=memory.name
            )
            content = {
                "entity_system": memory.system,
                "entity_id": memory.entity_id,
                "entity_type": memory.entity_type,
                "entity_name": memory.name,
            }
        entity = isinstance(memory, Entity)
        self._ids[memory.ref] = receipt.node_id
        self._acknowledged(receipt, in_outage=in_outage)
        self.memories.append(
            WrittenMemory(
                node_id=receipt.node_id,
                fingerprint=fingerprint(content, entity=entity),
                entity=entity,
                counted=self._counts_entities or not entity,
                in_outage=in_outage,
                words="" if isinstance(memory, Entity) else memory.words,
                where={} if isinstance(memory, Entity) else dict(memory.where),
            )
        )

    async def _store(self, fact: Fact) -> Receipt:
        return await self._user.store(
            fact.content,
            context_type=fact.context_type,
            namespace=fact.namespace,
            key=fact.key,
            tags=fact.tags,
        )

    async def _relate(self, main: Ref, link: Link) -> None:
        in_outage = self.in_outage
        source, target = self._ids[link.source], self._ids[link.target]
        receipt = await self._user.relate(source, target, link.kind, properties=link.properties)
        self._acknowledged(receipt, in_outage=in_outage)
        self.links.append(
            WrittenLink(
                source_id=source, kind=link.kind, target_id=target, main_id=self._ids[main], in_outage=in_outage
            )
        )

    def _acknowledged(self, receipt: Receipt, *, in_outage: bool) -> None:
        self.acknowledged += 1
        if receipt.status is Status.PENDING:
            self.pending.append(receipt)
        if in_outage:
            self.receipts_in_outage.append(receipt)
