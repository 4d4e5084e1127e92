"""Injected time, hybrid logical stamps and identities."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from hybrid_memory.errors import InvalidInput

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# Below this (the year 2112) a double of seconds is less than half a microsecond off, and rounds to the right one.
_EXACT_AS_FLOAT_US = 2**52

_UNSLEEPING: int | None = getattr(time, "CLOCK_BOOTTIME", None)

# Nodes, entities and relationships derive their ids under this namespace; changing it would duplicate every entity.
_NAMESPACE = uuid.UUID("6f1f5c1e-0d5f-5c7e-9a3d-3c1c8f6b2a41")

# The low bits of a stamp count events within one microsecond. Eight are ample, and with them a stamp fits a signed
# 64-bit integer until the year 3111.
_LOGICAL_BITS = 8
# A stamp from a clock running further ahead than this is taken as a fault of that clock, not as the present.
MAX_SKEW = timedelta(days=1)


class Clock(Protocol):
    """Where time comes from: wall-clock microseconds for stamps, monotonic seconds for waiting."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; where the system can tell, it goes on while the machine sleeps."""
        return time.clock_gettime(_UNSLEEPING) if _UNSLEEPING is not None else time.monotonic()


# How fast a clock that differs is approached: what expires in a day is never off by more than a minute and a half.
_SLEW = 1_000
_COMPARED_EVERY_US = 1_000_000


class SteadyClock:
    """A wall clock that goes on as it ran when this was made, if somebody sets the one it is made of.

    Set forwards, that would have things expire before their time; set back, what has expired would be there again. So
    this one follows time that only passes, and approaches the other by one part in a thousand. It never goes back.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._monotonic = clock.monotonic
        # What it showed, and the moment of that on the clock that only passes.
        self._base = (clock.now_us(), clock.monotonic())

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        shown_us, moment = self._base
        passed_us = round((self._monotonic() - moment) * 1e6)
        if passed_us < _COMPARED_EVERY_US:
            return shown_us + passed_us
        return self._compare(shown_us + passed_us, moment + passed_us / 1e6, passed_us // _SLEW)

    def _compare(self, now_us: int, moment: float, most_us: int) -> int:
        """Approach the clock that may have been set, by so much at most."""
        now_us += max(-most_us, min(most_us, self._clock.now_us() - now_us))
        self._base = (now_us, moment)
        return now_us

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return self._clock.monotonic()


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime, exactly."""
    return (moment - EPOCH) // MICROSECOND


def from_us(moment_us: int) -> datetime:
    """The aware UTC datetime of microseconds since the epoch, exactly."""
    if 0 <= moment_us < _EXACT_AS_FLOAT_US:
        return datetime.fromtimestamp(moment_us / 1e6, UTC)
    return EPOCH + timedelta(microseconds=moment_us)


class StampClock:
    """Hybrid logical clock: stamps grow with every change made or seen, whatever the wall clock does.

    A stamp is the wall clock in microseconds shifted left by 8 bits plus a counter (Kulkarni et al., "Logical
    Physical Clocks", 2014, folded into one integer). Not safe for use from several threads.
    """

    def __init__(self, clock: Clock, *, last: int = 0) -> None:
        self._clock = clock
        self._last = last

    @property
    def last(self) -> int:
        """The newest stamp made or seen."""
        return self._last

    def next(self) -> int:
        """A stamp greater than every one made or seen before."""
        self._last = max(self._last + 1, self._clock.now_us() << _LOGICAL_BITS)
        return self._last

    def observe(self, stamp: int) -> None:
        """Take in another writer's stamp, unless it lies absurdly far in the future."""
        ceiling = (self._clock.now_us() + MAX_SKEW // MICROSECOND) << _LOGICAL_BITS
        if self._last < stamp <= ceiling:
            self._last = stamp


_VARIANT = 2 << 62
_NO_VARIANT = ~(3 << 62)


class IdSource:
    """Fresh identities (UUID version 7, so that they sort by time of making)."""

    def __init__(self, clock: Clock, random_bits: Callable[[int], int] | None = None) -> None:
        self._clock = clock
        # Ids must differ, not be secret: a generator seeded by the system costs a tenth of asking it each time.
        self._random_bits = random_bits or random.Random(os.urandom(32)).getrandbits  # noqa: S311
        # The digits of the last millisecond, told together: two threads make ids.
        self._moment = (-1, "")

    def new(self) -> str:
        """A new UUIDv7 as canonical text (RFC 9562: 48 bits of milliseconds, version, variant, 74 random bits)."""
        now_ms = self._clock.now_us() // 1000
        last_ms, digits = self._moment
        if now_ms != last_ms:
            moment = f"{now_ms & 0xFFFFFFFFFFFF:012x}"
            digits = f"{moment[:8]}-{moment[8:]}-7"
            self._moment = (now_ms, digits)
        # 12 random bits, the two of the variant, 62 random bits: nineteen digits.
        rest = f"{self._random_bits(76) & _NO_VARIANT | _VARIANT:019x}"
        return f"{digits}{rest[:3]}-{rest[3:7]}-{rest[7:]}"


def _derived(kind: str, *parts: str) -> str:
    # Lengths in front keep ("ab", "c") and ("a", "bc") apart without forbidding any character.
    name = kind + "".join(f"|{len(part)}:{part}" for part in parts)
    return str(uuid.uuid5(_NAMESPACE, name))


def entity_node_id(user_id: str, system: str, entity_id: str) -> str:
    """The one node id of an entity: UUIDv5 of (user, system, id)."""
    return _derived("entity", user_id, system, entity_id)


def keyed_node_id(user_id: str, namespace: str, key: str) -> str:
    """The one node id of a keyed memory: UUIDv5 of (user, namespace, key)."""
    return _derived("keyed", user_id, namespace, key)


def relationship_id(user_id: str, source_id: str, relationship_type: str, target_id: str) -> str:
    """The one id of a relationship: UUIDv5 of (user, source, type, target)."""
    return _derived("relationship", user_id, source_id, relationship_type, target_id)


def check_skew(field: str, moment_us: int, clock: Clock) -> None:
    """Raise `InvalidInput` when a caller's time lies further ahead than any clock may be."""
    if moment_us > clock.now_us() + MAX_SKEW // MICROSECOND:
        raise InvalidInput(field, "lies more than a day in the future")
