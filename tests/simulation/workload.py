"""What the callers of a simulated process do: few users and few keys, so that they meet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import cache
from itertools import accumulate
from typing import Final, TypeAlias

from hybrid_memory import HybridMemoryManager
from hybrid_memory.clock import entity_node_id, keyed_node_id
from hybrid_memory.errors import Backpressure, Conflict, DurableTierError, HybridMemoryError, InvalidInput, NotFound
from hybrid_memory.graph import MemoryNode, NodeId, Receipt, Status
from hybrid_memory.testing.history import Act, Event, Handover, History, Phase
from tests.simulation.options import ENTITIES, FIELDS, KEYS, Options
from tests.simulation.process import Process
from tests.simulation.server import Weather
from tests.support import beneath

FACT: Final = "conversation_fact"
# They stored nothing.
_REFUSALS: Final = (Conflict, NotFound, Backpressure, InvalidInput)


_Call: TypeAlias = "Callable[[Process, HybridMemoryManager, str], Awaitable[None]]"


@cache
def _ids_of(user: str) -> list[NodeId]:
    ids = [keyed_node_id(user, "default", key) for key in KEYS]
    return [NodeId(one) for one in [*ids, *(entity_node_id(user, "crm", entity) for entity in ENTITIES)]]


class Workload:
    """The calls of all processes, and the history of them."""

    def __init__(self, options: Options, weather: Weather, history: History) -> None:
        self._options = options
        self._weather = weather
        self.history = history
        self._chance = random.Random(f"workload {options.seed}")
        self._left: dict[str, int] = {}
        self._calls = 0
        self.processes: list[Process] = []
        self.erased: set[str] = set()
        kinds: tuple[tuple[float, _Call], ...] = (
            (0.34, self._put),
            (0.12, self._merge),
            (0.07, self._relate),
            (0.10, self._delete),
            (0.025, self._erase),
            (0.03, self._promote),
            (0.16, self._read),
            (0.06, self._ensure),
            (0.04, self._barrier),
            (0.025, self._evict),
            (0.02, self._look_around),
            (0.01, self._retry),
        )
        self._kinds = [kind for _, kind in kinds]
        self._weights = list(accumulate(weight for weight, _ in kinds))
        # Another one writes now and then to the end, so that it can be told whose fault a failure is.
        self.goes_on = False

    async def callers(self, process: Process) -> None:
        """All callers of one life of a process."""
        self._left.setdefault(process.name, self._options.calls)
        for _ in range(self._options.callers):
            process.in_life(self._caller(process))

    def pending(self) -> bool:
        """Whether calls are still to be made."""
        return any(self._left.get(process.name, 1) > 0 for process in self.processes)

    async def _caller(self, process: Process) -> None:
        while (manager := process.manager) is not None and self._left[process.name] > 0:
            self._left[process.name] -= 1
            if self._chance.random() < self._options.cancels:
                await self._cancelled(process, manager)
            else:
                await self.one(process, manager)
            if self._chance.random() < 0.5:
                await asyncio.sleep(0.3 * self._chance.random() ** 2)

    async def _cancelled(self, process: Process, manager: HybridMemoryManager) -> None:
        call = asyncio.get_running_loop().create_task(self.one(process, manager))
        await asyncio.sleep(0.02 * self._chance.random() ** 2)
        call.cancel()
        await asyncio.wait([call])

    async def one(self, process: Process, manager: HybridMemoryManager) -> None:
        """One call of some kind; that it may be refused is noted."""
        chance, user = self._chance, self._chance.choice(self._options.users)
        (kind,) = chance.choices(self._kinds, cum_weights=self._weights)
        try:
            await kind(process, manager, user)
        except HybridMemoryError as error:
            process.note(f"raised {error.code}")

    def _event(self, process: Process, call: str, act: Act, user: str, phase: Phase, **more: object) -> None:
        event = Event(
            t=process.loop.time(),
            process=process.name,
            life=process.lives,
            call=call,
            act=act,
            user_id=user,
            phase=phase,
            **more,  # type: ignore[arg-type]
        )
        self.history.events.append(event)
        process.note(f"{call} {act} {user} {phase} {' '.join(map(str, more.values()))}")

    def _name(self, process: Process) -> str:
        self._calls += 1
        return f"{process.name}.{self._calls}"

    async def _write(
        self,
        process: Process,
        act: Act,
        user: str,
        key: str | None,
        call: str,
        store: Awaitable[Receipt],
        *,
        value: str | None = None,
        expires: bool = False,
    ) -> None:
        """One write, from its beginning to what its receipt says in the end."""
        saw = self._absent_at(process, user, key)
        self._event(process, call, act, user, Phase.INVOKE, key=key, value=value, version=saw, expires=expires)
        try:
            receipt = await store
        except _REFUSALS as refusal:
            self._event(process, call, act, user, Phase.FAIL, key=key, value=type(refusal).__name__)
            return
        except (asyncio.CancelledError, HybridMemoryError):
            self._event(process, call, act, user, Phase.INFO, key=key)
            raise
        process.acknowledged.add(receipt.op_id)
        self._told(process, call, act, user, key, receipt)
        if receipt.status is Status.PENDING and receipt.verdict is None:
            process.in_life(self._hear(process, call, act, user, key, receipt))

    @staticmethod
    def _absent_at(process: Process, user: str, key: str | None) -> int | None:
        """The revision as of which the process knows that nothing is there."""
        file = process.file
        if key is None or file is None or not file.database.takes_work:
            return None
        cursor = file.hot.cursor(user)
        absent = file.hot.get(user, NodeId(key.partition("#")[0])) is None
        return cursor.rev if cursor is not None and cursor.complete and absent else None

    def _told(self, process: Process, call: str, act: Act, user: str, key: str | None, receipt: Receipt) -> None:
        self._event(
            process,
            call,
            act,
            user,
            Phase.OK,
            key=key,
            operation=receipt.op_id,
            version=receipt.rev,
            receipt=receipt.status,
            verdict=receipt.verdict,
        )

    async def _hear(self, process: Process, call: str, act: Act, user: str, key: str | None, receipt: Receipt) -> None:
        try:
            final = await receipt.durable()
        except HybridMemoryError:
            # Closed: the next opening hears it.
            return
        self._told(process, call, act, user, key, final)

    def _wait(self) -> float:
        return self._chance.choice((0.0, 0.0, 0.05, 0.5))

    async def _put(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        chance, call = self._chance, self._name(process)
        key = chance.choice((*KEYS, None))
        value = f"{user}/{call}"
        if chance.random() < self._options.refused:
            chance.choice((self._weather.poisonous, self._weather.failing)).add(value)
        node_id = None if key is None else keyed_node_id(user, "default", key)
        handle = manager.user(user)
        expected: int | None = None
        if node_id is not None and chance.random() < 0.2:
            node = await handle.get(node_id)
            expected = 0 if node is None else node.rev
        ttl = timedelta(seconds=chance.choice((1, 5))) if chance.random() < 0.1 else None
        store = handle.store(
            {"text": value},
            context_type=FACT,
            key=key,
            summary=value,
            ttl=ttl,
            expected_rev=expected,
            wait=self._wait(),
        )
        await self._write(process, Act.PUT, user, node_id, call, store, value=value, expires=ttl is not None)

    async def _merge(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        call = self._name(process)
        value = f"{user}/{call}"
        entity, member = self._chance.choice(ENTITIES), self._chance.choice(FIELDS)
        store = manager.user(user).store_entity("crm", entity, "person", {member: value}, wait=self._wait())
        key = f"{entity_node_id(user, 'crm', entity)}#{member}"
        await self._write(process, Act.MERGE, user, key, call, store, value=value)

    def _any_node(self, user: str) -> NodeId:
        return self._chance.choice(_ids_of(user))

    async def _relate(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        handle = manager.user(user)
        # What is there to be related, as far as this process knows; others may be deleting it.
        live = [node_id for node_id in _ids_of(user) if await handle.get(node_id) is not None] or _ids_of(user)
        source, target = self._chance.choice(live), self._chance.choice(live)
        call = self._name(process)
        store = handle.relate(source, target, "led_to", properties={"by": call}, wait=self._wait())
        await self._write(process, Act.RELATE, user, None, call, store)

    async def _delete(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        node_id, call = self._any_node(user), self._name(process)
        store = manager.user(user).delete(node_id, wait=self._wait())
        await self._write(process, Act.DELETE, user, node_id, call, store)

    async def _erase(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        call = self._name(process)
        self.erased.add(user)
        self._event(process, call, Act.ERASE, user, Phase.INVOKE)
        try:
            await manager.forget(user)
        except (asyncio.CancelledError, HybridMemoryError):
            self._event(process, call, Act.ERASE, user, Phase.INFO)
            raise
        queued = beneath.tiers(manager).file.database.point.one(
            "select op_id from outbox where user_id = ? and kind = 'erase' order by seq desc", (user,)
        )
        self._event(process, call, Act.ERASE, user, Phase.OK, operation=queued and queued[0])

    async def _promote(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        call = self._name(process)
        value = f"{user}/{call}"
        node_id = await manager.store_transient_memory(call, {"text": value}, FACT)
        store = manager.promote(call, node_id, user, wait=self._wait())
        await self._write(process, Act.PUT, user, node_id, call, store)

    async def _read(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        await self.read(process, manager, user, self._any_node(user))

    async def read(
        self, process: Process, manager: HybridMemoryManager, user: str, node_id: NodeId
    ) -> MemoryNode | None:
        """One read, noted."""
        node = await manager.user(user).get(node_id)
        call = self._name(process)
        if node is None:
            self._event(process, call, Act.READ, user, Phase.OK, key=node_id)
        elif node.entity_id is None:
            self._event(
                process, call, Act.READ, user, Phase.OK, key=node_id, value=node.summary, owner=node.user_id,
                version=node.rev,
            )  # fmt: skip
        else:
            data = node.content["entity_data"]
            assert isinstance(data, dict)
            for member, value in sorted(data.items()):
                self._event(
                    process, call, Act.READ, user, Phase.OK, key=f"{node_id}#{member}", value=str(value),
                    owner=node.user_id, version=node.rev,
                )  # fmt: skip
        return node

    async def _ensure(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        await manager.ensure_user_memories(user)
        process.note(f"ensured {user}")

    async def _barrier(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        others = [other.manager for other in self.processes if other is not process]
        other = self._chance.choice([*others, manager])
        if other is None:
            return
        key = NodeId(keyed_node_id(user, "default", self._chance.choice(KEYS)))
        # Another process's handle is another process's to use; here all share one loop.
        told = beneath.tiers(other).file.hot.get(user, key)
        token = beneath.staff(other).barrier.token(user)
        try:
            passed = await manager.user(user).barrier(token, wait=0.5)
        except InvalidInput:
            passed = False
        process.note(f"barrier {user} {passed}")
        if passed and process.manager is manager:
            here = await self.read(process, manager, user, key)
            self.history.handovers.append(
                Handover(process.loop.time(), user, key, told.summary if told else None, here.summary if here else None)
            )

    async def _evict(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        call = self._name(process)
        self._event(process, call, Act.EVICT, user, Phase.INVOKE)
        evicted = await beneath.tiers(manager).file.replica.evict(user)
        self._event(process, call, Act.EVICT, user, Phase.OK, value=str(evicted))

    async def _look_around(self, process: Process, manager: HybridMemoryManager, user: str) -> None:
        handle = manager.user(user)
        page = await handle.list(limit=10)
        hits = await handle.search("ada", limit=5)
        assert all(node.user_id == user for node in page.items)
        assert all(hit.node.user_id == user for hit in hits)
        found = await handle.neighbours(self._any_node(user), depth=2)
        await handle.digest()
        process.note(f"looked around {user}: {len(page.items)} {len(hits)} {len(found)}")

    async def _retry(self, process: Process, manager: HybridMemoryManager, _user: str) -> None:
        retried = await manager.dead_letters.retry(None)
        process.note(f"retried {retried}")

    async def eve(self, process: Process) -> None:
        """One more writer, of a user of its own, for as long as it takes."""
        manager = process.manager
        while manager is not None and self.goes_on:
            try:
                await manager.user("eve").store({"text": "still here"}, context_type=FACT, key="eve", wait=0)
            except DurableTierError:
                return
            await asyncio.sleep(2.0)
