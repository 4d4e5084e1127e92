"""What processes that wrote the same users have said, held against all that Postgres ever applied and what it keeps."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple, cast

import asyncpg

from tests.support.sharing_worker import COUNTED, ERASED, KEPT, SYSTEM
from tests.support.without_end import without_end
from tests.support.witness import Verdict

LEDGER: Final = """
    create schema witness;
    create table witness.ledger (
        user_id text not null, entity_id uuid not null, place text not null, rev bigint not null, stamp bigint not null,
        writer uuid not null, writer_seq bigint not null, deleted boolean not null,
        content json not null, made boolean not null);
    create function witness.note() returns trigger language plpgsql security definer set search_path = pg_catalog as $$
    begin
        if tg_op = 'UPDATE' and new.rev = old.rev then
            return null;
        end if;
        if tg_table_name = 'nodes' then
            insert into witness.ledger values (new.user_id, new.node_id, coalesce(new.entity_system, new.namespace),
                new.rev, new.stamp, new.writer, new.writer_seq, new.deleted_at is not null, new.content,
                tg_op = 'INSERT');
        else
            insert into witness.ledger values (new.user_id, new.relationship_id, 'edge',
                new.rev, new.stamp, new.writer, new.writer_seq, new.deleted_at is not null, new.properties,
                tg_op = 'INSERT');
        end if;
        return null;
    end $$;
    create trigger witnessed after insert or update on memory.nodes for each row execute function witness.note();
    create trigger witnessed after insert or update on memory.relationships
        for each row execute function witness.note();
"""
"""Notes every version of every row, in a database of the tests' own. An entity's place is its system's name."""


class Write(NamedTuple):
    """An acknowledged write."""

    process: str
    user: str
    deed: str
    on: str
    number: int


class Row(NamedTuple):
    """One version of a row, as the ledger has it."""

    user: str
    entity: str
    place: str
    rev: int
    stamp: int
    writer: str
    seq: int
    deleted: bool
    content: Mapping[str, object]
    made: bool
    """Nothing was there before, not even a tombstone."""

    @property
    def value(self) -> str:
        return str(self.content.get("v"))


