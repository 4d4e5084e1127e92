"""Two to four processes write the same users' graphs while some are cut off, and come back late: do all agree again?"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final, cast

from hybrid_memory.testing.postgres import short_folder
from hybrid_memory.testing.proxy import Proxy
from tests.campaigns.tally import Tally
from tests.plugins.postgres import connected
from tests.support.load import CONVERGED_SECONDS, Turn, in_turn
from tests.support.own_server import OwnServer
from tests.support.sharing_judge import LEDGER, Account
from tests.support.sharing_worker import Task
from tests.support.waiting import eventually, until
from tests.support.witness import Verdict

REPOSITORY: Final = Path(__file__).parents[2]
PROCESSES: Final = (2, 3, 4)
ANSWER_SECONDS: Final = 150.0
# Acknowledged by all processes together while somebody is cut off, and until the next one is.
APART_WRITES: Final = (10, 200)
BETWEEN_WRITES: Final = (0, 60)
# A process that came back meets the others while they still write.
TOGETHER_WRITES: Final = 60
# Of the one that is stopped with what it has queued.
QUEUED_WRITES: Final = 40
# However long the processes took to open their files.
LEAST_SECONDS: Final = 1.5
MOST_LINE_BYTES: Final = 2**20


@dataclass(slots=True, kw_only=True)
class Member:
    """One of the processes, and the proxy before its Postgres."""

    name: str
    proxy: Proxy
    data_dir: Path
    seed: int
    account: Account
    forgets: bool
    generation: int = 0
    process: asyncio.subprocess.Process | None = None
    answers: asyncio.Queue[object] = field(default_factory=asyncio.Queue["object"])
    reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin a process on the data directory."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.sharing_worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY, limit=MOST_LINE_BYTES,
        )  # fmt: skip
        self.reading = asyncio.create_task(self._read(self.process))
        task = Task(
            dsn=self.proxy.dsn,
            data_dir=str(self.data_dir),
            name=self.name,
            generation=self.generation,
            seed=self.seed,
            forgets=self.forgets,
        )
        self._send(task.text())
        self.generation += 1

    def _send(self, line: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said: dict[str, object] = json.loads(line)
            if said["at"] == "answer":
                self.answers.put_nowait(said["answer"])
            else:
                self.account.hear(self.name, said)

    async def ask(self, do: str) -> object:
        """Have it do something, and give its answer."""
        assert self.reading is not None
        self._send(json.dumps({"do": do}))
        answer = asyncio.ensure_future(self.answers.get())
        await asyncio.wait([answer, self.reading], timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            raise RuntimeError(
                f"{self.name} was asked to {do} and " + ("ended" if self.reading.done() else "is silent")
            )
        return answer.result()

    async def stop(self) -> None:
        """Have it close its file, with whatever is queued there."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        if await self.process.wait() != 0:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}")
        assert self.reading is not None
        await self.reading

    async def part(self, random: Random) -> None:
        """Cut it off from Postgres in one of the ways there are."""
        match random.randrange(3):
            case 0:
                self.proxy.refuse()
                self.proxy.cut()
            case 1:
                self.proxy.stall()
            case _:
                self.proxy.go_silent()

    async def unite(self) -> None:
        """End what `part` began: who waits for an answer that is lost is told so."""
        self.proxy.cut()
        await self.proxy.heal()


@dataclass(slots=True, kw_only=True)
class Team:
    """The processes of one turn."""

    members: list[Member]
    account: Account

    async def all(self, do: str) -> list[object]:
        """Have all do something at the same time."""
        return await asyncio.gather(*(member.ask(do) for member in self.members))

    async def write(self, count: int, *, by: Sequence[Member] = ()) -> None:
        """Let so many more writes be acknowledged, of all or of some members."""
        names = {member.name for member in by or self.members}
        due = self.account.count(names) + count
        await until(lambda: self.account.count(names) >= due, seconds=ANSWER_SECONDS)

    async def settle(self, tally: Tally) -> Verdict:
        """Let all writing end and all queues run out; note how long it then takes until all copies are Postgres'."""
        verdict = Verdict()
        await self.all("rest")
        for told in cast("list[dict[str, object]]", await self.all("drain")):
            verdict.lost += [f"{told['left']} operations are still queued"] if told["left"] else []
            verdict.lost += [f"dead: {letter}" for letter in cast("list[str]", told["dead"])]
        quiet = time.monotonic()
        try:
            await eventually(self._agree, seconds=CONVERGED_SECONDS)
        except AssertionError:
            verdict.diverged.append(f"after {CONVERGED_SECONDS:.0f} s: {await self.all('digests')}")
        tally.recovered_in(time.monotonic() - quiet)
        await self.all("tell")
        return verdict

    async def _agree(self) -> bool:
        """Whether all copies of every user are the same, and what Postgres has."""
        said = cast("list[dict[str, list[object]]]", await self.all("digests"))
        return all(len({digest for one in said for digest in one[user]}) == 1 for user in said[0])


