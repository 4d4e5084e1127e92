"""Workflow checkpoints without any framework: local, fsynced, gone when their thread is stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from hybrid_memory import validation
from hybrid_memory.clock import Clock, from_us
from hybrid_memory.errors import InvalidInput
from hybrid_memory.graph import Checkpoint, JsonInput, JsonValue
from hybrid_memory.jsontext import decode
from hybrid_memory.ports import Scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint as saved."""

    thread_id: str
    checkpoint_id: str
    parent_id: str | None
    state: dict[str, JsonValue]
    created_at: datetime


class Checkpoints:
    """Saves and loads the state of workflows by thread.

    Raises `InvalidInput` for what is not plain JSON, and `Closed` once the manager is closed.
    """

    def __init__(self, scratch: Scratch, clock: Clock, *, max_bytes: int, check_open: Callable[[], None]) -> None:
        self._scratch = scratch
        self._clock = clock
        self._max_bytes = max_bytes
        self._check_open = check_open

    async def save(
        self, thread_id: str, checkpoint_id: str, state: Mapping[str, JsonInput], parent_id: str | None = None
    ) -> None:
        """Store the state; it is fsynced when this returns. The same ids again replace it."""
        checkpoint = Checkpoint(
            thread_id=validation.identifier("thread_id", thread_id),
            checkpoint_id=validation.identifier("checkpoint_id", checkpoint_id),
            parent_id=None if parent_id is None else validation.identifier("parent_id", parent_id),
            state=self._text(state),
            created_at=self._clock.now_us(),
        )
        self._check_open()
        await self._scratch.save(checkpoint)

    def _text(self, state: Mapping[str, JsonInput]) -> str:
        try:
            return validation.content(state, max_bytes=self._max_bytes)
        except InvalidInput as error:
            raise InvalidInput("state" + error.field.removeprefix("content"), error.reason) from None

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> SavedCheckpoint | None:
        """The checkpoint, or the thread's newest without an id; None if there is none."""
        thread = validation.identifier("thread_id", thread_id)
        name = None if checkpoint_id is None else validation.identifier("checkpoint_id", checkpoint_id)
        self._check_open()
        found = self._scratch.load(thread, name)
        return None if found is None else _saved(found)

    async def list(self, thread_id: str, *, limit: int = 100) -> list[SavedCheckpoint]:
        """The thread's checkpoints, newest first."""
        thread = validation.identifier("thread_id", thread_id)
        most = validation.limit(limit)
        self._check_open()
        return [_saved(found) for found in self._scratch.history(thread, most)]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> int:
        """Delete one checkpoint, or all of the thread; returns how many there were."""
        thread = validation.identifier("thread_id", thread_id)
        name = None if checkpoint_id is None else validation.identifier("checkpoint_id", checkpoint_id)
        self._check_open()
        return await self._scratch.delete(thread, name)


def _saved(found: Checkpoint) -> SavedCheckpoint:
    return SavedCheckpoint(
        thread_id=found.thread_id,
        checkpoint_id=found.checkpoint_id,
        parent_id=found.parent_id,
        state=cast("dict[str, JsonValue]", decode(found.state)),
        created_at=from_us(found.created_at),
    )
