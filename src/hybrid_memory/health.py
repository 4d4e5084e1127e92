"""How a manager is, in words an operator can act on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hybrid_memory.connect import PostgresMode, Tiers
from hybrid_memory.errors import HybridMemoryError, Misconfigured, OtherDatabase, RoleRefused, SchemaMismatch
from hybrid_memory.events import FileFinding, FileQuarantined, NumbersMissing, QueueRenumbered
from hybrid_memory.messages import QueueState
from hybrid_memory.retry import BreakerState
from hybrid_memory.staff import Staff


class Condition(StrEnum):
    """The whole in one word."""

    OK = "ok"
    DEGRADED = "degraded"
    """Work goes on, with less: Postgres is away, or something waits for a person."""
    FAILED = "failed"
    """Something acknowledged could be delayed until a person acts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A manager's state. `causes` says why it is not ok; ages are seconds, sizes bytes.

    `drain_seconds` is how long the queue will take to run out if nothing is added, at the pace of what was carried
    last: 0 for an empty one, None while it cannot be told (nothing carried yet, Postgres away, all of it of users not
    persistent yet). A user whose rows somebody holds locked may take longer.

    While the local file cannot be read the causes say so, and what only the file knows (how many users are held, how
    old the oldest queue entry is) is told as none.
    """

    condition: Condition
    causes: tuple[str, ...]
    postgres: str
    postgres_reason: str
    breaker: str
    users_open: int
    users_held: int
    queued: int
    queued_bytes: int
    oldest_queued_seconds: float | None
    drain_seconds: float | None
    dead_letters: int
    file_bytes: int
    index_bytes: int
    sqlite: str
    services: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was asked of the local file, or is known of it while it cannot be read."""

    queue: QueueState
    users_held: int
    users_in_doubt: int
    unread: HybridMemoryError | None = None

    def causes(self) -> Iterator[str]:
        if left := self.users_in_doubt:
            yield f"Postgres was failed over or restored: {left} users' copies are still to be compared with it"
        if letters := self.queue.dead_letters:
            yield f"{letters} dead letters wait for a person"
        if self.unread is not None:
            yield f"the local file cannot be read: {self.unread.message}"


def _find(tiers: Tiers, staff: Staff) -> _Found:
    file = tiers.file
    try:
        return _Found(
            queue=file.outbox.state(), users_held=len(file.hot.cursors()), users_in_doubt=staff.restorer.users_left
        )
    except HybridMemoryError as error:
        # What waits must be told above all now.
        return _Found(queue=file.outbox.counts(), users_held=0, users_in_doubt=0, unread=error)


def assess(tiers: Tiers, staff: Staff, *, control: str, users_open: int, now_us: int) -> Health:
    """The health of a manager that is open; `control` says how its socket for the command line is."""
    file, durable, found = tiers.file, tiers.durable, _find(tiers, staff)
    queue = found.queue
    # Death first: what a service died of is its last error too.
    services = {service.name: (service.last_error or "ok") if service.alive else "dead" for service in staff.services}
    services["control"] = control
    condition, causes = _diagnose(tiers, staff, found, services)
    return Health(
        condition=condition,
        causes=causes,
        postgres=durable.mode,
        postgres_reason=durable.reason,
        breaker=staff.relay.breaker_state,
        users_open=users_open,
        users_held=found.users_held,
        queued=queue.entries,
        queued_bytes=queue.payload_bytes,
        oldest_queued_seconds=None if queue.oldest_at is None else max(0, now_us - queue.oldest_at) / 1e6,
        drain_seconds=staff.relay.seconds_for(queue.entries),
        dead_letters=queue.dead_letters,
        file_bytes=file.bytes_on_disk,
        index_bytes=file.index_bytes,
        sqlite=f"{file.database.driver.name} {file.database.driver.version}",
        services=services,
    )


# With a poll at least every 1.1 s, an outage is told of within two seconds.
LONGEST_SILENCE_SECONDS = 0.7
# What does not heal by itself.
_FOR_A_PERSON = frozenset({Misconfigured.code, RoleRefused.code, SchemaMismatch.code, OtherDatabase.code})


def _diagnose(
    tiers: Tiers, staff: Staff, found: _Found, services: Mapping[str, str]
) -> tuple[Condition, tuple[str, ...]]:
    causes: list[str] = []
    if tiers.durable.mode is PostgresMode.OFF:
        causes.append(f"no Postgres: {tiers.durable.reason}; memory is kept in this file only")
    elif staff.relay.fenced:
        causes.append(
            "another opening of this file, or of a copy of it, has taken over; nothing more is sent from here"
        )
    elif staff.relay.breaker_state is not BreakerState.CLOSED:
        causes.append(f"Postgres does not take writes: {staff.relay_service.last_error}")
    elif staff.feed_service.last_error is not None:
        causes.append(f"Postgres does not answer: {staff.feed_service.last_error}")
    elif staff.feed.silent_seconds > LONGEST_SILENCE_SECONDS:
        causes.append(f"Postgres has not answered for {staff.feed.silent_seconds:.1f} s")
    causes += [f"{count} users' writes wait: {code}" for code, count in Counter(staff.relay.set_aside.values()).items()]
    causes += [f"the service {name} is dead" for name, state in services.items() if state == "dead"]
    causes += found.causes()
    causes += map(_told, tiers.file.findings)
    failure = tiers.file.database.failure
    if failure is not None:
        why = f": {failure.message}" if isinstance(failure, HybridMemoryError) else ""
        return Condition.FAILED, (*causes, f"the local file's writer has stopped{why}")
    if (
        found.unread is not None
        or staff.relay.fenced
        or {staff.relay_service.last_error, staff.feed_service.last_error} & _FOR_A_PERSON
    ):
        return Condition.FAILED, tuple(causes)
    return (Condition.DEGRADED if causes else Condition.OK), tuple(causes)


def _told(finding: FileFinding) -> str:
    match finding:
        case FileQuarantined():
            lost = sum(last - first + 1 for first, last in finding.unaccounted)
            return (
                f"the local file was damaged and lies in {finding.folder}: {finding.salvaged} queued operations and"
                f" {finding.dead_letters} dead letters were saved, of {lost} nothing is known"
            )
        case NumbersMissing():
            return (
                f"the local file has lost the operations {finding.first_seq} to {finding.last_seq}; those that Postgres"
                " does not have are gone"
            )
        case QueueRenumbered():
            return f"the local file had forgotten the queue numbers {finding.first_seq} to {finding.last_seq} of a user"
