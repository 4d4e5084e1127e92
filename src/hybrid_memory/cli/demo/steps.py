"""The steps of a demo, timed; on a terminal they are shown while they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from hybrid_memory.cli.demo.errand import Timed


class Steps:
    """Records what was done. Used as a block, which the display lives in."""

    def __init__(self, console: Console) -> None:
        self.taken: list[Timed] = []
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}", style="cyan", justify="right"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def step(self, name: str, *, total: int | None = None) -> Generator[Callable[[int], None]]:
        """Time a step; the function given is told of how many things more were done."""
        count = 0
        with self.shown(name, total=total) as task:

            def done(more: int) -> None:
                nonlocal count
                count += more
                self._progress.update(task, done=f"{count:,}")

            began = time.perf_counter()
            yield done
            self.taken.append(Timed(name=name, count=count, ms=round((time.perf_counter() - began) * 1000, 3)))

    @contextmanager
    def shown(self, name: str, *, total: int | None = None) -> Generator[TaskID]:
        """Show that something is under way, without timing it."""
        task = self._progress.add_task(name, total=total, done="")
        yield task
        self._progress.update(task, total=1, completed=1)

    def add(self, steps: Sequence[Timed]) -> None:
        """Take over steps that were timed elsewhere."""
        self.taken += steps
