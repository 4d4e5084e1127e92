"""One supervised background task: it runs again and again, backs off when it fails, and its death is seen."""

from __future__ import annotations

import asyncio
from typing import Protocol

from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.events import ServiceFailed, Sink

# After an error nobody foresaw: long enough not to spin, short enough not to matter.
UNFORESEEN_PAUSE_SECONDS = 1.0


class Work(Protocol):
    """What a service does, again and again."""

    @property
    def name(self) -> str:
        """For tasks, logs and health."""
        ...

    async def run_once(self) -> float | None:
        """Do what there is to do. Returns seconds until the next round, None to wait for a wake-up."""
        ...

    def failed(self, error: HybridMemoryError) -> float:
        """Seconds to leave it alone after a known error; a wake-up does not shorten them."""
        ...


class Service:
    """Owns the task that runs a `Work`."""

    def __init__(self, work: Work, events: Sink) -> None:
        self._work = work
        self._events = events
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.last_error: str | None = None

    @property
    def name(self) -> str:
        """The work's name."""
        return self._work.name

    @property
    def alive(self) -> bool:
        """Whether the task runs."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"hybrid-memory-{self._work.name}")

    def wake(self) -> None:
        """There is something to do; no pause after a failure is shortened by it."""
        self._wake.set()

    async def stop(self) -> None:
        """End the task, at its next await."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001 - the one place: an unforeseen error is reported and survived
                self.last_error = type(error).__name__
                # By the loop, which survives an observer that raises as well.
                told = ServiceFailed(service=self._work.name, error=self.last_error)
                asyncio.get_running_loop().call_soon(self._events.emit, told)
                await asyncio.sleep(UNFORESEEN_PAUSE_SECONDS)

    async def _round(self) -> None:
        try:
            pause = await self._work.run_once()
        except HybridMemoryError as error:
            self.last_error = error.code
            await asyncio.sleep(self._work.failed(error))
            return
        self.last_error = None
        await self._rest(pause)

    async def _rest(self, pause: float | None) -> None:
        if pause is not None and pause <= 0:
            await asyncio.sleep(0)
            return
        if pause is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return
