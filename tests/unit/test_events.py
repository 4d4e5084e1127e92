"""What is told to operators: stable names, levels, ids and counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import get_args

import pytest
import structlog
from structlog.testing import LogCapture

from hybrid_memory.events import (
    Adopted,
    Buried,
    Diverged,
    Draining,
    Event,
    EventLog,
    FileDisplaced,
    FileQuarantined,
    LoadFinished,
    LoadStarted,
    NumbersMissing,
    Persisted,
    PersistFailed,
    QueueRenumbered,
    Recovered,
    Rewritten,
    ServiceFailed,
)
from hybrid_memory.graph import Verdict

_TOLD: list[tuple[Event, str, str]] = [
    (LoadStarted(user_id="ann"), "info", "loading_user_memories_from_postgres"),
    (
        LoadFinished(user_id="ann", nodes=2, relationships=1, seconds=0.5, full=True),
        "info",
        "user_memories_loaded",
    ),
    (
        Persisted(user_id="ann", node_id="n", op_id="o", rev=3, verdict=Verdict.APPLIED),
        "debug",
        "node_persisted_to_postgres",
    ),
    (
        PersistFailed(code="unreachable", failures=2, retry_in_seconds=0.1),
        "warning",
        "failed_to_persist_to_postgres",
    ),
    (Recovered(failures=3), "info", "postgres_reachable_again"),
    (Draining(operations=12, seconds=0.5), "info", "draining_queue"),
    (Buried(user_id="ann", op_id="o", sqlstate="22P05"), "error", "operation_buried"),
    (Rewritten(user_id="ann", queued_again=0), "warning", "user_history_rewritten"),
    (Diverged(user_id="ann", rev=3), "error", "copy_diverged"),
    (Adopted(slot=1, operations=7), "info", "queue_of_dead_owner_carried"),
    (
        FileQuarantined(folder="quarantine/x", salvaged=2, dead_letters=1, unaccounted=((3, 5),)),
        "error",
        "local_file_quarantined",
    ),
    (NumbersMissing(first_seq=3, last_seq=5), "error", "local_file_lost_operations"),
    (QueueRenumbered(user_id="ann", first_seq=3, last_seq=5), "error", "queue_renumbered"),
    (FileDisplaced(part="slot-00.db"), "error", "local_file_displaced"),
    (ServiceFailed(service="relay", error="KeyError"), "error", "service_failed"),
]


@pytest.fixture
def logged() -> Iterator[LogCapture]:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    yield capture
    structlog.reset_defaults()


@pytest.mark.parametrize(("event", "level", "name"), _TOLD)
def test_an_event_is_logged_by_its_name_with_its_fields(
    logged: LogCapture, event: Event, level: str, name: str
) -> None:
    EventLog().emit(event)
    assert logged.entries == [{"event": name, "log_level": level} | asdict(event)]


@pytest.mark.parametrize(("event", "level", "_name"), _TOLD)
def test_a_host_that_set_up_no_logging_hears_only_what_needs_somebody(
    capsys: pytest.CaptureFixture[str], event: Event, level: str, _name: str
) -> None:
    structlog.reset_defaults()
    EventLog().emit(event)
    assert bool(capsys.readouterr().out) == (level in {"warning", "error"})


def test_every_event_is_told_to_the_observer_in_order() -> None:
    structlog.reset_defaults()
    heard: list[Event] = []
    log = EventLog(heard.append)
    quiet = [event for event, level, _ in _TOLD if level in {"info", "debug"}]
    for event in quiet:
        log.emit(event)
    assert heard == quiet


def test_every_kind_of_event_has_a_name() -> None:
    assert {type(event) for event, _, _ in _TOLD} == set(get_args(Event))


def test_an_event_has_no_room_for_the_words_of_a_memory() -> None:
    held = {field.name for kind in get_args(Event) for field in fields(kind)}
    assert held == {
        "code",
        "dead_letters",
        "error",
        "failures",
        "first_seq",
        "folder",
        "full",
        "last_seq",
        "node_id",
        "nodes",
        "op_id",
        "operations",
        "queued_again",
        "part",
        "relationships",
        "retry_in_seconds",
        "rev",
        "salvaged",
        "seconds",
        "service",
        "slot",
        "sqlstate",
        "unaccounted",
        "user_id",
        "verdict",
    }


def test_somebody_listens_when_there_is_an_observer_or_logging() -> None:
    structlog.reset_defaults()
    assert not EventLog().attentive
    assert EventLog(lambda _: None).attentive


def test_a_host_that_set_up_logging_listens(logged: LogCapture) -> None:
    assert EventLog().attentive
    assert logged.entries == []


def test_a_host_whose_logging_takes_warnings_alone_has_no_event_made_for_each_write() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        assert not EventLog().attentive
        assert EventLog(lambda _: None).attentive
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
        assert EventLog().attentive
    finally:
        structlog.reset_defaults()
