"""After a failover or a restore: compares every copy with Postgres and has what was lost there queued again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from hybrid_memory.errors import HybridMemoryError
from hybrid_memory.files import Past
from hybrid_memory.ports import ChangeFeed, DeadLetters
from hybrid_memory.retry import Backoff

# Until what was queued again has been carried, a user that was erased cannot be compared.
_LOOK_AGAIN_SECONDS: Final = 0.2
# What was queued before the loss goes before what is queued again, and may ask for rows that are still missing. It dies
# of that, and is looked for so often until all of it has been decided.
_AMEND_SECONDS: Final = 1.0
_ROW_MISSING: Final = "23503"


class Restorer:
    """Erasures first, so that nothing that was erased is served again; then user by user.

    It has nothing to do until the file says that the server's past was rewritten, and begins again where it was after a
    restart, for the doubt is kept in the file.
    """

    name = "restorer"

    def __init__(
        self,
        *,
        past: Past,
        dead_letters: DeadLetters,
        feed: ChangeFeed,
        bring_up_to_date: Callable[[str], Awaitable[bool]],
        is_persistent: Callable[[str], bool],
        uniform: Callable[[], float],
    ) -> None:
        self._past = past
        self._feed = feed
        self._bring_up_to_date = bring_up_to_date
        self._is_persistent = is_persistent
        self._dead_letters = dead_letters
        self._uniform = uniform
        # None until the file was asked: a process that ended before all was compared may have left such operations.
        self._amending: bool | None = None
        # The last number that was queued when all had been compared.
        self._last_before: int | None = None
        self._backoff = Backoff(first_seconds=0.2, cap_seconds=5.0)
        self._failures = 0

    def rewound(self) -> None:
        """Something that Postgres had confirmed has come into doubt, and is perhaps out of it by the next round."""
        self._amending, self._last_before = True, None

    @property
    def users_left(self) -> int:
        """How many users' copies are still to be compared."""
        return len(self._past.users_in_doubt())

    async def run_once(self) -> float | None:
        """Compare what is in doubt. None when nothing is any more."""
        if self._amending is None:
            self._amending = self._is_in_doubt()
        await self._repeat_erasures()
        for user_id in self._past.users_in_doubt():
            if self._is_persistent(user_id):
                await self._bring_up_to_date(user_id)
        self._failures = 0
        if self._is_in_doubt():
            return _LOOK_AGAIN_SECONDS
        if not self._amending:
            return None
        first, last = self._past.queued() or (None, 0)
        if self._last_before is None:
            self._last_before = last
        # Asked before: what is decided from now on is looked for the next time.
        self._amending = first is not None and first <= self._last_before
        await self._retry_for_missing_rows()
        return _AMEND_SECONDS if self._amending else None

    def _is_in_doubt(self) -> bool:
        return bool(self._past.erasures_in_doubt()) or any(map(self._is_persistent, self._past.users_in_doubt()))

    async def _retry_for_missing_rows(self) -> None:
        """Queue again what died for want of a row that had been lost: behind that row, which is queued by now."""
        letters = await self._dead_letters.list()
        wanting = [letter.operation.op_id for letter in letters if letter.sqlstate == _ROW_MISSING]
        if wanting:
            await self._dead_letters.retry(wanting)

    def failed(self, error: HybridMemoryError) -> float:  # noqa: ARG002 - every error means: not now
        """Seconds to leave Postgres alone; the doubt stays."""
        self._failures += 1
        return self._backoff.pause(self._failures, self._uniform)

    async def _repeat_erasures(self) -> None:
        erasures = self._past.erasures_in_doubt()
        heads = {head.user_id: head for head in await self._feed.heads(list(erasures))} if erasures else {}
        for user_id, erased_rev in erasures.items():
            head = heads.get(user_id)
            if head is not None and head.erased_rev >= erased_rev:
                await self._past.erasure_stands(user_id)
            else:
                await self._past.erase_again(user_id)