@dataclass(slots=True)
class Account:
    """What was heard: each write by its value, and what its receipt said in the end, with the revision."""

    writes: dict[str, Write] = field(default_factory=dict[str, Write])
    verdicts: dict[str, tuple[str, int | None]] = field(default_factory=dict[str, "tuple[str, int | None]"])
    stopped: set[str] = field(default_factory=set[str])
    """Processes that were stopped with a queue: their callers heard no more."""
    wrong: list[str] = field(default_factory=list[str])
    """What a process itself found to be wrong."""
    slowest_call_s: float = 0.0

    def count(self, processes: Collection[str]) -> int:
        """How many writes of these processes were acknowledged."""
        return sum(write.process in processes for write in self.writes.values())

    def hear(self, process: str, said: Mapping[str, object]) -> None:
        """Take in a line of a worker."""
        if said["at"] == "wrong":
            self.wrong.append(f"{process}: {said['what']}")
            return
        value = str(said["value"])
        if said["at"] == "ok":
            self.writes[value] = Write(
                process, str(said["user"]), str(said["deed"]), str(said["on"]), int(str(said["n"]))
            )
            self.slowest_call_s = max(self.slowest_call_s, float(str(said["over"])))
        else:
            rev = said["rev"]
            self.verdicts[value] = (str(said["verdict"]), None if rev is None else int(str(rev)))

    async def judge(self, admin: asyncpg.Connection) -> Verdict:
        """Hold it against the ledger, the history of losers and what stands."""
        rows = await admin.fetch(
            "select user_id, entity_id::text, place, rev, stamp, writer::text, writer_seq, deleted, content, made"
            " from witness.ledger order by user_id, rev"
        )
        ledger = [Row._make([*tuple(row)[:8], json.loads(row["content"]), row["made"]]) for row in rows]
        losers = await admin.fetch(
            "select user_id, node_id::text, rev, stamp, content->>'v' as v from memory.node_history"
            " where reason = 'lost'"
        )
        verdict = Verdict(diverged=list(self.wrong))
        self._contents(ledger, Counter(str(row["v"]) for row in losers), verdict)
        self._revisions(ledger, verdict)
        self._merged(ledger, verdict)
        _later_stands(ledger, losers, verdict)
        _counted(ledger, verdict)
        _ordered(ledger, verdict)
        self._told_in_order(verdict)
        await _standing(admin, ledger, verdict)
        return verdict

    def _contents(self, ledger: Sequence[Row], losers: Counter[str], verdict: Verdict) -> None:
        """Every content stood once, or lost to another and is kept as a loser: never both, never neither."""
        stood = Counter(row.value for row in ledger if not row.deleted and row.place != SYSTEM)
        verdict.doubled += [f"{value} stood {times} times" for value, times in stood.items() if times > 1]
        verdict.doubled += [f"{value} was never acknowledged" for value in stood.keys() - self.writes.keys()]
        for value, write in self.writes.items():
            said, rev = self.verdicts.get(value, (None, None))
            if said in {None, "dead"} and not self._may_be_unheard(write):
                verdict.lost.append(f"{value} ({write.deed} {write.on}) has the verdict {said}")
            if write.deed in {"delete", "merge"}:
                continue
            expected = {"applied": {1}, "superseded": {0}, "rejected": {0}}.get(str(said), {0, 1})
            if (write.user == ERASED and said == "rejected") or (write.deed == "relate" and rev is None):
                # Told of what an erasure took while it was on its way, or after a lost answer, it may have stood.
                expected = {0, 1}
            if stood[value] not in expected:
                verdict.lost.append(f"{value} ({write.deed} {write.on}) is {said} and stood {stood[value]} times")
            # An erasure takes the history too, and of relationships there is none.
            if write.user != ERASED and write.deed != "relate" and stood[value] + losers[value] != 1:
                times = f"stood {stood[value]} times and lost {losers[value]} times"
                verdict.lost.append(f"{value} ({write.deed} {write.on}) is {said}, {times}")

    def _may_be_unheard(self, write: Write) -> bool:
        return write.process in self.stopped or write.user == ERASED

    def _revisions(self, ledger: Sequence[Row], verdict: Verdict) -> None:
        """A receipt's revision is that of what its write made."""
        by_rev = {(row.user, row.rev): row for row in ledger}
        for value, (said, rev) in self.verdicts.items():
            write = self.writes[value]
            if said not in {"applied", "merged"} or rev is None:
                continue
            row = by_rev.get((write.user, rev))
            if row is None:
                verdict.lost.append(f"{value} has the revision {rev}, at which nothing was written")
            elif write.deed == "delete" and not row.deleted:
                verdict.lost.append(f"{value} deleted {write.on} at revision {rev}, which shows it")
            elif write.deed not in {"delete", "merge"} and row.value != value:
                verdict.lost.append(f"{value} has the revision {rev}, which is {row.value}")

    def _merged(self, ledger: Sequence[Row], verdict: Verdict) -> None:
        """An entity has the fields of all who merged into it, and of a field that all wrote the latest value."""
        versions: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in ledger:
            if row.place == SYSTEM and row.user != ERASED:
                versions[row.user, str(row.content["entity_id"])].append(row)
        merges: dict[tuple[str, str], set[str]] = defaultdict(set)
        for value, write in self.writes.items():
            if write.deed == "merge" and write.user != ERASED:
                merges[write.user, write.on].add(value)
        value_at = {
            (self.writes[value].user, rev): value for value, (_, rev) in self.verdicts.items() if rev is not None
        }
        for place, values in merges.items():
            rows = versions.get(place, [])
            fields: Mapping[str, object] = _fields(rows[-1]) if rows else {}
            verdict.lost += [f"{value} is no field of {place}" for value in values - fields.keys()]
            verdict.doubled += [f"{name} of {place} was never merged" for name in fields.keys() - values - {"last"}]
            if len(rows) > len(values):
                verdict.doubled.append(f"{place} was merged {len(values)} times and has {len(rows)} versions")
            for before, after in pairwise(rows):
                expected = _fields(before)["last"]
                if after.stamp > before.stamp:
                    expected = value_at.get((after.user, after.rev), _fields(after)["last"])
                if _fields(after)["last"] != expected:
                    verdict.diverged.append(f"{place} at {after.rev} has {_fields(after)['last']}, not {expected}")

    def _told_in_order(self, verdict: Verdict) -> None:
        """Of one process and user, what was acknowledged later has a later revision."""
        revs: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
        for value, (_, rev) in self.verdicts.items():
            write = self.writes[value]
            if rev is not None:
                revs[write.process, write.user].append((write.number, rev, value))
        for told in revs.values():
            verdict.reordered += [
                f"{after[2]} at revision {after[1]} came before {before[2]} at {before[1]}"
                for before, after in pairwise(sorted(told))
                if after[1] < before[1]
            ]


