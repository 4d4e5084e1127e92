"""Reads that must not be too old: a copy not confirmed lately is brought up to date first, or the read refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from hybrid_memory.errors import TooStale

# A difference takes milliseconds, a Postgres that is silent is given up by then.
DEADLINE_SECONDS = 5.0


class Recency:
    """Brings a copy up to date for who reads with `max_staleness`; many who ask at once share one question."""

    def __init__(
        self,
        *,
        confirmed_at: Callable[[str], float | None],
        bring_up_to_date: Callable[[str], Awaitable[bool]],
        monotonic: Callable[[], float],
    ) -> None:
        self._confirmed_at = confirmed_at
        self._bring_up_to_date = bring_up_to_date
        self._monotonic = monotonic

    async def ensure(self, user_id: str, seconds: float) -> None:
        """Return when the copy is what Postgres had at most so many seconds before this call.

        Raises `TooStale` when that cannot be had within five seconds, or at once when Postgres is known to be away;
        and `DurableTierError` for what a person must mend.
        """
        earliest = self._monotonic() - seconds
        if self._is_since(user_id, earliest):
            return
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                # Again when what was joined had been asked before: then it says nothing of now.
                while await self._bring_up_to_date(user_id):
                    if self._is_since(user_id, earliest):
                        return
        except TimeoutError:
            raise self._too_stale(user_id) from None
        raise self._too_stale(user_id)

    def _is_since(self, user_id: str, earliest: float) -> bool:
        confirmed = self._confirmed_at(user_id)
        return confirmed is not None and confirmed >= earliest

    def _too_stale(self, user_id: str) -> TooStale:
        confirmed = self._confirmed_at(user_id)
        return TooStale(age=None if confirmed is None else timedelta(seconds=self._monotonic() - confirmed))
