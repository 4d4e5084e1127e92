"""What happened, as frozen values: one observer hook, and the log lines that operators know by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
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
class ServiceFailed:
    """A background service met an error it does not know; it goes on after a pause."""

    service: str
    error: str


Event: TypeAlias = (
    LoadStarted
    | LoadFinished
    | Persisted
    | PersistFailed
    | Recovered
    | Buried
    | Rewritten
    | Diverged
    | Adopted
    | ServiceFailed
)

Observer: TypeAlias = Callable[[Event], None]

_NAMES: dict[type, tuple[str, str]] = {
    LoadStarted: ("info", "loading_user_memories_from_postgres"),
    LoadFinished: ("info", "user_memories_loaded"),
    Persisted: ("debug", "node_persisted_to_postgres"),
    PersistFailed: ("warning", "failed_to_persist_to_postgres"),
    Recovered: ("info", "postgres_reachable_again"),
    Buried: ("error", "operation_buried"),
    Rewritten: ("warning", "user_history_rewritten"),
    Diverged: ("error", "copy_diverged"),
    Adopted: ("info", "queue_of_dead_owner_carried"),
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
        """Whether logging was set up or an observer given."""
        return self._observer is not _unobserved or structlog.is_configured()

    def emit(self, event: Event) -> None:
        """Log the event and call the observer. Fields are ids and counts, never memory text."""
        level, name = _NAMES[type(event)]
        # A library is quiet in a host that has not set logging up, except for what somebody should act on.
        if level in _LOUD or structlog.is_configured():
            getattr(self._log, level)(name, **asdict(event))
        self._observer(event)


def _unobserved(_event: Event) -> None:
    """Nobody subscribed."""
