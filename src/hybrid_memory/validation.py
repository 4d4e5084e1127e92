"""What may enter. Every check runs before anything is acknowledged: what is acknowledged can no longer be refused.

Types are exact (`type(x) is T`): no subclass, no coercion but the documented ones. An error names the field and the
rule, never the value. Rules are the same for both databases, so what passes here is stored alike by both.

Identifiers (user, namespace, key, types, entities, sessions, tags) are normalised to Unicode NFC and compared case
by case; they hold no control, format (zero-width, direction override), private-use or unassigned character and no
white space at the ends. Texts and JSON values are kept as given.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import isfinite
from types import NoneType
from typing import Any, Final, TypeAlias, cast

from hybrid_memory.clock import MICROSECOND, to_us
from hybrid_memory.errors import InvalidInput
from hybrid_memory.graph import NodeId
from hybrid_memory.jsontext import Json, encode

MAX_CONTENT_BYTES: Final = 1 << 20
MAX_SUMMARY_BYTES: Final = 1 << 16
# Several identifiers share one b-tree entry of Postgres, whose 2,704 bytes cannot be stretched by compression for sure.
MAX_IDENTIFIER_BYTES: Final = 512
MAX_TAG_BYTES: Final = 128
MAX_TAGS: Final = 64
# SQLite stops at 1,000 levels and orjson at 254; real content stays below ten.
MAX_DEPTH: Final = 64
INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1
# Any ten calendar years, leap days included.
MAX_TTL: Final = timedelta(days=3653)
MAX_WAIT_SECONDS: Final = 3600.0
# A day inside what `datetime` can hold, so that no time zone leads outside it.
_EARLIEST_US: Final = to_us(datetime(1, 1, 2, tzinfo=UTC))
_LATEST_US: Final = to_us(datetime(9999, 12, 30, tzinfo=UTC))

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SHOWN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})

# The walk of content asks for each type once and compares that: `Any`, as nothing is narrowed by it, and `type` under a
# signature that says so.
_Holder: TypeAlias = dict[str, Any] | list[Any]
_type: Callable[[object], type[object]] = type


def identifier(field: str, value: object, *, max_bytes: int = MAX_IDENTIFIER_BYTES) -> str:
    """A name that things are found by, in NFC: 1 to `max_bytes` bytes of UTF-8, before and after normalising."""
    if type(value) is not str:
        raise InvalidInput(field, "must be a str")
    name, size = value, len(value)
    # A character takes a byte at least, so a huge string is refused before any work is done on it.
    if not value.isascii() and size <= max_bytes:
        name = unicodedata.normalize("NFC", value)
        size = max(len(form.encode(errors="surrogatepass")) for form in (value, name))
    if not 0 < size <= max_bytes:
        raise InvalidInput(field, f"must have 1 to {max_bytes} bytes of UTF-8")
    if name != name.strip():
        raise InvalidInput(field, "must not begin or end with white space")
    # What is printable has no forbidden category; the second look lets the rarer spaces pass.
    if not name.isprintable() and any(unicodedata.category(char) in _FORBIDDEN_CATEGORIES for char in name):
        raise InvalidInput(field, "must not hold control, format, surrogate, private-use or unassigned characters")
    return name


def user_id(value: object) -> str:
    """The user whose memory it is; None or an empty name never means all users."""
    return identifier("user_id", value)


def namespace(value: object) -> str:
    """Which memory of the user; opaque, never a path."""
    return identifier("namespace", value)


def context_type(value: object) -> str:
    """The name of a memory's type, checked by form only."""
    return identifier("context_type", value)


def relationship_type(value: object) -> str:
    """The name of a kind of relationship."""
    return identifier("relationship_type", value)


def entity_system(value: object) -> str:
    """The outside system that gave an entity its id."""
    return identifier("entity_system", value)


def node_id(field: str, value: object) -> NodeId:
    """A node's id as canonical UUID text; hyphens are required, upper case is lowered."""
    if type(value) is not str or _UUID.fullmatch(value) is None:
        raise InvalidInput(field, "must be a UUID as text, 8-4-4-4-12 hexadecimal digits")
    return NodeId(value.lower())


def tags(values: object) -> tuple[str, ...]:
    """At most 64 tags, each an identifier of at most 128 bytes, repeats dropped, in the order given (sets: sorted)."""
    given = cast("Sequence[object]", values) if type(values) is tuple or type(values) is list else _drawn(values)
    if not given:
        return ()
    if len(given) > MAX_TAGS:
        raise InvalidInput("tags", f"must be at most {MAX_TAGS}")
    try:
        checked = [identifier("tags", tag, max_bytes=MAX_TAG_BYTES) for tag in given]
    except InvalidInput:
        # Once more, to say which: their places are not written out for every write.
        checked = [identifier(f"tags[{place}]", tag, max_bytes=MAX_TAG_BYTES) for place, tag in enumerate(given)]
    # The order of a set differs from process to process, and the hash of the row with it.
    return tuple(sorted(set(checked)) if isinstance(values, (set, frozenset)) else dict.fromkeys(checked))