Fault = Callable[[Team, Turn], Awaitable[None]]


async def parting(team: Team, turn: Turn) -> None:
    """Now this one is cut off for a while, now that one, and sometimes two of them; all write on."""
    random = turn.random
    while turn.tally.injected == 0 or not turn.over():
        parted = random.sample(team.members, random.choice([1, 1, 2]))
        for member in parted:
            await member.part(random)
        await team.write(random.randint(*APART_WRITES))
        for member in parted:
            await member.unite()
        turn.tally.injected += len(parted)
        await team.write(random.randint(*BETWEEN_WRITES))


async def returning(team: Team, turn: Turn) -> None:
    """One is cut off for the whole turn, and comes back with all that it wrote meanwhile."""
    member = turn.random.choice(team.members)
    await member.part(turn.random)
    await until(turn.over, seconds=ANSWER_SECONDS)
    await member.unite()
    turn.tally.injected += 1


async def returning_from_stop(team: Team, turn: Turn) -> None:
    """One is stopped with a queue while the others write on, and its file is opened again when the turn is over."""
    member = turn.random.choice(team.members)
    member.proxy.refuse()
    member.proxy.cut()
    await team.write(QUEUED_WRITES, by=[member])
    await member.ask("rest")
    await member.stop()
    team.account.stopped.add(member.name)
    await until(turn.over, seconds=ANSWER_SECONDS)
    await member.unite()
    await member.start()
    await member.ask("write")
    turn.tally.injected += 1


FAULTS: Final[dict[str, Fault]] = {
    "shared users, processes cut off": parting,
    "shared users, late return": returning,
    "shared users, return with a queue": returning_from_stop,
}


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Give each kind its turns for so many seconds in all; processes, their writes and their faults follow the seed."""
    return asyncio.run(_campaign(seconds=seconds, seed=seed))


async def _campaign(*, seconds: float, seed: int) -> list[Tally]:
    with short_folder() as folder:
        server = await OwnServer.start(folder)
        try:
            return await campaign_on(server, folder, seconds=seconds, seed=seed)
        finally:
            await server.stop()


async def campaign_on(
    server: OwnServer, folder: Path, *, seconds: float, seed: int, only: Sequence[str] = tuple(FAULTS)
) -> list[Tally]:
    """`run` on a server that is there; sockets and data directories lie in the folder, whose path is short."""

    async def inject(turn: Turn) -> None:
        await _inject(server, folder / str(turn.number), turn, seed)

    return await in_turn(only, inject, seconds=seconds, seed=seed)


async def _inject(server: OwnServer, folder: Path, turn: Turn, seed: int) -> None:
    """One turn on a database of its own, and the judgement on it."""
    tally = turn.tally
    folder.mkdir(mode=0o755)
    async with server.database() as database, connected(database.admin_dsn) as admin:
        await admin.execute(LEDGER)
        async with sharing(database.app_dsn, folder, turn, seed) as team:
            await team.all("write")
            least = time.monotonic() + LEAST_SECONDS
            await FAULTS[tally.fault](team, replace(turn, until=max(turn.until, least)))
            await team.write(TOGETHER_WRITES)
            verdict = await team.settle(tally)
        judged = await team.account.judge(admin)
    complaints = [*verdict.lost, *verdict.diverged, *judged.lost, *judged.doubled, *judged.reordered, *judged.diverged]
    sys.stderr.write("".join(f"{tally.fault}: {complaint}\n" for complaint in complaints[:20]))
    tally.acked += len(team.account.writes)
    tally.slowest_call_s = max(tally.slowest_call_s, team.account.slowest_call_s)
    tally.lost += len(verdict.lost) + len(judged.lost)
    tally.doubled += len(judged.doubled)
    tally.reordered += len(judged.reordered)
    tally.diverged += len(verdict.diverged) + len(judged.diverged)


@asynccontextmanager
async def sharing(dsn: str, folder: Path, turn: Turn, seed: int) -> AsyncGenerator[Team]:
    """So many processes as the turn's luck has it, that have opened the same users; they are ended with the block."""
    account = Account()
    async with AsyncExitStack() as stack:
        members: list[Member] = []
        for number in range(turn.random.choice(PROCESSES)):
            wires = folder / f"w{number}"
            wires.mkdir(mode=0o755)
            member = Member(
                name=f"p{number}",
                proxy=await stack.enter_async_context(Proxy.before(dsn, wires, seed=number)),
                data_dir=folder / f"d{number}",
                seed=seed,
                account=account,
                forgets=number == 0,
            )
            await member.start()
            members.append(member)
        team = Team(members=members, account=account)
        try:
            await team.all("digests")  # they have opened
            yield team
            for member in members:
                await member.stop()
        finally:
            for member in members:
                await _end(member)


async def _end(member: Member) -> None:
    if member.process is not None and member.process.returncode is None:
        member.process.kill()
        await member.process.wait()
    if member.reading is not None:
        await asyncio.gather(member.reading, return_exceptions=True)
