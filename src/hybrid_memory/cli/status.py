"""`status`: how the managers on this data directory are, and what those that are gone have left."""

from __future__ import annotations

import argparse

from hybrid_memory.cli.outcome import Cell, Column, Line, Outcome, Section, Table, Tone, Toned
from hybrid_memory.cli.places import Place
from hybrid_memory.cli.slots import (
    Reply,
    ask_slots,
    chosen_slots,
    first_failure,
    number_in,
    object_in,
    seconds_in,
    text_in,
)
from hybrid_memory.cli.wording import counted, room, span
from hybrid_memory.graph import JsonValue

_TONES: dict[str, Tone] = {"ok": "good", "degraded": "warn", "failed": "bad"}


async def status(arguments: argparse.Namespace, place: Place) -> Outcome:
    """Ask every slot how it is."""
    numbers = chosen_slots(place, arguments.slot)
    replies = await ask_slots(place, numbers, "status")
    slots = [_slot(reply) for reply in replies]
    totals: dict[str, JsonValue] = {
        "running": sum(reply.owner == "running" for reply in replies),
        "gone": sum(reply.owner == "gone" for reply in replies),
        "queued": sum(number_in(object_in(slot, "health"), "queued") for slot in slots),
        "dead_letters": sum(number_in(object_in(slot, "health"), "dead_letters") for slot in slots),
    }
    return Outcome(
        data={"data_dir": str(place.data_dir), "slots": [*slots], "totals": totals},
        sections=_sections(place, slots, totals),
        failure=first_failure(replies),
    )


def _slot(reply: Reply) -> dict[str, JsonValue]:
    """A reply in which a file that we opened ourselves does not pass for a manager at work."""
    slot: dict[str, JsonValue] = {"pid": None, "condition": None, "health": None, **reply.as_json()}
    health = object_in(slot, "health")
    if reply.owner == "gone":
        slot["pid"] = None
        slot["condition"] = "gone"
        kept = ("users_held", "queued", "queued_bytes", "oldest_queued_seconds", "dead_letters", "file_bytes", "sqlite")
        slot["health"] = {name: health.get(name) for name in kept} if health else None
    elif health:
        slot["condition"] = health.get("condition")
    return slot


def _sections(place: Place, slots: list[dict[str, JsonValue]], totals: dict[str, JsonValue]) -> tuple[Section, ...]:
    if not slots:
        return (Line(text=f"No memory is kept in {place.data_dir} yet.", tone="dim"),)
    table = Table(
        title=f"Memory in {place.data_dir}",
        columns=(
            Column(name="slot"),
            Column(name="owner"),
            Column(name="condition"),
            Column(name="postgres", folds=True),
            Column(name="users"),
            Column(name="queued"),
            Column(name="oldest"),
            Column(name="drains in"),
            Column(name="dead"),
            Column(name="file"),
        ),
        rows=tuple(_row(slot) for slot in slots),
    )
    return (table, *_causes(slots), *_advice(slots, totals))


def _row(slot: dict[str, JsonValue]) -> tuple[Cell, ...]:
    health = object_in(slot, "health")
    pid = slot["pid"]
    condition = text_in(slot, "condition") or "silent"
    if slot["owner"] == "gone" and not health:
        condition = "unreadable"
    queued, dead = number_in(health, "queued"), number_in(health, "dead_letters")
    return (
        number_in(slot, "slot"),
        "gone" if slot["owner"] == "gone" else f"pid {pid}" if isinstance(pid, int) else "running",
        Toned(text=condition, tone=_TONES.get(condition, "dim" if condition == "gone" else "bad")),
        text_in(health, "postgres") or "-",
        number_in(health, "users_held"),
        Toned(text=f"{queued:,}", tone="warn" if queued and slot["owner"] == "gone" else "plain"),
        span(seconds_in(health, "oldest_queued_seconds")),
        span(seconds_in(health, "drain_seconds") if queued else None),
        Toned(text=f"{dead:,}", tone="bad" if dead else "plain"),
        room(number_in(health, "file_bytes")),
    )


def _causes(slots: list[dict[str, JsonValue]]) -> list[Section]:
    found: list[Section] = []
    for slot in slots:
        causes = object_in(slot, "health").get("causes")
        if isinstance(causes, list):
            found += [Line(text=f"slot {slot['slot']}: {cause}", tone="warn") for cause in causes]
    return found


def _advice(slots: list[dict[str, JsonValue]], totals: dict[str, JsonValue]) -> list[Section]:
    left = sum(number_in(object_in(slot, "health"), "queued") for slot in slots if slot["owner"] == "gone")
    advice: list[Section] = []
    if left:
        what = counted(left, "write waits in a file whose process is gone", "writes wait in files nobody holds")
        advice.append(Line(text=f"{what}: `hybrid-memory outbox drain`", tone="warn"))
    if totals["dead_letters"]:
        advice.append(Line(text="What Postgres would never take: `hybrid-memory dead-letters list`", tone="warn"))
    return advice
