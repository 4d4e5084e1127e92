"""`outbox`: what waits for Postgres, in every process on this data directory and in files nobody holds."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hybrid_memory.cli.outcome import Cell, Column, Line, Outcome, Table
from hybrid_memory.cli.places import Place, held_up
from hybrid_memory.cli.slots import (
    Reached,
    Reply,
    ask_slots,
    chosen_slots,
    first_failure,
    is_held,
    number_in,
    objects_in,
    seconds_in,
    text_in,
    with_slots,
)
from hybrid_memory.cli.wording import counted, room, span
from hybrid_memory.control import MOST_ROWS, Answer, Failure
from hybrid_memory.graph import JsonValue

# How often the bar moves.
_STEP_SECONDS: Final = 0.5


async def list_outbox(arguments: argparse.Namespace, place: Place) -> Outcome:
    """What is queued, slot by slot, in order of acceptance."""
    limit: int = arguments.limit
    replies = await ask_slots(
        place,
        chosen_slots(place, arguments.slot),
        "outbox_list",
        {"limit": min(limit, MOST_ROWS), "user_id": arguments.user},
    )
    operations = [
        {"slot": reply.slot, **operation}
        for reply in replies
        for operation in objects_in(reply.answer.data, "operations")
    ][:limit]
    queued = sum(number_in(reply.answer.data, "queued") for reply in replies)
    table = Table(
        title=f"{counted(queued, 'operation')} queued",
        columns=(
            Column(name="slot"),
            Column(name="seq"),
            Column(name="kind"),
            Column(name="user", folds=True),
            Column(name="entity", folds=True),
            Column(name="size"),
            Column(name="waits"),
        ),
        rows=tuple(_row(operation) for operation in operations),
        empty="Nothing is queued.",
    )
    return Outcome(
        data={"queued": queued, "operations": [*operations], "slots": [_queue_of(reply) for reply in replies]},
        sections=(table,),
        failure=first_failure(replies),
    )


def _row(operation: dict[str, JsonValue]) -> tuple[Cell, ...]:
    accepted = datetime.fromisoformat(text_in(operation, "accepted_at"))
    return (
        number_in(operation, "slot"),
        str(operation["seq"]),
        text_in(operation, "kind"),
        text_in(operation, "user_id"),
        text_in(operation, "entity_id"),
        room(number_in(operation, "bytes")),
        span((datetime.now(UTC) - accepted).total_seconds()),
    )


def _queue_of(reply: Reply) -> dict[str, JsonValue]:
    return {name: value for name, value in reply.as_json().items() if name != "operations"}


async def retry_outbox(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Have every running manager try Postgres now. Nobody can be woken in a file that nobody holds."""
    numbers = chosen_slots(place, arguments.slot)
    running = [number for number in numbers if is_held(place, number)]
    replies = await ask_slots(place, running, "outbox_retry")
    woken = {reply.slot for reply in replies if reply.answer.failure is None}
    slots: list[dict[str, JsonValue]] = [{**reply.as_json(), "woken": reply.slot in woken} for reply in replies]
    gone = [number for number in numbers if number not in running]
    slots.extend({"slot": number, "owner": "gone", "woken": False, "error": None} for number in gone)
    said = f"Woke {counted(len(woken), 'manager')}; Postgres is tried at once, or when the pause after a failure ends."
    sections = [Line(text=said if woken else "No manager is running.")]
    if gone:
        what = counted(len(gone), "file has no process", "files have no process")
        sections.append(Line(text=f"{what}: `hybrid-memory outbox drain` carries its queue", tone="dim"))
    return Outcome(
        data={"woken": len(woken), "slots": [*slots]}, sections=tuple(sections), failure=first_failure(replies)
    )


async def drain_outbox(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Carry what is queued to Postgres, opening the files that nobody holds, and wait until it is done."""
    numbers = chosen_slots(place, arguments.slot)
    until = time.monotonic() + arguments.within
    with _bar(place) as bar:
        task = bar.add_task("carrying the queues", total=None)
        left: dict[int, int] = {}
        most: dict[int, int] = {}
        seconds: dict[int, float | None] = {}

        def moved(slot: int, queued: int, takes: float | None) -> None:
            left[slot], seconds[slot] = queued, takes
            most[slot] = max(most.get(slot, 0), queued)
            total = sum(most.values())
            # They drain side by side: the slowest is waited for.
            longest = max((known for known in seconds.values() if known), default=None)
            about = "" if longest is None else f", about {span(longest)} left"
            done = total - sum(left.values())
            bar.update(task, total=total, completed=done, description=f"carrying the queues{about}")

        async with AsyncExitStack() as held:
            if any(not is_held(place, number) for number in numbers):
                # One server for all files that are opened, instead of one started and stopped for each.
                await held.enter_async_context(held_up(place))
            replies = await with_slots(place, numbers, lambda slot: _drain(slot, until, moved), carrying=True)
    return _drained(replies)


def _bar(place: Place) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=place.talk,
        transient=True,
        disable=not place.talk.is_terminal,
    )


async def _drain(slot: Reached, until: float, moved: Callable[[int, int, float | None], None]) -> Answer:
    """Drain one slot in steps, so that it is seen to move. The answer tells how many were carried and are left."""
    answer = await slot.ask("outbox_drain", {"within": 0.0})
    before = number_in(answer.data, "queued")
    while answer.failure is None and (left := number_in(answer.data, "queued")):
        moved(slot.number, left, seconds_in(answer.data, "drain_seconds"))
        seconds = min(_STEP_SECONDS, until - time.monotonic())
        if seconds <= 0:
            break
        if text_in(answer.data, "relay") == "off":
            # Without a Postgres nothing will ever move.
            break
        answer = await slot.ask("outbox_drain", {"within": seconds})
        await asyncio.sleep(0)
    if answer.failure is not None:
        return answer
    left = number_in(answer.data, "queued")
    takes = seconds_in(answer.data, "drain_seconds")
    moved(slot.number, left, takes)
    data: dict[str, JsonValue] = {**answer.data, "carried": max(0, before - left)}
    return Answer(data=data, failure=_why_left(left, text_in(answer.data, "relay"), takes))


def _why_left(left: int, relay: str, takes: float | None) -> Failure | None:
    """The failure that operations left in a queue stand for."""
    if not left:
        return None
    what = f"{counted(left, 'operation')} could not be carried in time"
    if relay == "off":
        return Failure(code="misconfigured", message=f"{what}: there is no Postgres", fix="give its DSN with --dsn")
    if relay in {"ok", "dead"}:
        longer = "give it longer with --within"
        if takes:
            longer += f": about {span(takes)} more at the present pace"
        return Failure(code="queue_not_empty", message=what, retryable=True, fix=longer)
    return Failure(
        code=relay,
        message=f"{what}: Postgres does not take them ({relay})",
        retryable=True,
        fix="`hybrid-memory doctor` says why",
    )


def _drained(replies: list[Reply]) -> Outcome:
    carried = sum(number_in(reply.answer.data, "carried") for reply in replies)
    left = sum(number_in(reply.answer.data, "queued") for reply in replies)
    failure = first_failure(replies)
    said = f"Carried {counted(carried, 'operation')}; "
    if left:
        line = Line(text=f"{said}{left:,} still queued.", tone="warn")
    elif failure is not None:
        line = Line(text=f"{said}not every file could be asked.", tone="warn")
    else:
        line = Line(text=f"{said}nothing is queued any more.", tone="good")
    return Outcome(
        data={"carried": carried, "left": left, "slots": [reply.as_json() for reply in replies]},
        sections=(line,),
        failure=failure,
    )
