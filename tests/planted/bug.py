"""What a planted bug is: a small change of the source, and the tests that fail for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SEEDS: Final = "0..400"
"""The schedules of the simulation in which a bug within its reach is looked for. Its Postgres is a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change of one file: the text found there, exactly once, and what is put in its place."""

    file: str
    find: str
    put: str

    def apply(self, root: Path) -> None:
        """Make the change in the tree at `root`. Raises `ValueError` where the text is not found exactly once."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if (found := text.count(self.find)) != 1:
            raise ValueError(f"{self.file}: found {found} times, not once: {self.find!r}")
        path.write_text(text.replace(self.find, self.put), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """One bug of the list.

    `caught_by` are pytest's ids below `tests/`, one of which must fail; `seeds` is a range of the simulation, `A..B`,
    one of which must break a rule. `instead` says why a bug is not planted as it stands in the list, and what is.
    """

    number: str
    what: str
    edits: Sequence[Edit] = ()
    caught_by: Sequence[str] = ()
    seeds: str = ""
    instead: str = ""
