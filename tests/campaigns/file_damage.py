"""The local file damaged at random while nobody has it open: every acknowledged write is saved or named as lost."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from hybrid_memory import HybridMemoryManager
from hybrid_memory.events import FileQuarantined, NumbersMissing
from hybrid_memory.sqlite.salvage import PAGE_BYTES
from tests.campaigns.tally import Tally
from tests.support.beneath import tiers
from tests.support.images import FILE, image, log_of
from tests.support.managers import FACT, Ears

WRITES = 60
DAMAGES = ("flip", "zero", "scramble", "cut", "mixed")


def run(*, seconds: float, seed: int) -> list[Tally]:
    """Damage images of one file for so long; a tally for each kind of damage."""
    return asyncio.run(_run(seconds, random.Random(seed)))


async def _run(seconds: float, chance: random.Random) -> list[Tally]:
    tallies = {kind: Tally(fault=f"local file: {kind}") for kind in DAMAGES}
    with tempfile.TemporaryDirectory(prefix="hm-damage-") as name:
        folder = Path(name)
        acked = await _images(folder, chance)
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            kind = chance.choice(DAMAGES)
            source = chance.choice(("in_file", "in_log"))
            await _damage_once(folder, source, kind, acked, tallies[kind], chance)
    return list(tallies.values())


async def _images(folder: Path, chance: random.Random) -> dict[int, str]:
    """What a process leaves that is killed with its queue full, once with all in the file and once in the log."""
    async with HybridMemoryManager.open(postgres="off", data_dir=folder / "first") as manager:
        for _ in range(WRITES):
            text = chance.randbytes(chance.randrange(10, 900)).hex()
            await manager.store_persistent_memory("ada", {"text": text}, FACT)
        acked = {one.seq: one.payload for one in tiers(manager).file.outbox.claim(after_seq=0, limit=WRITES)}
        image(folder / "first", folder / "in_log")
        await tiers(manager).file.database.cut_log()
        image(folder / "first", folder / "in_file")
    return acked


async def _damage_once(
    folder: Path, source: str, kind: str, acked: dict[int, str], tally: Tally, chance: random.Random
) -> None:
    left = folder / "left"
    shutil.copytree(folder / source, left)
    try:
        target = left / FILE if source == "in_file" else log_of(left)
        for one in ("flip", "zero", "scramble") if kind == "mixed" else (kind,):
            damage(target, one, chance)
        tally.injected += 1
        tally.acked += len(acked)
        started = time.monotonic()
        ears = Ears()
        async with HybridMemoryManager.open(postgres="off", data_dir=left, observer=ears) as manager:
            tally.recovered_in(time.monotonic() - started)
            queued = {one.seq: one.payload for one in tiers(manager).file.outbox.claim(after_seq=0, limit=2 * WRITES)}
        named = {
            seq for finding in ears.all(FileQuarantined) for a, b in finding.unaccounted for seq in range(a, b + 1)
        }
        named |= {seq for finding in ears.all(NumbersMissing) for seq in range(finding.first_seq, finding.last_seq + 1)}
        tally.lost += len(acked.keys() - queued.keys() - named)
        tally.diverged += sum(acked[seq] != payload for seq, payload in queued.items()) + len(queued.keys() & named)
    finally:
        shutil.rmtree(left)


def damage(path: Path, kind: str, chance: random.Random) -> None:
    """Do something to a file that nobody has open."""
    size = path.stat().st_size
    at = chance.randrange(size)
    with path.open("r+b") as raw:
        match kind:
            case "flip":
                raw.seek(at)
                byte = raw.read(1)[0]
                raw.seek(at)
                raw.write(bytes([byte ^ 1 << chance.randrange(8)]))
            case "zero" | "scramble":
                start, length = at // PAGE_BYTES * PAGE_BYTES, chance.choice((512, PAGE_BYTES, 4 * PAGE_BYTES))
                length = min(length, size - start)
                raw.seek(start)
                raw.write(bytes(length) if kind == "zero" else chance.randbytes(length))
            case _:
                os.truncate(raw.fileno(), at)
