"""What a supervisor heard from workers that were killed, and whether the durable tier bears it out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from hybrid_memory.sqlite.driver import choose_driver
from tests.support.kill_worker import NAMESPACE, SYSTEM

Place = tuple[str, str]


@dataclass(slots=True)
class Told:
    """One user's writes on one thing, in order: what each would leave behind, and the last one acknowledged."""

    left: list[int | None] = field(default_factory=list["int | None"])
    acknowledged: int = -1

    def may_be(self) -> set[int | None]:
        """What may stand at the end: what the last acknowledged write left, or any write tried after it."""
        known: list[int | None] = [self.left[self.acknowledged] if self.acknowledged >= 0 else None]
        return {*known, *self.left[self.acknowledged + 1 :]}


@dataclass(slots=True)
class Verdict:
    """What was found wrong; each line names the user and the thing."""

    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    reordered: list[str] = field(default_factory=list[str])
    diverged: list[str] = field(default_factory=list[str])

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.reordered or self.diverged)


@dataclass(slots=True)
class Witness:
    """Collects what workers say."""

    keys: dict[Place, Told] = field(default_factory=dict[Place, Told])
    tried: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict[str, "set[tuple[str, str, str]]"])
    acknowledged: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict[str, "set[tuple[str, str, str]]"])
    acks: int = 0
    tries: int = 0
    slowest_call_s: float = 0.0

    def hear(self, line: bytes) -> str:
        """Take in a line of a worker; gives what it is about."""
        said: dict[str, object] = json.loads(line)
        at = str(said["at"])
        if at in {"opening", "open", "ended"}:
            return at
        user, deed, on, number = str(said["user"]), str(said["deed"]), str(said["on"]), int(str(said["n"]))
        self.tries += at == "try"
        self.acks += at == "ok"
        self.slowest_call_s = max(self.slowest_call_s, float(str(said.get("over", 0.0))))
        if deed in {"store", "delete"}:
            self._hear_of_key(at, self.keys.setdefault((user, on), Told()), number if deed == "store" else None)
        elif at != "refused":
            kept = self.tried if at == "try" else self.acknowledged
            kept.setdefault(deed, set()).add((user, on, str(number)))
        return at

    @staticmethod
    def _hear_of_key(at: str, told: Told, leaves: int | None) -> None:
        match at:
            case "try":
                told.left.append(leaves)
            case "ok":
                told.acknowledged = len(told.left) - 1
            case _:
                told.left.pop()  # refused: it did nothing

    async def judge(self, durable: asyncpg.Connection, *, operations: int | None) -> Verdict:
        """Hold everything heard against Postgres.

        `operations` is how many numbers the queue ever gave out, None where the server has lost some of its past.
        """
        verdict = Verdict()
        await self._judge_keys(durable, verdict)
        await self._judge_marks(durable, verdict)
        await self._judge_edges(durable, verdict)
        await self._judge_fields(durable, verdict)
        await _judge_order(durable, verdict)
        revs: int = await durable.fetchval("select coalesce(sum(rev), 0)::bigint from memory.heads")
        if operations is None:
            return verdict
        if revs < operations:
            verdict.lost.append(f"{operations} operations were queued, {revs} revisions taken")
        if revs > operations:
            verdict.doubled.append(f"{operations} operations were queued, {revs} revisions taken")
        return verdict

    async def _judge_keys(self, durable: asyncpg.Connection, verdict: Verdict) -> None:
        rows = await durable.fetch(
            "select user_id, key, (content->>'n')::bigint as n from memory.nodes"
            " where namespace = $1 and deleted_at is null",
            NAMESPACE,
        )
        stands: dict[Place, int] = {(row["user_id"], row["key"]): row["n"] for row in rows}
        for place, told in self.keys.items():
            if stands.get(place) not in told.may_be():
                verdict.lost.append(f"{place} stands at {stands.get(place)}, not one of {told.may_be()}")
        verdict.doubled += [f"{place} was never written" for place in stands.keys() - self.keys.keys()]

    async def _judge_marks(self, durable: asyncpg.Connection, verdict: Verdict) -> None:
        rows = await durable.fetch(
            "select user_id, content->>'mark' as mark from memory.nodes where content->>'mark' is not null"
        )
        self._judge_presence("mark", Counter((row["user_id"], row["mark"]) for row in rows), verdict)

    async def _judge_edges(self, durable: asyncpg.Connection, verdict: Verdict) -> None:
        rows = await durable.fetch("select user_id, source_id || ' ' || target_id as ends from memory.relationships")
        self._judge_presence("relate", Counter((row["user_id"], row["ends"]) for row in rows), verdict)

    def _judge_presence(self, deed: str, present: Counter[Place], verdict: Verdict) -> None:
        acknowledged = {(user, on) for user, on, _ in self.acknowledged.get(deed, set())}
        tried = {(user, on) for user, on, _ in self.tried.get(deed, set())}
        verdict.lost += [f"{deed} of {place}" for place in acknowledged - present.keys()]
        verdict.doubled += [f"{deed} of {place}" for place, count in present.items() if count > 1 or place not in tried]

    async def _judge_fields(self, durable: asyncpg.Connection, verdict: Verdict) -> None:
        rows = await durable.fetch(
            "select user_id, entity_id, array(select json_object_keys(content->'entity_data')) as fields"
            " from memory.nodes where entity_system = $1",
            SYSTEM,
        )
        present = Counter((row["user_id"], f"{row['entity_id']} {name}") for row in rows for name in row["fields"])
        acknowledged = {(user, f"{on} f{number}") for user, on, number in self.acknowledged.get("merge", set())}
        tried = {(user, f"{on} f{number}") for user, on, number in self.tried.get("merge", set())}
        verdict.lost += [f"field {place}" for place in acknowledged - present.keys()]
        verdict.doubled += [f"field {place} was never written" for place in present.keys() - tried]


async def _judge_order(durable: asyncpg.Connection, verdict: Verdict) -> None:
    """Of one user and client, a later revision was made by a later operation."""
    rows = await durable.fetch(
        "select user_id, rev from (select user_id, rev, writer_seq, lag(writer_seq) over (partition by user_id, writer"
        " order by rev) as before from (select user_id, rev, writer, writer_seq from memory.nodes union all"
        " select user_id, rev, writer, writer_seq from memory.relationships) as rows) as pairs"
        " where writer_seq > 0 and before > writer_seq"
    )
    verdict.reordered += [f"{row['user_id']} at revision {row['rev']}" for row in rows]


def numbers_given_out(data_dir: Path) -> int:
    """How many numbers the queue of a closed data directory ever gave out."""
    # Every process is gone and the file is closed: nobody's locks are in the way of a second opener.
    connection = choose_driver().connect(data_dir / "slot-00.db", read_only=True)
    try:
        (last,) = connection.execute("select value from meta where key = 'last_seq'").fetchone()
    finally:
        connection.close()
    return int(last)
