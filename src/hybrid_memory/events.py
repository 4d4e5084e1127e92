"""What happened, as frozen values: one observer hook, and the log lines that operators know by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import structlog

from hybrid_memory.graph import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadStarted:
    """A user's graph is being loaded from Postgres."""

    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFinished:
    """A user's graph is loaded; `full` says whether all of it came or only the difference."""

    user_id: str
    nodes: int
    relationships: int
    seconds: float
    full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Persisted:
    """Postgres decided an operation."""

    user_id: str
    node_id: str
    op_id: str
    rev: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistFailed:
    """Operations could not be carried to Postgres now; they stay queued, and SQLite goes on working."""

    code: str
    failures: int
    retry_in_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Postgres answers again after failures."""

    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """Somebody waits for a queue of so many operations to run out.

    That takes about so many seconds; None where it is not known, see `Health.drain_seconds`.
    """

    operations: int
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Buried:
    """An operation went to the dead letters."""

    user_id: str
    op_id: str
    sqlstate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A user's past was rewritten in Postgres (restore, failover, erasure): the copy was loaded anew.

    `queued_again` operations carry what had been acknowledged there and is missing now.
    """

    user_id: str
    queued_again: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverged:
    """A user's copy was not what Postgres holds at the same revision; it is loaded anew. There is a fault somewhere."""

    user_id: str
    rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """So many operations that a dead owner had left in the queue of a slot were carried to Postgres."""

    slot: int
    operations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileQuarantined:
    """The local file was damaged: it was set aside in `folder`, and what could be read of it is in a new one.

    `salvaged` operations are queued again, `dead_letters` are kept. `unaccounted` are the queue numbers, as first and
    last of each run, of which nothing says that they were decided: those operations are lost unless Postgres has them.
    """

    folder: str
    salvaged: int
    dead_letters: int
    unaccounted: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumbersMissing:
    """The local file knows less than it did: the operations of these queue numbers are lost unless Postgres has them.

    SQLite drops what lies behind a damaged place in its log without a word.
    """

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRenumbered:
    """Postgres has marked queue numbers of a user that the local file had forgotten and given out again.

    They were applied, or lost. What is queued goes under new numbers, so that nothing is taken for a repetition.
    """

    user_id: str
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDisplaced:
    """Somebody moved, replaced or deleted this part of the local file while it was open: nothing more is stored."""

    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFailed:
    """A background service met an error it does not know; it goes on after a pause."""

    service: str
    error: str


FileFinding: TypeAlias = FileQuarantined | NumbersMissing | QueueRenumbered
"""What was found wrong with the local file and could be lived with."""

Event: TypeAlias = (
    LoadStarted
    | LoadFinished
    | Persisted
    | PersistFailed
    | Recovered
    | Draining
    | Buried
    | Rewritten
    | Diverged
    | Adopted
    | FileFinding
    | FileDisplaced
    | ServiceFailed
)

Observer: TypeAlias = Callable[[Event], None]

_NAMES: dict[type, tuple[str, str]] = {
    LoadStarted: ("info", "loading_user_memories_from_postgres"),
    LoadFinished: ("info", "user_memories_loaded"),
    Persisted: ("debug", "node_persisted_to_postgres"),
    PersistFailed: ("warning", "failed_to_persist_to_postgres"),
    Recovered: ("info", "postgres_reachable_again"),
    Draining: ("info", "draining_queue"),
    Buried: ("error", "operation_buried"),
    Rewritten: ("warning", "user_history_rewritten"),
    Diverged: ("error", "copy_diverged"),
    Adopted: ("info", "queue_of_dead_owner_carried"),
    FileQuarantined: ("error", "local_file_quarantined"),
    NumbersMissing: ("error", "local_file_lost_operations"),
    QueueRenumbered: ("error", "queue_renumbered"),
    FileDisplaced: ("error", "local_file_displaced"),
    ServiceFailed: ("error", "service_failed"),
}

_LOUD = frozenset({"warning", "error"})


class Sink(Protocol):
    """Where services report."""

    @property
    def attentive(self) -> bool:
        """Whether anybody takes in events below a warning; if not, they need not be made."""
        ...

    def emit(self, event: Event) -> None:
        """Tell an event."""
        ...


class EventLog:
    """Tells events to structlog, under their operators' names, and to one observer."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("hybrid_memory")
        self._observer = observer or _unobserved

    @property
    def attentive(self) -> bool:
        """Whether an observer was given, or logging set up to take in the least of events."""
        return self._observer is not _unobserved or (structlog.is_configured() and self._takes_all())

    def _takes_all(self) -> bool:
        # Only structlog's own filtering loggers tell, from 25.1 on; of others it is taken for granted.
        log = self._log.bind()
        return not hasattr(type(log), "is_enabled_for") or log.is_enabled_for(logging.DEBUG)

    def emit(self, event: Event) -> None:
        """Log the event and call the observer. Fields are ids and counts, never memory text."""
        level, name = _NAMES[type(event)]
        # A library is quiet in a host that has not set logging up, except for what somebody should act on.
        if level in _LOUD or structlog.is_configured():
            # Events are flat: `asdict` would copy what nobody changes, at several times the cost.
            getattr(self._log, level)(name, **{field: getattr(event, field) for field in type(event).__slots__})
        self._observer(event)


def _unobserved(_event: Event) -> None:
    """Nobody subscribed."""
