"""What handles work with: one `Access` for all handles of a manager, and whether the manager behind them is open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

from hybrid_memory import validation
from hybrid_memory.barrier import Barrier
from hybrid_memory.clock import Clock, IdSource
from hybrid_memory.errors import Closed
from hybrid_memory.jsontext import encode
from hybrid_memory.ports import HotTier, Outbox
from hybrid_memory.preload import Preload
from hybrid_memory.receipts import ReceiptDesk
from hybrid_memory.recency import Recency
from hybrid_memory.settings import Settings


@dataclass(slots=True)
class Liveness:
    """Whether the manager behind handles is open, and for whom: the event loop that opened it."""

    loop: asyncio.AbstractEventLoop
    open: bool = True

    def check(self) -> None:
        """Raises `Closed` when it is not open, or the caller is in another event loop, thread or process."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            # No loop runs here, or this is a child that was forked from inside the loop.
            here = None
        if not self.open or here is not self.loop:
            raise Closed(
                "the manager is closed, or belongs to another event loop or process",
                fix="open a HybridMemoryManager here and use it inside its block",
            )


def _tags_text(tags: Iterable[str]) -> str | None:
    checked = validation.tags(tags)
    return encode(checked) if checked else None


class TagTexts:
    """Memories are tagged with the same few words again and again: the texts made last are kept."""

    def __init__(self) -> None:
        self._known = lru_cache(maxsize=1024)(_tags_text)

    def text(self, tags: Iterable[str]) -> str | None:
        """The JSON text of the tags, checked; None for none."""
        # What is not plain is never looked up: it may claim to equal what is.
        return self._known(cast("tuple[str, ...]", tags)) if _is_plain(tags) else _tags_text(tags)


def _is_plain(tags: object) -> bool:
    return type(tags) is tuple and all(type(tag) is str for tag in cast("tuple[object, ...]", tags))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What handles work with; one for all handles of a manager."""

    hot: HotTier
    outbox: Outbox
    receipts: ReceiptDesk
    preload: Preload
    barrier: Barrier
    recency: Recency
    clock: Clock
    ids: IdSource
    settings: Settings
    liveness: Liveness
    is_away: Callable[[], bool]
    tags: TagTexts = field(default_factory=TagTexts)
