"""What two processes that write the same users' memories may read of them, and what may stand in the end.

Of two writes that did not see each other either may win, so a place (a user's node) has several possible values until
both processes have come to rest. What must never be: a value that its own writer has written over, one from before an
erasure that its reader has acknowledged, a field of an entity that nobody took away and that is gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Value: TypeAlias = str | None
"""What a node says; None where there is none."""


class Place(NamedTuple):
    """A node that is written as a whole."""

    user_id: str
    node_id: str


class Member(NamedTuple):
    """A field of an entity, written once."""

    user_id: str
    node_id: str
    name: str


class _Written(NamedTuple):
    writer: str
    value: Value
    certain: bool
    """Acknowledged; else nobody knows whether it will ever be."""


@dataclass(slots=True)
class Expectations:
    """Kept from the calls' outcomes alone, in the order in which the calls ended."""

    settled: dict[Place, Value] = field(default_factory=dict[Place, Value])
    _writes: dict[Place, list[_Written]] = field(default_factory=lambda: defaultdict(list[_Written]))
    _erased: dict[Place, dict[Value, set[str]]] = field(default_factory=lambda: defaultdict(dict[Value, set[str]]))
    """What stood or was written before an erasure, and who may never read it again: others have not heard."""
    _fields: set[Member] = field(default_factory=set[Member])
    _perhaps: set[Member] = field(default_factory=set[Member])
    _forgotten_by: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set[str]))
    """Processes that have acknowledged an erasure of a user since the last rest."""

    def wrote(self, process: str, place: Place, value: Value, *, certain: bool = True) -> None:
        """A process wrote a value, or None to delete; `certain` where that was acknowledged."""
        self._writes[place].append(_Written(process, value, certain))

    def merged(self, process: str, member: Member) -> bool:
        """A process wrote a field. False beside another's erasure: it may be taken for written before that."""
        certain = not self._forgotten_by[member.user_id] - {process}
        (self._fields if certain else self._perhaps).add(member)
        return certain

    def forgot(self, process: str, user_id: str) -> None:
        """A process erased a user, and that was acknowledged."""
        self._forgotten_by[user_id].add(process)
        for place in {*self.settled, *self._writes}:
            if place.user_id == user_id:
                before = {self.settled.get(place), *(one.value for one in self._writes[place]), *self._erased[place]}
                self._erased[place] = {value: {process, *self._erased[place].get(value, ())} for value in before}
                self.settled[place] = None
                self._writes[place] = [_Written(process, None, certain=True)]
        self._fields = {one for one in self._fields if one.user_id != user_id}
        self._perhaps = {one for one in self._perhaps if one.user_id != user_id}

    def readable(self, process: str, place: Place) -> set[Value]:
        """What the process may read now. Another's write may come, and go again, at any time."""
        found: set[Value] = {self.settled.get(place)}
        for written in self._writes[place]:
            if written.writer == process and written.certain:
                # Its own earlier ones can not come back; the others' may win still.
                found = {one.value for one in self._writes[place] if one.writer != process}
                found |= {one.value for one in self._writes[place] if one.writer == process and not one.certain}
                found.add(written.value)
            else:
                found.add(written.value)
        forgotten_by = self._forgotten_by[place.user_id]
        found |= {value for value, barred in self._erased[place].items() if process not in barred}
        # Another's erasure takes what it meets in Postgres, also what was written after it was acknowledged there.
        return found | {None} if forgotten_by - {process} else found

    def final(self, place: Place) -> set[Value]:
        """What may stand once all is at rest: the last certain write of a process, or one that is not."""
        writes = self._writes[place]
        last = {one.writer: one.value for one in writes if one.certain}
        found = {*last.values(), *(one.value for one in writes if not one.certain)}
        if any(self._forgotten_by[place.user_id] - {writer} for writer in last):
            found.add(None)
        return found if last else found | {self.settled.get(place)}

    def places(self, user_id: str) -> set[Place]:
        """Every place of a user that was ever written."""
        return {place for place in {*self.settled, *self._writes} if place.user_id == user_id}

    def rest(self, user_id: str, standing: Mapping[str, Value], members: Mapping[str, set[str]]) -> list[str]:
        """All processes are at rest and this is what stands of a user, by node: what is wrong with it."""
        wrong: list[str] = []
        for place in sorted(self.places(user_id)):
            value = standing.get(place.node_id)
            if value not in (expected := self.final(place)):
                wrong.append(f"{place} is {value!r}, not one of {expected}")
            self.settled[place] = value
            self._writes.pop(place, None)
            self._erased.pop(place, None)
        entities = {one.node_id for one in {*self._fields, *self._perhaps} if one.user_id == user_id} | members.keys()
        for node_id in sorted(entities):
            sure = {one.name for one in self._fields if one[:2] == (user_id, node_id)}
            perhaps = {one.name for one in self._perhaps if one[:2] == (user_id, node_id)}
            found = members.get(node_id, set())
            wrong += [f"{node_id} of {user_id} has lost {sorted(sure - found)}"] if sure - found else []
            more = found - sure - perhaps
            wrong += [f"{node_id} of {user_id} has {sorted(more)}, which was taken away"] if more else []
            self._perhaps -= {Member(user_id, node_id, name) for name in perhaps}
            self._fields |= {Member(user_id, node_id, name) for name in found}
        self._forgotten_by.pop(user_id, None)
        return wrong
