"""The story that the demo tells: learn, lose Postgres, go on, have it back, and find all of it elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from pydantic import ValidationError

from hybrid_memory.cli.demo.child import dismiss
from hybrid_memory.cli.demo.errand import Answers, Errand, Reply, Timed
from hybrid_memory.cli.demo.first_session import FirstSession
from hybrid_memory.cli.demo.memories import Episode, Lesson
from hybrid_memory.cli.demo.own_server import Server
from hybrid_memory.cli.demo.second_session import digest_text
from hybrid_memory.cli.demo.steps import Steps
from hybrid_memory.errors import HybridMemoryError, Unreachable
from hybrid_memory.manager import HybridMemoryManager

# Episodes whose memories are stored before their relationships; enough to keep all writes in flight busy.
_AT_ONCE: Final = 64
_DRAIN_SECONDS: Final = 300
_SECOND_PROCESS_SECONDS: Final = 1800


class SecondProcessFailed(HybridMemoryError):
    """The second process did not do its errand."""

    code = "second_process_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many episodes are learned in which part of the story."""

    before: int
    crossing: int
    """While Postgres is being killed."""
    outage: int

    @classmethod
    def of(cls, total: int, *, outage: bool) -> Plan:
        """A quarter of it falls into the outage, one episode at least; the rest is split around it."""
        if not outage:
            return cls(before=total, crossing=0, outage=0)
        away = max(1, total // 4)
        before = max(1, (total - away) // 2)
        crossing = min(_AT_ONCE, before)
        return cls(before=before - crossing, crossing=crossing, outage=away)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What the story came to."""

    answers: Answers
    stored: int
    relationships: int
    acknowledged: int
    written_in_outage: int
    pending_in_outage: int
    durable_after: int
    unreadable: int
    hot: str
    durable: str
    outage: bool
    read_us: dict[str, float | None] = field(default_factory=dict[str, "float | None"])

    @property
    def equal(self) -> bool:
        """Whether both tiers, and the second process's copy, are the same."""
        return self.hot == self.durable == self.answers.digest

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        wrote = self.written_in_outage
        kept = self.answers.present_after == self.pending_in_outage == self.durable_after == wrote
        there = self.stored == self.answers.found > 0 and self.unreadable == 0
        return self.equal and there and kept and (wrote > 0 or not self.outage)


class Story:
    """One run of the demo over open databases."""

    def __init__(self, lesson: Lesson, steps: Steps, server: Server, data_dir: Path) -> None:
        self._lesson = lesson
        self._steps = steps
        self._server = server
        self._data_dir = data_dir
        self._plan = Plan.of(lesson.total, outage=server.may_be_killed)
        self._read_us: dict[bool, list[float]] = {False: [], True: []}

    async def tell(self) -> Outcome:
        """Run it to the end."""
        async with HybridMemoryManager.open(dsn=self._server.dsn, data_dir=self._data_dir) as manager:
            user = await manager.ensure_user_memories(self._lesson.user_id)
            session = FirstSession(user, counts_entities=self._lesson.counts_entities)
            async with aclosing(self._lesson.episodes()) as episodes:
                await self._learn_all(session, episodes)
            durable_after = await self._drained(session)
            answers = await self._ask_second_process(session)
            with self._steps.step("compare both tiers") as done:
                hot, durable = await user.digest(), await manager.durable_digest(user.user_id)
                done(hot.nodes + hot.relationships)
        return Outcome(
            answers=answers,
            stored=session.stored,
            relationships=len(session.links),
            acknowledged=session.acknowledged,
            written_in_outage=len(session.receipts_in_outage),
            pending_in_outage=session.pending_in_outage,
            durable_after=durable_after,
            unreadable=session.unreadable,
            hot=digest_text(hot),
            durable=digest_text(durable),
            outage=self._server.may_be_killed,
            read_us={
                "healthy": _middle(self._read_us[False]),
                "outage": _middle(self._read_us[True]),
            },
        )

    async def _learn_all(self, session: FirstSession, episodes: AsyncGenerator[Episode]) -> None:
        plan = self._plan
        await self._learn(session, episodes, "learn", plan.before)
        if self._server.may_be_killed:
            await self._lose_postgres(session, episodes)
            session.in_outage = True
            await self._learn(session, episodes, "write while Postgres is dead", plan.outage)
            away = self._read_us[True]
            self._steps.add([Timed(name="read while Postgres is dead", count=len(away), ms=round(sum(away) / 1000, 3))])
            session.in_outage = False
            with self._steps.step("bring Postgres back"):
                await self._server.revive()
        rest = self._lesson.total - plan.before - plan.crossing - plan.outage
        await self._learn(session, episodes, "learn the rest", rest)

    async def _lose_postgres(self, session: FirstSession, episodes: AsyncGenerator[Episode]) -> None:
        """Kill it while writes are under way: some of them are decided, some are not, all are acknowledged."""
        batch = await _next(episodes, self._plan.crossing)
        with self._steps.step("kill Postgres (-9) while writing") as done:
            before = session.acknowledged
            kill = asyncio.create_task(self._server.kill())
            try:
                await session.learn(batch)
            finally:
                await kill
            done(session.acknowledged - before)

    async def _learn(self, session: FirstSession, episodes: AsyncGenerator[Episode], name: str, count: int) -> None:
        if count <= 0:
            return
        with self._steps.step(name, total=count) as done:
            left = count
            while left > 0 and (batch := await _next(episodes, min(_AT_ONCE, left))):
                before = session.acknowledged
                await session.learn(batch)
                left -= len(batch)
                done(session.acknowledged - before)
                self._read_us[session.in_outage] += await session.read()

    async def _drained(self, session: FirstSession) -> int:
        """Wait until Postgres has decided all that was PENDING; returns how much of the outage's it has now."""
        with self._steps.step("drain the queue") as done:
            done(len(session.pending))
            try:
                async with asyncio.timeout(_DRAIN_SECONDS):
                    return await session.drained()
            except TimeoutError:
                raise Unreachable(
                    "some writes still wait for Postgres",
                    fix="they are safe in the queue; see `hybrid-memory doctor`",
                ) from None

    async def _ask_second_process(self, session: FirstSession) -> Answers:
        errand = Errand(
            dsn=self._server.dsn,
            data_dir=self._data_dir,
            user_id=self._lesson.user_id,
            memories=session.memories,
            links=session.links,
            questions=session.asked(self._lesson.questions()),
        )
        with self._steps.shown("second process"):
            began = time.perf_counter()
            answers = await _second_process(errand)
            ms = (time.perf_counter() - began) * 1000 - sum(step.ms for step in answers.steps)
        self._steps.add([Timed(name="second process: start and end", count=1, ms=round(ms, 3)), *answers.steps])
        return answers


async def _next(episodes: AsyncGenerator[Episode], count: int) -> list[Episode]:
    batch: list[Episode] = []
    while len(batch) < count:
        try:
            batch.append(await anext(episodes))
        except StopAsyncIteration:
            break
    return batch


async def _second_process(errand: Errand) -> Answers:
    # The errand goes through a pipe: a DSN can hold a password, which has no place among arguments.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "hybrid_memory.cli.demo.second_session", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    complaints = b""
    try:
        async with asyncio.timeout(_SECOND_PROCESS_SECONDS):
            written, complaints = await process.communicate(errand.model_dump_json().encode())
        reply = Reply.model_validate_json(written)
    except TimeoutError:
        raise SecondProcessFailed("the second process did not end in time", fix="try a smaller --limit") from None
    except ValidationError:
        last = complaints.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise SecondProcessFailed(f"the second process ended with {process.returncode}: {last}") from None
    finally:
        await dismiss(process)
    if reply.answers is None:
        trouble = reply.trouble
        told = "no reason given" if trouble is None else trouble.message
        raise SecondProcessFailed(f"in the second process: {told}", fix="" if trouble is None else trouble.fix)
    return reply.answers


def _middle(microseconds: list[float]) -> float | None:
    return round(median(microseconds), 1) if microseconds else None
