"""Writes and reads at a steady pace over many open users, whatever the answers take; all that is written is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import IO, Final

import asyncpg
import orjson

from hybrid_memory import HybridMemoryManager, Receipt, UserMemory
from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.graph import JsonInput
from tests.support.gauges import Latencies
from tests.support.kill_worker import KIND, NAMESPACE, SYSTEM, Lane
from tests.support.witness import Witness

WORDS: Final = 1_024
KEYS: Final = 16
FIELDS: Final = 24
"""So many fields of an entity before the next one is begun."""
KNOWN_IDS: Final = 40
STEP_SECONDS: Final = 0.005
# What is overdue after the machine stood still is made up for in steps: in one it would be a long callback of ours.
MOST_WRITES_A_STEP: Final = 10
MOST_READS_A_STEP: Final = 30
# The place of a user in the order of liveliness, to this power, is how much less is heard of it.
SKEW: Final = 0.9
MOST_AT_ONCE: Final = 2_000
LOADS_AT_ONCE: Final = 12
# So often another user is picked where one still waits for its last write.
PICKS: Final = 8

# Of a hundred writes so many are of this kind. Nearly all change what is there: what grows then is not the data.
WRITES: Final = {"keyed": 72, "merge": 20, "fresh": 2, "relate": 2, "delete": 4}
# Of a hundred reads likewise; `get` is the local read.
READS: Final = {"get": 90, "list": 4, "search": 4, "neighbours": 2}
# One write in so many waits for Postgres a moment; the others only for this process's file.
WAITS_EVERY: Final = 10
WAIT_SECONDS: Final = 0.25


async def fill(admin: asyncpg.Connection, users: Sequence[str], nodes: int) -> int:
    """Give each user so many nodes in Postgres; returns how many revisions that took."""
    await admin.execute(
        "insert into memory.heads (user_id, rev, nodes) select user_id, $2, $2 from unnest($1::text[]) as u (user_id)",
        users, nodes,
    )  # fmt: skip
    await admin.execute(
        """
        insert into memory.nodes (user_id, node_id, namespace, context_type, content, row_hash, text_content, tags,
                                  importance, created_at, updated_at, stamp, rev, base, writer, writer_seq)
        select user_id, gen_random_uuid(), 'filled', 'conversation_fact', json_build_object('text', words),
               md5(user_id || ' ' || place), words, '{}', 0.5, moment, moment,
               (extract(epoch from moment) * 1000000)::bigint << 12, place, 0, gen_random_uuid(), 0
        from (
            select user_id, place, now() - interval '1 day' + place * interval '1 second' as moment,
                   (select string_agg('word' || (abs(hashtext(user_id || ' ' || place || ' ' || i)) % $3), ' ')
                    from generate_series(1, 12) as i) as words
            from unnest($1::text[]) as u (user_id), generate_series(1, $2) as place
        ) as made
        """,
        users, nodes, WORDS,
    )  # fmt: skip
    await admin.execute("vacuum analyze")
    return len(users) * nodes


class Transcript:
    """What writers say, line by line in a file: the witness's memory shall not count for the product's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.acknowledged = 0

    def say(self, **words: object) -> None:
        """Write a line down."""
        self.acknowledged += words["at"] == "ok"
        self._file.write(orjson.dumps(words) + b"\n")

    @staticmethod
    def heard(path: Path) -> Witness:
        """A witness who has heard all of it."""
        witness = Witness()
        with path.open("rb") as lines:
            for line in lines:
                witness.hear(line)
        return witness


@dataclass(slots=True, kw_only=True)
class User:
    """One open session: its writes follow one another, as an agent's do."""

    lane: Lane
    node_ids: Sequence[str]
    """Nodes that stand, some of them."""
    busy: bool = False
    last: str | None = None
    related: str | None = None
    found: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def memory(self) -> UserMemory:
        """The handle."""
        return self.lane.memory


