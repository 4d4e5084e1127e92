"""Two managers with a sick wire each before one sick Postgres, driven by Hypothesis through the public API.

What was expected is known from the calls' outcomes alone (`expectations`); Postgres is the judge of the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count, permutations
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hybrid_memory import HybridMemoryManager, Receipt, Settings, UserMemory
from hybrid_memory.clock import entity_node_id, keyed_node_id
from hybrid_memory.errors import NotFound
from hybrid_memory.testing.postgres import short_folder
from hybrid_memory.testing.proxy import Loss, Proxy
from tests.plugins.postgres import Database, connected
from tests.support.expectations import Expectations, Member, Place
from tests.support.managers import FACT, both_tiers_agree, drained
from tests.support.own_server import OwnServer
from tests.support.waiting import turns
from tests.support.without_end import without_end

T = TypeVar("T")

KEYS: Final = ("a", "b", "c")
SYSTEM: Final = "crm"
ENTITY: Final = "e1"
NAMES: Final = ("here", "there")
USERS: Final = ("ann", "bo")
CONVERGED_SECONDS: Final = 10.0
SETTINGS: Final = Settings(poll_interval=timedelta(milliseconds=50), drain_on_close=timedelta(0))

processes = st.sampled_from(NAMES)
keys = st.sampled_from(KEYS)
users = st.sampled_from(USERS)
waits = st.sampled_from((0.0, 0.0, 0.05, 0.3))


@dataclass(slots=True, kw_only=True)
class Ground:
    """What machines stand on, one after the other: an event loop, a server and one database."""

    runner: asyncio.Runner
    server: OwnServer
    database: Database
    folder: Path
    numbers: count[int] = field(default_factory=count)
    injected: Counter[str] = field(default_factory=Counter[str])
    acked: int = 0
    slowest_rest_s: float = 0.0


Fault: TypeAlias = Callable[[Ground, Proxy], Coroutine[object, object, None]]


def on_ground(work: Callable[[Ground], T]) -> T:
    """Have a ground for the length of a call."""

    async def prepare(stack: AsyncExitStack) -> Ground:
        folder = stack.enter_context(short_folder())
        server = await OwnServer.start(folder)
        stack.push_async_callback(server.stop)
        database = await stack.enter_async_context(server.database())
        return Ground(runner=runner, server=server, database=database, folder=folder)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        ground = runner.run(prepare(stack))
        try:
            return work(ground)
        finally:
            runner.run(stack.aclose())


def _losing(loss: Loss, passes: int) -> Fault:
    async def fault(_ground: Ground, proxy: Proxy) -> None:
        proxy.lose("memory.apply", loss, passes=passes)

    return fault


async def _cut(_ground: Ground, proxy: Proxy) -> None:
    proxy.cut()


async def _stall(_ground: Ground, proxy: Proxy) -> None:
    proxy.stall()


async def _part(_ground: Ground, proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


async def _kill(ground: Ground, _proxy: Proxy) -> None:
    await ground.server.kill()
    await ground.server.heal()


async def _refuse_writes(ground: Ground, _proxy: Proxy) -> None:
    await ground.server.set("default_transaction_read_only", "on")


async def _terminate(ground: Ground, _proxy: Proxy) -> None:
    await ground.server.terminate("relay")


FAULTS: Final[Mapping[str, Fault]] = {
    "COMMIT reply lost": _losing(Loss.REPLY, 0),
    "a later COMMIT reply lost": _losing(Loss.REPLY, 1),
    "COMMIT lost": _losing(Loss.COMMIT, 0),
    "request lost": _losing(Loss.REQUEST, 0),
    "connections reset": _cut,
    "stalled": _stall,
    "partition": _part,
    "postmaster killed": _kill,
    "read-only": _refuse_writes,
    "backends terminated": _terminate,
}


@dataclass(slots=True, kw_only=True)
class Side:
    """One of the two managers, its handles, the wire before it, and how to close it."""

    proxy: Proxy
    data_dir: Path
    manager: HybridMemoryManager
    memories: dict[str, UserMemory]
    opened: AsyncExitStack


class MemoryMachine(RuleBasedStateMachine):
    """Calls and faults in any order; both sides come to rest now and then, and in the end."""

    ground: Ground

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.ground.numbers)
        self.expected = Expectations()
        self.sides: dict[str, Side] = {}
        self.stack = AsyncExitStack()
        self.values = count()
        self.marks = Counter[tuple[str, bool]]()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Let the event loop run as long as this takes. Between two steps everything stands still."""
        return self.ground.runner.run(work)

    @initialize()
    def open_both(self) -> None:
        self.run(self._open_both())

    async def _open_both(self) -> None:
        for name in NAMES:
            folder = self.ground.folder / f"{self.number}-{name}"
            folder.mkdir()
            proxy = await self.stack.enter_async_context(
                Proxy.before(self.ground.database.app_dsn, folder, seed=self.number)
            )
            self.sides[name] = await self._opened(proxy, folder / "data")

    async def _opened(self, proxy: Proxy, data_dir: Path) -> Side:
        opened = AsyncExitStack()
        manager = await opened.enter_async_context(
            HybridMemoryManager.open(dsn=proxy.dsn, data_dir=data_dir, settings=SETTINGS)
        )
        memories = {user_id: await manager.ensure_user_memories(user_id) for user_id in map(self._user, USERS)}
        return Side(proxy=proxy, data_dir=data_dir, manager=manager, memories=memories, opened=opened)

    def _user(self, name: str) -> str:
        return f"{name}-{self.number}"

    def _memory(self, process: str, user: str) -> UserMemory:
        return self.sides[process].memories[self._user(user)]

    def _place(self, user: str, key: str) -> Place:
        return Place(self._user(user), keyed_node_id(self._user(user), "default", key))

    def _value(self, process: str) -> str:
        return f"{process} {next(self.values)}"

    # Calls

    @rule(process=processes, user=users, key=keys, wait=waits)
    def put(self, process: str, user: str, key: str, wait: float) -> None:
        value = self._value(process)
        memory, place = self._memory(process, user), self._place(user, key)
        self._acknowledged(self.run(memory.store({"text": value}, context_type=FACT, key=key, wait=wait)))
        self.expected.wrote(process, place, value)
        self._read(process, place)

    @rule(process=processes, user=users, key=keys, steps=st.integers(0, 12))
    def put_and_be_cancelled(self, process: str, user: str, key: str, steps: int) -> None:
        value = self._value(process)
        memory, place = self._memory(process, user), self._place(user, key)

        async def cut_short() -> bool:
            call = asyncio.ensure_future(memory.store({"text": value}, context_type=FACT, key=key, wait=1.0))
            await turns(steps)
            call.cancel()
            (receipt,) = await asyncio.gather(call, return_exceptions=True)
            return isinstance(receipt, Receipt)

        self.expected.wrote(process, place, value, certain=self.run(cut_short()))
        self._count("call cancelled")

    @rule(process=processes, user=users, wait=waits)
    def mark(self, process: str, user: str, wait: float) -> None:
        value = self._value(process)
        receipt = self.run(self._memory(process, user).store({"text": value}, context_type=FACT, wait=wait))
        self._acknowledged(receipt)
        self.expected.wrote(process, Place(self._user(user), receipt.node_id), value)

    @rule(process=processes, user=users, wait=waits)
    def merge(self, process: str, user: str, wait: float) -> None:
        name = self._value(process)
        memory = self._memory(process, user)
        self._acknowledged(self.run(memory.store_entity(SYSTEM, ENTITY, "person", {name: 1}, wait=wait)))
        node_id = entity_node_id(memory.user_id, SYSTEM, ENTITY)
        if self.expected.merged(process, Member(memory.user_id, node_id, name)):
            found = self.run(self._fields(memory))
            assert name in found, f"{process} does not read {name}, which it has just written"

    @rule(process=processes, user=users, key=keys, wait=waits)
    def delete(self, process: str, user: str, key: str, wait: float) -> None:
        memory, place = self._memory(process, user), self._place(user, key)
        try:
            self._acknowledged(self.run(memory.delete(place.node_id, wait=wait)))
        except NotFound:
            return
        self.expected.wrote(process, place, None)
        self._read(process, place)

    @rule(process=processes, user=users, keys=st.lists(keys, min_size=2, max_size=2, unique=True), wait=waits)
    def relate(self, process: str, user: str, keys: list[str], wait: float) -> None:
        memory = self._memory(process, user)
        source, target = (self._place(user, key).node_id for key in keys)
        try:
            self._acknowledged(self.run(memory.relate(source, target, "led_to", wait=wait)))
        except NotFound:
            return

    @rule(process=processes, user=users, key=keys)
    def read(self, process: str, user: str, key: str) -> None:
        self._read(process, self._place(user, key))

    def _read(self, process: str, place: Place) -> None:
        memory = self.sides[process].memories[place.user_id]
        node = self.run(memory.get(place.node_id))
        value = None if node is None else node.content["text"]
        assert value in (expected := self.expected.readable(process, place)), (
            f"{process} read {value!r} of {place}, not one of {expected}"
        )

    @rule(process=processes, user=users)
    def look_around(self, process: str, user: str) -> None:
        memory = self._memory(process, user)

        async def look() -> list[str]:
            nodes = (await memory.list(limit=1_000)).items
            hits = await memory.search("here there", limit=1_000)
            near = await memory.neighbours(self._place(user, KEYS[0]).node_id, depth=3)
            found = [*nodes, *(hit.node for hit in hits), *(one.node for one in near)]
            return [node.user_id for node in found]

        assert set(self.run(look())) <= {memory.user_id}

    @rule(process=processes, user=users)
    def forget(self, process: str, user: str) -> None:
        self.run(self.sides[process].manager.forget(self._user(user)))
        self.expected.forgot(process, self._user(user))
        for place in self.expected.places(self._user(user)):
            self._read(process, place)

    @rule(process=processes)
    def close_and_open_again(self, process: str) -> None:
        side = self.sides[process]

        async def again() -> None:
            await side.opened.aclose()
            self.sides[process] = await self._opened(side.proxy, side.data_dir)

        self.run(again())

    # Faults, all in one rule: the calls are to be many more

    @rule(kind=st.sampled_from(list(FAULTS)), process=processes)
    def fault(self, kind: str, process: str) -> None:
        self.run(FAULTS[kind](self.ground, self.sides[process].proxy))
        self._count(kind)

    @rule(process=processes)
    def come_back(self, process: str) -> None:
        self.run(self.sides[process].proxy.heal())

    @rule(milliseconds=st.integers(1, 60))
    def let_time_pass(self, milliseconds: int) -> None:
        self.run(asyncio.sleep(milliseconds / 1_000))

    # What always holds, and what holds at rest

    @invariant()
    def everything_reads_as_it_may(self) -> None:
        for user in USERS if self.sides else ():
            for place in sorted(self.expected.places(self._user(user))):
                for name in NAMES:
                    self._read(name, place)

    @rule()
    def rest(self) -> None:
        """All is well again: both sides have what Postgres has, and that is what may be expected."""
        self.run(self._rest())

    async def _rest(self) -> None:
        for side in self.sides.values():
            await side.proxy.heal()
        await self.ground.server.heal()
        for side in self.sides.values():
            await drained(side.manager)
            assert not await side.manager.dead_letters.list()
        began = time.monotonic()
        for user_id in map(self._user, USERS):
            await self._converge(user_id, began + CONVERGED_SECONDS)
            await self._judge(user_id)
        self.ground.slowest_rest_s = max(self.ground.slowest_rest_s, time.monotonic() - began)

    async def _converge(self, user_id: str, due: float) -> None:
        def left() -> float:
            return max(0.1, due - time.monotonic())

        memories = [side.memories[user_id] for side in self.sides.values()]
        for one, other in permutations(memories, 2):
            # Of an erasure both may not have heard, though both have nothing.
            assert await other.barrier(one.token(), wait=left()), f"{user_id}: what one side has seen does not arrive"
        for side in self.sides.values():
            try:
                await both_tiers_agree(side.manager, side.memories[user_id], seconds=left())
            except AssertionError:
                here, there = await side.memories[user_id].digest(), await side.manager.durable_digest(user_id)
                raise AssertionError(f"{user_id}: {here} on {side.data_dir}, {there} in Postgres") from None

    async def _judge(self, user_id: str) -> None:
        memory = self.sides[NAMES[0]].memories[user_id]
        standing: dict[str, str | None] = {}
        for node in (await memory.list(limit=1_000)).items:
            if node.entity_id is None:
                standing[node.node_id] = str(node.content["text"])
        members = {entity_node_id(user_id, SYSTEM, ENTITY): await self._fields(memory)}
        wrong = self.expected.rest(user_id, standing, members)
        unknown = standing.keys() - {place.node_id for place in self.expected.places(user_id)}
        async with connected(self.ground.database.admin_dsn) as admin:
            assert not await without_end(admin)
        assert not unknown, f"nobody wrote {sorted(unknown)} of {user_id}"
        assert not wrong, "\n".join(wrong)

    @staticmethod
    async def _fields(memory: UserMemory) -> set[str]:
        node = await memory.get(entity_node_id(memory.user_id, SYSTEM, ENTITY))
        data = {} if node is None else node.content["entity_data"]
        assert isinstance(data, dict)
        return set(data)

    def teardown(self) -> None:
        self.run(self._end())

    async def _end(self) -> None:
        try:
            if self.sides:
                await self._rest()
        finally:
            for side in self.sides.values():
                await side.proxy.heal()
                await side.opened.aclose()
            await self.stack.aclose()

    def _acknowledged(self, receipt: Receipt) -> None:
        assert receipt.op_id
        self.ground.acked += 1

    def _count(self, fault: str) -> None:
        self.ground.injected[fault] += 1


def machine_on(ground: Ground) -> type[MemoryMachine]:
    """The machine, standing on this ground."""
    return type("MemoryMachine", (MemoryMachine,), {"ground": ground})
