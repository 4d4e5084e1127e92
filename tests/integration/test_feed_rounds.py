"""What one round of the feed does with heads that were true when they were asked for and are not any more."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hybrid_memory import HybridMemoryManager
from hybrid_memory.clock import SystemClock
from hybrid_memory.feed import Feed
from hybrid_memory.messages import Cursor, Head
from hybrid_memory.postgres.change_feed import PostgresChangeFeed
from hybrid_memory.preload import continues
from tests.plugins.postgres import Database
from tests.support.beneath import tiers
from tests.support.managers import FACT, opened

SECONDS = 20.0


class LateHeads(PostgresChangeFeed):
    """Something happens between the question and its answer."""

    meanwhile: Callable[[Sequence[Head]], Awaitable[Sequence[Head]]]

    async def heads(self, user_ids: Sequence[str]) -> list[Head]:
        return list(await self.meanwhile(await super().heads(user_ids)))


@dataclass(slots=True)
class Round:
    """A feed of its own on a manager's file, and what it had done."""

    loaded: list[str] = field(default_factory=list[str])
    absorbed: list[str] = field(default_factory=list[str])
    confirmed: list[str] = field(default_factory=list[str])

    async def run(self, manager: HybridMemoryManager, heads: PostgresChangeFeed, user_id: str) -> None:
        async def absorb(cursor: Cursor) -> None:
            self.absorbed.append(cursor.user_id)

        async def load(loaded: str) -> bool:
            self.loaded.append(loaded)
            return True

        async def obey_erasure(erased: str, _head: Head) -> None:
            raise AssertionError(erased)

        def confirm(confirmed: str, _asked_at: float) -> None:
            self.confirmed.append(confirmed)

        feed = Feed(
            hot=tiers(manager).file.hot,
            feed=heads,
            open_users=lambda: [user_id],
            absorb=absorb,
            load=load,
            obey_erasure=obey_erasure,
            confirm=confirm,
            continues=continues,
            poll_seconds=1.0,
            monotonic=time.monotonic,
            uniform=lambda: 0.5,
        )
        await feed.run_once()


async def test_own_writes_decided_while_heads_are_on_their_way_are_no_reason_to_ask_again(
    postgres: Database, tmp_path: Path
) -> None:
    heads, one = LateHeads(postgres.settings, SystemClock()), Round()
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        await memory.store({"n": 1}, context_type=FACT, wait=SECONDS)

        async def store_more(found: Sequence[Head]) -> Sequence[Head]:
            stored = await memory.store({"n": 2}, context_type=FACT, wait=SECONDS)
            assert stored.rev == found[0].rev + 1
            return found

        heads.meanwhile = store_more
        await one.run(manager, heads, "ada")
    await heads.close()
    assert (one.loaded, one.absorbed, one.confirmed) == ([], [], ["ada"])


async def test_a_head_behind_what_the_copy_was_when_it_was_asked_for_is_looked_into(
    postgres: Database, tmp_path: Path
) -> None:
    heads, one = LateHeads(postgres.settings, SystemClock()), Round()
    async with opened(postgres, tmp_path) as manager:
        memory = await manager.ensure_user_memories("ada")
        for n in range(3):
            await memory.store({"n": n}, context_type=FACT, wait=SECONDS)

        async def lose_the_tail(found: Sequence[Head]) -> Sequence[Head]:
            await memory.store({"n": 4}, context_type=FACT, wait=SECONDS)
            return [replace(head, rev=head.rev - 1) for head in found]

        heads.meanwhile = lose_the_tail
        await one.run(manager, heads, "ada")
    await heads.close()
    assert (one.loaded, one.confirmed) == (["ada"], [])
