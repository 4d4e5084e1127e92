"""What a process under load feels like from inside: latencies, the event loop's lag, its longest callbacks, memory."""

from __future__ import annotations

import asyncio
import gc
import heapq
import math
import os
import time
from array import array
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import CoroutineType
from typing import Final, cast

_LEAST_SECONDS: Final = 1e-7
_RATIO: Final = math.log(1.02)
_BUCKETS: Final = 1_200
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Latencies:
    """Any number of durations in constant memory, told to 2 %; the longest exactly."""

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _BUCKETS))
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Note one."""
        place = int(math.log(seconds / _LEAST_SECONDS) / _RATIO) if seconds > _LEAST_SECONDS else 0
        self._counts[min(place, _BUCKETS - 1)] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def quantile(self, share: float) -> float:
        """The duration that this share of all did not exceed, 0 of none."""
        left = share * self.count
        for place, number in enumerate(self._counts):
            left -= number
            if number and left <= 0:
                return min(self.longest, _LEAST_SECONDS * math.exp((place + 1) * _RATIO))
        return 0.0

    def figures(self) -> dict[str, float]:
        """Count, p50, p99 and the longest, in milliseconds."""
        return {
            "count": self.count,
            "p50_ms": round(self.quantile(0.50) * 1e3, 4),
            "p99_ms": round(self.quantile(0.99) * 1e3, 4),
            "max_ms": round(self.longest * 1e3, 3),
        }


async def tick(lags: Latencies, *, every_seconds: float = 0.005) -> None:
    """Note for ever how late the event loop is with a timer."""
    now = asyncio.get_running_loop().time
    while True:
        due = now() + every_seconds
        await asyncio.sleep(every_seconds)
        lags.add(max(0.0, now() - due))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Callback:
    """A long callback of the event loop: its CPU time, how much of that went into collecting garbage, what it was."""

    cpu_ms: float
    garbage_ms: float
    number: int
    """Which of the long ones, so that equal ones have an order."""
    what: str


@dataclass(slots=True, kw_only=True)
class Callbacks:
    """The callbacks of the event loop's thread that took longest by that thread's CPU time, told by `timed`.

    The time of a garbage collection counts for the callback that it fell into, and is told.
    """

    noted_from_ms: float = 5.0
    kept: int = 12
    over: dict[int, int] = field(default_factory=lambda: {10: 0, 25: 0, 50: 0})
    """How many took more than so many milliseconds."""
    collections: Latencies = field(default_factory=Latencies)
    """Collections of garbage on any thread, by that thread's CPU time."""
    _longest: list[Callback] = field(default_factory=list[Callback])
    _numbers: count[int] = field(default_factory=count)
    _garbage_ns: int = 0
    _collecting_since: int = 0

    @property
    def longest(self) -> list[Callback]:
        """The longest first."""
        return sorted(self._longest, reverse=True)

    @contextmanager
    def timed(self) -> Generator[None]:
        """Look at every callback for the length of the block."""
        run = asyncio.Handle._run
        cpu, least = time.thread_time_ns, int(self.noted_from_ms * 1e6)
        # From the end of the one before: asking for the time is most of what this costs, and in between the loop does
        # little by itself.
        ended, garbage = cpu(), self._garbage_ns

        def timed_run(handle: asyncio.Handle) -> None:
            nonlocal ended, garbage
            run(handle)
            now = cpu()
            if now - ended > least:
                self._note(handle, now - ended, self._garbage_ns - garbage)
            ended, garbage = now, self._garbage_ns

        # The one place that every callback passes; a debug mode that tells of slow ones goes by the wall clock.
        setattr(asyncio.Handle, "_run", timed_run)  # noqa: B010 - to the type checkers it is a method of C's
        gc.callbacks.append(self._collecting)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collecting)
            setattr(asyncio.Handle, "_run", run)  # noqa: B010

    def _collecting(self, phase: str, _info: dict[str, int]) -> None:
        # A collection begins and ends on one thread, and no other begins meanwhile.
        if phase == "start":
            self._collecting_since = time.thread_time_ns()
        else:
            spent = time.thread_time_ns() - self._collecting_since
            self._garbage_ns += spent
            self.collections.add(spent / 1e9)

    def _note(self, handle: asyncio.Handle, spent_ns: int, garbage_ns: int) -> None:
        for least in self.over:
            self.over[least] += spent_ns > least * 1e6
        told = Callback(
            cpu_ms=round(spent_ns / 1e6, 2),
            garbage_ms=round(garbage_ns / 1e6, 2),
            number=next(self._numbers),
            what=_described(handle),
        )
        heapq.heappush(self._longest, told)
        if len(self._longest) > self.kept:
            heapq.heappop(self._longest)


@contextmanager
def frozen_heap() -> Generator[None]:
    """As a service has it that is up: what was imported and made until now is not looked through for garbage."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _described(handle: asyncio.Handle) -> str:
    callback: object = getattr(handle, "_callback", None)
    while isinstance(callback, partial):
        callback = cast("partial[object]", callback).func
    owner: object = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return _place_of(cast("asyncio.Task[object]", owner))
    protocol: object = getattr(owner, "_protocol", None)
    name = str(getattr(callback, "__qualname__", repr(callback)))
    return name if protocol is None else f"{name} of {type(protocol).__name__}"


def _place_of(task: asyncio.Task[object]) -> str:
    """The task's coroutine, and where it has come to by the end of the callback."""
    coroutine: object = task.get_coro()
    name = str(getattr(coroutine, "__qualname__", coroutine))
    inner = coroutine
    while isinstance(deeper := getattr(inner, "cr_await", None), CoroutineType):
        inner = cast("object", deeper)
    frame: object = getattr(inner, "cr_frame", None)
    if frame is None:
        return f"{name}, which ended"
    line: int = getattr(frame, "f_lineno", 0)
    return f"{name} in {getattr(inner, '__qualname__', '')}, up to line {line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the process holds at a moment."""

    seconds: float
    rss_mib: float
    fds: int
    threads: int
    queued: int


def sample(seconds: float, queued: int) -> Sample:
    """What this process holds now."""
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    return Sample(
        seconds=round(seconds, 2),
        rss_mib=round(resident / 2**20, 2),
        fds=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - a thousand Path objects a second for a count
        threads=len(os.listdir("/proc/self/task")),  # noqa: PTH208
        queued=queued,
    )


def slope(points: list[tuple[float, float]]) -> float:
    """The slope of the straight line through points by least squares; 0 for less than two."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
