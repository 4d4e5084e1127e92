"""Operations that no validator let through, put into the queue by hand."""

from __future__ import annotations

import sqlite3

import orjson

from hybrid_memory import HybridMemoryManager
from hybrid_memory.changes import Operation
from hybrid_memory.sqlite.rows import operation, queue_entry
from hybrid_memory.sqlite.salvage import OPERATION
from tests.support.beneath import tiers


async def poison(manager: HybridMemoryManager, op_id: str, **members: object) -> None:
    """Change members of a queued operation's payload beneath the validator."""

    def work(connection: sqlite3.Connection) -> None:
        row = connection.execute(f"select {OPERATION} from outbox where op_id = ?", (op_id,)).fetchone()
        entry = operation(row)
        changed = entry._replace(payload=orjson.dumps({**orjson.loads(entry.payload), **members}).decode())
        connection.execute(
            "update outbox set payload = ?, checksum = ? where op_id = ?",
            (changed.payload, queue_entry(changed)[-1], op_id),
        )

    await tiers(manager).file.database.write(work)


def queued(manager: HybridMemoryManager) -> list[Operation]:
    """What the queue holds."""
    return tiers(manager).file.outbox.claim(after_seq=0, limit=10_000)
