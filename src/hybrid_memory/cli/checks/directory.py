"""The data directory: who may read it, what kind of disk it is on, and what lies in its slots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hybrid_memory.cli.checks.finding import Finding, fail, ok, warn
from hybrid_memory.cli.places import Place
from hybrid_memory.cli.slots import Reply, ask_slots, number_in, object_in
from hybrid_memory.cli.wording import counted
from hybrid_memory.sqlite.disks import NETWORK, UNSURE, file_system
from hybrid_memory.sqlite.slots import existing_slots, slot_path

_OTHERS: Final = 0o077


async def check_directory(place: Place) -> list[Finding]:
    """Look at the directory and at every slot in it."""
    directory = place.data_dir
    if not directory.is_dir():
        return [ok("data_dir", f"{directory} will be made by the first manager"), _disk(_nearest(directory))]
    findings = [_access(directory), _disk(directory)]
    if findings[0].state == "fail":
        return findings
    numbers = existing_slots(directory)
    findings.append(_files(directory, numbers))  # before they are opened, which closes them to others
    replies = await ask_slots(place, numbers, "status")
    findings += [_slots(replies), _left_behind(replies), _dead_letters(replies)]
    return findings


def _access(directory: Path) -> Finding:
    seen = directory.stat()
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return fail("data_dir", f"{directory} cannot be read and written", "run as its owner, or name another")
    if seen.st_uid != os.geteuid():
        return warn("data_dir", f"{directory} belongs to another user", "run as its owner")
    if seen.st_mode & _OTHERS:
        return fail("data_dir", f"{directory} is open to other users", f"chmod 700 {directory}")
    return ok("data_dir", f"{directory}, closed to others")


def _disk(directory: Path) -> Finding:
    kind = file_system(directory)
    if kind is None:
        return ok("file_system", "unknown on this platform; it must not be a network drive")
    if kind in NETWORK:
        return fail("file_system", f"{kind} is reached over a network: SQLite is not safe on it", "use a local disk")
    if kind.partition(".")[0] in UNSURE:
        return warn("file_system", f"{kind} stands between us and the disk", "use a local disk for what must last")
    return ok("file_system", kind)


def _nearest(directory: Path) -> Path:
    return next(parent for parent in (directory.resolve(), *directory.resolve().parents) if parent.exists())


def _files(directory: Path, numbers: list[int]) -> Finding:
    names = [slot_path(directory, number) for number in numbers]
    open_ones = [path.name for path in names if path.stat().st_mode & _OTHERS]
    if open_ones:
        return fail("files", f"open to other users: {', '.join(open_ones)}", f"chmod 600 {directory}/slot-*")
    return ok("files", f"{counted(len(names), 'file')}, closed to others" if names else "none yet")


def _slots(replies: list[Reply]) -> Finding:
    broken = [reply for reply in replies if reply.answer.failure is not None]
    if broken:
        told = "; ".join(f"slot {one.slot}: {one.answer.failure.message}" for one in broken if one.answer.failure)
        first = broken[0].answer.failure
        return fail("slots", told, first.fix if first is not None else "")
    sick = [one.slot for one in replies if object_in(one.answer.data, "health").get("condition") == "failed"]
    if sick:
        return fail("slots", f"the manager of slot {sick[0]} has failed", "see its log; start that process again")
    running = sum(reply.owner == "running" for reply in replies)
    return ok("slots", f"{running} held by running processes, {len(replies) - running} by nobody")


def _left_behind(replies: list[Reply]) -> Finding:
    left = sum(_count(reply, "queued") for reply in replies if reply.owner == "gone")
    if left:
        what = counted(left, "write waits", "writes wait")
        return warn("left_behind", f"{what} in files whose process is gone", "hybrid-memory outbox drain")
    return ok("left_behind", "nothing waits in files whose process is gone")


def _dead_letters(replies: list[Reply]) -> Finding:
    dead = sum(_count(reply, "dead_letters") for reply in replies)
    if dead:
        what = counted(dead, "operation waits", "operations wait")
        return warn("dead_letters", f"{what} for a decision", "hybrid-memory dead-letters list")
    return ok("dead_letters", "none")


def _count(reply: Reply, name: str) -> int:
    return number_in(object_in(reply.answer.data, "health"), name)
