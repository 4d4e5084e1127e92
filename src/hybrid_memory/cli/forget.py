"""`forget`: erase a user, or everybody, in Postgres and in every file of the data directory."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

from hybrid_memory import validation
from hybrid_memory.cli.outcome import Column, Line, Outcome, Refused, Section, Table, Usage
from hybrid_memory.cli.places import Place, administration, held_up
from hybrid_memory.cli.slots import Reached, Reply, ask_slots, first_failure, number_in, object_in, text_in, with_slots
from hybrid_memory.cli.wording import counted, printable
from hybrid_memory.control import Answer, Failure
from hybrid_memory.graph import JsonValue
from hybrid_memory.sqlite.slots import existing_slots

_LOOK_AGAIN_SECONDS: Final = 0.1
_EVERYBODY: Final = "everybody"


async def forget(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Ask, erase locally, and wait until Postgres has erased too."""
    if (arguments.user is None) == (not arguments.all):
        raise Usage("give a user, or --all")
    named: str | None = arguments.user
    numbers = existing_slots(place.data_dir)
    if not numbers and place.is_embedded and not place.has_cluster:
        return _outcome([], [])
    # Where no file is here yet the erasure still goes the one way there is: through a queue, in the first slot.
    numbers = numbers or [0]
    if named is None:
        _check_can_ask(yes=arguments.yes)
        users = await _everybody(place, numbers)
    else:
        users = [validation.user_id(named)]
    if not users:
        return _outcome([], [])
    if not arguments.yes:
        _ask(place, users, everybody=named is None)
    until = time.monotonic() + arguments.within
    async with held_up(place):
        replies = await with_slots(place, numbers, lambda slot: _erase(slot, users, until), carrying=True)
    return _outcome(users, replies)


async def _everybody(place: Place, numbers: Sequence[int]) -> list[str]:
    """Everybody whom Postgres or a local file knows, without those of whom nothing is left."""
    async with administration(place) as asked:
        known = {line.user_id for line in await asked.users() if not line.erased}
    replies = await ask_slots(
        place, [number for number in numbers if number in existing_slots(place.data_dir)], "users"
    )
    for reply in replies:
        held = reply.answer.data.get("users")
        known.update(user for user in (held if isinstance(held, list) else []) if isinstance(user, str))
    return sorted(known)


def _check_can_ask(*, yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise Refused("erasing cannot be undone, and there is no terminal to ask at", fix="give --yes")


def _ask(place: Place, users: Sequence[str], *, everybody: bool) -> None:
    """Get a yes. Raises `Refused` without one."""
    _check_can_ask(yes=False)
    if everybody:
        question = f"Erase all memory of {counted(len(users), 'user')} for good? Type {_EVERYBODY!r} to do it: "
        wanted = {_EVERYBODY}
    else:
        question = f"Erase all memory of {printable(users[0])!r} for good? [y/N] "
        wanted = {"y", "yes"}
    place.talk.print(question, end="", style="bold yellow", soft_wrap=True)
    if sys.stdin.readline().strip().lower() not in wanted:
        raise Refused("not erased: the answer was not yes", fix="ask again, or give --yes")


async def _erase(slot: Reached, users: Sequence[str], until: float) -> Answer:
    """Erase the users in one slot, then wait until Postgres has carried out what that queued."""
    removed: dict[str, JsonValue] = {}
    for user_id in users:
        answer = await slot.ask("forget", {"user_id": user_id})
        if answer.failure is not None:
            return Answer(data={"removed": removed, "queued": 0}, failure=answer.failure)
        for table, count in object_in(answer.data, "removed").items():
            removed[table] = number_in(removed, table) + (count if isinstance(count, int) else 0)
    waiting = list(users)
    relay = ""
    while True:
        states = [await slot.ask("queued", {"user_id": user_id}) for user_id in waiting]
        relay = text_in(states[0].data, "relay") if states else relay
        waiting = [user for user, state in zip(waiting, states, strict=True) if number_in(state.data, "queued")]
        if not waiting or relay == "off" or time.monotonic() > until:
            break
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    return Answer(data={"removed": removed, "queued": len(waiting)}, failure=_why_waiting(len(waiting), relay))


def _why_waiting(count: int, relay: str) -> Failure | None:
    # With no Postgres at all the file here was all there is.
    if not count or relay == "off":
        return None
    return Failure(
        code=relay if relay not in {"ok", "off", "dead", ""} else "unreachable",
        message="erased here, but not yet in Postgres: the erasure is queued, and carried when Postgres can be reached",
        retryable=True,
        fix="`hybrid-memory outbox drain` when Postgres is back",
    )


def _outcome(users: Sequence[str], replies: Sequence[Reply]) -> Outcome:
    failure = first_failure(replies)
    durable = failure is None and not any(number_in(reply.answer.data, "queued") for reply in replies)
    sections: list[Section] = []
    if not users:
        sections.append(Line(text="There is nobody to forget.", tone="dim"))
    else:
        sections.append(_table(replies))
        if failure is None:
            who = printable(users[0]) if len(users) == 1 else counted(len(users), "user")
            where = "in every file here, and in Postgres" if durable else "in every file here; there is no Postgres"
            sections.append(Line(text=f"Erased {who}: {where}.", tone="good"))
    return Outcome(
        data={
            "users": [*users],
            "durable": durable,
            "slots": [reply.as_json() for reply in replies],
        },
        sections=tuple(sections),
        failure=failure,
    )


def _table(replies: Sequence[Reply]) -> Table:
    rows: list[tuple[int, str, str, int]] = []
    for reply in replies:
        for name, count in object_in(reply.answer.data, "removed").items():
            if isinstance(count, int) and count:
                rows.append((reply.slot, reply.owner, name, count))
    return Table(
        title="Removed from the local files",
        columns=(Column(name="slot"), Column(name="owner"), Column(name="what"), Column(name="rows")),
        rows=tuple(rows),
        empty="No file here held anything of it.",
    )
