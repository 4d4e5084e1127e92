"""An event loop whose time is virtual and whose choices are a seed's: what runs next, and how long a step takes."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# The longest that one step keeps the loop busy, in seconds of virtual time.
LONGEST_STEP: Final = 0.0002
# More steps than any schedule needs by far: something spins.
MOST_STEPS: Final = 400_000
KEPT_LINES: Final = 400


class Stuck(AssertionError):
    """Nothing is left to run, or nothing comes to rest."""


class Life:
    """One life of a simulated process. Once it is over, nothing that belongs to it runs again."""

    __slots__ = ("alive", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True


WORLD: Final = Life("world")
_LIFE: Final[ContextVar[Life]] = ContextVar("life", default=WORLD)


def context_of(life: Life) -> Context:
    """A context in which everything that is begun belongs to that life."""
    context = copy_context()
    context.run(_LIFE.set, life)
    return context


class Trace:
    """What happened, as lines: the last of them for people, all of them as one hash."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._hash = hashlib.blake2b(digest_size=16)
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)

    def __call__(self, who: str, what: str) -> None:
        """Note something."""
        line = f"{self._loop.time():10.6f} {who:>6} {what}"
        self._hash.update(line.encode())
        self.lines.append(line)

    def digest(self) -> str:
        """The hash of all that was noted, and of how many steps there were."""
        whole = self._hash.copy()
        whole.update(str(self._loop.steps).encode())
        return whole.hexdigest()


class _Step(asyncio.TimerHandle):
    """Something to be run, and whose it is. Made by the thousand, so it holds no more than is asked for."""

    __slots__ = ("args", "callback", "context", "is_task", "life")

    def __init__(
        self, callback: Callable[..., object], args: tuple[object, ...], context: Context, is_task: bool
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self._cancelled = False
        self.is_task = is_task
        self.life = context.get(_LIFE, WORLD)

    def cancel(self) -> None:
        self._cancelled = True


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs what is ready in an order of its own, and moves time on when nothing is.

    Callbacks keep their order among themselves and ahead of what became ready after them, as asyncio promises; tasks
    that are ready at once run in any order. `shuffles` False keeps to the order of asyncio throughout.
    """

    def __init__(self, chance: random.Random, *, shuffles: bool = True) -> None:
        self._over = False
        super().__init__()
        self._random = chance.random
        self._shuffles = shuffles
        self._now = 1_000.0
        self._ready: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        self._count = 0
        self.steps = 0
        # Kept until the end, so that nothing of a dead process is finalized in the middle of a schedule.
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[str] = []
        self.trace = Trace(self)

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return self._over

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: object = None,  # noqa: ARG002 - nobody looks
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, context=context)
        self.tasks.append(task)
        return task

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        is_task = isinstance(getattr(callback, "__self__", None), asyncio.Task)
        step = _Step(callback, args, copy_context() if context is None else context, is_task)
        self._ready.append(step)
        return step

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._at(self._now + delay, callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._at(when, callback, args, context)

    def _at(
        self, when: float, callback: Callable[..., object], args: tuple[object, ...], context: Context | None
    ) -> _Step:
        step = _Step(callback, args, copy_context() if context is None else context, False)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, step))
        return step

    def run_in_executor(
        self,
        executor: object,  # noqa: ARG002 - there are no threads here
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        self.call_later(self.delay(0.002), self._run_for, future, func, args)
        return future

    def _run_for(self, future: asyncio.Future[T], func: Callable[..., T], args: tuple[object, ...]) -> None:
        if future.cancelled():
            return
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            self.call_later(self.delay(0.001), _refuse, future, error)
        else:
            self.call_later(self.delay(0.001), _answer, future, result)

    async def pause(self, seconds: float) -> None:
        """`asyncio.sleep`, for those who do nothing else."""
        over = self.create_future()
        timer = self.call_later(seconds, _answer, over, None)
        try:
            await over
        finally:
            timer.cancel()

    def delay(self, most: float) -> float:
        """A while, mostly short and now and then as long as may be."""
        return most * self._random() ** 3

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None:
            self.errors.append(f"{context.get('message')}: {error!r}")

    def play(self, work: Coroutine[Any, Any, T]) -> T:
        """Run until that is done, and give what it returns or raises."""
        task = self.create_task(work)
        asyncio._set_running_loop(self)
        try:
            while not task.done():
                self._step()
        finally:
            asyncio._set_running_loop(None)
        return task.result()

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Stuck(f"no rest after {MOST_STEPS} steps")
        now = self._now + LONGEST_STEP * self._random()
        timers, ready = self._timers, self._ready
        if not ready:
            if not timers:
                raise Stuck("everybody waits, and nothing will come")
            now = max(now, timers[0][0])
        self._now = now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if timer.life.alive and not timer._cancelled:
                ready.append(timer)
        if not ready:
            return
        step = self._next() if self._shuffles and len(ready) > 1 else ready.popleft()
        if step.life.alive and not step._cancelled:
            try:
                step.context.run(step.callback, *step.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - a callback's, which nobody awaits
                self.call_exception_handler({"message": "Exception in a callback", "exception": error})

    def _next(self) -> _Step:
        ready = self._ready
        # Nothing overtakes a callback, which is as likely as not the first word of what comes behind it.
        choices = 0
        for one in ready:
            choices += 1
            if not one.is_task:
                break
        place = int(self._random() * choices)
        step = ready[place]
        del ready[place]
        return step

    def end(self) -> None:
        """Let go of everything that is left."""
        self._over = True
        self._ready.clear()
        self._timers.clear()
        for task in self.tasks:
            if not task.done():
                # Nobody will ask, and asyncio need not tell.
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with suppress(Exception):
                    # What it would wait for on its way out never comes, and nobody is there to be told.
                    task.get_coro().close()
        self.tasks.clear()


def _answer(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
