"""The relay against a model of Postgres that refuses in every way, by seed: all is applied once, in order, or dead."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from hybrid_memory import carrying
from hybrid_memory.absent import AbsentPostgres
from hybrid_memory.changes import Kind, Operation
from hybrid_memory.errors import (
    Contended,
    DurableTierError,
    OutcomeUnknown,
    Overloaded,
    PoisonOperation,
    Unforeseen,
    Unreachable,
)
from hybrid_memory.events import EventLog
from hybrid_memory.graph import NodeId, Verdict
from hybrid_memory.messages import Applied, AppliedUser, BatchApplied, Disputed, Opening
from hybrid_memory.payloads import carried_relationship
from hybrid_memory.relay import Relay
from hybrid_memory.retry import Backoff
from hybrid_memory.sqlite.hot_file import HotFile
from tests.support.clocks import HandClock
from tests.support.hot_files import EPOCH, hot_file, keyed, related
from tests.support.relays import relay_between

USERS = ("ada", "bo", "cy", "di")
KEYS = ("tea", "milk", "rye")
BATCH = 8


@dataclass
class Model(AbsentPostgres):
    """Marks, revisions and a ledger of what was applied; trouble as it is set, and by chance."""

    chance: random.Random
    ledger: list[Operation] = field(default_factory=list[Operation])
    marks: dict[str, int] = field(default_factory=dict[str, int])
    revs: dict[str, int] = field(default_factory=dict[str, int])
    poisonous: set[str] = field(default_factory=set[str])
    failing: set[str] = field(default_factory=set[str])
    locked: set[str] = field(default_factory=set[str])
    full: bool = False
    away: bool = False
    most_at_once: int = BATCH
    unsteady: float = 0.0

    def __post_init__(self) -> None:
        super().__init__("a model")

    async def handshake(self, opening: Opening) -> None:
        del opening
        if self.away:
            raise Unreachable("away")

    async def apply(self, opening: Opening, operations: Sequence[Operation], erased: Mapping[str, int]) -> BatchApplied:
        del opening, erased
        entities = [one.entity_id for one in operations]
        assert len(entities) == len(set(entities))
        met = {one.user_id for one in operations if one.seq <= self.marks.get(one.user_id, 0)}
        self._refuse_some(operations)
        if met:
            raise Disputed(frozenset(met))
        return self._commit(operations)

    async def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        del opening, erased_rev
        assert len({one.user_id for one in operations}) == 1
        new = [one for one in operations if one.seq > self.marks.get(one.user_id, 0)]
        self._refuse_some(new)
        known = tuple(Applied(one, Verdict.APPLIED, None) for one in operations if one not in new)
        batch = self._commit(new)
        return BatchApplied(operations=known + batch.operations, users=batch.users)

    def _refuse_some(self, operations: Sequence[Operation]) -> None:
        if self.away:
            raise Unreachable("away")
        if {one.op_id for one in operations} & self.poisonous:
            raise PoisonOperation("poison", sqlstate="22P02")
        if {one.user_id for one in operations} & self.locked:
            raise Contended("locked", sqlstate="55P03")
        if self.full and operations:
            raise Overloaded("full", sqlstate="53100")
        if len(operations) > self.most_at_once:
            raise Overloaded("slow", sqlstate="57014")
        if {one.op_id for one in operations} & self.failing:
            raise Unforeseen("nobody knows", sqlstate="XX000")
        if self.chance.random() < self.unsteady:
            raise self.chance.choice([Contended("deadlock", sqlstate="40P01"), OutcomeUnknown("not arrived")])

    def _commit(self, operations: Sequence[Operation]) -> BatchApplied:
        applied: list[Applied] = []
        before = dict(self.revs)
        for one in operations:
            self.revs[one.user_id] = self.revs.get(one.user_id, 0) + 1
            self.marks[one.user_id] = one.seq
            self.ledger.append(one)
            applied.append(Applied(one, Verdict.APPLIED, self.revs[one.user_id]))
        if operations and self.chance.random() < self.unsteady:
            raise OutcomeUnknown("the reply was lost")
        users = tuple(
            AppliedUser(user, EPOCH, before.get(user, 0), self.revs[user], as_sent=True)
            for user in sorted({one.user_id for one in operations})
        )
        return BatchApplied(operations=tuple(applied), users=users)

    def heal(self) -> None:
        """Everything but what lies in operations themselves."""
        self.locked.clear()
        self.full = self.away = False
        self.most_at_once, self.unsteady = BATCH, 0.0


@dataclass(slots=True)
class Bench:
    """A queue, the model, and the relay between them; time is moved by hand."""

    chance: random.Random
    file: HotFile
    clock: HandClock
    model: Model
    relay: Relay
    accepted: list[str] = field(default_factory=list[str])
    nodes: list[tuple[str, NodeId]] = field(default_factory=list[tuple[str, NodeId]])

    @classmethod
    def over(cls, file: HotFile, clock: HandClock, chance: random.Random) -> Bench:
        model = Model(chance)
        relay = relay_between(file, model, clock=clock, uniform=chance.random, batch_size=BATCH, events=EventLog(None))
        return cls(chance, file, clock, model, relay)

    async def accept(self, user_id: str | None = None) -> str:
        """Queue a change of a node, or a relationship of two; now and then one that Postgres will not take."""
        user = user_id or self.chance.choice(USERS)
        theirs = [node for owner, node in self.nodes if owner == user]
        if len(theirs) > 1 and self.chance.random() < 0.3 and user_id is None:
            change = related(*self.chance.sample(theirs, 2), user_id=user)
            accepted = await self.file.outbox.accept_relationship(user, change)
        else:
            key = self.chance.choice(KEYS)
            node = keyed(key, str(len(self.accepted)), user_id=user)
            accepted = await self.file.outbox.accept_node(user, node)
            if (user, node.node_id) not in self.nodes:
                self.nodes.append((user, node.node_id))
        self.accepted.append(accepted.op_id)
        return accepted.op_id

    async def round(self) -> bool:
        """One round as the service would run it. Whether there is more to do."""
        try:
            pause = await self.relay.run_once()
        except DurableTierError as error:
            pause = self.relay.failed(error)
        if pause:
            self.clock.advance(timedelta(seconds=pause, microseconds=1))
        return pause is not None

    async def quiesce(self) -> None:
        """Run until nothing is left, somebody writing now and then."""
        for number in range(2_000):
            if not await self.round():
                return
            if number % 20 == 0:
                await self.accept("eve")
        raise AssertionError("it never came to rest")


def trouble(bench: Bench) -> None:
    chance, model = bench.chance, bench.model
    match chance.randrange(7):
        case 0:
            model.locked ^= {chance.choice(USERS)}
        case 1:
            model.full = not model.full
        case 2:
            model.away = not model.away
        case 3:
            model.most_at_once = chance.randint(1, BATCH)
        case 4:
            model.unsteady = chance.choice([0.0, 0.2, 0.5])
        case _:
            model.heal()


async def play(bench: Bench, steps: int) -> None:
    chance = bench.chance
    for _ in range(steps):
        match chance.randrange(8):
            case 0 | 1 | 2:
                op_id = await bench.accept()
                what = chance.random()
                if what < 0.04:
                    bench.model.poisonous.add(op_id)
                elif what < 0.08:
                    bench.model.failing.add(op_id)
            case 3:
                trouble(bench)
            case _:
                await bench.round()
    bench.model.heal()
    await bench.quiesce()


def depends(one: Operation, dead: Sequence[Operation]) -> bool:
    """Whether an operation depends on one of these."""
    ends = {one.entity_id}
    if one.kind is Kind.RELATIONSHIP:
        row, _ = carried_relationship(one.payload)
        ends |= {row.source_id, row.target_id}
    return any(cause.user_id == one.user_id and cause.seq < one.seq and cause.entity_id in ends for cause in dead)


async def explore(seed: int, folder: Path, *, steps: int = 120) -> None:
    """One history by seed, and what must hold at its end."""
    chance, clock = random.Random(seed), HandClock()
    async with hot_file(folder, clock=clock) as file:
        bench = Bench.over(file, clock, chance)
        await play(bench, steps)
        await file.database.write(lambda _: None)
        dead = [letter.operation for letter in await file.dead_letters.list()]
        assert file.outbox.claim(after_seq=0, limit=10_000) == [], seed
    model = bench.model
    refused = model.poisonous | model.failing
    assert sorted(one.op_id for one in [*model.ledger, *dead]) == sorted(bench.accepted), seed
    for user in (*USERS, "eve"):
        seqs = [one.seq for one in model.ledger if one.user_id == user]
        assert seqs == sorted(seqs), seed
    causes = [one for one in dead if one.op_id in refused]
    innocent = [one for one in dead if one not in causes and not depends(one, causes)]
    assert (innocent, len(causes)) == ([], len(refused)), seed


@pytest.mark.parametrize("first_seed", range(0, 120, 10))
async def test_whatever_is_refused_and_however_all_is_applied_once_and_in_order_or_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_seed: int
) -> None:
    monkeypatch.setattr(carrying, "AT_ONCE", Backoff(first_seconds=0.0, cap_seconds=0.0))
    for seed in range(first_seed, first_seed + 10):
        await explore(seed, tmp_path / str(seed))