def _fields(row: Row) -> Mapping[str, object]:
    return cast("Mapping[str, object]", row.content["entity_data"])


def _later_stands(ledger: Sequence[Row], losers: Sequence[asyncpg.Record], verdict: Verdict) -> None:
    """Of two contents the one with the later stamp stands, in whatever order they came."""
    standing: dict[str, Row] = {}
    for row in ledger:
        before = standing.get(row.entity)
        if row.place == KEPT and before is not None and not row.made and row.stamp <= before.stamp:
            verdict.diverged.append(f"{row.value} took the place of {before.value}, which is later")
        standing[row.entity] = row
    by_rev = {(row.user, row.rev): row for row in ledger}
    for loser in losers:
        winner = by_rev.get((loser["user_id"], loser["rev"]))
        if winner is not None and winner.place != COUNTED and not winner.deleted and winner.stamp < loser["stamp"]:
            verdict.diverged.append(f"{loser['v']} lost to {winner.value}, which is earlier")


def _counted(ledger: Sequence[Row], verdict: Verdict) -> None:
    """What was compared before it was written counts without a gap; an erasure begins anew."""
    counts: dict[str, list[int]] = defaultdict(list)
    for row in ledger:
        if row.place == COUNTED and row.user != ERASED:
            counts[row.entity].append(int(str(row.content["n"])))
    verdict.lost += [
        f"the count went {counted}" for counted in counts.values() if counted != list(range(1, len(counted) + 1))
    ]


def _ordered(ledger: Sequence[Row], verdict: Verdict) -> None:
    """Of one user and client, a later revision was made by a later operation, and none was made twice."""
    last: dict[tuple[str, str], int] = {}
    for row in ledger:
        queue = row.user, row.writer
        # Without a number: what was decided.
        if row.seq == 0:
            continue
        if row.seq == last.get(queue):
            verdict.doubled.append(f"operation {row.seq} of {queue} was applied again at {row.rev}")
        elif row.seq < last.get(queue, 0):
            verdict.reordered.append(f"operation {row.seq} of {queue} came at {row.rev}, after {last[queue]}")
        last[queue] = row.seq


async def _standing(admin: asyncpg.Connection, ledger: Sequence[Row], verdict: Verdict) -> None:
    """Revisions have no gap, nothing erased has come back, and no relationship lives without its ends."""
    for head in await admin.fetch("select user_id, rev from memory.heads where user_id <> $1", ERASED):
        revs = [row.rev for row in ledger if row.user == head["user_id"]]
        if revs != list(range(1, head["rev"] + 1)):
            verdict.lost.append(f"{head['user_id']} is at {head['rev']} with {len(set(revs))} of {len(revs)} revisions")
    back = await admin.fetch(
        "select n.node_id::text from memory.nodes n join memory.heads h using (user_id) where n.rev <= h.erased_rev"
    )
    verdict.doubled += [f"{row[0]} was erased" for row in back]
    verdict.diverged += [f"{edge} outlived its end" for edge in await without_end(admin)]
