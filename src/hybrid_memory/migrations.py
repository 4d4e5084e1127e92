"""Which schema changes there are, and which of them a database still needs: pure, the same for both tiers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, Literal

from hybrid_memory.errors import SchemaMismatch

_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A migration that a database says it has."""

    version: int
    name: str
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A schema change as shipped; `checksum` is the SHA-256 (hex) of `sql`, which is never edited once released."""

    version: int
    name: str
    sql: str
    checksum: str

    @property
    def recorded(self) -> Recorded:
        """How a database remembers that it has this one."""
        return Recorded(version=self.version, name=self.name, checksum=self.checksum)


@cache
def load(folder: Literal["postgres", "sqlite"]) -> tuple[Migration, ...]:
    """The migrations of one tier in order, as shipped with the package: numbered from 1 without a gap."""
    found = [
        _migration(int(named[1]), named[2], file.read_text(encoding="utf-8"))
        for file in resources.files("hybrid_memory.schemas").joinpath(folder).iterdir()
        if (named := _FILE_NAME.fullmatch(file.name)) is not None
    ]
    found.sort(key=lambda migration: migration.version)
    if not found or [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise SchemaMismatch(
            f"the {folder} migrations of this installation are incomplete", fix="install hybrid-memory again"
        )
    return tuple(found)


def _migration(version: int, name: str, sql: str) -> Migration:
    return Migration(version=version, name=name, sql=sql, checksum=hashlib.sha256(sql.encode()).hexdigest())


def plan(recorded: Sequence[Recorded], available: Sequence[Migration]) -> tuple[Migration, ...]:
    """The migrations a database still needs, in order.

    Raises `SchemaMismatch` when it holds one that is unknown here (the database is newer than the code), one that was
    other text when it was applied, or when one in the middle is missing. There is no way back, only forward.
    """
    known = {migration.version: migration for migration in available}
    ordered = sorted(recorded, key=lambda one: one.version)
    for place, one in enumerate(ordered, start=1):
        if one.version not in known:
            raise SchemaMismatch(
                f"the database has schema version {one.version}, this program knows versions up to {max(known)}",
                fix="upgrade hybrid-memory in this process",
            )
        if one.version != place:
            raise SchemaMismatch(
                f"schema version {place} is missing in the database although {one.version} is there",
                fix="restore the database from a backup",
            )
        if one.checksum != known[one.version].checksum:
            raise SchemaMismatch(
                f"schema version {one.version} ({one.name}) was applied with another text than this program ships",
                fix="use the release that the database was migrated with, or a later one",
            )
    return tuple(migration for migration in available if migration.version > len(ordered))
