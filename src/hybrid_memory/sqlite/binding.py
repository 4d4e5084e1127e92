"""To which database a hot-tier file belongs: what is queued for one must never be carried to another."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.sqlite.driver import choose_driver
from hybrid_memory.sqlite.peek import has_tables, peeked

_PLACE, _INSTALLATION, _LINEAGE = "database_place", "database_installation", "database_lineage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a file knows of its database, None while it was never told.

    `place` is where the database is looked for, known without asking it; `installation` and `lineage` are what its
    server said of itself when it was reached last (`Identity`).
    """

    place: str | None = None
    installation: str | None = None
    lineage: str | None = None

    def may_serve(self, place: str | None) -> bool:
        """Whether a process whose database is at `place` may take the file. One without a database takes any."""
        return place is None or self.place is None or self.place == place

    def is_of(self, other: Binding) -> bool:
        """Whether both are of one database for certain: the same place, and no two names that differ."""
        same_name = self.installation is None or other.installation in {None, self.installation}
        return self.place is not None and self.place == other.place and same_name


UNBOUND = Binding()


def suits(path: Path, place: str | None) -> bool:
    """Whether a process whose database is at `place` may take the file that nobody has open.

    One that cannot be read is taken: its opening says what is wrong with it.
    """
    try:
        with peeked(choose_driver(), path) as connection:
            return not has_tables(connection) or read_binding(connection).may_serve(place)
    except HybridMemoryError:
        return True


def read_binding(connection: sqlite3.Connection) -> Binding:
    """What the file's `meta` says."""
    meta = cast("dict[str, str]", dict(connection.execute("select key, value from meta").fetchall()))
    return Binding(place=meta.get(_PLACE), installation=meta.get(_INSTALLATION), lineage=meta.get(_LINEAGE))


def write_binding(binding: Binding, connection: sqlite3.Connection) -> None:
    """Note in `meta` what is known; what is not stays as it was."""
    known = [(_PLACE, binding.place), (_INSTALLATION, binding.installation), (_LINEAGE, binding.lineage)]
    connection.executemany(
        "insert into meta (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
        [(key, value) for key, value in known if value is not None],
    )