@dataclass(slots=True, kw_only=True)
class Load:
    """All users of a manager, what is done with them, and how long it took."""

    users: list[User]
    random: Random
    get: Latencies = field(default_factory=Latencies)
    scans: dict[str, Latencies] = field(default_factory=lambda: {kind: Latencies() for kind in list(READS)[1:]})
    accepted: Latencies = field(default_factory=Latencies)
    """Writes that waited for this process's file only."""
    waited: Latencies = field(default_factory=Latencies)
    """Writes that waited for Postgres, at most `WAIT_SECONDS`."""
    wrong: list[str] = field(default_factory=list[str])
    held_back: int = 0
    """Operations not begun because too many were under way."""
    _skew: list[float] = field(default_factory=list[float])
    _under_way: set[asyncio.Task[None]] = field(default_factory=set["asyncio.Task[None]"])

    def __post_init__(self) -> None:
        self._skew = list(accumulate(1 / place**SKEW for place in range(1, len(self.users) + 1)))

    async def run(self, seconds: float, *, writes: int, reads: int) -> None:
        """Begin so many writes and reads a second, then let what is under way end."""
        now = time.monotonic
        began, written, read = now(), 0, 0
        while (passed := now() - began) < seconds:
            due_writes = min(MOST_WRITES_A_STEP, int(passed * writes) - written)
            due_reads = min(MOST_READS_A_STEP, int(passed * reads) - read)
            written, read = written + due_writes, read + due_reads
            for _ in range(due_writes):
                self._begin_write()
            for kind in self.random.choices(list(READS), list(READS.values()), k=due_reads):
                await self._read(kind)
            behind = due_writes == MOST_WRITES_A_STEP or due_reads == MOST_READS_A_STEP
            await asyncio.sleep(0 if behind else STEP_SECONDS)
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _begin(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except HybridMemoryError as error:
                self.wrong.append(f"{type(error).__name__}: {error}")

        task = asyncio.get_running_loop().create_task(guarded())
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.wrong.append(f"{type(error).__name__}: {error}")

    def _pick(self) -> User:
        (user,) = self.random.choices(self.users, cum_weights=self._skew)
        return user

    # Reads

    async def _read(self, kind: str) -> None:
        user = self._pick()
        if kind == "get":
            await self._get(user, self.random.choice(user.node_ids))
        elif len(self._under_way) < MOST_AT_ONCE:
            self._begin(self._scan(kind, user))
        else:
            self.held_back += 1

    async def _get(self, user: User, node_id: str) -> None:
        began = time.perf_counter()
        node = await user.memory.get(node_id)
        self.get.add(time.perf_counter() - began)
        if node is None:
            self.wrong.append(f"{node_id} of {user.memory.user_id} was not there to be read")

    async def _scan(self, kind: str, user: User) -> None:
        began = time.perf_counter()
        match kind:
            case "list":
                await user.memory.list(limit=20)
            case "search":
                await user.memory.search(self._words(3), limit=10)
            case _:
                await user.memory.neighbours(user.related or user.node_ids[0], depth=2, limit=50)
        self.scans[kind].add(time.perf_counter() - began)

    def _words(self, count: int) -> str:
        return " ".join(f"word{self.random.randrange(WORDS)}" for _ in range(count))

    # Writes

    def _begin_write(self) -> None:
        user = next((user for _ in range(PICKS) if not (user := self._pick()).busy), None)
        # Who writes most waits most: somebody is free.
        user = user or next((user for user in self.users if not user.busy), None)
        if user is None or len(self._under_way) >= MOST_AT_ONCE:
            self.held_back += 1
            return
        user.busy = True
        (kind,) = self.random.choices(list(WRITES), list(WRITES.values()))
        self._begin(self._write(kind, user))

    async def _write(self, kind: str, user: User) -> None:
        try:
            await self._deed(kind, user)
        finally:
            user.busy = False

    async def _deed(self, kind: str, user: User) -> None:
        lane, number = user.lane, user.lane.number + 1
        key = f"k{self.random.randrange(KEYS)}"
        if kind == "delete" and key in user.found:
            await lane.attempt("delete", key, partial(self._delete, user, user.found.pop(key)))
        elif kind == "relate" and user.last is not None and user.last != user.related:
            source, user.related = user.related or user.node_ids[0], user.last
            await lane.attempt("relate", f"{source} {user.last}", partial(self._relate, user, source))
        elif kind == "merge":
            entity = f"e{number // (5 * FIELDS)}"
            await lane.attempt("merge", entity, partial(self._merge, user, entity))
        elif kind == "fresh":
            user.last = await lane.attempt("mark", str(number), partial(self._mark, user))
            await self._read_back(user, user.last, "mark", str(number))
        else:
            stored = await lane.attempt("store", key, partial(self._store, user, key))
            await self._read_back(user, stored, "n", number)
            if stored is not None:
                user.found[key] = stored

    async def _read_back(self, user: User, node_id: str | None, member: str, value: object) -> None:
        node = None if node_id is None else await user.memory.get(node_id)
        if node is None or node.content.get(member) != value:
            self.wrong.append(f"{user.memory.user_id} did not read its own write of {node_id}")

    async def _timed(self, write: Callable[[float], Awaitable[Receipt]], wait: float) -> Receipt:
        began = time.perf_counter()
        receipt = await write(wait)
        (self.waited if wait else self.accepted).add(time.perf_counter() - began)
        return receipt

    async def _store(self, user: User, key: str, wait: float) -> Receipt:
        content: dict[str, JsonInput] = {"n": user.lane.number, "text": self._words(12)}
        store = partial(user.memory.store, content, context_type=KIND, namespace=NAMESPACE, key=key)
        return await self._timed(lambda seconds: store(wait=seconds), wait)

    async def _mark(self, user: User, wait: float) -> Receipt:
        content: dict[str, JsonInput] = {"mark": str(user.lane.number), "text": self._words(12)}
        store = partial(user.memory.store, content, context_type=KIND)
        return await self._timed(lambda seconds: store(wait=seconds), wait)

    async def _merge(self, user: User, entity: str, wait: float) -> Receipt:
        store = partial(user.memory.store_entity, SYSTEM, entity, "thing", {f"f{user.lane.number}": user.lane.number})
        return await self._timed(lambda seconds: store(wait=seconds), wait)

    async def _relate(self, user: User, source: str, wait: float) -> Receipt:
        assert user.last is not None
        relate = partial(user.memory.relate, source, user.last, "led_to")
        return await self._timed(lambda seconds: relate(wait=seconds), wait)

    async def _delete(self, user: User, node_id: str, wait: float) -> Receipt:
        delete = partial(user.memory.delete, node_id)
        return await self._timed(lambda seconds: delete(wait=seconds), wait)


async def open_sessions(
    manager: HybridMemoryManager, user_ids: Sequence[str], transcript: Transcript, random: Random
) -> Load:
    """Open a session for each user, for a load to be run on.

    Indexes are made and every node is read once: later the caches have what they will have.
    """
    waits = (*(0.0 for _ in range(WAITS_EVERY - 1)), WAIT_SECONDS)
    room = asyncio.Semaphore(LOADS_AT_ONCE)

    async def begin(user_id: str) -> User:
        async with room:
            memory = await manager.ensure_user_memories(user_id)
            await memory.search("word1")
            page = await memory.list(limit=1_000)
        known = [node.node_id for node in page.items]
        await memory.get_many(known)
        return User(lane=Lane(memory=memory, number=0, say=transcript.say, waits=waits), node_ids=known[:KNOWN_IDS])

    return Load(users=list(await asyncio.gather(*map(begin, user_ids))), random=random)
