"""What a command has to say: data for programs, sections for people, an error for both, and the exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from hybrid_memory.control import Failure
from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.graph import JsonValue

Tone: TypeAlias = Literal["plain", "good", "warn", "bad", "dim", "strong"]

EXIT_OK: Final = 0
EXIT_NEGATIVE: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_REFUSED: Final = 4
EXIT_INTERRUPTED: Final = 130

_EXITS: Final = {
    "usage": EXIT_USAGE,
    "invalid_input": EXIT_USAGE,
    "unreachable": EXIT_UNREACHABLE,
    "outcome_unknown": EXIT_UNREACHABLE,
    "contended": EXIT_UNREACHABLE,
    "overloaded": EXIT_UNREACHABLE,
    "read_only": EXIT_UNREACHABLE,
    "refused": EXIT_REFUSED,
    "data_dir_busy": EXIT_REFUSED,
    "misconfigured": EXIT_REFUSED,
    "role_refused": EXIT_REFUSED,
    "schema_mismatch": EXIT_REFUSED,
    "fenced": EXIT_REFUSED,
    "interrupted": EXIT_INTERRUPTED,
}


class Usage(HybridMemoryError):
    """The command line was not understood."""

    code = "usage"


class Refused(HybridMemoryError):
    """Understood, but not done without more: a yes, or other rights."""

    code = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toned:
    """A text with a tone."""

    text: str
    tone: Tone


Cell: TypeAlias = str | int | Toned


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table. One that `folds` gives way on a narrow terminal; the others keep their width.

    One that stands `below` is shown on a second line of the column before it, where the terminal is narrow anyway.
    """

    name: str
    folds: bool = False
    below: bool = False
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under columns; `empty` is said instead where there are none."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One sentence."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A JSON value, shown whole."""

    title: str
    value: JsonValue


Section: TypeAlias = Table | Line | Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a command; with a failure, `data` is what was found out or done before it."""

    data: JsonValue
    sections: tuple[Section, ...] = field(default=())
    failure: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0, or what the failure's code stands for."""
        return EXIT_OK if self.failure is None else _EXITS.get(self.failure.code, EXIT_NEGATIVE)