def _drawn(values: object) -> Sequence[object]:
    if isinstance(values, (str, bytes, bytearray, memoryview, dict)) or not isinstance(values, Iterable):
        raise InvalidInput("tags", "must be a list of str")
    # One more than allowed is enough to see that there are too many, even where the iterable never ends.
    return list(islice(cast("Iterable[object]", values), MAX_TAGS + 1))


def text(field: str, value: object, *, max_bytes: int) -> str:
    """Free text, kept as given: at most `max_bytes` bytes of UTF-8, no NUL, no lone surrogate; may be empty."""
    if type(value) is not str:
        raise InvalidInput(field, "must be a str")
    if len(value) > max_bytes:
        raise InvalidInput(field, f"must have at most {max_bytes} bytes of UTF-8")
    fault = _text_fault(value)
    if fault is not None:
        raise InvalidInput(field, fault)
    if not value.isascii() and len(value.encode()) > max_bytes:
        raise InvalidInput(field, f"must have at most {max_bytes} bytes of UTF-8")
    return value


def _text_fault(value: str) -> str | None:
    if "\0" in value:
        return "must not hold NUL characters"
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError:
        # Told by return: the error itself holds the value.
        return "must not hold lone surrogates"
    return None


def summary(value: object) -> str | None:
    """A short text about the memory, at most 64 KiB; None for none."""
    return None if value is None else text("summary", value, max_bytes=MAX_SUMMARY_BYTES)


def number(field: str, value: object) -> float:
    """A finite float; an int is taken as the nearest float, a bool is refused."""
    if type(value) is float and isfinite(value):
        return value
    if type(value) is int and INT_MIN <= value <= INT_MAX:
        return float(value)
    raise InvalidInput(field, "must be a finite float")


def importance(value: object) -> float:
    """How much a memory matters, 0 to 1."""
    checked = number("importance", value)
    if not 0.0 <= checked <= 1.0:
        raise InvalidInput("importance", "must lie in 0..1")
    # Adding zero turns -0.0, another text and another hash for the same number, into 0.0.
    return checked + 0.0


def weight(value: object) -> float:
    """How strong a relationship is: any finite number."""
    return number("weight", value) + 0.0


def ttl(value: object) -> int:
    """A time to live in microseconds: more than nothing, at most ten years."""
    if type(value) is not timedelta:
        raise InvalidInput("ttl", "must be a timedelta")
    if not timedelta(0) < value <= MAX_TTL:
        raise InvalidInput("ttl", "must be positive and at most ten years")
    return value // MICROSECOND


def wait(value: object) -> float:
    """How many seconds a write may wait for Postgres: 0 to 3,600."""
    checked = number("wait", value)
    if not 0.0 <= checked <= MAX_WAIT_SECONDS:
        raise InvalidInput("wait", "must lie in 0..3600 seconds")
    return checked


def staleness(value: object) -> float:
    """How many seconds old what is read may be: nought or more, as a number or a timedelta."""
    checked = value.total_seconds() if type(value) is timedelta else number("max_staleness", value)
    if checked < 0:
        raise InvalidInput("max_staleness", "must not be negative")
    return checked


def limit(value: object, maximum: int = 1000) -> int:
    """How many results at most: 1 to `maximum`."""
    if type(value) is not int or not 1 <= value <= maximum:
        raise InvalidInput("limit", f"must be an int in 1..{maximum}")
    return value


def expected_rev(value: object) -> int | None:
    """The revision its writer has seen, None for no expectation. One that no node can have is met by a conflict."""
    if value is None:
        return None
    if type(value) is not int or not INT_MIN <= value <= INT_MAX:
        raise InvalidInput("expected_rev", "must be an int of 64 bits")
    return value


def aware_datetime(field: str, value: object) -> int:
    """Microseconds since the epoch of a datetime with a time zone, in the years 1 to 9999."""
    if type(value) is not datetime:
        raise InvalidInput(field, "must be a datetime")
    if value.utcoffset() is None:
        raise InvalidInput(field, "must have a time zone")
    moment_us = to_us(value)
    if not _EARLIEST_US <= moment_us <= _LATEST_US:
        raise InvalidInput(field, "must lie between 0001-01-02 and 9999-12-30")
    return moment_us


def content(value: object, *, max_bytes: int = MAX_CONTENT_BYTES) -> str:
    """The canonical text of a memory's content: a dict of JSON values, at most `max_bytes` bytes of UTF-8."""
    return _canonical("content", value, max_bytes, [])


