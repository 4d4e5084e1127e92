"""The types of the manager, the module's functions and the values they give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import assert_type

from hybrid_memory import (
    Condition,
    Digest,
    Health,
    Hit,
    HybridMemoryManager,
    InvalidInput,
    NodeId,
    Progress,
    Receipt,
    Settings,
    Status,
    UserMemory,
    Verdict,
    close_default,
    ensure_user_memories,
)
from hybrid_memory.checkpoints import SavedCheckpoint
from hybrid_memory.events import Event, Persisted
from hybrid_memory.graph import JsonValue, TransientNode


class OurManager(HybridMemoryManager):
    """Somebody's subclass: opening gives the subclass."""


def opening(folder: Path, observer: Callable[[Event], None]) -> None:
    assert_type(HybridMemoryManager.open(), AbstractAsyncContextManager[HybridMemoryManager])
    assert_type(OurManager.open(postgres="off"), AbstractAsyncContextManager[OurManager])
    HybridMemoryManager.open(dsn="postgresql://h/d", data_dir=folder, postgres="embedded", settings=Settings())
    HybridMemoryManager.open(persistent_users=lambda user: user == "ann", observer=observer)


async def sessions(manager: HybridMemoryManager, progress: Callable[[Progress], None]) -> None:
    assert_type(await manager.ensure_user_memories("ann", progress=progress), UserMemory)
    assert_type(manager.user("ann"), UserMemory)
    assert_type(await ensure_user_memories("ann"), UserMemory)
    await close_default()


async def writes(manager: HybridMemoryManager, node_id: NodeId, content: Mapping[str, JsonValue]) -> None:
    stored = await manager.store_persistent_memory("ann", {"a": [1, {"b": None}]}, "fact", tags={"x"}, summary="s")
    assert_type(stored, Receipt)
    assert_type(await manager.store_persistent_memory("ann", content, "fact", wait=0), Receipt)
    assert_type(await manager.promote("t", node_id, "ann"), Receipt)
    assert_type(await manager.persist_relationship("ann", node_id, node_id, "led_to", properties=content), Receipt)
    transient = manager.store_transient_memory("t", {"a": 1.5}, "fact", ttl=timedelta(hours=1))
    assert_type(transient, Awaitable[NodeId])
    assert_type(await transient, NodeId)
    assert_type(manager.transient_memories("t"), list[TransientNode])
    assert_type(await manager.drain(timedelta(seconds=1)), int)


async def reads(manager: HybridMemoryManager) -> None:
    found = await manager.retrieve_relevant("tea", user_id="ann", context_types=("fact",), limit=5, min_relevance=0.5)
    assert_type(found, list[Hit])
    assert_type(await manager.durable_digest("ann"), Digest)
    health = await manager.health()
    assert_type(health, Health)
    assert_type(health.condition, Condition)
    assert_type(health.causes, tuple[str, ...])


async def receipts(receipt: Receipt) -> None:
    assert_type(receipt.op_id, str)
    assert_type(receipt.node_id, NodeId)
    assert_type(receipt.status, Status)
    assert_type(receipt.rev, int | None)
    assert_type(receipt.verdict, Verdict | None)
    assert_type(await receipt.durable(), Receipt)
    assert_type(await receipt.durable(timedelta(seconds=1)), Receipt)
    assert_type(await receipt.durable(timeout=0.5), Receipt)


async def checkpoints(manager: HybridMemoryManager, state: dict[str, JsonValue]) -> None:
    await manager.checkpoints.save("t", "c", state, parent_id=None)
    found = await manager.checkpoints.load("t")
    assert_type(found, SavedCheckpoint | None)
    if found is not None:
        assert_type(found.state, dict[str, JsonValue])
    assert_type(await manager.checkpoints.list("t", limit=5), list[SavedCheckpoint])
    assert_type(await manager.checkpoints.delete("t", "c"), int)


def observing(event: Event) -> str:
    if isinstance(event, Persisted):
        assert_type(event.rev, int | None)
        assert_type(event.verdict, Verdict)
    return type(event).__name__


def errors(error: InvalidInput) -> None:
    assert_type(error.field, str)
    assert_type(error.code, str)
    assert_type(error.retryable, bool)
    assert_type(error.fix, str)
