"""A history of what callers did and saw, of what Postgres applied, and of what stands in the end.

Whoever drives one or several processes notes an `Event` for each call's beginning and end and for each read, takes the
ledger of what Postgres applied, and looks at the end at what stands. `checker.check` holds all of it against the
promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from hybrid_memory.graph import Digest, Status, Verdict


class Act(StrEnum):
    """What a call does."""

    PUT = "put"
    MERGE = "merge"
    RELATE = "relate"
    DELETE = "delete"
    ERASE = "erase"
    EVICT = "evict"
    """The copy is dropped, so that nothing may be found until it is loaded again."""
    READ = "read"


class Phase(StrEnum):
    """How far a call is."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    """It certainly did nothing."""
    INFO = "info"
    """Nobody knows: it may take effect later, at most once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a history.

    `t` is in seconds on one clock for all processes, `process` names a hot-tier file and `life` its opening, `call`
    the call that the line belongs to. `value` is what was written or read, unlike any other write's. `owner` is whose
    row a read returned, `version` at which revision; of a write that begins, as of which revision its process knew that
    nothing was there. `operation` is the receipt's. A call whose receipt is PENDING has
    a further OK line when the verdict is known.
    """

    t: float
    process: str
    life: int
    call: str
    act: Act
    user_id: str
    phase: Phase
    key: str | None = None
    value: str | None = None
    owner: str | None = None
    version: int | None = None
    operation: str | None = None
    receipt: Status | None = None
    verdict: Verdict | None = None
    expires: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger, in commit order. `operation` is empty for what Postgres did of its own accord."""

    user_id: str
    key: str
    rev: int | None
    operation: str = ""
    client: str = ""
    seq: int = 0
    verdict: Verdict = Verdict.APPLIED
    value: str | None = None
    erases: bool = False
    lost: bool = False
    """The content went to the history."""


class Standing(NamedTuple):
    """A live row at the end."""

    rev: int
    value: str | None
    row_hash: str


Rows = Mapping[tuple[str, str], Standing]
"""Live rows by user and key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where every acknowledged operation was at one moment, by operation id; `cancelled` by an erasure."""

    t: float
    acknowledged: frozenset[str]
    applied: frozenset[str]
    queued: frozenset[str]
    dead: frozenset[str]
    cancelled: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a copy said it was at one moment, and what Postgres was at that revision."""

    t: float
    process: str
    user_id: str
    rev: int
    here: Digest
    there: Digest


class Handover(NamedTuple):
    """What one process saw of a key when it made a token, and what another read there behind the token's barrier."""

    t: float
    user_id: str
    key: str
    told: str | None
    read: str | None


class Reload(NamedTuple):
    """A process said that a past was rewritten, and that it has loaded a user's copy anew."""

    t: float
    process: str
    user_id: str


@dataclass(slots=True, kw_only=True)
class History:
    """Everything that is checked.

    The ledger is that of the server that stands in the end. What it had decided and a failover took away is in
    `rewound`, by operation id: of that the rules ask no more than that it is not applied twice. Whether what it had
    made came back is for whoever knows what stands.

    `dead` are the operations in dead letters, `replicas` the copies by process. `unsettled` are rows (process, user,
    key) that an operation in the dead letters changed: they need not be what Postgres has. `over` are openings (process
    and life) that ended, so that their callers could not be told any more.
    """

    events: list[Event] = field(default_factory=list[Event])
    ledger: list[Entry] = field(default_factory=list[Entry])
    dead: set[str] = field(default_factory=set[str])
    moments: list[Moment] = field(default_factory=list[Moment])
    claims: list[Claim] = field(default_factory=list[Claim])
    postgres: Rows = field(default_factory=dict[tuple[str, str], Standing])
    replicas: dict[str, Rows] = field(default_factory=dict[str, Rows])
    handovers: list[Handover] = field(default_factory=list[Handover])
    rewound: set[str] = field(default_factory=set[str])
    reloads: list[Reload] = field(default_factory=list[Reload])
    unsettled: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])
    over: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    clocks_agree: bool = True
    """Where they do not, what was written apart from an erasure may outlive it."""
    losers: int = 0
    """How many contents are kept as having lost."""
