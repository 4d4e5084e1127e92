"""The nine rules that a history keeps if nothing was lost, doubled, put out of order or undone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from hybrid_memory.graph import Status, Verdict
from hybrid_memory.testing.history import Act, Entry, Event, History, Phase

# In seconds: a process tells of a reload that late.
_TOLD_WITHIN: Final = 0.05


class Finding(NamedTuple):
    """A rule that was broken, and how."""

    rule: int
    what: str


def check(history: History) -> list[Finding]:
    """Every rule broken, in the rules' order; empty for a history without fault. O(n) for each key."""
    return list(_Checker(history).findings())


class _Call(NamedTuple):
    begun: Event
    ended: Event | None
    told: Event | None
    """The last OK line: what the receipt said in the end."""


class _Checker:
    def __init__(self, history: History) -> None:
        self._history = history
        self._calls = list(_calls(history.events))
        self._by_operation = {entry.operation: entry for entry in history.ledger if entry.operation}
        self._place = {entry.operation: place for place, entry in enumerate(history.ledger) if entry.operation}
        self._written = {entry.value: entry for entry in history.ledger if entry.value is not None}
        self._erased = {
            one.begun.user_id for one in self._calls if one.begun.act is Act.ERASE and _may_have_happened(one)
        }

    def findings(self) -> Iterator[Finding]:
        rules = (self._once, self._order, self._rows, self._reads, self._tenants, self._conserved, self._forgotten)
        for number, rule in enumerate((*rules, self._complete, self._claims), start=1):
            yield from (Finding(number, what) for what in rule())

    def _once(self) -> Iterator[str]:
        counts = Counter(entry.operation for entry in self._history.ledger if entry.operation)
        yield from (f"{operation} was applied {times} times" for operation, times in counts.items() if times > 1)
        for begun, ended, told in self._calls:
            if begun.act in {Act.READ, Act.EVICT} or ended is None:
                continue
            if ended.phase is Phase.FAIL and begun.value is not None and begun.value in self._written:
                yield f"{begun.call} failed and was applied"
            operation = told.operation if told else None
            if operation is None or operation in counts or operation in self._history.dead | self._history.rewound:
                continue
            if begun.user_id not in self._erased:
                yield f"{begun.call} was acknowledged and is lost"

    def _order(self) -> Iterator[str]:
        last: dict[tuple[str, str], int] = {}
        for entry in self._history.ledger:
            queue = entry.client, entry.user_id
            if entry.seq and entry.seq <= last.get(queue, 0):
                yield f"{entry.operation} of {entry.user_id} came after number {last[queue]} of its queue"
            last[queue] = max(entry.seq, last.get(queue, 0))
        acknowledged: dict[tuple[str, str], list[tuple[float, float, int, str]]] = defaultdict(list)
        for begun, ended, told in self._calls:
            place = self._place.get(told.operation or "") if told else None
            # What died and was queued again by a person goes behind what was stored meanwhile.
            died = told is not None and told.verdict is Verdict.DEAD
            if place is not None and ended is not None and not died:
                acknowledged[begun.process, begun.user_id].append((begun.t, ended.t, place, begun.call))
        for calls in acknowledged.values():
            # Of those that had ended when a call began, the one furthest back in the ledger: it must lie before it.
            ends = sorted(calls, key=lambda one: one[1])
            furthest, which, reached = -1, "", 0
            for begun_at, _, place, call in sorted(calls):
                while reached < len(ends) and ends[reached][1] < begun_at:
                    if ends[reached][2] > furthest:
                        furthest, which = ends[reached][2], ends[reached][3]
                    reached += 1
                if furthest > place:
                    yield f"{call} began after {which} was acknowledged and was applied before it"

    def _rows(self) -> Iterator[str]:
        expected: dict[tuple[str, str], Entry] = {}
        for entry in self._history.ledger:
            if entry.erases:
                expected = {place: one for place, one in expected.items() if place[0] != entry.user_id}
            elif entry.rev is not None:
                expected[entry.user_id, entry.key] = entry
        for place, row in self._history.postgres.items():
            last = expected.get(place)
            if last is None or last.rev != row.rev:
                yield f"the row of {place} stands at {row.rev}, the ledger at {last and last.rev}"
        for process, rows in self._history.replicas.items():
            for place in sorted(rows.keys() | self._history.postgres.keys()):
                here, there = rows.get(place), self._history.postgres.get(place)
                if here != there and (process, *place) not in self._history.unsettled:
                    yield f"{process} has {here} of {place}, Postgres {there}"
        yield from self._beaten()
        last_erasure = {entry.user_id: at for at, entry in enumerate(self._history.ledger) if entry.erases}
        lost = sum(
            entry.lost for at, entry in enumerate(self._history.ledger) if at > last_erasure.get(entry.user_id, -1)
        )
        if lost != self._history.losers:
            yield f"{lost} contents lost a conflict and {self._history.losers} are kept"

    def _beaten(self) -> Iterator[str]:
        if self._history.rewound:
            return  # a revision known then is not that of the same number now
        standing: dict[tuple[str, str], int] = {}
        beaten_by: dict[str, int] = {}
        for entry in self._history.ledger:
            place = entry.user_id, entry.key
            if entry.verdict is Verdict.SUPERSEDED:
                beaten_by[entry.operation] = standing.get(place, 0)
            elif entry.rev is not None:
                standing[place] = entry.rev
        for begun, _, told in self._calls:
            rev = beaten_by.get(told.operation or "") if told is not None else None
            if rev is not None and begun.version is not None and rev <= begun.version:
                yield f"{begun.call} saw that nothing was there at {begun.version} and lost to revision {rev}"

    def _reads(self) -> Iterator[str]:
        own: dict[tuple[str, str, str | None], list[_Call]] = defaultdict(list)
        for call in self._calls:
            if call.begun.act in {Act.PUT, Act.MERGE}:
                own[call.begun.process, call.begun.user_id, call.begun.key].append(call)
        yield from self._backwards()
        for event in self._history.events:
            if event.act is Act.READ and event.phase is Phase.OK:
                yield from self._stale(event, own[event.process, event.user_id, event.key])
        # Of what a failover took and what came back since, the order says nothing of what stood at the time.
        taken = {begun.value for begun, _, told in self._calls if told and told.operation in self._history.rewound}
        for one in self._history.handovers:
            if not taken.isdisjoint({one.read, one.told}):
                continue
            if _came_before(self._written.get(one.read or ""), self._written.get(one.told or "")):
                yield f"behind a barrier at {one.t:.6f} {one.read} was read, where {one.told} had been seen before"

    def _backwards(self) -> Iterator[str]:
        seen: dict[tuple[str, int, str, str | None], int] = {}
        telling: dict[tuple[str, str], float] = {}
        erased: set[str] = set()
        own = {(one.begun.process, one.begun.value) for one in self._calls if one.begun.value is not None}
        reloads = sorted(self._history.reloads, reverse=True)
        for event in self._history.events:
            while reloads and reloads[-1].t - _TOLD_WITHIN <= event.t:
                # Shown a while before it is told of, so until then a read may be of either copy.
                told = reloads.pop()
                telling[told.process, told.user_id] = told.t
                seen = {at: rev for at, rev in seen.items() if (at[0], at[2]) != (told.process, told.user_id)}
            if event.act is Act.READ and event.t <= telling.get((event.process, event.user_id), 0.0):
                continue
            match event.act:
                case Act.ERASE:
                    # Other processes obey it at a time that nobody noted.
                    erased.add(event.user_id)
                case Act.EVICT:
                    seen = {place: rev for place, rev in seen.items() if place[2] != event.user_id}
                case Act.READ if event.version is not None and event.user_id not in erased:
                    place = event.process, event.life, event.user_id, event.key
                    if event.version == 0 and (event.process, event.value) in own:
                        # Its own, still queued, over what somebody has deleted since: that has no revision.
                        continue
                    if event.version < seen.get(place, 0):
                        yield f"{event.call} read revision {event.version} of {event.key} after {seen[place]}"
                    seen[place] = event.version
                case _:
                    pass

    def _stale(self, read: Event, own: list[_Call]) -> Iterator[str]:
        if read.value is None:
            return
        source = self._written.get(read.value)
        earlier = next((one for one in own if one.begun.value == read.value), None)
        for call in own:
            told = call.told
            if told is None or call.ended is None or call.ended.t >= read.t or call.begun.value == read.value:
                continue
            entry = self._by_operation.get(told.operation or "")
            if told.operation in self._history.dead or (entry and entry.verdict is not Verdict.APPLIED):
                continue
            if told.verdict not in (None, Verdict.APPLIED):
                # Its caller was told so. Taken out of the queue by an erasure, it never came to Postgres.
                continue
            own_older = earlier is not None and earlier.told is not None and _ended_before(earlier, call)
            if own_older or (call.begun.act is Act.PUT and _came_before(source, entry)):
                yield f"{read.call} read {read.value} after {call.begun.value} was acknowledged"

    def _tenants(self) -> Iterator[str]:
        for event in self._history.events:
            if event.act is Act.READ and event.owner not in {None, event.user_id}:
                yield f"{event.call} of {event.user_id} returned a row of {event.owner}"
            writer = self._written.get(event.value or "") if event.act is Act.READ else None
            if writer is not None and writer.user_id != event.user_id:
                yield f"{event.call} of {event.user_id} returned what {writer.user_id} wrote"

    def _conserved(self) -> Iterator[str]:
        for moment in self._history.moments:
            somewhere = moment.applied | moment.queued | moment.dead | moment.cancelled
            missing = moment.acknowledged - somewhere - self._history.rewound
            if missing:
                yield f"at {moment.t:.6f} {sorted(missing)} were neither applied nor queued nor dead"
            if twice := moment.queued & moment.dead:
                yield f"at {moment.t:.6f} {sorted(twice)} were queued and dead"

    def _forgotten(self) -> Iterator[str]:
        last_erasure = {entry.user_id: at for at, entry in enumerate(self._history.ledger) if entry.erases}
        standing = {row.value for row in self._history.postgres.values()}
        for rows in self._history.replicas.values():
            standing |= {row.value for row in rows.values()}
        for value, entry in self._written.items():
            # Applied again behind an erasure that was repeated, it may have been written behind that erasure at first.
            if value in standing and self._place[entry.operation] < last_erasure.get(entry.user_id, -1):
                yield f"{value} was erased and stands again"
        yield from self._outlived()
        erasures: dict[tuple[str, str], list[_Call]] = defaultdict(list)
        for call in self._calls:
            if call.begun.act is Act.ERASE and call.ended is not None and call.ended.phase is Phase.OK:
                erasures[call.begun.process, call.begun.user_id].append(call)
        writes = {call.begun.value: call for call in self._calls if call.begun.value is not None}
        for event in self._history.events:
            written = writes.get(event.value) if event.act is Act.READ and event.value is not None else None
            if written is None or written.ended is None or written.begun.process != event.process:
                continue
            for erasure in erasures[event.process, event.user_id]:
                if erasure.ended is not None and written.ended.t < erasure.begun.t and erasure.ended.t < event.t:
                    yield f"{event.call} read {event.value} after its erasure"

    def _outlived(self) -> Iterator[str]:
        if not self._history.clocks_agree:
            return
        writes: dict[str, list[tuple[_Call, Event, int]]] = defaultdict(list)
        for call in self._calls:
            entry = self._written.get(call.begun.value or "")
            if entry is not None and call.told is not None and call.ended is not None and entry.rev is not None:
                writes[entry.user_id].append((call, call.ended, self._place[entry.operation]))
        erasing = {(one.begun.process, one.begun.user_id) for one in self._calls if one.begun.act is Act.ERASE}
        for erasure in self._calls:
            place = self._place.get(erasure.told.operation or "") if erasure.told else None
            if erasure.begun.act is not Act.ERASE or place is None:
                continue
            for call, ended, at in writes[erasure.begun.user_id]:
                # One that erases the user itself is taken to know of the erasures before its own.
                knows = (call.begun.process, call.begun.user_id) in erasing
                if not knows and ended.t < erasure.begun.t and at > place:
                    yield f"{call.begun.value} was acknowledged before {erasure.begun.call} and outlived it"

    def _complete(self) -> Iterator[str]:
        revs: dict[str, list[int]] = defaultdict(list)
        for entry in self._history.ledger:
            if entry.rev is not None:
                revs[entry.user_id].append(entry.rev)
        for user_id, taken in revs.items():
            taken.sort()
            if taken[0] != 1 or any(after != before + 1 for before, after in pairwise(taken)):
                yield f"the revisions of {user_id} are not 1 to {len(taken)}: {taken}"
        for begun, _, told in self._calls:
            undecided = told is not None and told.receipt is Status.PENDING and told.verdict is None
            if undecided and (begun.process, begun.life) not in self._history.over:
                yield f"{begun.call} never heard what became of it"

    def _claims(self) -> Iterator[str]:
        for one in self._history.claims:
            if one.here != one.there:
                yield f"at {one.t:.6f} {one.process} was not what {one.user_id} is at revision {one.rev}"


def _calls(events: Iterable[Event]) -> Iterator[_Call]:
    found: dict[str, _Call] = {}
    for event in events:
        known = found.get(event.call)
        if known is None:
            found[event.call] = _Call(event, None if event.phase is Phase.INVOKE else event, None)
            continue
        ended = known.ended or event
        found[event.call] = _Call(known.begun, ended, event if event.phase is Phase.OK else known.told)
    yield from found.values()


def _may_have_happened(call: _Call) -> bool:
    return call.ended is None or call.ended.phase is not Phase.FAIL


def _ended_before(first: _Call, second: _Call) -> bool:
    return first.ended is not None and first.ended.t < second.begun.t


def _came_before(first: Entry | None, second: Entry | None) -> bool:
    if first is None or second is None or first.rev is None or second.rev is None:
        return False
    return first.rev < second.rev
