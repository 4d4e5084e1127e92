"""The error tree: every failure a caller can meet, and whether trying again can help."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar


class HybridMemoryError(Exception):
    """The root of every error this package raises on purpose.

    `code` is a stable machine name, `retryable` says whether the same call may succeed later without a change by
    the caller, and `fix` says what a person can do about it. No message holds a stored value, a key or a secret.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class InvalidInput(HybridMemoryError, ValueError):
    """An argument was refused before anything was stored.

    `field` names the argument (with a path inside it, as in `content.tags[3]`), `reason` the rule it broke; neither
    holds the value.
    """

    code = "invalid_input"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}", fix=f"correct {field}")
        self.field = field
        self.reason = reason


class Conflict(HybridMemoryError):
    """`expected_rev` did not match: nothing was stored. `actual_rev` is the revision found, 0 for no node."""

    code = "conflict"

    def __init__(self, *, expected_rev: int, actual_rev: int) -> None:
        super().__init__(
            f"expected revision {expected_rev}, found {actual_rev}",
            fix="read the node again and decide anew",
        )
        self.expected_rev = expected_rev
        self.actual_rev = actual_rev


class NotFound(HybridMemoryError):
    """The thing named does not exist (or not for this user)."""

    code = "not_found"


class TooStale(HybridMemoryError):
    """A read asked for a copy no older than it is, and Postgres could not bring it up to date in time.

    `age` is how long ago Postgres last confirmed the copy, None for not since it was opened. Without `max_staleness`
    the same read is answered.
    """

    code = "too_stale"
    retryable = True

    def __init__(self, *, age: timedelta | None) -> None:
        known = "was not confirmed yet" if age is None else f"was last confirmed {age.total_seconds():.1f} s ago"
        super().__init__(f"the copy {known}", fix="try again when Postgres is back, or read without max_staleness")
        self.age = age


class Backpressure(HybridMemoryError):
    """The durable queue is at its bound: nothing was stored, nothing already accepted was dropped."""

    code = "backpressure"
    retryable = True


class StorageFull(HybridMemoryError):
    """The disk (or the file's quota) is full: nothing was stored; reads go on."""

    code = "storage_full"
    retryable = True


class StorageFailed(HybridMemoryError):
    """The local file failed. The outcome of the call is unknown: absent or complete, never half."""

    code = "storage_failed"


class StorageCorrupt(StorageFailed):
    """The local file is damaged or is not ours; nothing more is written to it."""

    code = "storage_corrupt"


class StorageReplaced(StorageFailed):
    """The local file on the disk is no longer the one that is open; nothing more is written to it, reads go on."""

    code = "storage_replaced"


class DataDirBusy(HybridMemoryError):
    """Another process holds what was asked for in the data directory."""

    code = "data_dir_busy"
    retryable = True


class Closed(HybridMemoryError):
    """The manager is closed, was never opened, or belongs to another event loop or process."""

    code = "closed"


class DurableTierError(HybridMemoryError):
    """The root of what Postgres can do to us. `sqlstate` is what Postgres called it, empty when it said nothing."""

    code = "durable_tier"

    def __init__(self, message: str, *, fix: str = "", sqlstate: str = "") -> None:
        super().__init__(message, fix=fix)
        self.sqlstate = sqlstate


class Unreachable(DurableTierError):
    """Postgres cannot be reached or did not answer in time; work goes on locally."""

    code = "unreachable"
    retryable = True


class OutcomeUnknown(Unreachable):
    """The connection was lost after the work was sent: it happened completely or not at all."""

    code = "outcome_unknown"


class Contended(DurableTierError):
    """Postgres refused for now (deadlock, lock wait, serialisation): the same work may go through at once.

    `held_by` says who holds the lock that was waited for in vain, where that is known, else it is empty.
    """

    code = "contended"
    retryable = True

    def __init__(self, message: str, *, fix: str = "", sqlstate: str = "", held_by: str = "") -> None:
        super().__init__(message, fix=fix, sqlstate=sqlstate)
        self.held_by = held_by


class Overloaded(DurableTierError):
    """Postgres lacks a resource (memory, disk, time): the same work may go through later or in smaller parts."""

    code = "overloaded"
    retryable = True


class ReadOnly(DurableTierError):
    """The server answering is read-only (a standby, or switched so): wait for the primary."""

    code = "read_only"
    retryable = True


class Unforeseen(DurableTierError):
    """Postgres failed in a way that is not known; it may be this operation's doing, or pass."""

    code = "unforeseen"
    retryable = True


class PoisonOperation(DurableTierError):
    """Postgres will never take this operation; it belongs in the dead letters."""

    code = "poison"

    def __init__(self, message: str, *, sqlstate: str) -> None:
        super().__init__(message, fix="inspect it with `hybrid-memory dead-letters list`", sqlstate=sqlstate)


class Misconfigured(DurableTierError):
    """Credentials, database, schema or settings are wrong: a person must act; everything queued is kept."""

    code = "misconfigured"


class RoleRefused(Misconfigured):
    """The role could see or change other tenants' rows, so nothing is sent through it."""

    code = "role_refused"


class OtherDatabase(Misconfigured):
    """The server answering holds another installation than the one whose operations are queued here: none is sent."""

    code = "other_database"


class SchemaMismatch(Misconfigured):
    """The database schema is older or newer than this version can use, or is not ours."""

    code = "schema_mismatch"


class NumbersReused(DurableTierError):
    """Queue numbers were given out again for other operations, as the local file had lost the first ones.

    Nothing was done. Postgres has marked the user up to `last_seq`, of which `covered` is the last number that still
    means the same operation here.
    """

    code = "numbers_reused"
    retryable = True

    def __init__(self, *, user_id: str, last_seq: int, covered: int) -> None:
        super().__init__(
            f"the local file had forgotten the queue numbers {covered + 1} to {last_seq}",
            fix="nothing to do: the queue is numbered anew and sent",
        )
        self.user_id = user_id
        self.last_seq = last_seq
        self.covered = covered


class Fenced(DurableTierError):
    """A later opener of this file (or of a copy of it) has taken over; this one may not send any more."""

    code = "fenced"
