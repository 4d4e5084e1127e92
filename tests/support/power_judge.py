"""Holds what a process had acknowledged before its power was cut against the files that the cut left."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_memory.testing.power import Image
from tests.support.kill_worker import SYSTEM
from tests.support.witness import Verdict, Witness

FILE = "slot-00.db"

_LIVE = "select u.user_id, n.key, n.content, n.entity_system, n.entity_id from nodes n join users u using (user_no)"
_EDGES = (
    "select u.user_id, r.source_id || ' ' || r.target_id from relationships r join users u using (user_no)"
    " where r.deleted_at is null"
)
# What nobody has confirmed stands on an entry of the queue that made it: the newest one of its entity.
_UNPAIRED_ROWS = (
    "select u.user_id, n.node_id from nodes n join users u using (user_no) where n.rev = 0 and n.stamp is not"
    " (select max(stamp) from outbox o where o.user_id = u.user_id and o.entity_id = n.node_id)"
    " union all select u.user_id, r.relationship_id from relationships r join users u using (user_no) where r.rev = 0"
    " and not exists (select 1 from outbox o where o.user_id = u.user_id and o.entity_id = r.relationship_id)"
)
_UNPAIRED_ENTRIES = (
    "select o.user_id, o.entity_id from outbox o left join users u using (user_id) where o.kind <> 'erase'"
    " and not exists (select 1 from nodes n where n.user_no = u.user_no and n.node_id = o.entity_id)"
    " and not exists (select 1 from relationships r where r.user_no = u.user_no and r.relationship_id = o.entity_id)"
)


@dataclass(slots=True)
class Judge:
    """Judges images of one recording, in the order of their cuts."""

    witness: Witness = field(default_factory=Witness)
    erased: list[bytes] = field(default_factory=list[bytes])
    """What stood in everything of the users whose erasure was acknowledged."""
    heard: int = 0

    def hear(self, image: Image) -> None:
        """Take in what was said before the image's cut."""
        for line in image.marks[self.heard :]:
            said: dict[str, object] = json.loads(line)
            if said.get("deed") != "erase":
                self.witness.hear(line)
            elif said["at"] == "ok":
                self.erased.append(str(said["on"]).encode())
        self.heard = len(image.marks)

    def judge(self, image: Image, folder: Path) -> Verdict:
        """Open what the image left in the folder, with the standard library's SQLite, and look at everything."""
        verdict = Verdict()
        for path, content in image.files.items():
            verdict.diverged += [f"{secret.decode()} is in {path}" for secret in self.erased if secret in content]
        if not (folder / FILE).exists():
            verdict.lost += ["the file itself"] if self.witness.acks else []
            return verdict
        with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as connection:
            connection.execute("pragma synchronous = off")  # nobody will cut the power of the check
            judge_whole(connection, verdict)
            tables = {name for (name,) in connection.execute("select name from sqlite_master")}
            if "outbox" in tables:
                self._judge_rows(connection, verdict)
                judge_pairs(connection, verdict)
                judge_numbers(connection, verdict)
            elif self.witness.acks:
                verdict.lost.append("the tables")
        return verdict

    def _judge_rows(self, connection: sqlite3.Connection, verdict: Verdict) -> None:
        stands: dict[tuple[str, str], int] = {}
        present: dict[str, Counter[tuple[str, str]]] = {"mark": Counter(), "merge": Counter()}
        for user_id, key, text, system, entity_id in connection.execute(_LIVE + " where n.deleted_at is null"):
            content: dict[str, Any] = json.loads(text)
            if "mark" in content:
                present["mark"][user_id, content["mark"]] += 1
            elif system == SYSTEM:
                present["merge"].update((user_id, f"{entity_id} {name}") for name in content["entity_data"])
            elif key is not None and "n" in content:
                stands[user_id, key] = content["n"]
        present["relate"] = Counter(connection.execute(_EDGES).fetchall())
        for place, told in self.witness.keys.items():
            if stands.get(place) not in told.may_be():
                verdict.lost.append(f"{place} stands at {stands.get(place)}, not one of {told.may_be()}")
        for deed, there in present.items():
            self._judge_presence(deed, there, verdict)

    def _judge_presence(self, deed: str, present: Counter[tuple[str, str]], verdict: Verdict) -> None:
        def places(said: Iterable[tuple[str, str, str]]) -> set[tuple[str, str]]:
            return {(user, f"{on} f{number}" if deed == "merge" else on) for user, on, number in said}

        acknowledged = places(self.witness.acknowledged.get(deed, ()))
        users = {user for user, _ in self.witness.keys}
        tried = places(self.witness.tried.get(deed, ()))
        verdict.lost += [f"{deed} of {place}" for place in acknowledged - present.keys()]
        verdict.doubled += [
            f"{deed} of {place}"
            for place, count in present.items()
            if place[0] in users and (count > 1 or place not in tried)
        ]


def judge_whole(connection: sqlite3.Connection, verdict: Verdict) -> None:
    found = connection.execute("pragma integrity_check").fetchall()
    verdict.diverged += [f"damaged: {one}" for (one,) in found if one != "ok"]


def judge_pairs(connection: sqlite3.Connection, verdict: Verdict) -> None:
    """Row and entry came together, or neither."""
    verdict.lost += [f"row {place} without its entry" for place in connection.execute(_UNPAIRED_ROWS)]
    verdict.diverged += [f"entry {place} without its row" for place in connection.execute(_UNPAIRED_ENTRIES)]


def judge_numbers(connection: sqlite3.Connection, verdict: Verdict) -> None:
    """Everything that was given a number is queued, decided or dead, and in one of the places only."""
    queued = [seq for (seq,) in connection.execute("select seq from outbox")]
    dead = [seq for (seq,) in connection.execute("select seq from dead_letters")]
    decided = {one[0] for (text,) in connection.execute("select decided from receipts") for one in json.loads(text)}
    (written,) = connection.execute(
        "select coalesce(max(cast(value as int)), 0) from meta where key = 'last_seq'"
    ).fetchone()
    everywhere = Counter([*queued, *dead, *decided])
    last = max([written, *everywhere])
    verdict.lost += [f"operation {seq}" for seq in range(1, last + 1) if seq not in everywhere]
    verdict.doubled += [f"operation {seq}" for seq, count in everywhere.items() if count > 1]


def complaints(verdict: Verdict) -> Sequence[str]:
    """Everything found wrong, in words."""
    return [f"{name}: {one}" for name in ("lost", "doubled", "reordered", "diverged") for one in getattr(verdict, name)]
