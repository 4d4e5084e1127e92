"""`dead-letters`: what Postgres would never take, kept in the local files until a person decides."""

from __future__ import annotations

import argparse

from hybrid_memory.cli.outcome import Cell, Column, Line, Outcome, Table, Toned, Usage
from hybrid_memory.cli.places import Place
from hybrid_memory.cli.slots import ask_slots, chosen_slots, first_failure, number_in, objects_in, text_in
from hybrid_memory.cli.wording import counted
from hybrid_memory.control import MOST_ROWS, Failure
from hybrid_memory.graph import JsonValue


async def list_dead_letters(arguments: argparse.Namespace, place: Place) -> Outcome:
    """All of them, oldest first, with the reason Postgres gave."""
    limit: int = arguments.limit
    numbers = chosen_slots(place, arguments.slot)
    replies = await ask_slots(place, numbers, "dead_letters_list", {"limit": min(limit, MOST_ROWS)})
    letters = [
        {"slot": reply.slot, **letter} for reply in replies for letter in objects_in(reply.answer.data, "letters")
    ][:limit]
    count = sum(number_in(reply.answer.data, "dead_letters") for reply in replies)
    table = Table(
        title=f"{counted(count, 'dead letter')}",
        columns=(
            Column(name="slot"),
            Column(name="operation"),
            Column(name="kind"),
            Column(name="user", folds=True),
            Column(name="died", folds=True),
            Column(name="reason", folds=True),
        ),
        rows=tuple(_row(letter) for letter in letters),
        empty="There are no dead letters.",
    )
    hint = Line(text="`hybrid-memory dead-letters retry OP_ID` queues one again, `discard OP_ID` drops it.", tone="dim")
    return Outcome(
        data={"dead_letters": count, "letters": [*letters]},
        sections=(table, hint) if letters and place.talk.is_terminal else (table,),
        failure=first_failure(replies),
    )


def _row(letter: dict[str, JsonValue]) -> tuple[Cell, ...]:
    return (
        number_in(letter, "slot"),
        text_in(letter, "op_id"),
        text_in(letter, "kind"),
        text_in(letter, "user_id"),
        text_in(letter, "died_at")[:19].replace("T", " "),
        Toned(text=text_in(letter, "reason"), tone="bad"),
    )


async def retry_dead_letters(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Queue them again."""
    return await _decide(arguments, place, call="dead_letters_retry", done="queued again")


async def discard_dead_letters(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Drop them for good."""
    return await _decide(arguments, place, call="dead_letters_discard", done="discarded")


async def _decide(arguments: argparse.Namespace, place: Place, *, call: str, done: str) -> Outcome:
    named: list[str] = arguments.op_ids
    if bool(named) == bool(arguments.all):
        raise Usage("give operation ids, or --all", fix="`hybrid-memory dead-letters list` shows the ids")
    op_ids: JsonValue = None if arguments.all else [*named]
    replies = await ask_slots(place, chosen_slots(place, arguments.slot), call, {"op_ids": op_ids})
    count = sum(number_in(reply.answer.data, "count") for reply in replies)
    failure = first_failure(replies)
    if failure is None and count < len(set(named)):
        missing = len(set(named)) - count
        failure = Failure(
            code="not_found",
            message=f"{counted(missing, 'operation is', 'operations are')} not among the dead letters",
            fix="`hybrid-memory dead-letters list` shows the ids",
        )
    return Outcome(
        data={"count": count, "slots": [reply.as_json() for reply in replies]},
        sections=(Line(text=f"{counted(count, 'dead letter')} {done}.", tone="good" if count else "dim"),),
        failure=failure,
    )