def searchable_content(value: object, *, max_bytes: int = MAX_CONTENT_BYTES) -> tuple[str, str]:
    """`content`, and what search sees of it: just what `changes.searchable_text` makes of that text, at less cost."""
    found: list[str] = []
    return _canonical("content", value, max_bytes, found), "\n".join(found)


def properties(value: object, *, max_bytes: int = MAX_CONTENT_BYTES) -> str:
    """The canonical text of a relationship's properties; None is taken as none of them."""
    return "{}" if value is None else _canonical("properties", value, max_bytes, [])


def _canonical(field: str, value: object, max_bytes: int, strings: list[str]) -> str:
    """The canonical text; the strings in it are added to `strings` in the order in which they stand there."""
    if type(value) is not dict:
        raise InvalidInput(field, "must be a dict")
    tree = cast("dict[str, Json]", value)
    try:
        _walk(tree, strings, MAX_DEPTH - 1, max_bytes)
        encoded = encode(tree)
    except TypeError:
        encoded = None
    # Which value it was is sought only now: the happy path keeps no places. A NUL is always spelt as below, but so is
    # an escaped backslash before "u0000", in which case nothing is found.
    if encoded is None or "\\u0000" in encoded:
        _Fault(max_bytes).seek(field, tree, ())
    if encoded is None or (len(encoded) * 4 > max_bytes and len(encoded.encode()) > max_bytes):
        raise InvalidInput(field, f"must be JSON of at most {max_bytes} bytes")
    return encoded


def _walk(holder: _Holder, strings: list[str], depth: int, budget: int) -> int:
    """Raise `TypeError` unless all values are plain, finite and within bounds; returns what is left of the budget.

    Keys are left to the encoder. Characters and members are counted on the way, never more than the bytes of the
    canonical text: without that a few lists holding each other several times over would unfold without end.
    """
    budget -= len(holder)
    members: Iterable[Any]
    if isinstance(holder, dict):
        budget -= sum(map(len, holder))
        members = map(holder.__getitem__, sorted(holder))
    else:
        members = holder
    if budget < 0:
        raise TypeError
    for member in members:
        kind = _type(member)
        if kind is str:
            budget -= len(member)
            strings.append(member)
        elif kind is dict or kind is list:
            if not depth:
                raise TypeError
            budget = _walk(member, strings, depth - 1, budget)
        elif not _is_plain(kind, member):
            raise TypeError
    return budget


def _is_plain(kind: type[object], member: float) -> bool:
    if kind is int:
        return INT_MIN <= member <= INT_MAX
    if kind is float:
        return isfinite(member)
    return kind is bool or kind is NoneType


class _Fault:
    """Seeks the first fault of a refused tree, depth first, until more was seen than the tree may hold."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._cost = 0

    def seek(self, place: str, value: object, inside: tuple[int, ...]) -> None:
        """Raise `InvalidInput` naming the place of the first fault, if there is one; `inside` are the holders' ids."""
        self._spend(place, value)
        reason = _scalar_fault(value)
        if reason is not None:
            raise InvalidInput(place, reason)
        if type(value) is dict or type(value) is list:
            holder = cast("dict[object, object] | list[object]", value)
            if id(holder) in inside:
                raise InvalidInput(place, "must not hold itself")
            if len(inside) >= MAX_DEPTH:
                raise InvalidInput(place, f"must not be nested deeper than {MAX_DEPTH} levels")
            self._seek_members(place, holder, (*inside, id(holder)))

    def _seek_members(self, place: str, holder: dict[object, object] | list[object], inside: tuple[int, ...]) -> None:
        if isinstance(holder, list):
            for index, member in enumerate(holder):
                self.seek(f"{place}[{index}]", member, inside)
            return
        for key, member in holder.items():
            self._spend(place, key)
            reason = "must be a str" if type(key) is not str else _text_fault(key)
            if reason is not None:
                raise InvalidInput(place, f"each key {reason}")
            self.seek(f"{place}.{shown_key(key)}", member, inside)

    def _spend(self, place: str, value: object) -> None:
        # Not more than the bytes of its text, as in `_walk` and for the same reason.
        self._cost += 1 + (len(value) if type(value) is str else 0)
        if self._cost > self._max_bytes:
            raise InvalidInput(place.partition(".")[0], f"must be JSON of at most {self._max_bytes} bytes")


def _scalar_fault(value: object) -> str | None:
    if value is None or type(value) in {bool, dict, list}:
        return None
    if type(value) is str:
        return _text_fault(value)
    if type(value) is int:
        return None if INT_MIN <= value <= INT_MAX else "must be an int of 64 bits"
    if type(value) is float:
        return None if isfinite(value) else "must be finite"
    return "must be None, bool, int, float, str, list or dict, and no subclass"


def shown_key(key: object) -> str:
    """A key as it may stand in an error: itself where short and plain, else a question mark."""
    return key if type(key) is str and _SHOWN_KEY.fullmatch(key) else "?"
