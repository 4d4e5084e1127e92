"""The error tree: stable codes, whether a retry can help, and what a person can do."""

from __future__ import annotations

from collections import Counter

import pytest

import hybrid_memory
from hybrid_memory import errors
from hybrid_memory.errors import (
    Backpressure,
    Conflict,
    Contended,
    DataDirBusy,
    DurableTierError,
    Fenced,
    HybridMemoryError,
    InvalidInput,
    Misconfigured,
    OutcomeUnknown,
    Overloaded,
    PoisonOperation,
    ReadOnly,
    RoleRefused,
    SchemaMismatch,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    TooStale,
    Unreachable,
)

TREE = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HybridMemoryError)]


def test_every_error_has_a_code_of_its_own() -> None:
    assert {code: count for code, count in Counter(error.code for error in TREE).items() if count > 1} == {}


@pytest.mark.parametrize(
    "error",
    [Backpressure, StorageFull, DataDirBusy, TooStale, Unreachable, OutcomeUnknown, Contended, Overloaded, ReadOnly],
)
def test_what_may_go_through_later_says_so(error: type[HybridMemoryError]) -> None:
    assert error.retryable


@pytest.mark.parametrize(
    "error",
    [InvalidInput, Conflict, StorageCorrupt, PoisonOperation, Misconfigured, RoleRefused, SchemaMismatch, Fenced],
)
def test_what_somebody_must_change_first_says_so(error: type[HybridMemoryError]) -> None:
    assert not error.retryable


def test_kinds_may_be_caught_by_their_family() -> None:
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(StorageCorrupt, StorageFailed)
    assert issubclass(OutcomeUnknown, Unreachable)
    for error in (Unreachable, Contended, Overloaded, ReadOnly, PoisonOperation, Misconfigured, Fenced):
        assert issubclass(error, DurableTierError)
    for error in (RoleRefused, SchemaMismatch):
        assert issubclass(error, Misconfigured)


def test_a_message_says_what_happened_and_a_fix_what_to_do() -> None:
    error = Unreachable("Postgres is away", fix="wait")
    assert (str(error), error.message, error.fix, error.code) == (
        "Postgres is away",
        "Postgres is away",
        "wait",
        "unreachable",
    )
    refused = InvalidInput("content.tags[3]", "must be a str")
    assert (str(refused), refused.field, refused.reason) == (
        "content.tags[3]: must be a str",
        "content.tags[3]",
        "must be a str",
    )
    conflict = Conflict(expected_rev=3, actual_rev=5)
    assert (conflict.expected_rev, conflict.actual_rev, str(conflict)) == (3, 5, "expected revision 3, found 5")
    assert PoisonOperation("x", sqlstate="22P05").sqlstate == "22P05"


def test_the_errors_a_caller_meets_are_public() -> None:
    inner = {
        "Contended",
        "Fenced",
        "NumbersReused",
        "OutcomeUnknown",
        "Overloaded",
        "PoisonOperation",
        "ReadOnly",
        "Unforeseen",
    }
    assert {error.__name__ for error in TREE} - inner <= set(hybrid_memory.__all__)
