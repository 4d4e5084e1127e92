"""Reads across processes: a token says what one process has seen and stored, another waits until it has all of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from hybrid_memory.errors import DurableTierError, InvalidInput
from hybrid_memory.messages import Cursor
from hybrid_memory.ports import ChangeFeed, HotTier
from hybrid_memory.retry import Backoff

_NO_EPOCH: Final = "-"
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# A version, epoch, revision, client and number; eighteen digits stay below 2^63.
_TOKEN: Final = re.compile(rf"1\.({_UUID}|{_NO_EPOCH})\.([0-9]{{1,18}})\.({_UUID})\.([0-9]{{1,18}})")
# What is waited for is mostly on its way.
_LOOKS: Final = Backoff(first_seconds=0.01, cap_seconds=0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """What a token says: the copy's epoch and revision, and the last own operation, 0 for none that is known of."""

    epoch: str | None
    rev: int
    client_id: str
    seq: int

    def __str__(self) -> str:
        return f"1.{self.epoch or _NO_EPOCH}.{self.rev}.{self.client_id}.{self.seq}"


class Barrier:
    """Makes tokens, and waits until the copy here has what another process's token speaks of."""

    def __init__(
        self,
        *,
        hot: HotTier,
        feed: ChangeFeed,
        client_id: str,
        cursor_seen: Callable[[str], Cursor | None],
        last_accepted_of: Callable[[str], int],
        bring_up_to_date: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._hot = hot
        self._feed = feed
        self._client_id = client_id
        self._cursor_seen = cursor_seen
        self._last_accepted_of = last_accepted_of
        self._bring_up_to_date = bring_up_to_date

    def token(self, user_id: str) -> str:
        """All of the user that is seen here now, and all that this process has stored for the user."""
        # As reads see the file, which may be ahead of what is known here: else the token left out what was just read.
        cursor = self._cursor_seen(user_id)
        epoch, rev = (None, 0) if cursor is None else (cursor.epoch, cursor.rev)
        return str(
            _Point(epoch=epoch, rev=rev, client_id=self._client_id, seq=self._last_accepted_of(user_id)),
        )

    async def wait(self, user_id: str, token: object, seconds: float) -> bool:
        """Whether the copy here had all of it in time. Raises `InvalidInput` for what is no token of this user."""
        point = _parse(token)
        try:
            async with asyncio.timeout(seconds):
                await self._follow(user_id, point, max(point.rev, await self._carried(user_id, point)))
        except TimeoutError:
            return False
        return True

    async def _carried(self, user_id: str, point: _Point) -> int:
        """A revision with which Postgres has all that the token's maker had stored."""
        if point.client_id == self._client_id or point.seq == 0:
            # Our own writes are in our copy anyway.
            return 0
        looks = 0
        while True:
            looks += 1
            try:
                head = await self._feed.head_for(user_id, point.client_id)
            except DurableTierError as error:
                if not error.retryable:
                    raise
            else:
                _check_epoch(point, head.epoch)
                if head.done_seq >= point.seq:
                    return head.rev
            await asyncio.sleep(_LOOKS.ceiling(looks))

    async def _follow(self, user_id: str, point: _Point, rev: int) -> None:
        looks = 0
        while not self._has(user_id, point, rev):
            if await self._bring_up_to_date(user_id):
                cursor = self._hot.cursor(user_id)
                _check_epoch(point, None if cursor is None else cursor.epoch)
            else:
                looks += 1
                await asyncio.sleep(_LOOKS.ceiling(looks))

    def _has(self, user_id: str, point: _Point, rev: int) -> bool:
        ours = point.client_id == self._client_id
        cursor = self._cursor_seen(user_id) if ours else self._hot.cursor(user_id)
        if cursor is None:
            return ours and point.epoch is None
        # What this process has seen and stored itself it has, also of a user who was never loaded.
        known = cursor.complete or ours
        return known and cursor.rev >= rev and point.epoch in (None, cursor.epoch)


def _check_epoch(point: _Point, epoch: str | None) -> None:
    if point.epoch not in (None, epoch):
        raise InvalidInput("token", "is another user's, or from before the user's history was rewritten")


def _parse(token: object) -> _Point:
    if type(token) is not str:
        raise InvalidInput("token", "must be a str")
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise InvalidInput("token", "is no token that `UserMemory.token` made")
    epoch, rev, client_id, seq = found.groups()
    return _Point(epoch=None if epoch == _NO_EPOCH else epoch, rev=int(rev), client_id=client_id, seq=int(seq))
