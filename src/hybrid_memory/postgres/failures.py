"""What a failure of the driver means to us: decided once, by SQLSTATE or class, never by message text."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, TypeAlias

import asyncpg
from asyncpg.exceptions import ClientConfigurationError, TargetServerAttributeNotMatched

from hybrid_memory.errors import (
    Contended,
    DurableTierError,
    Misconfigured,
    OutcomeUnknown,
    Overloaded,
    PoisonOperation,
    ReadOnly,
    RoleRefused,
    Unforeseen,
    Unreachable,
)

DriverFailure: TypeAlias = asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError | OSError

DRIVER_FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Everything that asyncpg and the sockets below it raise; a time-out is an `OSError` too."""

_CONTENDED: Final = frozenset({"40001", "40P01", "55P03", "55006"})
_LOST: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "53300"})
# 55000 is what a standby answers when asked for its place in the log.
_READ_ONLY: Final = frozenset({"25006", "55000"})
_OVERLOADED: Final = frozenset({"57014", "25P04"})
_MISCONFIGURED: Final = frozenset({"57P04", "XX001", "XX002"})
# The members of a driver's error that can hold a value, a statement or a name of somebody.
_TELLING: Final = frozenset({"message", "detail", "hint", "context", "internal_query", "query"})
_POISON_CLASSES: Final = frozenset({"22", "23", "21", "54"})
_OVERLOADED_CLASSES: Final = frozenset({"53", "58"})
_MISCONFIGURED_CLASSES: Final = frozenset({"26", "28", "3D", "3F", "42"})
_THE_WAY: Final = "see to the server and the way to it"
_POOLER: Final = 'a pooler in transaction mode needs pooler="transaction" (HYBRID_MEMORY_POOLER)'
# PgBouncer's word for a server that it cannot reach, and for a client that asks for a parameter it does not know.
_POOLED: Final = f"{_THE_WAY}; {_POOLER}"


@contextmanager
def explained(*, after_sending: bool = False) -> Generator[None, None, None]:
    """Map what the driver raises in the block to the error tree (see `explain`)."""
    try:
        yield
    except DRIVER_FAILURES as failure:
        raise explain(failure, after_sending=after_sending) from failure


def explain(failure: DriverFailure, *, after_sending: bool = False) -> DurableTierError:
    """Our error for the driver's; raise it `from` the failure, which is stripped of everything but its class and code.

    `after_sending` says that a change may have been sent, so that a lost connection leaves its outcome unknown.
    """
    error = _explained(failure)
    _scrub(failure)
    if after_sending and isinstance(error, Unreachable):
        return OutcomeUnknown(f"{error.message}, after the change was sent", fix=error.fix, sqlstate=error.sqlstate)
    return error


def _explained(failure: DriverFailure) -> DurableTierError:
    name = type(failure).__name__
    match failure:
        case asyncpg.InvalidCachedStatementError():
            return Contended(f"{name}: the schema changed underneath a statement")
        case asyncpg.PostgresError():
            return _by_state(failure, failure.sqlstate or "", name)
        case ClientConfigurationError():
            return Misconfigured(f"{name}: the connection settings are not valid", fix="correct the DSN")
        case asyncpg.InterfaceError() if isinstance(failure, ValueError):
            # A value the driver could not encode; nothing was sent.
            return PoisonOperation(f"{name} 22000", sqlstate="22000")
        case TargetServerAttributeNotMatched():
            return ReadOnly(f"{name}: no primary among the hosts", fix="wait for the failover to end")
        case TimeoutError():
            return Unreachable("Postgres did not answer in time", fix=_THE_WAY)
        case _:
            return Unreachable(f"Postgres cannot be reached ({name})", fix=_THE_WAY)


def _by_state(failure: asyncpg.PostgresError, state: str, name: str) -> DurableTierError:
    said = f"{name} {state}"
    if state in _CONTENDED:
        return Contended(said, sqlstate=state)
    if state.startswith("08") or state in _LOST or state == "40003":
        return Unreachable(said, fix=_POOLED if state == "08P01" else _THE_WAY, sqlstate=state)
    if state in _READ_ONLY:
        return ReadOnly(said, fix="wait for the failover to end, or name the primary", sqlstate=state)
    if state in _OVERLOADED or state[:2] in _OVERLOADED_CLASSES:
        return Overloaded(said, fix="see to the server's disk, memory and load", sqlstate=state)
    if state == "42501":
        return _right_refused(failure, said)
    if state[:2] in _POISON_CLASSES:
        return PoisonOperation(said, sqlstate=state)
    if state in _MISCONFIGURED or state[:2] in _MISCONFIGURED_CLASSES:
        return Misconfigured(said, fix=_fix(state), sqlstate=state)
    return Unforeseen(said, fix="see the server's log", sqlstate=state)


def _right_refused(failure: asyncpg.PostgresError, said: str) -> DurableTierError:
    # One code for two things: a row for another tenant, and a right the role was not given.
    if failure.server_source_function == "ExecWithCheckOptions":
        return PoisonOperation(f"{said}: row-level security refused the row", sqlstate="42501")
    return RoleRefused(
        f"{said}: the role lacks a right", fix="hybrid-memory migrate, then grant the role again", sqlstate="42501"
    )


def _fix(state: str) -> str:
    match state[:2]:
        case "26":
            return _POOLER
        case "28":
            return "correct user, password or pg_hba.conf"
        case "3D":
            return "create the database or correct its name"
        case "3F" | "42":
            return "hybrid-memory migrate"
        case _:
            return "see the server's log"


def _scrub(failure: DriverFailure) -> None:
    """Strip values: a driver's error keeps the statement and prints DETAIL (whole rows) wherever it is logged."""
    if isinstance(failure, asyncpg.PostgresError):
        failure.args = (f"{type(failure).__name__} {failure.sqlstate}",)
    elif isinstance(failure, (asyncpg.InterfaceError, asyncpg.InternalClientError)):
        failure.args = (type(failure).__name__,)
    told = vars(failure)
    told.update((name, None) for name in told.keys() & _TELLING)
