"""Reaching the files of a data directory: through the process that holds one, or by opening one that nobody holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, Literal, TypeVar

from hybrid_memory.cli.outcome import Refused
from hybrid_memory.cli.places import Place
from hybrid_memory.control import Answer, Desk, Failure, ask
from hybrid_memory.errors import HybridMemoryError, NotFound
from hybrid_memory.graph import JsonValue
from hybrid_memory.manager import HybridMemoryManager
from hybrid_memory.settings import Settings
from hybrid_memory.sqlite.slots import existing_slots, slot_path, try_slot

T = TypeVar("T")

Arguments = Mapping[str, JsonValue]
Ask = Callable[[str, Arguments], Awaitable[Answer]]
Owner = Literal["running", "gone"]

_FOR_EVER: Final = timedelta(days=36_500)
# Looking at a file must not tidy it up; and whoever asked has waited for the queue already.
_HANDS_OFF: Final = Settings(stale_thread_after=_FOR_EVER, receipts_kept=_FOR_EVER, drain_on_close=timedelta())
_NOTHING: Final[Arguments] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A slot that can be asked. `owner` says whether a process holds it or we opened it."""

    number: int
    owner: Owner
    ask: Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of asking one slot."""

    slot: int
    owner: Owner
    answer: Answer

    def as_json(self) -> dict[str, JsonValue]:
        """The reply with the slot it is of."""
        failure = self.answer.failure
        error = None if failure is None else failure.as_json()
        return {"slot": self.slot, "owner": self.owner, **self.answer.data, "error": error}


def chosen_slots(place: Place, only: int | None) -> list[int]:
    """The slots there are, or the one asked for. Raises `NotFound`."""
    there = existing_slots(place.data_dir)
    if only is None:
        return there
    if only not in there:
        raise NotFound(f"the data directory has no slot {only}", fix="`hybrid-memory status` lists them")
    return [only]


def is_held(place: Place, number: int) -> bool:
    """Whether a process holds the slot. Raises `StorageFailed`."""
    if not place.data_dir.is_dir():
        return False
    slot = try_slot(place.data_dir, number)
    if slot is None:
        return True
    slot.release()
    return False


@asynccontextmanager
async def reached(place: Place, number: int, *, carrying: bool) -> AsyncGenerator[Reached]:
    """A slot for the length of the block. One that nobody holds is opened, with its Postgres only if `carrying`."""
    if is_held(place, number):
        path = slot_path(place.data_dir, number).with_suffix(".sock")
        yield Reached(number=number, owner="running", ask=partial(ask, path))
        return
    if carrying and place.dsn is None and place.admin_dsn is not None:
        # Without this the queue would go to the data directory's own Postgres instead of the one that was named.
        raise Refused(
            "the application's DSN is needed to carry the queue of a process that is gone",
            fix="give it with --dsn or HYBRID_MEMORY_DSN",
        )
    opened = HybridMemoryManager.open(
        slot=number,
        data_dir=place.data_dir,
        dsn=place.dsn,
        postgres="auto" if carrying else "off",
        settings=_HANDS_OFF.model_copy(update={"ssl": place.ssl}),
    )
    async with opened as manager:
        yield Reached(number=number, owner="gone", ask=partial(_ask_here, manager.desk))


async def _ask_here(desk: Desk, call: str, arguments: Arguments) -> Answer:
    try:
        return Answer(data=await desk.answer(call, arguments))
    except HybridMemoryError as error:
        return Answer(data={}, failure=Failure.of(error))


async def with_slots(
    place: Place, numbers: Sequence[int], work: Callable[[Reached], Awaitable[Answer]], *, carrying: bool = False
) -> list[Reply]:
    """Do something with each slot, all at the same time. One that cannot be reached is a reply with a failure."""
    return await asyncio.gather(*[_with_slot(place, number, work, carrying=carrying) for number in numbers])


async def _with_slot(
    place: Place, number: int, work: Callable[[Reached], Awaitable[Answer]], *, carrying: bool
) -> Reply:
    owner: Owner = "gone"
    try:
        async with reached(place, number, carrying=carrying) as slot:
            owner = slot.owner
            return Reply(slot=number, owner=owner, answer=await work(slot))
    except HybridMemoryError as error:
        return Reply(slot=number, owner=owner, answer=Answer(data={}, failure=Failure.of(error)))


async def ask_slots(place: Place, numbers: Sequence[int], call: str, arguments: Arguments = _NOTHING) -> list[Reply]:
    """Ask each slot the same."""
    return await with_slots(place, numbers, lambda slot: slot.ask(call, arguments))


def first_failure(replies: Sequence[Reply]) -> Failure | None:
    """The first failure among the replies, with the slot named."""
    for reply in replies:
        if reply.answer.failure is not None:
            failure = reply.answer.failure
            return Failure(
                code=failure.code,
                message=f"slot {reply.slot}: {failure.message}",
                retryable=failure.retryable,
                fix=failure.fix,
            )
    return None


def number_in(data: Mapping[str, JsonValue], name: str) -> int:
    """A count out of an answer; 0 where there is none."""
    value = data.get(name)
    return value if isinstance(value, int) else 0


def seconds_in(data: Mapping[str, JsonValue], name: str) -> float | None:
    """A duration out of an answer; None where there is none."""
    value = data.get(name)
    return float(value) if isinstance(value, int | float) else None


def text_in(data: Mapping[str, JsonValue], name: str) -> str:
    """A text out of an answer; empty where there is none."""
    value = data.get(name)
    return value if isinstance(value, str) else ""


def objects_in(data: Mapping[str, JsonValue], name: str) -> list[dict[str, JsonValue]]:
    """The objects of a list out of an answer."""
    value = data.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def object_in(data: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    """An object out of an answer; empty where there is none."""
    value = data.get(name)
    return value if isinstance(value, dict) else {}
